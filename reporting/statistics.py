"""Whether the difference of two losses may be chance: a paired bootstrap."""

from functools import lru_cache

import numpy as np

from evaluation import f1_score, gold_facts, ign_f1_score, known_of, named_facts
from inputs.documents import read_predictions
from inputs.files import InputError

COMPARED_SCORES = "f1", "ign_f1", "macro_f1"


def document_counts(predictions, truth, rel2id, train=()):
    """Numbers of facts of every relation in every document, [documents, relations, 4] int: correct,
    predicted, gold, and correct ones that the training documents state, too. Their sums give the
    scores of `evaluate`. Raises KeyError for a prediction of a title that is not in `truth`.
    """
    documents = {document["title"]: document for document in truth}
    row = {title: i for i, title in enumerate(documents)}
    submitted = {(x["title"], x["h_idx"], x["t_idx"], x["r"]) for x in predictions}
    gold = gold_facts(truth)
    correct = submitted & gold.keys()
    counts = np.zeros((len(row), len(rel2id), 4), dtype=np.int64)
    known = known_of(correct, documents, named_facts(train))
    for column, keys in enumerate((correct, submitted, gold, known)):
        cells = [(row[title], rel2id[r]) for title, _, _, r in keys]
        np.add.at(counts[..., column], tuple(np.reshape(cells, (-1, 2)).astype(int).T), 1)
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
    `document_counts`. Macro F1 is the mean over the relations that have gold facts."""
    counts = np.asarray(counts)
    micro, each = (np.moveaxis(x, -1, 0) for x in (counts.sum(-2), counts))
    known = each[2] > 0
    macro = (f1_score(*each[:3]) * known).sum(-1) / np.maximum(known.sum(-1), 1)
    return np.stack([f1_score(*micro[:3]), ign_f1_score(*micro), macro], axis=-1)


@lru_cache(maxsize=4)  # many comparisons have as many documents and seeds
def resampled(documents, seeds, resamples, seed):
    """How often each resample draws each document and each seed: a list of pairs
    [B, documents], [B, seeds], each of at most 500 resamples, which limits the memory needed."""
    generator = np.random.default_rng(seed)

    def draw(number, size):
        drawn = generator.multinomial(number, np.full(number, 1 / number), size)
        return drawn.astype(np.uint16)

    parts = np.diff([*range(0, resamples, 500), resamples])
    return [(draw(documents, n), draw(seeds, n)) for n in parts]


def paired_bootstrap(
    first, second, resamples=10_000, seed=0, scores_of=scores_of_counts, names=COMPARED_SCORES
):
    """The difference of two losses, and its interval, from runs that were scored on the same
    documents.

    first, second: `document_counts` of the runs, [seeds, documents, relations, 4]; run i of the one
    is paired with run i of the other. Or other counts [seeds, documents, ...], of which `scores_of`
    makes the scores with these names. Each resample draws documents and, independently, seeds with
    replacement, the same for both losses (Owen 2007, The pigeonhole bootstrap), and averages the
    scores of the drawn seeds. With one seed the interval is over documents alone. With few seeds it
    is too narrow: of the variance between s seeds it contains (s - 1) / s.

    Returns for each name the difference first - second, its 95 % interval (low, high), and a
    two-sided p: twice the fraction of the resamples whose difference has the other sign, at least
    2 / (resamples + 1), at most 1.
    """
    both = np.stack([first, second])
    _, seeds, documents, *sizes = both.shape
    # Integers below 2**24 are exact in float32, in which products are twice as fast.
    dtype = np.float32 if documents * both.max(initial=0) < 2**24 else np.float64
    both = both.reshape(2, seeds, documents, -1).astype(dtype)

    def difference(of_documents, of_seeds):  # [B, documents], [B, seeds] -> [B, names]
        counts = of_documents.astype(dtype) @ both
        counts = counts.reshape(2, seeds, len(of_documents), *sizes).astype(np.float64)
        scores = scores_of(counts)  # [2, seeds, B, names]
        return np.einsum("bs,sbk->bk", of_seeds / seeds, scores[0] - scores[1])

    observed = difference(np.ones((1, documents)), np.ones((1, seeds)))[0]
    parts = resampled(documents, seeds, resamples, seed)
    drawn = np.concatenate([difference(*part) for part in parts])
    low, high = np.percentile(drawn, (2.5, 97.5), axis=0)
    other_side = 1 + np.minimum((drawn <= 0).sum(0), (drawn >= 0).sum(0))
    p = np.minimum(2 * other_side / (resamples + 1), 1)
    return {
        name: {"difference": observed[i], "low": low[i], "high": high[i], "p": p[i]}
        for i, name in enumerate(names)
    }
