"""Scoring: the official DocRED / Re-DocRED scores, macro scores and prediction patterns.

As a library: `evaluate(predictions, truth, train)` and `count_patterns(logits, labels)`.
As a command: `python evaluation.py --pred predictions.json --truth dev_revised.json
--train train_revised.json [--rel2id rel2id.json] [--output scores.json]`.

A prediction is {"title", "h_idx", "t_idx", "r"} as in a DocRED submission ("evidence" is optional).
All scores lie in [0, 1].
"""

from collections import Counter
from pathlib import Path

import numpy as np

from inputs.documents import iter_documents, read_documents, read_predictions
from inputs.files import META_DIR, InputError, OneLineParser, relation_ids, run_main, write_json

# The ten relations with most facts in DocRED's training set; the rest are the long tail. They are
# named, not counted: in a part of the corpus other ten may lead.
FREQUENT = frozenset("P17 P131 P27 P150 P175 P577 P463 P527 P495 P361".split())


def named_facts(documents):
    """The facts of `documents` by name: a set of (head name, tail name, property).

    A fact stands under every pair of names of its mentions, as Ign F1 is defined. A set, which is
    what this made before, comes back as it is.
    """
    if isinstance(documents, (set, frozenset)):
        return documents
    facts = set()
    for document in documents:
        names = [{mention["name"] for mention in entity} for entity in document["vertexSet"]]
        for x in document.get("labels", []):
            facts.update((h, t, x["r"]) for h in names[x["h"]] for t in names[x["t"]])
    return facts


def known_facts(path, truth, rel2id=None):
    """What the scores of `truth` ask of a training file, which is streamed: its facts by
    name, as far as `truth` has them too, and its facts of every relation (`count_relations`).
    rel2id: see `documents.iter_documents`, which also says what is refused."""
    wanted, found, counts = named_facts(truth), set(), Counter()
    for document in iter_documents(path, rel2id, unique_titles=False):
        found |= named_facts([document]) & wanted
        counts.update(count_relations([document]))
    return found, counts


def gold_facts(documents):
    """What is to be found: (title, head, tail, property) -> evidence, a list of sentences."""
    return {
        (document["title"], x["h"], x["t"], x["r"]): x.get("evidence") or ()
        for document in documents
        for x in document["labels"]
    }


def count_relations(documents):
    """How many facts of every relation the documents have: a Counter, property -> number."""
    return Counter(r for document in documents for *_, r in gold_facts([document]))


def frequent_relations(counts, rel2id):
    """The relations that the freq scores are of, a set of properties; the rest are the long tail.

    DocRED's ten, whatever is counted, where rel2id (property -> class id) has all of them. Else the
    ten with most facts in `counts` (see `count_relations`), of equally many the first by name: to
    be counted in the training file or, where there is none, in the truth. Where no more than ten
    have facts, all of these are frequent.
    """
    if FREQUENT <= rel2id.keys():
        return FREQUENT
    return frozenset(sorted(counts, key=lambda r: (-counts[r], r))[:10])


def f1_score(correct, predicted, gold):
    """F1 of numbers of facts (numbers or arrays), 0 where nothing is predicted or true."""
    return 2 * correct / np.maximum(predicted + gold, 1)


def ign_f1_score(correct, predicted, gold, known):
    """F1 with the known facts taken out of the correct and the predicted, but not out of the gold,
    as the official scorer has it, its 1e-5 too."""
    precision = (correct - known) / (predicted - known + 1e-5)
    recall = correct / np.maximum(gold, 1)
    both = precision + recall
    return 2 * precision * recall / np.where(both, both, 1)


def _ratio(part, whole):
    return part / whole if whole else 0.0


