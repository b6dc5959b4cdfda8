"""Scores against slow, separate code; and the command."""

import copy
import json
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import REL2ID, ROOT, make_document

from evaluation import (
    FREQUENT,
    PATTERNS,
    count_patterns,
    count_relations,
    evaluate,
    format_scores,
    frequent_relations,
    main,
    named_facts,
    prediction_patterns,
)
from inputs.documents import read_predictions
from inputs.files import InputError
from losses import decode


@pytest.fixture
def split():
    """Truth, training documents that share some names, and a submission with all that happens."""
    rng = random.Random(3)
    truth = [make_document(rng, 7, title=f"Doc {i}") for i in range(6)]
    train = [make_document(rng, 7, title=f"Train {i}") for i in range(2)]
    predictions = []
    for document in truth:
        for x in document["labels"]:
            if rng.random() < 0.6:
                r = x["r"] if rng.random() < 0.8 else "P50"
                predictions.append(
                    {"title": document["title"], "h_idx": x["h"], "t_idx": x["t"], "r": r}
                )
    predictions += predictions[:5]  # duplicates
    predictions += [{"title": "Unknown", "h_idx": 0, "t_idx": 1, "r": "P17"}]
    wrong = {"title": "Doc 0", "h_idx": 1, "t_idx": 1}  # of each relation, so none has precision 1
    predictions += [wrong | {"r": r} for r in ("P17", "P131", "P27")]
    return truth, train, predictions


def f1_of(precision, recall):
    return 2 * precision * recall / (precision + recall) if precision + recall else 0


def test_scores_against_slow_version(split):
    truth, train, predictions = split
    scores = evaluate(predictions, truth, train)
    unique = []
    for x in predictions:
        key = (x["title"], x["h_idx"], x["t_idx"], x["r"])
        if key not in unique:
            unique.append(key)
    gold = [(d["title"], x["h"], x["t"], x["r"]) for d in truth for x in d["labels"]]
    correct = [key for key in unique if key in gold]
    precision, recall = len(correct) / len(unique), len(correct) / len(gold)
    assert scores["precision"] == pytest.approx(precision)
    assert scores["f1"] == pytest.approx(f1_of(precision, recall))

    def known(key):
        entities = next(d for d in truth if d["title"] == key[0])["vertexSet"]
        for d in train:
            for x in d["labels"]:
                heads = {m["name"] for m in d["vertexSet"][x["h"]]}
                tails = {m["name"] for m in d["vertexSet"][x["t"]]}
                if x["r"] == key[3] and any(
                    m["name"] in heads and n["name"] in tails
                    for m in entities[key[1]]
                    for n in entities[key[2]]
                ):
                    return True
        return False

    in_train = [key for key in correct if known(key)]
    assert 0 < len(in_train) < len(correct)
    ign = (len(correct) - len(in_train)) / (len(unique) - len(in_train) + 1e-5)
    assert scores["ign_f1"] == pytest.approx(f1_of(ign, recall))

    relations = sorted({key[3] for key in gold})
    macro, macro_ign = [], []
    for r in relations:
        of_r = [[key for key in keys if key[3] == r] for keys in (correct, unique, gold, in_train)]
        c, p, g, k = map(len, of_r)
        macro.append(f1_of(c / p if p else 0, c / g))
        macro_ign.append(f1_of((c - k) / (p - k + 1e-5), c / g))
    assert scores["macro_f1"] == pytest.approx(sum(macro) / len(relations))
    assert scores["macro_ign_f1"] == pytest.approx(sum(macro_ign) / len(relations))
    assert scores["f1"] != scores["macro_f1"]


def test_breakdowns_add_up(split):
    truth, train, predictions = split
    scores = evaluate(predictions, truth, train)
    gold = sum(len(d["labels"]) for d in truth)
    sentences = {d["title"]: d["vertexSet"] for d in truth}

    def intra(title, h, t):
        ids = [{m["sent_id"] for m in sentences[title][i]} for i in (h, t)]
        return bool(ids[0] & ids[1])

    within = sum(intra(d["title"], x["h"], x["t"]) for d in truth for x in d["labels"])
    assert 0 < within < gold
    frequent = {
        (x["title"], x["h_idx"], x["t_idx"], x["r"]) for x in predictions if x["r"] != "P50"
    }
    assert ("Unknown", 0, 1, "P17") in frequent
    of_frequent = scores["recall"] * gold  # P50 is never right, all others are frequent
    assert scores["freq_p"] == pytest.approx(of_frequent / len(frequent))
    correct = scores["recall"] * gold
    parts = scores["intra_r"] * within + scores["inter_r"] * (gold - within)
    assert parts == pytest.approx(correct)


