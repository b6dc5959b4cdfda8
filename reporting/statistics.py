"""Whether the difference of two losses may be chance: intervals over documents and seeds."""

from functools import lru_cache

import numpy as np

from evaluation import f1_score, gold_facts, ign_f1_score, known_of, named_facts
from inputs.documents import read_predictions
from inputs.files import InputError

COMPARED_SCORES = "f1", "ign_f1", "macro_f1"
RESAMPLES = 10_000


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


@lru_cache(maxsize=4)
def drawn_documents(documents, resamples):
    """How often each resample draws each document, [1 + resamples, documents]; the first row has
    each once. All runs on as many documents get the same draws."""
    generator = np.random.default_rng(0)
    drawn = generator.multinomial(documents, np.full(documents, 1 / documents), resamples)
    return np.vstack([np.ones(documents), drawn]).astype(np.uint16)


def resampled_scores(counts, resamples=RESAMPLES, scores_of=scores_of_counts):
    """The scores of a run, and those of resamples of its documents, [1 + resamples, scores].

    counts: `document_counts` of the run, [documents, relations, 4], or other counts
    [documents, ...], of which `scores_of` makes the scores."""
    counts = np.asarray(counts)
    documents, *sizes = counts.shape
    # Integers below 2**24 are exact in float32, in which products are twice as fast.
    dtype = np.float32 if documents * counts.max(initial=0) < 2**24 else np.float64
    counts = counts.reshape(documents, -1).astype(dtype)
    parts = np.array_split(drawn_documents(documents, resamples), 1 + resamples // 500)  # memory
    sums = ((part.astype(dtype) @ counts).reshape(-1, *sizes) for part in parts)
    return np.concatenate([scores_of(part.astype(np.float64)) for part in sums])


def compare(first, second, documents, names=COMPARED_SCORES, paired=True, pooled=None):
    """The differences first - second of two losses, and their 95 % intervals.

    first, second: `resampled_scores` of their runs on the same documents, [seeds, 1 + resamples,
    scores]; documents: how many. The variance of a difference is that over the resamples, seeds
    averaged, plus s^2 / n of the n seeds: of the seeds' differences if the runs of a seed are
    paired, else of either loss; the interval is Student's, with Satterthwaite's degrees of freedom.
    With one seed it is over documents alone. pooled: see `pooled_variance`.

    Returns for each name in percent difference, low, high, documents (the standard error over
    documents alone) and, if pooled is given, the interval with it, a pair; and p, two-sided.
    """
    first, second = np.asarray(first), np.asarray(second)
    seeds, drawn = len(first), (first - second).mean(0)
    of_documents = drawn[1:].var(0, ddof=1), documents - 1
    sides = [(first - second)[:, 0]] if paired else [first[:, 0], second[:, 0]]
    own = [(x.var(0, ddof=1) / seeds, seeds - 1) for x in sides if seeds > 1]
    low, high, p = interval(drawn[0], [of_documents, *own])
    found = {"difference": drawn[0], "low": low, "high": high, "p": p}
    found["documents"] = np.sqrt(of_documents[0])
    if pooled:
        parts = [of_documents, (2 * pooled[0] / seeds, pooled[1])]
        found["pooled"] = np.stack(interval(drawn[0], parts)[:2], -1)
    found = {k: x if k == "p" else 100 * x for k, x in found.items()}
    return {name: {k: x[i].tolist() for k, x in found.items()} for i, name in enumerate(names)}


def pooled_variance(losses):
    """The variance over seeds, if it is the same for all losses, and its degrees of freedom; 0 if
    none has two seeds. losses: the scores of each one's seeds, [seeds, scores]."""
    known = [np.asarray(x) for x in losses if len(x) > 1]
    freedom = sum(len(x) - 1 for x in known)
    return freedom and (sum(((x - x.mean(0)) ** 2).sum(0) for x in known) / freedom, freedom)


def interval(differences, parts):
    """low, high and two-sided p of differences [scores]. parts: the parts of their variance
    [scores], each with its degrees of freedom."""
    variance = sum(x for x, _ in parts)
    freedom = variance**2 / np.maximum(sum(x**2 / n for x, n in parts), 1e-300)
    error = np.sqrt(variance)
    t = np.abs(differences) / np.maximum(error, 1e-150)
    p, limit = np.transpose([student(*x) for x in zip(t, np.maximum(freedom, 1), strict=True)])
    return differences - limit * error, differences + limit * error, p


def student(t, freedom, level=0.05):
    """Of Student's distribution the two-sided p of t, and the t whose p is the level."""
    # t = sqrt(freedom) tan(angle), where the angle's density goes as cos(angle)^(freedom - 1).
    edges = np.linspace(0, np.pi / 2, 20_001)
    density = np.cos((edges[1:] + edges[:-1]) / 2) ** (freedom - 1)
    beyond = np.append(density[::-1].cumsum()[::-1], 0) / density.sum()
    p = np.interp(np.arctan(t / np.sqrt(freedom)), edges, beyond)
    return p, np.sqrt(freedom) * np.tan(np.interp(-level, -beyond, edges))
