"""The official DocRED / Re-DocRED scores, macro scores and prediction patterns.

As a library: `evaluate(predictions, truth, train)` and `count_patterns(logits, labels)`.
As a command: `python evaluation.py --pred predictions.json --truth dev_revised.json
--train train_revised.json [--rel2id rel2id.json] [--output scores.json]`.

A prediction is {"title", "h_idx", "t_idx", "r"} as in a DocRED submission ("evidence" is optional).
All scores are in [0, 1].
"""

from collections import Counter
from pathlib import Path

import numpy as np

from inputs.documents import iter_documents, read_documents, read_predictions
from inputs.files import REL2ID_FILE, OneLineParser, relation_ids, run_main, write_json

# The ten relations with most facts in DocRED's training set; all others are the long tail. They are
# fixed, because a part of the corpus may have other ten.
FREQUENT = frozenset("P17 P131 P27 P150 P175 P577 P463 P527 P495 P361".split())


def named_facts(documents):
    """The facts of `documents` by name: a set of (head name, tail name, property), for all names of
    the mentions, as Ign F1 is defined. A set that this function made is returned as it is."""
    if isinstance(documents, (set, frozenset)):
        return documents
    facts = set()
    for document in documents:
        names = [{mention["name"] for mention in entity} for entity in document["vertexSet"]]
        for x in document.get("labels", []):
            facts.update((h, t, x["r"]) for h in names[x["h"]] for t in names[x["t"]])
    return facts


def known_facts(path, truth, rel2id=None):
    """What scoring `truth` needs of a training file, streaming: (those of its `named_facts` that
    `truth` has, too; its `count_relations`). rel2id, and what is raised: see `iter_documents`."""
    wanted, found, counts = named_facts(truth), set(), Counter()
    for document in iter_documents(path, rel2id, unique_titles=False):
        found |= named_facts([document]) & wanted
        counts.update(count_relations([document]))
    return found, counts


def gold_facts(documents):
    """The facts of `documents`: (title, head, tail, property) -> evidence, a list of sentences."""
    return {
        (document["title"], x["h"], x["t"], x["r"]): x.get("evidence") or ()
        for document in documents
        for x in document["labels"]
    }


def count_relations(documents):
    """Number of facts of every relation: a Counter, property -> number."""
    return Counter(r for document in documents for *_, r in gold_facts([document]))


def frequent_relations(counts, rel2id):
    """The relations of the freq scores, a set of properties; all others are the long tail.

    FREQUENT if rel2id (property -> class id) has all of them, else the ten with most facts in
    `counts` (`count_relations` of the training file or, without one, of the truth), ties broken by
    name.
    """
    if FREQUENT <= rel2id.keys():
        return FREQUENT
    return frozenset(sorted(counts, key=lambda r: (-counts[r], r))[:10])


def f1_score(correct, predicted, gold):
    """F1 from numbers of facts (or arrays of them), 0 where there are none."""
    return 2 * correct / np.maximum(predicted + gold, 1)


def ign_f1_score(correct, predicted, gold, known):
    """Ign F1: the known facts are subtracted from the correct and from the predicted, but not from
    the gold, with 1e-5 in the denominator, as in the official scorer."""
    precision = (correct - known) / (predicted - known + 1e-5)
    recall = correct / np.maximum(gold, 1)
    both = precision + recall
    return 2 * precision * recall / np.where(both, both, 1)


def _ratio(part, whole):
    return part / whole if whole else 0.0


def evaluate(predictions, truth, train=(), distant=None, frequent=FREQUENT):
    """All scores of a submission, a dict.

    predictions: list of dicts in submission format; duplicates count once, and titles that are not
    in `truth` count as predicted. truth: documents with labels. train, distant: the documents whose
    facts are left out in the Ign scores, or their `named_facts` (distant None: no ign_f1_distant).
    frequent: the properties of the freq scores, see `frequent_relations`.
    """
    documents = {document["title"]: document for document in truth}
    gold = gold_facts(truth)
    submitted = {}
    for x in predictions:
        submitted.setdefault((x["title"], x["h_idx"], x["t_idx"], x["r"]), x)
    correct = [key for key in submitted if key in gold]
    in_train = known_of(correct, documents, named_facts(train))
    counts = len(correct), len(submitted), len(gold)
    scores = _micro(*counts)
    scores["ign_f1"] = float(ign_f1_score(*counts, len(in_train)))
    if distant is not None:
        in_distant = known_of(correct, documents, named_facts(distant))
        scores["ign_f1_distant"] = float(ign_f1_score(*counts, len(in_distant)))
    scores["evi_f1"] = _evidence(submitted, gold, documents)
    scores |= _breakdowns(submitted, gold, correct, documents, frequent)
    scores |= _macro(submitted, gold, correct, in_train)
    return scores


