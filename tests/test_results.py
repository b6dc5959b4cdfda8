"""The numbers of the results that the pages show, once more from the committed predictions, with a
scorer of its own; these tests need the documents that the runs were tested on (SHARED_DIR)."""

import gzip
import json
import re

import pytest
from conftest import ROOT, read, shared

RUNS = ROOT / "results/redocred-992"


def scores_of(predictions, truth, train):
    """F1, Ign F1, precision, recall and macro F1 in percent, in loops from the definitions."""
    gold, names = set(), {}
    for document in truth:
        for number, mentions in enumerate(document["vertexSet"]):
            names[document["title"], number] = {x["name"] for x in mentions}
        gold |= {(document["title"], x["h"], x["t"], x["r"]) for x in document["labels"]}
    known = set()
    for document in train:
        for x in document["labels"]:
            for head in document["vertexSet"][x["h"]]:
                for tail in document["vertexSet"][x["t"]]:
                    known.add((head["name"], tail["name"], x["r"]))
    given = {(x["title"], x["h_idx"], x["t_idx"], x["r"]) for x in predictions}
    right = given & gold
    seen = 0
    for title, h, t, r in right:
        heads, tails = names[title, h], names[title, t]
        seen += any((a, b, r) in known for a in heads for b in tails)

    def f1(precision, recall):
        return 200 * precision * recall / (precision + recall) if precision + recall else 0.0

    precision, recall = len(right) / len(given), len(right) / len(gold)
    macro = []
    for r in {x[3] for x in gold}:
        found, there, both = (sum(x[3] == r for x in part) for part in (given, gold, right))
        macro.append(f1(both / found if found else 0.0, both / there))
    return {
        "F1": f1(precision, recall),
        "Ign F1": f1((len(right) - seen) / (len(given) - seen), recall),
        "precision": 100 * precision,
        "recall": 100 * recall,
        "macro F1": sum(macro) / len(macro),
    }


@pytest.fixture(scope="module")
def documents():
    folder = shared("redocred-992")
    return [read(folder / f"{split}_revised.json") for split in ("test", "train")]


@pytest.mark.parametrize("folder", sorted(x.parent for x in RUNS.glob("*/results.json")), ids=str)
def test_results_are_those_of_the_predictions(documents, folder):
    with gzip.open(folder / "predictions.json.gz", "rt") as file:
        found = scores_of(json.load(file), *documents)
    test = read(folder / "results.json")["test"]
    names = {"F1": "f1", "Ign F1": "ign_f1", "macro F1": "macro_f1"}
    for name, value in found.items():
        assert value == pytest.approx(100 * test[names.get(name, name)], abs=1e-4), name


def test_the_readmes_table(documents):
    page = (ROOT / "README.md").read_text()
    table = re.search(r"(?m)^\| loss \|.*\n(\|.*\n)+", page)[0].splitlines()
    head, *rows = ([cell.strip() for cell in row.strip("|").split("|")] for row in table)
    loss_of = {"ATL": "ATL", "HingeABL (separate)": "HingeABL"}
    shown = {
        loss_of[row[0]]: dict(zip(head, row, strict=True)) for row in rows if row[0] in loss_of
    }
    assert shown.keys() == {"ATL", "HingeABL"}
    for loss, row in shown.items():
        with gzip.open(RUNS / f"{loss}-seed66/predictions.json.gz", "rt") as file:
            found = scores_of(json.load(file), *documents)
        for name, value in found.items():
            assert row[name] == f"{value:.2f}", (loss, name)
