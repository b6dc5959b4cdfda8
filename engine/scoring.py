"""Outputs of a model (engine/inference.py) -> predictions and scores: decode, score, tune, fuse.

data: engine.data.Data; split: "dev" or "test"; outputs: one Output per document of the split;
loss_type, num_labels: see losses.decode; evidence_threshold: a sentence with more of a pair's
attention is its evidence.
"""

import time

import numpy as np
import torch

import evaluation
from engine.fusion import facts_of, fuse_documents, fused_predictions
from losses import decode, margins, threshold_of
from prepro import pairs_of


def score(outputs, data, split, *, loss_type, num_labels, evidence_threshold, shift=0.0):
    """All scores of a split, name -> number, and the submission. shift: see losses.decode."""
    logits, labels = stack(outputs)
    predicted = decode(logits, loss_type, num_labels, shift)
    scores, submission = score_predictions(predicted, outputs, data, split, evidence_threshold)
    threshold = threshold_of(logits, loss_type).numpy()
    patterns = evaluation.count_patterns(logits.numpy(), labels.numpy(), threshold, shift)
    # The mean number of relations above the threshold, over the pairs with a relation.
    above = (logits[:, 1:].numpy() - threshold > shift).sum(1)[labels[:, 1:].any(1).numpy()]
    above = {"above_threshold": float(above.mean()) if len(above) else 0.0}
    return scores | patterns | above, submission


def score_predictions(predicted, outputs, data, split, evidence_threshold):
    """The official scores of multi-hot predictions [P, classes] for the pairs of all documents, and
    the submission."""
    attention = [output.sentence_attention for output in outputs]
    submission = to_official(
        predicted, data.features[split], data.rel2id, attention, evidence_threshold
    )
    scores = evaluation.evaluate(
        submission, data.documents[split], data.train_facts, frequent=data.frequent
    )
    return scores, submission


def patterns_of_documents(outputs, loss_type):
    """For each document the number of pairs with each of evaluation.PATTERNS, a list of lists."""
    counts = []
    for logits, labels, _ in outputs:
        threshold = threshold_of(logits, loss_type).numpy()
        found = evaluation.prediction_patterns(logits.numpy(), labels.numpy(), threshold)
        counts.append(np.bincount(found, minlength=len(evaluation.PATTERNS)).tolist())
    return counts


def stack(outputs):
    """Logits and labels of the pairs of all documents, [P, classes] each."""
    logits, labels, _ = zip(*outputs, strict=True)
    return torch.cat(logits), torch.cat(labels)


# --- Predictions and submissions --------------------------------------------------------------


def predicted_facts(predicted, features, rel2id):
    """Yields (index of the document, index of the pair in it, {title, h_idx, t_idx, r}) for each
    predicted relation. predicted: multi-hot [P, classes] for the pairs of all documents."""
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


def to_official(predicted, features, rel2id, sentence_attention=None, evidence_threshold=0.2):
    """Multi-hot predictions [P, classes] for the pairs of all documents -> a submission: a list of
    {title, h_idx, t_idx, r}, with sentence_attention (for each document [P, S]) also evidence: the
    sentences with more of the pair's attention than the threshold."""
    submission = []
    above = [(x > evidence_threshold).numpy() for x in sentence_attention or ()]
    for i, row, fact in predicted_facts(predicted, features, rel2id):
        if sentence_attention is not None:
            fact["evidence"] = np.flatnonzero(above[i][row]).tolist()
        submission.append(fact)
    return submission


# --- The thresholds that are best on dev ------------------------------------------------------


def tune(outputs, data, *, loss_type, num_labels, evidence_threshold):
    """The shift of the threshold with the best dev F1, the evidence threshold that then has the
    best dev evidence F1 (where dev's labels name no evidence, the one that is given), and the
    scores of every split with both: a dict; and the submissions.

    outputs: split -> its outputs, with "dev".
    """
    logits, labels = stack(outputs["dev"])
    above = margins(logits, loss_type, num_labels).numpy()
    gold = evaluation.gold_facts(data.documents["dev"])
    shift = best_shift(above, labels.numpy(), len(gold))
    predicted = decode(logits, loss_type, num_labels, shift)
    attention = [output.sentence_attention for output in outputs["dev"]]
    if any(gold.values()):
        evidence_threshold = best_evidence_threshold(
            predicted, data.features["dev"], data.rel2id, attention, gold
        )
    found = {"shift": shift, "evidence_threshold": evidence_threshold}
    results, submissions = dict(found), {}
    for split, of_split in outputs.items():
        results[split], submissions[split] = score(
            of_split, data, split, loss_type=loss_type, num_labels=num_labels, **found
        )
    return results, submissions


