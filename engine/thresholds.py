"""The thresholds that are best on dev: of relations, of evidence, of fusion."""

import numpy as np

from engine.prediction import predicted_facts
from evaluation import f1_score


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
    f1 = f1_score(correct, predicted, gold)
    best = shifts[f1 == f1.max()]
    return float(best[np.abs(best).argmin()])


def best_evidence_threshold(predicted, features, rel2id, shares, gold):
    """The share of attention that a sentence has to exceed for the best evidence F1 of these
    predictions. gold: triple -> its evidence (`evaluation.gold_facts`)."""
    found, right = [], []
    for i, row, x in predicted_facts(predicted, features, rel2id):
        evidence = gold.get((x["title"], x["h_idx"], x["t_idx"], x["r"]), ())
        found += shares[i][row].tolist()
        right += [sentence in evidence for sentence in range(shares[i].shape[1])]
    total = sum(len(set(sentences)) for sentences in gold.values())
    # In the precision in which it is applied: a finer middle would be rounded to a share.
    found = np.array(found, dtype=np.float32)
    return best_shift(found[:, None], np.array(right)[:, None], total)


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
    f1 = f1_score(correct + more_correct, predicted + more_predicted, sum(map(len, gold)))
    return float(shifts[f1.argmax()])