def test_facts_of_distant_documents_are_left_out_apart(split):
    truth, train, predictions = split
    alone, swapped = evaluate(predictions, truth, train), evaluate(predictions, truth, (), train)
    assert swapped["ign_f1_distant"] == alone["ign_f1"] != swapped["ign_f1"]
    assert "ign_f1_distant" not in alone
    named = named_facts(train)
    assert evaluate(predictions, truth, named, named)["ign_f1_distant"] == alone["ign_f1"]


def test_of_two_equal_predictions_the_first_counts(split):
    truth = split[0]
    label = truth[0]["labels"][0]
    one = {"title": truth[0]["title"], "h_idx": label["h"], "t_idx": label["t"], "r": label["r"]}
    first, second = (one | {"evidence": [sentence]} for sentence in (0, 1))
    assert evaluate([first, second], truth)["evi_f1"] == evaluate([first], truth)["evi_f1"] > 0
    assert evaluate([second, first], truth)["evi_f1"] == evaluate([second], truth)["evi_f1"] == 0


def test_evidence_and_distance_by_hand():
    """What is predicted of an unknown document counts as predicted, but neither its evidence nor
    whether it is within a sentence."""
    entities = [[{"name": str(i), "sent_id": x, "pos": [0, 1]}] for i, x in enumerate((0, 0, 1))]
    labels = [
        {"h": 0, "t": 1, "r": "P17", "evidence": [0, 1]},
        {"h": 0, "t": 2, "r": "P17", "evidence": [1]},
    ]
    truth = [{"title": "A", "sents": [["x"]] * 3, "vertexSet": entities, "labels": labels}]
    found = [("A", 0, 1, [1, 2, 2]), ("A", 0, 2, []), ("A", 1, 2, [0]), ("B", 1, 2, [0, 1, 2])]
    names = "title", "h_idx", "t_idx", "evidence"
    scores = evaluate([dict(zip(names, x, strict=True)) | {"r": "P17"} for x in found], truth)
    assert scores["precision"] == 2 / 4 and scores["recall"] == 1
    assert scores["evi_f1"] == 2 * 1 / (3 + 3)  # sentence 1; of 1, 2, 0; of 0, 1, 1
    assert (scores["intra_p"], scores["inter_p"]) == (1, 1 / 2)


def slow_pattern(scores, labels):
    predicted = {r for r in range(1, len(scores)) if scores[r] > scores[0]}
    true = {r for r in range(1, len(scores)) if labels[r]}
    if not predicted:
        if not true:
            return "TN"
        false = set(range(1, len(scores))) - true
        ranked = all(scores[r] > scores[q] for r in true for q in false)
        return "FN_CRK" if ranked else "FN_IRK"
    return "TP" if predicted == true else "FP"


def test_patterns_against_slow_version():
    """With up to 6 relations on a pair: correct ranking has no limit of three or four."""
    rng = np.random.default_rng(0)
    labels = np.zeros((600, 12))
    logits = rng.normal(size=labels.shape)
    for i in range(600):
        chosen = rng.choice(np.arange(1, 12), rng.integers(0, 7), replace=False)
        labels[i, chosen] = 1
        logits[i, chosen] += rng.choice([0, 4])
        logits[i, 0] += rng.choice([-3, 0, 9])
    logits = logits.round(1)  # so that some are equal
    expected = [slow_pattern(s, y) for s, y in zip(logits, labels, strict=True)]
    found = [PATTERNS[i] for i in prediction_patterns(logits, labels)]
    assert found == expected and set(found) == set(PATTERNS)
    many = [i for i in range(600) if labels[i].sum() > 4 and expected[i] == "FN_CRK"]
    assert many
    counts = count_patterns(logits, labels)
    assert counts["FN_CRK/FN"] == expected.count("FN_CRK") / sum("FN" in x for x in expected)
    false = 600 - expected.count("TP") - expected.count("TN")
    assert counts["F/(T+F)"] == false / 600