def evaluate(predictions, truth, train=(), distant=None, frequent=FREQUENT):
    """All scores of a submission, a dict.

    predictions: list of dicts in submission format; duplicates count once; those of a title that
    is not in `truth` count as predicted. truth: documents with labels. train, distant: the
    documents whose facts the Ign scores leave out, or what `named_facts` made of them (distant
    None: no ign_f1_distant). frequent: the properties that the freq scores are of; for relations
    other than DocRED's give what `frequent_relations` returns.
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
    """Those of the correct keys (title, head, tail, property) whose fact, under any names of its
    mentions, is among `facts` (see `named_facts`). documents: title -> document."""

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
    """F1 of the evidence sentences, 0 where a submission names none."""
    given = {key: set(x["evidence"]) for key, x in submitted.items() if x.get("evidence")}
    correct = sum(len(given[key].intersection(gold[key])) for key in given if key in gold)
    predicted = sum(len(sentences) for key, sentences in given.items() if key[0] in documents)
    total = sum(len(set(sentences)) for sentences in gold.values())
    return float(f1_score(correct, predicted, total))


def _breakdowns(submitted, gold, correct, documents, frequent):
    """F1 over frequent and long-tail relations, and within and across sentences. Predictions of
    unknown titles count in the former; whether they are within a sentence nobody knows."""
    sentences = {}  # (title, entity) -> the sentences of its mentions
    for title, document in documents.items():
        for i, mentions in enumerate(document["vertexSet"]):
            sentences[title, i] = frozenset(mention["sent_id"] for mention in mentions)

    def count(keys):
        """[frequent, all, within a sentence, of known title] among the keys."""
        known = [key for key in keys if key[0] in documents]
        within = sum(not sentences[t, h].isdisjoint(sentences[t, o]) for t, h, o, _ in known)
        return [sum(key[3] in frequent for key in keys), len(keys), within, len(known)]

    often, total, within, known = zip(*map(count, (correct, submitted, gold)), strict=True)
    groups = {
        "freq": often,
        "long_tail": [x - y for x, y in zip(total, often, strict=True)],
        "intra": within,
        "inter": [x - y for x, y in zip(known, within, strict=True)],
    }
    scores = {}
    for name, counts in groups.items():
        scores |= _micro(*counts, prefix=name)
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
    """The pattern of every pair (Fig. 2 of the paper), [pairs] int: an index into PATTERNS.

    logits, labels: [pairs, classes] arrays, column 0 the threshold class; threshold: [pairs, 1] or
    a number, None: logits[:, :1]; shift: added to it. TN: nothing predicted and nothing holds; TP:
    the sets are equal; FP: something predicted, the sets differ; FN: nothing predicted though
    something holds, CRK if every true relation scores higher than every false one, else IRK. No
    limit on the number of relations predicted.
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
    """Whether every true relation of a pair scores higher than every false one, [pairs]; class 0
    does not count. logits, labels: [pairs, classes] arrays."""
    scores, labels = np.asarray(logits)[:, 1:], np.asarray(labels)[:, 1:] > 0
    lowest_true = np.where(labels, scores, np.inf).min(1)
    highest_false = np.where(labels, -np.inf, scores).max(1)
    return lowest_true > highest_false


RATIOS = "F/(T+F)", "FN/F", "FN_CRK/FN"


def count_patterns(logits, labels, threshold=None, shift=0.0):
    """Counts of the PATTERNS, and their RATIOS."""
    patterns = prediction_patterns(logits, labels, threshold, shift)
    counts = np.bincount(patterns, minlength=5)
    ratios = zip(RATIOS, pattern_ratios(counts).tolist(), strict=True)
    return dict(zip(PATTERNS, counts.tolist(), strict=True)) | dict(ratios)


def pattern_ratios(counts):
    """The paper's Table 4 of numbers of pairs by PATTERNS, [..., 5] -> [..., 3]; 0 of nothing."""
    pairs, missed = np.sum(counts, -1), counts[..., 3] + counts[..., 4]
    false = counts[..., 2] + missed
    wholes = np.stack([pairs, false, missed], -1)
    return np.stack([false, missed, counts[..., 3]], -1) / np.maximum(wholes, 1)


def read_logits(path):
    """The arrays of a run's logits file: logits, labels, threshold (None where there is none)."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ("logits", "labels")}
            arrays["threshold"] = file["threshold"] if "threshold" in file else None
        _check_arrays(**arrays)
        return arrays
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except Exception as error:  # whatever numpy and zipfile raise on a foreign file
        raise InputError(f"{path}: not a logits file: {error!r}") from None


LARGEST_SCORE = 1e9  # far more than a model gives, and few enough digits to add up


def _check_arrays(logits, labels, threshold):
    if logits.shape != labels.shape or logits.ndim != 2 or logits.shape[1] < 2:
        raise ValueError("logits and labels are not of one shape [pairs, classes]")
    if labels.dtype.kind not in "biuf":
        raise ValueError(f"labels: {labels.dtype} are no numbers")
    if threshold is not None and threshold.shape != (len(logits), 1):
        raise ValueError("threshold: not of shape [pairs, 1]")
    for name, array in {"logits": logits, "threshold": threshold}.items():
        if array is None:
            continue
        if array.dtype not in (np.float16, np.float32, np.float64):
            raise ValueError(f"{name}: {array.dtype} are no numbers of a model")
        if not (np.abs(array) <= min(LARGEST_SCORE, float(np.finfo(array.dtype).max))).all():
            raise ValueError(f"{name}: not all are numbers of a model, up to {LARGEST_SCORE:g}")


def format_scores(scores):
    """A few readable lines; scores in percent, counts as they are."""
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
    parser.add_argument(
        "--rel2id", type=Path, default=META_DIR / "rel2id.json", help="property -> class id"
    )
    parser.add_argument("--logits", help="a run's logits of these documents (.npz): adds patterns")
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
    if args.logits:
        scores |= count_patterns(**read_logits(args.logits))
    print(format_scores(scores))
    if not args.train:
        print("no --train file: Ign F1 leaves out nothing")
        if frequent != FREQUENT:
            print("no --train file: frequent are the ten relations with most facts in --truth")
    if args.output:
        write_json(args.output, scores)


if __name__ == "__main__":
    run_main(main)