def known_of(correct, documents, facts):
    """Those of the correct keys (title, head, tail, property) that are in `facts` (`named_facts`)
    under any names of their mentions. documents: title -> document."""

    def is_known(title, h, t, r):
        entities = documents[title]["vertexSet"]
        heads, tails = ({mention["name"] for mention in entities[i]} for i in (h, t))
        return any((head, tail, r) in facts for head in heads for tail in tails)

    return [key for key in correct if is_known(*key)] if facts else []


def _micro(correct, predicted, gold, prefix=""):
    names = [f"{prefix}_{x}" for x in ("f1", "p", "r")] if prefix else ["f1", "precision", "recall"]
    f1 = float(f1_score(correct, predicted, gold))
    return dict(zip(names, (f1, _ratio(correct, predicted), _ratio(correct, gold)), strict=True))


def _evidence(submitted, gold, documents):
    """F1 of the evidence sentences, 0 if the submission has none."""
    given = {key: set(x["evidence"]) for key, x in submitted.items() if x.get("evidence")}
    correct = sum(len(given[key].intersection(gold[key])) for key in given if key in gold)
    predicted = sum(len(sentences) for key, sentences in given.items() if key[0] in documents)
    total = sum(len(set(sentences)) for sentences in gold.values())
    return float(f1_score(correct, predicted, total))


def _breakdowns(submitted, gold, correct, documents, frequent):
    """Scores of frequent and long-tail relations, and of facts within a sentence (intra) and across
    sentences (inter). Predictions of unknown titles are neither intra nor inter."""
    sentences = {}  # (title, entity) -> the sentences of its mentions
    for title, document in documents.items():
        for i, mentions in enumerate(document["vertexSet"]):
            sentences[title, i] = frozenset(mention["sent_id"] for mention in mentions)

    def count(keys):
        """How many of the keys are in each of the four groups."""
        known = [key for key in keys if key[0] in documents]
        intra = sum(not sentences[t, h].isdisjoint(sentences[t, o]) for t, h, o, _ in known)
        freq = sum(key[3] in frequent for key in keys)
        return freq, len(keys) - freq, intra, len(known) - intra

    scores = {}
    counts = zip(*map(count, (correct, submitted, gold)), strict=True)
    for name, of_group in zip(("freq", "long_tail", "intra", "inter"), counts, strict=True):
        scores |= _micro(*of_group, prefix=name)
    return scores


def _macro(submitted, gold, correct, in_train):
    """Mean of F1 and Ign F1 over the relations that have gold facts (the paper's Table 7)."""
    numbers = [Counter(key[3] for key in keys) for keys in (correct, submitted, gold, in_train)]
    counts = np.array([[number[r] for r in numbers[2]] for number in numbers])
    if not counts.size:
        return {"macro_f1": 0.0, "macro_ign_f1": 0.0}
    f1, ign_f1 = f1_score(*counts[:3]), ign_f1_score(*counts)
    return {"macro_f1": float(f1.mean()), "macro_ign_f1": float(ign_f1.mean())}


PATTERNS = ("TP", "TN", "FP", "FN_CRK", "FN_IRK")


def prediction_patterns(logits, labels, threshold=None, shift=0.0):
    """The pattern of every pair (Fig. 2 of the paper), [pairs] int, an index of PATTERNS.

    TN: no relation is predicted and none holds; TP: the predicted are those that hold; FP: some are
    predicted, and not those that hold; FN: none is predicted, but some hold, CRK if each of these
    scores higher than all others, else IRK. Any number of relations may be predicted.
    logits, labels: [pairs, classes] arrays, column 0 the threshold class. threshold: [pairs, 1] or
    a number, None: logits[:, :1]; shift is added to it.
    """
    ranked = ranked_right(logits, labels)
    scores, labels = np.asarray(logits), np.asarray(labels)[:, 1:] > 0
    threshold = scores[:, :1] if threshold is None else threshold
    scores = scores[:, 1:]
    predicted = scores - threshold > shift  # the rule of losses.decode
    holds, found = labels.any(1), predicted.any(1)
    cases = [found & (predicted == labels).all(1), ~found & ~holds, found, ranked]
    return np.select(cases, range(4), default=4)


