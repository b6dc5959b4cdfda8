"""The best shift of the threshold, and how sure the difference of two losses is."""

import numpy as np

from engine.prediction import predicted_facts
from evaluation import f1_score, gold_facts, ign_f1_score, known_of, named_facts
from inputs.documents import read_predictions
from inputs.files import InputError


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
    return best_shift(np.array(found)[:, None], np.array(right)[:, None], total)


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


COMPARED_SCORES = "f1", "ign_f1", "macro_f1"


def document_counts(predictions, truth, rel2id, train=()):
    """Numbers of facts of every relation in every document, [documents, relations, 4] int: correct,
    predicted, to be found, and correct ones that train knows (see `evaluate`, whose scores their
    sums give). Predictions of titles that are not in `truth` have no place here: KeyError.
    """
    train = train if isinstance(train, (set, frozenset)) else named_facts(train)
    documents = {document["title"]: document for document in truth}
    row = {title: i for i, title in enumerate(documents)}
    submitted = {(x["title"], x["h_idx"], x["t_idx"], x["r"]) for x in predictions}
    gold = gold_facts(truth)
    correct = submitted & gold.keys()
    counts = np.zeros((len(row), len(rel2id), 4), dtype=np.int64)
    for column, keys in enumerate((correct, submitted, gold, known_of(correct, documents, train))):
        places = [(row[title], rel2id[r]) for title, _, _, r in keys]
        np.add.at(counts[..., column], tuple(np.reshape(places, (-1, 2)).astype(int).T), 1)
    return counts


def read_counts(path, truth, rel2id, train=()):
    """`document_counts` of a submission's file. Raises InputError."""
    predictions = read_predictions(path, truth, rel2id)
    try:
        return document_counts(predictions, truth, rel2id, train)
    except KeyError as error:
        raise InputError(f"{path}: the test file has no document {error}") from None


def scores_of_counts(counts):
    """The COMPARED_SCORES, [..., 3], of numbers of facts [..., relations, 4], see
    `document_counts`. Macro F1 is the mean over the relations that have facts to be found."""
    counts = np.asarray(counts)
    micro, each = (np.moveaxis(x, -1, 0) for x in (counts.sum(-2), counts))
    known = each[2] > 0
    macro = (f1_score(*each[:3]) * known).sum(-1) / np.maximum(known.sum(-1), 1)
    return np.stack([f1_score(*micro[:3]), ign_f1_score(*micro), macro], axis=-1)


def paired_bootstrap(
    first, second, resamples=10_000, seed=0, scores_of=scores_of_counts, names=COMPARED_SCORES
):
    """How sure the difference of two losses is, whose runs were scored on the same documents.

    first, second: `document_counts` of the runs, [seeds, documents, relations, 4], run i of the one
    paired with run i of the other; or other counts [seeds, documents, ...] of which `scores_of`
    makes the scores with these names. Each resample draws documents and, apart from them, seeds
    with replacement, the same for both losses (Owen 2007, The pigeonhole bootstrap), and averages
    the scores of the drawn seeds. With one seed the interval is over documents alone.
    Of few seeds it is too narrow: of s seeds it has (s - 1) / s of the variance between them.

    Returns for each name the difference first - second, the 95 % interval (low, high) of
    the resampled ones, and a two-sided p: twice the share of them that lies on the other side of 0,
    at least 2 / (resamples + 1), at most 1.
    """
    both = np.stack([first, second]).astype(np.float64)
    _, seeds, documents, *sizes = both.shape
    both = both.reshape(2, seeds, documents, -1)
    generator = np.random.default_rng(seed)

    def draw(number, size):  # how often each of them is drawn, [size, number]
        return generator.multinomial(number, np.full(number, 1 / number), size)

    def difference(of_documents, of_seeds):  # [B, documents], [B, seeds] -> [B, names]
        counts = (of_documents @ both).reshape(2, seeds, len(of_documents), *sizes)
        scores = scores_of(counts)  # [2, seeds, B, names]
        return np.einsum("bs,sbk->bk", of_seeds / seeds, scores[0] - scores[1])

    observed = difference(np.ones((1, documents)), np.ones((1, seeds)))[0]
    parts = np.diff([*range(0, resamples, 500), resamples])  # few at a time, to spare memory
    drawn = np.concatenate([difference(draw(documents, n), draw(seeds, n)) for n in parts])
    low, high = np.percentile(drawn, (2.5, 97.5), axis=0)
    other_side = 1 + np.minimum((drawn <= 0).sum(0), (drawn >= 0).sum(0))
    p = np.minimum(2 * other_side / (resamples + 1), 1)
    return {
        name: {"difference": observed[i], "low": low[i], "high": high[i], "p": p[i]}
        for i, name in enumerate(names)
    }
