"""Documents -> relations, with a trained model: what predict.py, Python and spaCy users call."""

import math
from functools import partial
from itertools import islice

import numpy as np
import torch

from encoders.loading import check_precision, load_tokenizer, transformer_type, window_size
from engine.checkpoint import fetch, load_model
from engine.fusion import fuse_documents, fused_predictions
from engine.options import pick_device
from engine.prediction import batches, logits_of_each
from evaluation import PATTERNS, prediction_patterns
from inputs.files import META_DIR, InputError, read_json
from inputs.texts import new_documents, sentence_text
from losses import decode, threshold_of
from prepro import docred_features
from utils import autocast, collate, special_tokens, to_device

WINDOW = 16  # batches; so many documents are in memory at once, and sorted by length
SHOWN_SENTENCES = 3
MENTION_FIELDS = "name", "type", "sent_id", "pos", "start", "end"


def check_options(batch_size, max_seq_length, evidence_threshold, threshold_shift, fusion):
    """Raises InputError, by the name of predict.py's flag, for what no model can do."""
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
    """Documents -> relations, with a model and its tokenizer.

    device, precision: as in train.py. batch_size: documents at once. max_seq_length: longer
    documents are cut there; evidence_threshold: the share of a pair's attention above which a
    sentence is its evidence; None: the model's own. threshold_shift: added to the threshold of the
    relations, see losses.decode; train.py --tune_threshold finds it. fusion: also predict the
    pairs' evidence alone (engine/fusion.py; train.py --fusion finds its threshold, to which no
    shift is added). Raises InputError.
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
        config, encoder = model.config, model.model.config
        self.rel2id = config.label2id
        self.device, precision = pick_device(device, precision)
        self.model = model.to(self.device).eval()
        self.tokenizer = tokenizer
        self.loss_type, self.num_labels = config.loss_type, config.labels_per_pair
        self.max_seq_length = max_seq_length or config.max_seq_length
        self.evidence_threshold = evidence_threshold
        if evidence_threshold is None:
            self.evidence_threshold = config.evidence_threshold
        self.batch_size, self.threshold_shift, self.fusion = batch_size, threshold_shift, fusion
        if fusion and config.fusion_threshold is None:
            raise InputError(
                "--fusion: the model has no fusion_threshold; train.py --fusion finds it"
            )
        self.property_of = {number: name for name, number in self.rel2id.items()}
        self.names = read_json(META_DIR / "rel_info.json")
        check_precision(encoder, precision)
        self.autocast = autocast(self.device, precision)
        tokens = special_tokens(self.tokenizer, transformer_type(encoder))
        self.collate = partial(
            collate,
            tokens=(*tokens, self.tokenizer.pad_token_id),
            num_class=len(self.rel2id),
            size=window_size(encoder),
            sentences=True,
        )
        self.num_cut = 0  # documents that were longer than max_seq_length, so far

    @classmethod
    def from_pretrained(cls, name, **options):
        """name: a run folder or a model of the hub; options: as of the class."""
        folder = fetch(name)
        return cls(load_model(folder), load_tokenizer(folder), **options)

    def __call__(self, documents):
        """The record of one document, or the records of a list of documents:

        title      str
        relations  a list, by head, tail and class:
            head, tail  {entity: its place, name: of its first mention, mentions: name, type,
                        sent_id and pos of each; of a text's also start and end}
            relation    property, e.g. "P17"
            name        of the property
            score       how far its logit lies above the threshold (below, if negative, which needs
                        fusion or a shift)
            evidence    the sentences that show it: those with more of the pair's attention than
                        evidence_threshold, places
            sentences   the (at most three) that the pair attends to most: {sentence: its place,
                        weight: share of the pair's attention, text}. The rest of the attention
                        lies on other sentences and on the special tokens.

        and of a document with labels also

            correct     of each relation: whether it is one of them
        missed     the labels that were not found, as relations, and of each
            pattern     the pair's, of evaluation.PATTERNS: FN_CRK, FN_IRK, or else some other
                        relation was predicted

        Raises InputError at the first fault of a document, before any is predicted.
        """
        one = isinstance(documents, dict)
        documents = list(new_documents([documents] if one else documents, self.rel2id))
        records = [record for _, record in self.stream(documents)]
        return records[0] if one else records

    def stream(self, documents):
        """(document, record) for each of any number of validated documents in DocRED format, in
        their order; batches are made of documents of like length within a window."""
        documents = iter(documents)
        while window := list(islice(documents, WINDOW * self.batch_size)):
            yield from zip(window, self._predict(window), strict=True)

    def _predict(self, documents):
        features = docred_features(documents, self.tokenizer, self.max_seq_length, self.rel2id)
        largest = max(max(feature["input_ids"]) for feature in features)
        if largest >= (vocabulary := self.model.model.config.vocab_size):
            raise InputError(f"tokenizer: id {largest} is none of the encoder's {vocabulary}")
        self.num_cut += sum(f["sentence_bounds"][-1] > self.max_seq_length - 2 for f in features)
        records = [None] * len(documents)
        for chosen in batches(features, self.batch_size):
            parts = self._predict_batch(*([x[i] for i in chosen] for x in (documents, features)))
            for i, record in zip(chosen, parts, strict=True):
                records[i] = record
        return records

    @torch.no_grad()
    def _predict_batch(self, documents, features):
        batch = to_device(self.collate(features), self.device)
        labels, pairs = batch.pop("labels"), batch["pairs"]
        with self.autocast():
            logits, shares = self.model(**batch)
        predicted = decode(logits, self.loss_type, self.num_labels, self.threshold_shift) > 0
        if self.fusion:
            predicted = self._fuse(documents, logits.cpu(), shares.cpu(), pairs).to(self.device)
        threshold = threshold_of(logits, self.loss_type)
        facts = (predicted | labels)[:, 1:].nonzero()  # [K, 2]: pair, class - 1
        weights = shares[facts[:, 0]].cpu().numpy()  # [K, S]
        scores = (logits - threshold).cpu().numpy()
        labels, pairs, predicted = (x.cpu().numpy() for x in (labels, pairs, predicted))
        patterns = prediction_patterns(scores, labels, self.threshold_shift)
        if self.fusion:  # which decides otherwise than the scores of the document alone
            missed = prediction_patterns(scores, labels, np.inf)
            patterns = np.where(predicted.any(1), PATTERNS.index("FP"), missed)
        records = [_empty_record(document) for document in documents]
        for (row, number), weight in zip(facts.tolist(), weights, strict=True):
            number += 1
            name = self.property_of[number]
            doc, head, tail = pairs[row].tolist()
            document = documents[doc]
            relation = {
                "head": _entity(document, head),
                "tail": _entity(document, tail),
                "relation": name,
                "name": self.names.get(name, name),
                "score": round(float(scores[row, number]), 4),
                "evidence": np.flatnonzero(weight > self.evidence_threshold).tolist(),
                "sentences": _attended_sentences(document, weight),
            }
            if not predicted[row, number]:
                relation["pattern"] = PATTERNS[patterns[row]]
                records[doc]["missed"].append(relation)
                continue
            if "labels" in document:
                relation["correct"] = bool(labels[row, number])
            records[doc]["relations"].append(relation)
        return records

    def _fuse(self, documents, logits, shares, pairs):
        """What fusion predicts of these documents: multi-hot, [P, classes]."""
        counts = pairs[:, 0].bincount(minlength=len(documents)).tolist()
        options = self.loss_type, self.evidence_threshold, self._logits_of
        fused, _ = fuse_documents(documents, logits, shares.split(counts), *options)
        threshold = self.model.config.fusion_threshold
        return fused_predictions(fused, documents, logits.shape[1], threshold)

    def _logits_of(self, documents):
        """Logits of each of any documents, a list."""
        features = docred_features(documents, self.tokenizer, self.max_seq_length, self.rel2id)
        make = partial(self.collate, sentences=False)
        options = make, self.device, self.batch_size, self.autocast
        return logits_of_each(self.model, features, *options)


def _empty_record(document):
    record = {"title": document["title"], "relations": []}
    return record | {"missed": []} if "labels" in document else record


def _entity(document, place):
    mentions = document["vertexSet"][place]
    mentions = [{name: x[name] for name in MENTION_FIELDS if name in x} for x in mentions]
    return {"entity": place, "name": mentions[0]["name"], "mentions": mentions}


def _attended_sentences(document, shares):
    """The sentences with most of a pair's attention; shares [S]: of every sentence."""
    shares = np.round(shares.astype(np.float64), 4)
    order = np.argsort(-shares, kind="stable")[:SHOWN_SENTENCES].tolist()
    return [
        {"sentence": i, "weight": float(shares[i]), "text": sentence_text(document, i)}
        for i in order
        if shares[i] > 0
    ]