def test_command(tmp_path, split, capsys):
    truth, train, predictions = split
    train[1]["title"] = train[0]["title"]  # as DocRED's distant documents have it
    files = written(tmp_path, pred=predictions, truth=truth, train=train)
    main([*files, "--output", str(tmp_path / "out.json")])
    scores = evaluate(predictions, truth, train)
    assert json.loads((tmp_path / "out.json").read_text()) == pytest.approx(scores)
    printed = capsys.readouterr().out
    assert f"F1 {100 * scores['f1']:.2f}   Ign F1 {100 * scores['ign_f1']:.2f}" in printed

    (tmp_path / "pred.json").write_text('[{"title": "Doc 0", "h_idx": 9, "t_idx": 1, "r": "P17"}]')
    command = [sys.executable, str(ROOT / "evaluation.py"), *files]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2
    message = f"error: {tmp_path}/pred.json: prediction 0: h_idx: 9 is not one of 7 entities\n"
    assert result.stderr == message


def test_scores_as_text():
    names = "f1 ign_f1 precision recall macro_f1 macro_ign_f1 freq_f1 long_tail_f1 intra_f1"
    scores = {name: i / 16 for i, name in enumerate(f"{names} inter_f1 evi_f1".split(), 1)}
    patterns = dict(zip(PATTERNS, range(1, 6), strict=True))
    ratios = {"F/(T+F)": 0.01, "FN/F": 0.02, "FN_CRK/FN": 0.03}
    expected = """F1 6.25   Ign F1 12.50   precision 18.75   recall 25.00
macro F1 31.25   macro Ign F1 37.50
frequent F1 43.75   long-tail F1 50.00   intra F1 56.25   inter F1 62.50
evidence F1 68.75
TP 1   TN 2   FP 3   FN_CRK 4   FN_IRK 5
F/(T+F) 1.00 %   FN/F 2.00 %   FN_CRK/FN 3.00 %"""
    assert format_scores(scores | patterns | ratios) == expected


@pytest.fixture
def other(split):
    """The split in relations of another corpus: truth, train, predictions and their rel2id."""
    names = {"P17": "CID", "P131": "GDA", "P27": "is part of", "P50": "PPI"}
    truth, train, predictions = copy.deepcopy(split)
    for x in [x for document in truth + train for x in document["labels"]]:
        x["r"] = names[x["r"]]
    predictions = [x | {"r": names[x["r"]]} for x in predictions]
    rel2id = {"none": 0} | {name: i for i, name in enumerate(names.values(), 1)}
    return truth, train, predictions, rel2id


def written(folder, **content):
    """The flags of evaluation.py that name these contents, each in a file of its own."""
    flags = []
    for name, value in content.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
        flags += [f"--{name}", str(folder / f"{name}.json")]
    return flags


def test_command_takes_other_relations(tmp_path, other):
    truth, train, predictions, rel2id = other
    files = {"pred": predictions, "truth": truth, "train": train, "distant": train[:1]}
    output = tmp_path / "out.json"
    main([*written(tmp_path, **files, rel2id=rel2id), "--output", str(output)])
    found, scores = json.loads(output.read_text()), evaluate(predictions, truth, train, train[:1])
    assert found["f1"] == scores["f1"] > scores["ign_f1"] == found["ign_f1"]
    assert found["macro_f1"] == scores["macro_f1"] > 0
    assert found["ign_f1_distant"] == scores["ign_f1_distant"] > scores["ign_f1"]


@pytest.mark.parametrize("name", ["pred", "train"])
def test_only_relations_of_rel2id_are_taken(tmp_path, split, other, name):
    """A file in DocRED's relations, among others in others."""
    truth, train, predictions, rel2id = other
    files = {"pred": predictions, "truth": truth, "train": train, "distant": train}
    in_docred = dict(zip(("truth", "train", "pred"), split, strict=True))
    files[name] = in_docred.get(name, in_docred["train"])
    flags = written(tmp_path, **files, rel2id=rel2id)
    with pytest.raises(InputError, match=rf"{name}\.json: .*unknown relation 'P\d+'"):
        main(flags)


def with_facts(title, counts):
    """A document with so many facts of every relation."""
    document = make_document(random.Random(1), 7, title=title)
    pairs = [(h, t) for h in range(7) for t in range(7) if h != t]
    document["labels"] = [
        {"h": h, "t": t, "r": r} for r, count in counts.items() for h, t in pairs[:count]
    ]
    return document


