"""Documents -> relations with a trained model, for predict.py, Python and spaCy."""

import math
from itertools import islice

import numpy as np

from encoders.loading import load_tokenizer
from engine.device import pick_device
from engine.fusion import fuse_documents, fused_predictions
from engine.inference import Predictor
from engine.run_folder import fetch, load_model
from evaluation import ranked_right
from inputs.files import META_DIR, InputError, read_json
from inputs.span_documents import new_documents, sentence_text
from losses import decode, threshold_of
from prepro import pairs_of

WINDOW = 16  # batches whose documents are in memory at once, and sorted by length
SHOWN_SENTENCES = 3
MENTION_FIELDS = "name", "type", "sent_id", "pos", "start", "end"


def check_options(
    batch_size=8, max_seq_length=None, evidence_threshold=None, threshold_shift=0.0, fusion=False
):
    """Raises InputError, naming the flag of predict.py, for values that no model can have."""
    if batch_size < 1:
        raise InputError(f"--batch_size: {batch_size} is less than 1")
    if max_seq_length is not None and max_seq_length < 3:  # [CLS], a word, [SEP]
        raise InputError(f"--max_seq_length: {max_seq_length} is less than 3")
    if evidence_threshold is not None and not 0 <= evidence_threshold <= 1:
        raise InputError(f"--evidence_threshold: {evidence_threshold} is not in [0, 1]")
    if not math.isfinite(threshold_shift):
        raise InputError(f"--threshold_shift: {threshold_shift} is not a number")
    if fusion and threshold_shift:
        raise InputError("--threshold_shift: not with --fusion, whose threshold is its own")


