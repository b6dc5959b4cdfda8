"""scripts/compare.py, against the scorer and loops over relations."""

import json
import random

import compare
import pytest
from conftest import REL2ID, read

from evaluation import evaluate
from inputs.documents import read_documents
from inputs.files import InputError
from reporting.statistics import compare as differences
from reporting.statistics import document_counts, resampled_scores


@pytest.fixture
def submissions(demo, tmp_path):
    """Two seeds of each side: a share of the gold facts, and wrong ones; and their documents."""
    truth, draw, files = read_documents(demo / "test_revised.json"), random.Random(0), {}
    for name, share in (("a1", 0.9), ("a2", 0.8), ("b1", 0.6), ("b2", 0.3)):
        facts = [
            {
                "title": d["title"],
                "h_idx": x["h"],
                "t_idx": x["t"],
                "r": draw.choice([x["r"], "P17"]),
            }
            for d in truth
            for x in d["labels"]
            if draw.random() < share
        ]
        files[name] = tmp_path / f"{name}.json"
        files[name].write_text(json.dumps(facts))
    return files, truth


def test_against_the_scorer(submissions, demo, tmp_path, capsys):
    files, truth = submissions
    facts = read_documents(demo / "train_revised.json")
    where = [
        "--truth",
        str(demo / "test_revised.json"),
        "--train",
        str(demo / "train_revised.json"),
    ]
    sides = ["--pred", str(files["a1"]), str(files["a2"])]
    sides += ["--against", str(files["b1"]), str(files["b2"])]
    compare.main([*where, *sides, "--output", str(tmp_path / "out.json")])
    found = read(tmp_path / "out.json")
    given = {name: read(path) for name, path in files.items()}
    scores = {name: evaluate(x, truth, facts) for name, x in given.items()}
    counts = {name: document_counts(x, truth, REL2ID, facts) for name, x in given.items()}
    drawn = {name: resampled_scores(x) for name, x in counts.items()}
    sides = [drawn["a1"], drawn["a2"]], [drawn["b1"], drawn["b2"]]
    sure = differences(*sides, len(truth))
    for name in ("f1", "ign_f1", "macro_f1"):
        row, mean = found["scores"][name], {}
        for side, seeds in (("pred", ("a1", "a2")), ("against", ("b1", "b2"))):
            mean[side] = 50 * sum(scores[x][name] for x in seeds)
            assert row[side] == pytest.approx(mean[side])
        assert row["difference"] == pytest.approx(mean["pred"] - mean["against"])
        for x in ("low", "high", "p"):
            assert row[x] == pytest.approx(sure[name][x])
    for relation, row in found["relations"].items():
        gold = {
            (d["title"], x["h"], x["t"]) for d in truth for x in d["labels"] if x["r"] == relation
        }
        f1 = []
        for name in ("b1", "b2"):
            own = {(x["title"], x["h_idx"], x["t_idx"]) for x in given[name] if x["r"] == relation}
            f1.append(200 * len(own & gold) / (len(own) + len(gold)))
        assert row["facts"] == len(gold) and row["against"] == pytest.approx(sum(f1) / 2)
    assert sum(row["facts"] for row in found["relations"].values()) == len(
        {(d["title"], x["h"], x["t"], x["r"]) for d in truth for x in d["labels"]}
    )
    assert "| f1 " in capsys.readouterr().out


def test_one_alone_and_bad_input(submissions, demo, tmp_path, capsys):
    files, _ = submissions
    where = ["--truth", str(demo / "test_revised.json"), "--pred", str(files["a1"])]
    compare.main([*where, "--output", str(tmp_path / "out.json")])
    assert read(tmp_path / "out.json")["scores"]["f1"].keys() == {"pred"}
    assert "leaves out nothing" in capsys.readouterr().out
    with pytest.raises(InputError, match="--against: 2 files, --pred has 1"):
        compare.main([*where, "--against", str(files["b1"]), str(files["b2"])])
    foreign = [read(files["b1"])[0] | {"title": "nowhere"}]
    files["b1"].write_text(json.dumps(foreign))
    with pytest.raises(InputError, match="b1.json: the test file has no document 'nowhere'"):
        compare.main([*where, "--against", str(files["b1"])])