def shift_curve(margins, labels):
    """All distinct sets of predictions that a shift of the threshold gives, the smallest first.

    margins, labels: [pairs, classes] arrays; a relation is predicted where its margin (see
    losses.margins; -inf: never) exceeds the shift. Returns (shifts, correct, predicted), [K + 1]
    each for K distinct margins: the falling shifts, one for each set, and the numbers of correct
    and of all relations in the set. A shift is the middle of the two margins that it separates, or
    0 where 0 lies between them.
    """
    margins, labels = np.asarray(margins), np.asarray(labels) > 0
    possible = margins > -np.inf
    values, right = margins[possible], labels[possible]
    order = np.argsort(-values)
    values, right = values[order], right[order]
    last = np.flatnonzero(np.append(values[1:] != values[:-1], len(values) > 0))
    predicted = np.append(0, last + 1)  # equal margins are predicted together
    correct = np.append(0, right.cumsum()[last])
    levels = values[last]
    upper, lower = np.append(np.inf, levels), np.append(levels, -np.inf)
    upper, lower = upper.astype(values.dtype), lower.astype(values.dtype)
    with np.errstate(invalid="ignore"):  # inf - inf where no relation is possible
        shifts = lower / 2 + upper / 2
    shifts[0], shifts[-1] = lower[0], np.nextafter(upper[-1], lower[-1])
    shifts = np.where(shifts < upper, shifts, lower)  # adjacent floats have no middle
    shifts = np.where((lower <= 0) & (upper > 0), 0, shifts)
    return shifts, correct, predicted


def best_shift(margins, labels, gold):
    """The shift of the threshold with the best micro F1 of all; of equal ones, the nearest to 0.

    margins, labels: see `shift_curve`. gold: the number of facts (`len(gold_facts(documents))`),
    which can be more than `labels` has.
    """
    shifts, correct, predicted = shift_curve(margins, labels)
    f1 = evaluation.f1_score(correct, predicted, gold)
    best = shifts[f1 == f1.max()]
    return float(best[np.abs(best).argmin()])


def best_evidence_threshold(predicted, features, rel2id, sentence_attention, gold):
    """The evidence threshold with the best evidence F1 of these predictions (see
    `predicted_facts`). gold: triple -> its evidence (`evaluation.gold_facts`)."""
    found, right = [], []
    for i, row, x in predicted_facts(predicted, features, rel2id):
        evidence = gold.get((x["title"], x["h_idx"], x["t_idx"], x["r"]), ())
        found += sentence_attention[i][row].tolist()
        right += [sentence in evidence for sentence in range(sentence_attention[i].shape[1])]
    total = sum(len(set(sentences)) for sentences in gold.values())
    # float32, in which it is applied: a middle in float64 could be rounded to one of the two.
    found = np.array(found, dtype=np.float32)
    return best_shift(found[:, None], np.array(right)[:, None], total)


# --- Fusion -----------------------------------------------------------------------------------


def fuse(outputs, data, logits_of, loss_type, evidence_threshold):
    """The scores of every split with pseudo documents (engine/fusion.py) and the threshold that is
    best on dev, a dict; and the submissions. outputs: split -> its outputs; logits_of: documents ->
    a list of logits (Predictor.logits)."""
    results, submissions, fused, counts, seconds = {}, {}, {}, {}, {}
    for split, of_split in outputs.items():
        started = time.perf_counter()
        fused[split], counts[split] = fuse_documents(
            data.documents[split], of_split, loss_type, evidence_threshold, logits_of
        )
        seconds[split] = round(time.perf_counter() - started, 1)
    gold = [facts_of(document, data.rel2id) for document in data.documents["dev"]]
    results["threshold"] = best_fusion_threshold(fused["dev"], gold)
    for split, of_split in outputs.items():
        predicted = fused_predictions(
            fused[split], data.documents[split], len(data.rel2id), results["threshold"]
        )
        results[split], submissions[split] = score_predictions(
            predicted, of_split, data, split, evidence_threshold
        )
        results[split] |= {"pseudo_documents": counts[split], "seconds": seconds[split]}
    return results, submissions


def best_fusion_threshold(fused, gold):
    """The threshold for the scores of uncertain triples with the best micro F1. fused: one
    `engine.fusion.Fused` per document; gold: a set of triples per document."""
    scores, right, correct, predicted = [], [], 0, 0
    for (certain, uncertain), truth in zip(fused, gold, strict=True):
        predicted += len(certain)
        correct += len(truth.intersection(certain))
        scores += uncertain.values()
        right += [triple in truth for triple in uncertain]
    found = shift_curve(np.array(scores)[:, None], np.array(right)[:, None])
    shifts, more_correct, more_predicted = found
    f1 = evaluation.f1_score(
        correct + more_correct, predicted + more_predicted, sum(map(len, gold))
    )
    return float(shifts[f1.argmax()])
