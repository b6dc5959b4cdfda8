"""What the highest margins s_r - s_TH of a run (engine/margins.py) say with the documents: average
precision, patterns at any threshold, and where a threshold should lie."""

import numpy as np

from engine.margins import read_margins
from engine.run_folder import margins_file
from evaluation import PATTERNS, gold_facts
from inputs.files import InputError
from prepro import candidate_pairs
from reporting.statistics import drawn_documents

NEAR = 500  # local precision is of so many entries above a threshold, and as many below
RECALLS = np.linspace(0.02, 0.98, 97)  # where the curves of seeds are averaged
EDGES = np.arange(-8, 8.5, 0.5)  # of the margins in a reliability curve


def facts_of_pairs(documents, rel2id):
    """What `read_ranking` needs of the documents, a dict: the sorted entries that hold, `right`,
    each pair x relations + class id - 1; of each pair its `document` and how many relations hold,
    `holds`; of each document its number of `facts`."""
    document_of, right, relations = [], [], len(rel2id) - 1
    for i, document in enumerate(documents):
        pairs = candidate_pairs(document).tolist()
        row = {pair: len(document_of) + k for k, pair in enumerate(map(tuple, pairs))}
        facts = {(row.get((x["h"], x["t"])), rel2id[x["r"]] - 1) for x in document["labels"]}
        right += sorted(pair * relations + r for pair, r in facts if pair is not None)
        document_of += [i] * len(pairs)
    right = np.array(right, int)
    return {
        "right": right,
        "document": np.array(document_of),
        "holds": np.bincount(right // relations, minlength=len(document_of)),
        "facts": np.array([len(gold_facts([x])) for x in documents]),
    }


def read_ranking(run, split, gold):
    """The entries of a run's file of margins, the highest first, a dict: `margin`, `pair` and
    `right` of each; `ranked_right` of each related pair; `gold`, see `facts_of_pairs`; and the
    `shift` that is best on dev. None if the run has no such file. Raises InputError."""
    path = run["folder"] / margins_file(split)
    if gold is None or not path.exists():
        return None
    found, relations = read_margins(path), len(run["classes"]) - 1
    sizes = found["num_pairs"], found["num_relations"], len(found["ranked_right"])
    if sizes != (len(gold["holds"]), relations, (gold["holds"] > 0).sum()):
        raise InputError(f"{path}: not of the documents of {split}")
    order = np.argsort(-found["margin"], kind="stable")
    pair = found["pair"][order]
    return {
        "margin": found["margin"][order].astype(np.float32),
        "pair": pair,
        "right": np.isin(pair * relations + found["relation"][order] - 1, gold["right"]),
        "ranked_right": found["ranked_right"],
        "gold": gold,
        "shift": (run["tuned"] or {}).get("shift", 0.0),
    }


def from_the_top(ranking, weights):
    """Numbers of right and of all entries down to each distinct margin, [margins] each. weights:
    how often each document counts."""
    last = np.flatnonzero(np.diff(ranking["margin"], append=np.nan))
    each = weights[ranking["gold"]["document"][ranking["pair"]]].astype(float)
    return (each * ranking["right"]).cumsum()[last], each.cumsum()[last]


def average_precision(ranking, weights):
    """The sum over right entries, from the top, of the precision there, over the number of facts;
    entries of one margin together. An entry that was not kept adds 0. weights: as above."""
    right, entries = from_the_top(ranking, weights)
    precision = right / np.maximum(entries, 1)
    facts = weights @ ranking["gold"]["facts"]
    return (np.diff(right, prepend=0) * precision).sum() / max(facts, 1)


def resampled_precision(ranking, resamples=1000):
    """Average precision, and that of resamples of the documents, [1 + resamples, 1]."""
    weights = drawn_documents(len(ranking["gold"]["facts"]), resamples)
    return np.array([[average_precision(ranking, x)] for x in weights])


def patterns_at(ranking, shift):
    """The numbers of pairs of each document with each of PATTERNS, [documents, 5], the threshold
    being shifted."""
    holds, above = ranking["gold"]["holds"], ranking["margin"] > shift
    found, correct = (
        np.bincount(ranking["pair"][chosen], minlength=len(holds))
        for chosen in (above, above & ranking["right"])
    )
    ranked = np.zeros(len(holds), bool)
    ranked[holds > 0] = ranking["ranked_right"]
    same = (found > 0) & (found == correct) & (found == holds)
    patterns = np.select([same, (found == 0) & (holds == 0), found > 0, ranked], range(4), 4)
    counts = np.zeros((len(ranking["gold"]["facts"]), len(PATTERNS)), int)
    np.add.at(counts, (ranking["gold"]["document"], patterns), 1)
    return counts


def local_precision(ranking, shift):
    """The share of the entries beside a threshold that are right: the NEAR above and below it; NaN
    where no entry below it was kept."""
    above = (ranking["margin"] > shift).sum()
    if above == len(ranking["margin"]):  # the threshold lies below all that was kept
        return np.nan
    return ranking["right"][max(above - NEAR, 0) : above + NEAR].mean()


def shift_by_law(best_f1, facts_a_pair):
    """How far a threshold is to be shifted where scores are log-odds that are calibrated on train:
    F1 is highest where local precision is F1 / 2 (Lipton et al. 2014), and the odds of a fact go
    with the facts a pair. best_f1: of dev; facts_a_pair: of train and of dev."""
    train, dev = facts_a_pair
    return np.log(best_f1 / (2 - best_f1) * train / dev)


def facts_a_pair(documents):
    return len(gold_facts(documents)) / sum(len(candidate_pairs(x)) for x in documents)


def curves(ranking):
    """Precision at the recalls RECALLS, and the share of right entries of the margins between
    EDGES; NaN where the entries that were kept do not say."""
    facts, margin, right = ranking["gold"]["facts"], ranking["margin"], ranking["right"]
    correct, entries = from_the_top(ranking, np.ones(len(facts)))
    precision = np.interp(RECALLS, correct / facts.sum(), correct / entries, right=np.nan)
    correct, entries = (np.histogram(x, EDGES)[0] for x in (margin[right], margin))
    enough = (entries >= 50) & (EDGES[:-1] > margin[-1])
    return precision, np.where(enough, correct / np.maximum(entries, 1), np.nan)