def ranked_right(logits, labels):
    """Whether every true relation of a pair scores higher than every false one, [pairs] bool.
    logits, labels: [pairs, classes] arrays, whose column 0 is not read."""
    scores, labels = np.asarray(logits)[:, 1:], np.asarray(labels)[:, 1:] > 0
    lowest_true = np.where(labels, scores, np.inf).min(1)
    highest_false = np.where(labels, -np.inf, scores).max(1)
    return lowest_true > highest_false


RATIOS = "F/(T+F)", "FN/F", "FN_CRK/FN"


def count_patterns(logits, labels, threshold=None, shift=0.0):
    """Counts of the PATTERNS and their RATIOS, a dict. Arguments: see `prediction_patterns`."""
    patterns = prediction_patterns(logits, labels, threshold, shift)
    counts = np.bincount(patterns, minlength=5)
    ratios = zip(RATIOS, pattern_ratios(counts).tolist(), strict=True)
    return dict(zip(PATTERNS, counts.tolist(), strict=True)) | dict(ratios)


def pattern_ratios(counts):
    """The RATIOS of counts of PATTERNS (Table 4), [..., 5] -> [..., 3]; 0 / 0 is 0."""
    pairs, missed = np.sum(counts, -1), counts[..., 3] + counts[..., 4]
    false = counts[..., 2] + missed
    wholes = np.stack([pairs, false, missed], -1)
    return np.stack([false, missed, counts[..., 3]], -1) / np.maximum(wholes, 1)


def format_scores(scores):
    """The scores in percent and the counts, as text of a few lines."""
    p = {k: f"{100 * v:.2f}" for k, v in scores.items() if isinstance(v, float)}
    lines = [
        f"F1 {p['f1']}   Ign F1 {p['ign_f1']}   precision {p['precision']}   recall {p['recall']}",
        f"macro F1 {p['macro_f1']}   macro Ign F1 {p['macro_ign_f1']}",
        f"frequent F1 {p['freq_f1']}   long-tail F1 {p['long_tail_f1']}   "
        f"intra F1 {p['intra_f1']}   inter F1 {p['inter_f1']}",
    ]
    if "ign_f1_distant" in scores:
        lines.append(f"Ign F1 without the facts of --distant {p['ign_f1_distant']}")
    if scores["evi_f1"]:
        lines.append(f"evidence F1 {p['evi_f1']}")
    if "TP" in scores:
        lines += [
            "   ".join(f"{name} {scores[name]}" for name in PATTERNS),
            "   ".join(f"{name} {p[name]} %" for name in RATIOS),
        ]
    return "\n".join(lines)


def main(argv=None):
    parser = OneLineParser(description="Scores of a DocRED-format submission.")
    parser.add_argument("--pred", required=True, help="submission, e.g. a run's predictions.json")
    parser.add_argument("--truth", required=True, help="documents with labels")
    parser.add_argument("--train", help="training documents, whose facts Ign F1 leaves out")
    parser.add_argument("--distant", help="distant training documents, for ign_f1_distant")
    parser.add_argument("--rel2id", type=Path, default=REL2ID_FILE, help="property -> class id")
    parser.add_argument("--output", help="write the scores as JSON to this file")
    args = parser.parse_args(argv)
    rel2id = relation_ids(args.rel2id)
    truth = read_documents(args.truth, rel2id)
    predictions = read_predictions(args.pred, truth, rel2id)
    if args.train:
        train, counts = known_facts(args.train, truth, rel2id)
    else:
        train, counts = (), count_relations(truth)
    distant = known_facts(args.distant, truth, rel2id)[0] if args.distant else None
    frequent = frequent_relations(counts, rel2id)
    scores = evaluate(predictions, truth, train, distant, frequent)
    print(format_scores(scores))
    if not args.train:
        print("no --train file: Ign F1 leaves out nothing")
        if frequent != FREQUENT:
            print("no --train file: frequent are the ten relations with most facts in --truth")
    if args.output:
        write_json(args.output, scores)


if __name__ == "__main__":
    run_main(main)
