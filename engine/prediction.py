"""What a model says of documents: logits, shares of attention, and a submission."""

import numpy as np
import torch
from tqdm import tqdm

from engine import distributed
from prepro import pairs_of
from utils import to_device

LARGEST = 2**27  # tokens x entities^2 of a batch (4 bytes each); beyond, it holds fewer documents


def batches(features, batch_size):
    """Lists of places in `features`, the longest documents first: batch_size of them, fewer of
    documents with so many entities that their pairs would fill the memory."""
    lengths = [len(feature["input_ids"]) for feature in features]
    chosen, most = [], 0
    for i in sorted(range(len(features)), key=lambda i: -lengths[i]):
        num_entities = len(features[i]["entity_pos"])
        most = max(most, num_entities)
        size = (len(chosen) + 1) * lengths[(chosen or [i])[0]] * most**2
        if chosen and (len(chosen) == batch_size or size > LARGEST):
            yield chosen
            chosen, most = [], num_entities
        chosen.append(i)
    if chosen:
        yield chosen


@torch.no_grad()
def predict_logits(model, features, make_batch, device, batch_size, amp, progress=None):
    """Logits [pairs, classes] (float32, on the CPU) and labels of all pairs, document by document
    in the order of `features`; and of each document the share of its pairs' attention on every
    sentence, [pairs, sentences of the longest in its batch], zeros beyond its own, if make_batch, a
    `collate`, gives sentences. Documents of like length share a batch. progress: title of a bar."""
    model.eval()
    parts = [None] * len(features)
    hidden = distributed.hides_bars() or progress is None
    bar = tqdm(total=len(features), desc=progress, unit="doc", leave=False, disable=hidden)
    for chosen in batches(features, batch_size):
        batch = make_batch([features[i] for i in chosen])
        # What is counted or kept on the CPU does not go to the GPU: the host would wait for it.
        labels = batch.pop("labels")
        counts = torch.bincount(batch["pairs"][:, 0], minlength=len(chosen)).tolist()
        with amp():
            output = model(**to_device(batch, device))
        logits, shares = output if "sentences" in batch else (output, labels[:, :0])
        split = (x.cpu().split(counts) for x in (logits, labels, shares))
        for i, pieces in zip(chosen, zip(*split, strict=True), strict=True):
            parts[i] = pieces
        bar.update(len(chosen))
    bar.close()
    logits, labels, shares = zip(*parts, strict=True)
    return torch.cat(logits), torch.cat(labels), list(shares)


def logits_of_each(model, features, *options):
    """The logits of each document, a list; options: of `predict_logits`."""
    logits = predict_logits(model, features, *options)[0]
    return logits.split([len(pairs_of(feature)) for feature in features])


def predicted_facts(predicted, features, rel2id):
    """Multi-hot predictions of all pairs -> (number of the document, of its pair, {title, h_idx,
    t_idx, r}) for each relation that is predicted."""
    name_of = {number: name for name, number in rel2id.items()}
    start = 0
    for i, feature in enumerate(features):
        pairs = pairs_of(feature)
        rows, classes = predicted[start : start + len(pairs), 1:].nonzero().T.tolist()
        for row, relation in zip(rows, classes, strict=True):
            head, tail = pairs[row].tolist()
            fact = {"title": feature["title"], "h_idx": head, "t_idx": tail}
            yield i, row, fact | {"r": name_of[relation + 1]}
        start += len(pairs)


def to_official(predicted, features, rel2id, shares=None, evidence_threshold=0.2):
    """Multi-hot predictions of all pairs -> a submission: a list of {title, h_idx, t_idx, r}, and
    with shares (see `predict_logits`) evidence: the sentences of more than the threshold."""
    submission = []
    above = [(x > evidence_threshold).numpy() for x in shares or ()]
    for i, row, fact in predicted_facts(predicted, features, rel2id):
        if shares is not None:
            fact["evidence"] = np.flatnonzero(above[i][row]).tolist()
        submission.append(fact)
    return submission