@pytest.fixture
def twelve():
    """Truth, training documents and predictions of twelve relations, and their rel2id. In training
    R9, R10 and R11 have equally many facts; in the truth R0 and R1 have the fewest."""
    names = [f"R{i}" for i in range(12)]
    train = [
        with_facts(f"Train {i}", {r: max(20 - j, 11) for j, r in enumerate(names)})
        for i in range(2)
    ]
    train[1]["labels"] += train[1]["labels"][-1:] * 30  # one fact, however often it is said
    truth = [with_facts("Doc", {r: i + 1 for i, r in enumerate(names)})]
    kept = [x for i, x in enumerate(truth[0]["labels"]) if i % 3] + [{"h": 6, "t": 5, "r": "R0"}]
    predictions = [{"title": "Doc", "h_idx": x["h"], "t_idx": x["t"], "r": x["r"]} for x in kept]
    return truth, train, predictions, {r: i for i, r in enumerate(["none", *names])}


def assert_frequent(scores, frequent, truth, predictions):
    """freq and long-tail scores against counting by hand."""
    gold = [("Doc", x["h"], x["t"], x["r"]) for x in truth[0]["labels"]]
    submitted = [tuple(x.values()) for x in predictions]
    for name, wanted in ("freq", True), ("long_tail", False):
        ours = [x for x in submitted if (x[3] in frequent) == wanted]
        right = sum(x in gold for x in ours)
        p = right / len(ours)
        r = right / sum((x[3] in frequent) == wanted for x in gold)
        found = [scores[f"{name}_{x}"] for x in ("p", "r", "f1")]
        assert found == pytest.approx([p, r, f1_of(p, r)])
        assert 0 < p and 0 < r < 1


def test_frequent_relations_of_another_corpus(tmp_path, twelve, capsys):
    """The ten with most facts in the training file, R10 before R11 and R9; without one, in the
    truth. As a library and as a command."""
    truth, train, predictions, rel2id = twelve
    of_train = {"R10", *(f"R{i}" for i in range(9))}
    of_truth = {f"R{i}" for i in range(2, 12)}
    files = written(tmp_path, pred=predictions, truth=truth, rel2id=rel2id)
    files += ["--output", str(tmp_path / "out.json")]
    for given, frequent in (train, of_train), ((), of_truth):
        counts = count_relations(given or truth)
        assert frequent_relations(counts, rel2id) == frequent
        scores = evaluate(predictions, truth, given, frequent=frequent)
        assert_frequent(scores, frequent, truth, predictions)
        main([*files, *(written(tmp_path, train=given) if given else [])])
        assert json.loads((tmp_path / "out.json").read_text()) == pytest.approx(scores)
        note = "frequent are the ten relations with most facts in --truth"
        assert (note in capsys.readouterr().out) == (not given)


def test_frequent_relations_of_docred_are_its_ten():
    """Whatever a training file has, also with relations more."""
    counts = {"P50": 9, "X1": 8}
    for rel2id in REL2ID, REL2ID | {"X1": 97}:
        assert frequent_relations(counts, rel2id) == FREQUENT
    nine = {r: i for r, i in REL2ID.items() if r != "P361"}
    assert frequent_relations(counts, nine) == {"P50", "X1"}


@pytest.mark.parametrize("content,message", [
    ({}, "expected a list of predictions, found dict"),
    ([{"title": "Doc 0", "h_idx": 0, "t_idx": 1}], "prediction 0: r: missing"),
    ([{"title": "Doc 0", "h_idx": 0, "t_idx": 1, "r": "X"}], "prediction 0: r: unknown relation"),
    ([{"title": "Doc 0", "h_idx": 0, "t_idx": 1.5, "r": "P17"}], "t_idx: expected int"),
    (
        [{"title": "Doc 0", "h_idx": 0, "t_idx": 1, "r": "P17", "evidence": 3}],
        "prediction 0: evidence: expected list | null, found int",
    ),
])  # fmt: skip
def test_bad_submissions(tmp_path, split, content, message):
    path = tmp_path / "pred.json"
    path.write_text(json.dumps(content))
    with pytest.raises(InputError) as error:
        read_predictions(path, split[0])
    assert message in str(error.value) and str(path) in str(error.value)


def test_patterns_at_a_shifted_threshold_are_those_of_the_predictions():
    """A pair is predicted, for the patterns, exactly where it is for the submission."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3000, 97, generator=generator)
    labels = torch.rand(3000, 97, generator=generator) < 0.01
    # the highest margin of each pair as its shift: rounding decides whether it is above
    shift = logits[:, 1:].max(1, keepdim=True).values - logits[:, :1]
    assert not decode(logits, "ATL", -1, shift)[:, 1:].any()
    patterns = prediction_patterns(logits.numpy(), labels.numpy(), None, shift.numpy())
    assert set(np.array(PATTERNS)[patterns]) == {"TN", "FN_CRK", "FN_IRK"}
