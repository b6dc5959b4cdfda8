"""Outputs of a model (engine/inference.py) -> predictions and scores: decode, score, tune, fuse.

`data` is engine.data.Data, `split` "dev" or "test"; outputs: one Output for each of its documents.
decoding: how logits become predictions: loss_type, num_labels (losses.decode) and
evidence_threshold (a sentence with more of a pair's attention is its evidence).
"""

import time

import numpy as np
import torch

import evaluation
from engine.fusion import facts_of, fuse_documents, fused_predictions
from losses import decode, margins, threshold_of
from prepro import pairs_of


def score(outputs, data, split, *, loss_type, num_labels, evidence_threshold, shift=0.0):
    """All scores of a split with the threshold shifted, and the submission."""
    logits, labels = stack(outputs)
    predicted = decode(logits, loss_type, num_labels, shift)
    scores, submission = score_predictions(predicted, outputs, data, split, evidence_threshold)
    threshold = threshold_of(logits, loss_type).numpy()
    patterns = evaluation.count_patterns(logits.numpy(), labels.numpy(), threshold, shift)
    # Where the threshold lies: how many relations score above it, in pairs that have one.
    above = (logits[:, 1:].numpy() - threshold > shift).sum(1)[labels[:, 1:].any(1).numpy()]
    above = {"above_threshold": float(above.mean()) if len(above) else 0.0}
    return scores | patterns | above, submission


def score_predictions(predicted, outputs, data, split, evidence_threshold):
    """The official scores of multi-hot predictions of all pairs, [P, classes], and the
    submission."""
    attention = [output.sentence_attention for output in outputs]
    submission = to_official(
        predicted, data.features[split], data.rel2id, attention, evidence_threshold
    )
    scores = evaluation.evaluate(
        submission, data.documents[split], data.train_facts, frequent=data.frequent
    )
    return scores, submission


def patterns_of_documents(outputs, loss_type):
    """How many pairs of each document have each of evaluation.PATTERNS, a list of lists."""
    counts = []
    for logits, labels, _ in outputs:
        threshold = threshold_of(logits, loss_type).numpy()
        found = evaluation.prediction_patterns(logits.numpy(), labels.numpy(), threshold)
        counts.append(np.bincount(found, minlength=len(evaluation.PATTERNS)).tolist())
    return counts


def stack(outputs):
    """Logits and labels of all pairs, document by document, [P, classes] each."""
    logits, labels, _ = zip(*outputs, strict=True)
    return torch.cat(logits), torch.cat(labels)


# --- Predictions and submissions --------------------------------------------------------------


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


def to_official(predicted, features, rel2id, sentence_attention=None, evidence_threshold=0.2):
    """Multi-hot predictions of all pairs -> a submission: a list of {title, h_idx, t_idx, r}, and
    with sentence_attention (of each document [P, S]) evidence: the sentences with more of a pair's
    attention than the threshold."""
    submission = []
    above = [(x > evidence_threshold).numpy() for x in sentence_attention or ()]
    for i, row, fact in predicted_facts(predicted, features, rel2id):
        if sentence_attention is not None:
            fact["evidence"] = np.flatnonzero(above[i][row]).tolist()
        submission.append(fact)
    return submission


# --- The thresholds that are best on dev ------------------------------------------------------


def tune(outputs, data, loss_type, num_labels):
    """The shift of the threshold with the best dev F1, and with it the threshold of evidence with
    the best dev evidence F1; the scores of every split with both, and the submissions.

    outputs: split -> its outputs, "dev" among them.
    """
    logits, labels = stack(outputs["dev"])
    above = margins(logits, loss_type, num_labels).numpy()
    gold = evaluation.gold_facts(data.documents["dev"])
    shift = best_shift(above, labels.numpy(), len(gold))
    predicted = decode(logits, loss_type, num_labels, shift)
    attention = [output.sentence_attention for output in outputs["dev"]]
    threshold = best_evidence_threshold(
        predicted, data.features["dev"], data.rel2id, attention, gold
    )
    found = {"shift": shift, "evidence_threshold": threshold}
    results, submissions = dict(found), {}
    for split, of_split in outputs.items():
        results[split], submissions[split] = score(
            of_split, data, split, loss_type=loss_type, num_labels=num_labels, **found
        )
    return results, submissions


def shift_curve(margins, labels):
    """Everything that a shift of the threshold can predict, from nothing to all that may be.

    margins, labels: [pairs, classes] arrays; a relation is predicted where its margin (see
    losses.margins; -inf: never) exceeds the shift. Returns (shifts, correct, predicted), [K + 1]
    each for K distinct margins: falling shifts, one for each distinct set of predictions, and how
    many relations it predicts and how many of these are right. A shift stands in the middle
    between the two margins that it parts, or at 0 where they lie on either side of it.
    """
    margins, labels = np.asarray(margins), np.asarray(labels) > 0
    possible = margins > -np.inf
    values, right = margins[possible], labels[possible]
    order = np.argsort(-values)
    values, right = values[order], right[order]
    last = np.flatnonzero(np.append(values[1:] != values[:-1], len(values) > 0))
    predicted = np.append(0, last + 1)  # equal margins fall together
    correct = np.append(0, right.cumsum()[last])
    levels = values[last]
    upper, lower = np.append(np.inf, levels), np.append(levels, -np.inf)
    upper, lower = upper.astype(values.dtype), lower.astype(values.dtype)
    with np.errstate(invalid="ignore"):  # inf - inf where no relation is possible
        shifts = lower / 2 + upper / 2
    shifts[0], shifts[-1] = lower[0], np.nextafter(upper[-1], lower[-1])
    shifts = np.where(shifts < upper, shifts, lower)  # neighbouring numbers have no middle
    shifts = np.where((lower <= 0) & (upper > 0), 0, shifts)
    return shifts, correct, predicted


def best_shift(margins, labels, gold):
    """The shift of the threshold with the best micro F1; of equal ones, the nearest to 0.

    gold: number of facts to be found (`len(gold_facts(documents))`), which may be more than
    `labels` has. Exact: no other shift gives a better F1. For the rest see `shift_curve`.
    """
    shifts, correct, predicted = shift_curve(margins, labels)
    f1 = evaluation.f1_score(correct, predicted, gold)
    best = shifts[f1 == f1.max()]
    return float(best[np.abs(best).argmin()])


def best_evidence_threshold(predicted, features, rel2id, sentence_attention, gold):
    """The part of a pair's attention that a sentence has to exceed for the best evidence F1 of
    these predictions. gold: triple -> its evidence (`evaluation.gold_facts`)."""
    found, right = [], []
    for i, row, x in predicted_facts(predicted, features, rel2id):
        evidence = gold.get((x["title"], x["h_idx"], x["t_idx"], x["r"]), ())
        found += sentence_attention[i][row].tolist()
        right += [sentence in evidence for sentence in range(sentence_attention[i].shape[1])]
    total = sum(len(set(sentences)) for sentences in gold.values())
    # In the precision in which it is applied: a finer middle would be rounded to a neighbour.
    found = np.array(found, dtype=np.float32)
    return best_shift(found[:, None], np.array(right)[:, None], total)


# --- Fusion -----------------------------------------------------------------------------------


def fuse(outputs, data, logits_of, loss_type, evidence_threshold):
    """The scores of every split together with pseudo documents (engine/fusion.py), with the
    threshold that is best on dev, and the submissions. logits_of: documents -> their logits, a list
    (Predictor.logits)."""
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
    """The score that an uncertain triple has to exceed for the best micro F1. fused: a
    `engine.fusion.Fused` a document; gold: of each a set of triples."""
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
