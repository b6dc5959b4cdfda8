"""The numbers of the results that the pages show, once more from the committed predictions, with a
scorer of its own; these tests need the documents that the runs were tested on (SHARED_DIR)."""

import gzip
import json
import re
import statistics
import sys

import pytest
from conftest import ROOT, read, shared

from evaluation import SHARES

sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "bench")]
import convert_bio
import precision

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


@pytest.fixture(scope="module")
def abstracts(tmp_path_factory):
    """CDR's, as run_cdr.sh converts them."""
    folder, files = tmp_path_factory.mktemp("cdr"), shared("cdr")
    for split in ("test", "train"):
        source, target = str(files / f"{split}_filter.data"), str(folder / f"{split}.json")
        convert_bio.main(["--corpus", "cdr", source, target])
    return [read(folder / f"{split}.json") for split in ("test", "train")]


def runs_in(name):
    return sorted(x.parent for x in ROOT.glob(f"results/{name}/*/results.json"))


@pytest.mark.parametrize("folder", runs_in("redocred-992"), ids=str)
def test_results_are_those_of_the_predictions(documents, folder):
    check_results(folder, documents)


@pytest.mark.parametrize("folder", runs_in("cdr"), ids=str)
def test_cdrs_results_are_those_of_the_predictions(abstracts, folder):
    check_results(folder, abstracts)


def test_cdrs_table():
    rows = rows_of((ROOT / "results/cdr/README.md").read_text(), "CDR test")
    runs = {x.name: read(x / "results.json") for x in runs_in("cdr")}
    assert len(rows) == len(runs)
    names = {"F1": "f1", "Ign F1": "ign_f1", "precision": "precision", "recall": "recall"}
    names |= {"intra F1": "intra_f1", "inter F1": "inter_f1"}
    for row in rows:
        loss, seed = row["CDR test"].split(", seed ")
        run = runs[f"{LOSS_OF[loss]}-seed{seed}"]
        tuned = run["tuned"]
        assert run["commit"].startswith(row["commit"])
        for shown, name in names.items():
            assert row[shown] == f"{100 * run['test'][name]:.2f}", shown
        shifted = f"{100 * tuned['test']['f1']:.2f} ({tuned['shift']:+.2f})"
        assert row["F1, threshold shifted by dev"] == shifted


def test_what_the_page_says_of_cdr():
    page = (ROOT / "docs/results.md").read_text()
    text = " ".join(page[page.index("## CDR") : page.index("## Too few steps")].split())
    f1 = {
        loss: [
            100 * read(ROOT / f"results/cdr/{loss}-seed{seed}/results.json")["test"]["f1"]
            for seed in (1, 5, 66)
        ]
        for loss in ("ATL", "HingeABL")
    }
    for loss, found in f1.items():
        assert re.search(rf"{loss} (has )?{mean(found)} (F1 )?\(seeds 1, 5 and 66\)", text), loss
    first, second, third = (f"{x - y:.2f}" for x, y in zip(f1["HingeABL"], f1["ATL"], strict=True))
    assert f"ahead with each seed, by {first}, {second} and {third}," in text
    assert f"up to {max(max(x) - min(x) for x in f1.values()):.1f} points apart" in text
    compared = read(ROOT / "results/cdr/report/report.json")["groups"][0]["significance"]
    (tested,), (shifted,), (of_dev,) = (compared[x] for x in ("test", "tuned", "patterns"))
    for x in (tested["f1"], shifted["f1"], of_dev["F/(T+F)"], of_dev["FN/F"]):
        interval = re.escape(f"{x['difference']:+.2f}") + r"[^-+\d]*(95 %[^-+\d]*)?"
        interval += re.escape(f"{x['low']:.2f} to {x['high']:.2f}")
        assert re.search(interval, text), x