class RelationExtractor:
    """Documents -> relations with a model and its tokenizer.

    device, precision: as in train.py. batch_size: in documents. max_seq_length: in tokens, longer
    documents are cut; evidence_threshold: a sentence with more of a pair's attention is its
    evidence; None for both: the model's own. threshold_shift: added to the threshold of the
    relations (losses.decode); train.py --tune_threshold finds it. fusion: also predict on pseudo
    documents (engine/fusion.py), with the threshold that train.py --fusion found and saved in the
    model. Raises InputError.
    """

    def __init__(
        self,
        model,
        tokenizer,
        device="auto",
        precision="auto",
        batch_size=8,
        max_seq_length=None,
        evidence_threshold=None,
        threshold_shift=0.0,
        fusion=False,
    ):
        check_options(batch_size, max_seq_length, evidence_threshold, threshold_shift, fusion)
        config = model.config
        if fusion and config.fusion_threshold is None:
            raise InputError(
                "--fusion: the model has no fusion_threshold; train.py --fusion finds it"
            )
        self.rel2id = config.label2id
        device, precision = pick_device(device, precision)
        self.max_seq_length = max_seq_length or config.max_seq_length
        self.predictor = Predictor(
            model.to(device),
            tokenizer,
            max_seq_length=self.max_seq_length,
            batch_size=batch_size,
            precision=precision,
        )
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size
        self.evidence_threshold = evidence_threshold
        if evidence_threshold is None:
            self.evidence_threshold = config.evidence_threshold
        self.threshold_shift, self.fusion = threshold_shift, fusion
        self.property_of = {number: name for name, number in self.rel2id.items()}
        self.names = read_json(META_DIR / "rel_info.json")
        self.num_cut = 0  # documents so far that were longer than max_seq_length

    @classmethod
    def from_pretrained(cls, name, **options):
        """name: a run folder or a model of the hub; options: those of the class."""
        folder = fetch(name)
        return cls(load_model(folder), load_tokenizer(folder), **options)

    def __call__(self, documents):
        """The record of one document, or the records of a list of documents:

        title      str
        relations  a list, in the order of the pairs, then of the class, of
            head, tail  {entity: index, name: of its first mention, mentions: name, type, sent_id
                        and pos of each; for a text also start and end}
            relation    property, e.g. "P17"
            name        of the property
            score       logit minus threshold (negative only with fusion or a shift)
            evidence    indices of the sentences with more of the pair's attention than
                        evidence_threshold
            sentences   the three that the pair attends to most: {sentence: index, weight: their
                        fraction of the pair's attention, text}. The rest lies on other sentences
                        and on the special tokens.

        A document with labels also has

            correct     for each relation: whether it is one of the labels
        missed     the labels that were not predicted, as relations, each with
            pattern     of the pair (evaluation.PATTERNS): FN_CRK, FN_IRK, or FP if another
                        relation was predicted

        Raises InputError at the first invalid document, before any is predicted.
        """
        one = isinstance(documents, dict)
        documents = list(new_documents([documents] if one else documents, self.rel2id))
        records = [record for _, record in self.stream(documents)]
        return records[0] if one else records

    def stream(self, documents):
        """Yields (document, record) for validated documents in DocRED format, in their order.
        Within WINDOW batches, documents of similar length are put into one batch."""
        documents = iter(documents)
        while window := list(islice(documents, WINDOW * self.batch_size)):
            yield from zip(window, self._predict(window), strict=True)

    def _predict(self, documents):
        features = self.predictor.features(documents)
        self.num_cut += sum(f["sentence_bounds"][-1] > self.max_seq_length - 2 for f in features)
        records = [None] * len(documents)
        for numbers, outputs in self.predictor.predict_batches(features):
            predicted = self._decode([documents[i] for i in numbers], outputs)
            for i, output, of_document in zip(numbers, outputs, predicted, strict=True):
                records[i] = self._record(documents[i], pairs_of(features[i]), output, of_document)
        return records

    def _decode(self, documents, outputs):
        """The predictions for each document, multi-hot [P, classes] bool."""
        config = self.model.config
        if not self.fusion:
            settings = config.loss_type, config.labels_per_pair, self.threshold_shift
            return [decode(output.logits, *settings) > 0 for output in outputs]
        fused, _ = fuse_documents(
            documents, outputs, config.loss_type, self.evidence_threshold, self.predictor.logits
        )
        predicted = fused_predictions(fused, documents, config.num_labels, config.fusion_threshold)
        return predicted.split([len(output.logits) for output in outputs])

    def _record(self, document, pairs, output, predicted):
        """The record of one document; pairs [P, 2], predicted [P, classes]."""
        logits, labels, attention = output
        facts = (predicted | labels)[:, 1:].nonzero()  # [K, 2]: pair, class - 1
        scores = (logits - threshold_of(logits, self.model.config.loss_type)).numpy()
        attention, labels, predicted = attention.numpy(), labels.numpy(), predicted.numpy()
        ranked = ranked_right(scores, labels)
        record = {"title": document["title"], "relations": []}
        if "labels" in document:
            record["missed"] = []
        for row, number in facts.tolist():
            number += 1
            name, (head, tail) = self.property_of[number], pairs[row].tolist()
            relation = {
                "head": _entity(document, head),
                "tail": _entity(document, tail),
                "relation": name,
                "name": self.names.get(name, name),
                "score": round(float(scores[row, number]), 4),
                "evidence": np.flatnonzero(attention[row] > self.evidence_threshold).tolist(),
                "sentences": _attended_sentences(document, attention[row]),
            }
            if not predicted[row, number]:
                unseen = "FN_CRK" if ranked[row] else "FN_IRK"
                relation["pattern"] = "FP" if predicted[row, 1:].any() else unseen
                record["missed"].append(relation)
                continue
            if "labels" in document:
                relation["correct"] = bool(labels[row, number])
            record["relations"].append(relation)
        return record


def _entity(document, number):
    mentions = document["vertexSet"][number]
    mentions = [{name: x[name] for name in MENTION_FIELDS if name in x} for x in mentions]
    return {"entity": number, "name": mentions[0]["name"], "mentions": mentions}


def _attended_sentences(document, attention):
    """The SHOWN_SENTENCES sentences with the largest part of a pair's attention [S]."""
    attention = np.round(attention.astype(np.float64), 4)
    order = np.argsort(-attention, kind="stable")[:SHOWN_SENTENCES].tolist()
    return [
        {"sentence": i, "weight": float(attention[i]), "text": sentence_text(document, i)}
        for i in order
        if attention[i] > 0
    ]