@pytest.mark.parametrize("folder", runs_in("precision/mini"), ids=str)
def test_minis_results_are_those_of_the_predictions(folder):
    files = [shared("redocred-mini") / f"{split}_revised.json" for split in ("test", "train")]
    check_results(folder, list(map(read, files)))


@pytest.mark.parametrize("name", ["mini", "demo"])
def test_the_tables_of_the_precisions(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["precision.py", str(ROOT / "results/precision" / name)])
    precision.main()
    *table, losses = capsys.readouterr().out.splitlines()
    page = (ROOT / "docs/performance.md").read_text()
    assert len(table) == 6 and "\n".join(table) in page
    numbers = re.findall(r"[\d.]+ %", losses)
    assert len(numbers) == 2 and f"{numbers[0]} at most ({numbers[1]} between two seeds" in page


def submission(path):
    with gzip.open(path, "rt") as file:
        return json.load(file)


def check_results(folder, documents):
    results = read(folder / "results.json")
    for path in folder.glob("*.json.gz"):
        found = scores_of(submission(path), *documents)
        kind = {"predictions": None, "test_tuned": "tuned", "test_fused": "fusion"}
        kind = kind[path.name.removesuffix(".json.gz")]
        test = (results[kind] if kind else results)["test"]
        names = {"F1": "f1", "Ign F1": "ign_f1", "macro F1": "macro_f1"}
        for name, value in found.items():
            assert value == pytest.approx(100 * test[names.get(name, name)], abs=1e-4), name


def rows_of(page, first_column):
    """The first table of a page whose head starts so: a list of {column: cell}."""
    table = re.search(rf"(?m)^\| {first_column} \|.*\n(\|.*\n)+", page)[0].splitlines()
    head, _, *rows = ([cell.strip() for cell in row.strip("|").split("|")] for row in table)
    return [dict(zip(head, row, strict=True)) for row in rows]


def mean(values, digits=2):
    """As the tables show it, with the sample standard deviation where there are several."""
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"


def folders_of(loss, seeds):
    return [RUNS / f"{loss}-seed{seed}" for seed in seeds]


LOSS_OF = {"ATL": "ATL", "HingeABL (separate)": "HingeABL"}


def test_the_readmes_table(documents):
    page = (ROOT / "README.md").read_text()
    seeds = re.search(r"\(seeds? ([\d, and]+)\)", page[page.index("## What came out") :])[1]
    rows = rows_of(page, "loss")
    assert [row["loss"] for row in rows] == list(LOSS_OF)
    for row in rows:
        folders = folders_of(LOSS_OF[row["loss"]], re.findall(r"\d+", seeds))
        found = []
        for folder in folders:
            found.append(scores_of(submission(folder / "predictions.json.gz"), *documents))
        for name in found[0]:
            assert row[name] == mean([x[name] for x in found]), (row["loss"], name)
        results = [read(folder / "results.json") for folder in folders]
        for name in ("FN/F", "FN_CRK/FN"):
            assert row[name] == mean([100 * x["test"][name] for x in results])
        shifted = mean([100 * x["tuned"]["test"]["f1"] for x in results])
        shift = statistics.mean(x["tuned"]["shift"] for x in results)
        assert row["F1, threshold shifted by dev"] == f"{shifted} (shift {shift:+.2f})"


def test_the_tables_of_the_report():
    """docs/results.md against results.json, whose scores are tested above, and the report's
    intervals."""
    page = (ROOT / "docs/results.md").read_text()
    seeds = re.findall(r"\d+", re.search(r"C1 and C3: test, seeds ([\d, and]+)", page)[1])
    names = {"F1": "f1", "Ign F1": "ign_f1", "precision": "precision", "recall": "recall"}
    names |= {"frequent F1": "freq_f1", "long-tail F1": "long_tail_f1", "macro F1": "macro_f1"}
    for row in rows_of(page[page.index("matter of the threshold") :], "loss"):
        folders = folders_of(LOSS_OF[row["loss"]], seeds)
        tuned = [read(folder / "results.json")["tuned"] for folder in folders]
        assert row["shift"] == f"{statistics.mean(x['shift'] for x in tuned):+.2f}"
        for shown, name in names.items():
            expected = mean([100 * x["test"][name] for x in tuned])
            assert row[shown] == expected, (row["loss"], shown)
    *of_runs, paper = rows_of(page[page.index("## What was found") :], "loss")
    assert len(of_runs) == 2 * len(seeds) and "the paper's" in paper["loss"]
    for row in of_runs:
        loss, seed = row["loss"].split(", seed ")
        dev = read(RUNS / f"{LOSS_OF[loss]}-seed{seed}/results.json")["dev"]
        for name in ("FP", "FN_CRK", "FN_IRK"):
            assert row[name] == f"{dev[name]:,}"
        for name in SHARES:
            assert row[name] == f"{100 * dev[name]:.2f}"
    (group,) = read(RUNS / "report/report.json")["groups"]
    (tested,), (of_dev,) = (group["significance"][x] for x in ("test", "patterns"))
    assert [str(seed) for seed in tested["seeds"]] == seeds
    claims = {row["claim"][:2]: row["so far"] for row in rows_of(page, "claim")}
    found = [(claim, tested[score]) for claim, score in (("C1", "f1"), ("C1", "ign_f1"))]
    found += [("C3", tested["macro_f1"]), *(("C2", of_dev[name]) for name in SHARES)]
    for claim, x in found:
        assert f"{x['difference']:+.2f}" in claims[claim]
        assert f"({x['low']:.2f} to {x['high']:.2f})" in claims[claim]
    assert f"{of_atl(seeds):.1f} % on dev" in claims["C5"]


def test_the_table_of_evidence():
    page = (ROOT / "docs/results.md").read_text()
    page = page[page.index("## Evidence and fusion") :]
    columns = {"F1": "f1", "Ign F1": "ign_f1", "Evi F1": "evi_f1", "macro F1": "macro_f1"}
    for row in rows_of(page, "model"):
        model, loss, seed, *kind = row["model"].split(", ")
        run = RUNS / f"{'' if model == 'ATLOP' else model + '-'}{loss}-{seed.replace(' ', '')}"
        results = read(run / "results.json")
        scores = {"": results, "threshold shifted": results["tuned"], "fused": results["fusion"]}
        scores = scores["".join(kind)]["test"]
        for shown, name in columns.items():
            assert row[shown] == f"{100 * scores[name]:.2f}", row["model"]
    (group,) = read(RUNS / "report/report.json")["groups"]
    for kind in ("tuned", "fusion"):
        (row,) = group["significance"][kind]
        x = row["f1"]
        interval = f"{x['difference']:+.2f} F1 ({x['low']:.2f} to {x['high']:.2f})"
        assert interval in " ".join(page.split())


def test_what_fusion_exchanges(documents):
    gold = {(d["title"], x["h"], x["t"], x["r"]) for d in documents[0] for x in d["labels"]}
    page = " ".join((ROOT / "docs/results.md").read_text().split())
    for loss in ("ATL", "HingeABL"):
        shifted, fused = (
            {(x["title"], x["h_idx"], x["t_idx"], x["r"]) for x in submission(RUNS / name)}
            for name in (f"{loss}-seed1/test_{kind}.json.gz" for kind in ("tuned", "fused"))
        )
        gone, new = (
            f"{len(x):,} ({100 * len(x & gold) / len(x):.1f} %)"
            for x in (shifted - fused, fused - shifted)
        )
        assert f"with {loss} {gone} for {new}" in page


def of_atl(seeds):
    """ATL's share of misses that are ranked right, mean over the seeds."""
    runs = [read(folder / "results.json") for folder in folders_of("ATL", seeds)]
    return statistics.mean(100 * run["dev"]["FN_CRK/FN"] for run in runs)
