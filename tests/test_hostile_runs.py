"""Run folders and data files of a report, changed and broken: named and left out."""

import json
import shutil
from collections import Counter
from itertools import chain, count
from unittest.mock import Mock

import pytest
from conftest import REL2ID, read
from hostile import BYTES, as_bytes, changed, every_change, hostile_arrays
from made_runs import write_run

import report


@pytest.fixture(scope="module")
def run_folder(data, tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("one") / "sound", data, tuned=True)


@pytest.fixture
def runs(run_folder, tmp_path):
    """A folder of a sound run and of another, "b", to be broken."""
    for name in "sound", "b":
        shutil.copytree(run_folder, tmp_path / "runs" / name)
    results = read(tmp_path / "runs/b/results.json")
    results["args"]["seed"] = 2
    (tmp_path / "runs/b/results.json").write_text(json.dumps(results))
    return tmp_path / "runs"


@pytest.fixture
def no_figures(monkeypatch):
    """Figures take far more time than the rest of a report."""
    monkeypatch.setattr(report, "draw_group", lambda *_: [])
    monkeypatch.setattr(report, "figures", Mock())


def reported(runs, *more):
    """The report of a folder of runs, as (report.json, report.md)."""
    out = runs.parent / "out"
    report.main(["--runs", str(runs), "--out", str(out), *map(str, more)])
    markdown = (out / "report.md").read_text(encoding="utf-8")
    assert all(x.isprintable() or x == "\n" for x in markdown)
    return read(out / "report.json"), markdown


def seeds_of(found):
    rows = [row for x in found["groups"] for row in x["tables"][2]["rows"]]
    return {seed for row in rows for seed in row["seeds"]}


def test_every_change_of_a_runs_results(runs, no_figures, capsys):
    """The broken run is named and left out; or it is reported; the sound one always is."""
    path, seen = runs / "b/results.json", Counter()
    base = read(path)
    values = [
        None,
        True,
        -1,
        10**30,
        10**400,
        1e308,
        float("nan"),
        "\ud800",
        "a\nb|`",
        [],
        {"a": []},
    ]
    contents = chain(
        (as_bytes(value) for _, value in every_change(base, values, step=23)),
        (change(as_bytes(base)) for change in BYTES.values()),
    )
    for content in contents:
        path.write_bytes(content)
        found, _ = reported(runs)
        left_out = [x["folder"] for x in found["left_out"]]
        seen[not left_out] += 1
        assert left_out in ([], [str(runs / "b")]) and 1 in seeds_of(found)
    print("results.json: read, refused", seen[True], seen[False])
    assert seen[True] > 50 and seen[False] > 100


def test_hostile_paths_in_a_runs_results(runs, data, no_figures):
    path, base = runs / "b/results.json", read(runs / "b/results.json")
    outside = runs.parent / "outside.json"
    outside.write_text("secret")
    for name in (
        "../outside.json",
        str(outside),
        "/dev/zero",
        "/proc/self/environ",
        "x" * 5000,
        "a\0b",
        "",
    ):
        base["data"]["test"]["file"] = name
        path.write_text(json.dumps(base))
        found, markdown = reported(runs, "--data_dir", data)
        assert 1 in seeds_of(found) and found["groups"][0]["significance"]
        assert "secret" not in markdown
    for name in ("../gone", "x" * 5000, "a\0b", str(runs / "b")):
        base["args"]["load_path"] = name
        path.write_text(json.dumps(base))
        assert 1 in seeds_of(reported(runs)[0])


def test_relations_of_a_hostile_run(runs, data, no_figures):
    """They refuse neither the data nor the predictions of the sound runs."""
    shutil.move(runs / "b", runs / "a")  # before the sound one by name
    for content in (
        {"Na": 0, "X": 1},
        {},
        {"Na": 0} | {"x" * 5000: 1},
        "text",
        REL2ID | {"P0": 97},
    ):
        (runs / "a/rel2id.json").write_text(json.dumps(content))
        found, _ = reported(runs, "--data_dir", data)
        sound = [x for x in found["groups"] if 1 in seeds_of({"groups": [x]})]
        notes = sound[0]["significance"]["notes"]
        assert not any(str(runs / "sound") in note for note in notes)


def test_broken_data_files_of_a_report(runs, data, no_figures, tmp_path, capsys):
    shutil.copytree(data, tmp_path / "data")
    path, seen = tmp_path / "data/test_revised.json", Counter()
    content = path.read_bytes()
    for change in BYTES.values():
        path.write_bytes(change(content))
        report.read_split.cache_clear()
        found, _ = reported(runs, "--data_dir", tmp_path / "data")
        lines = [x for x in capsys.readouterr().out.splitlines() if str(path) in x]
        seen["test" in found["table6"]] += 1
        assert len(lines) == (path.read_bytes() != content)
    assert seen[True] and seen[False] > 70
    print("data files of a report: read, refused", seen[True], seen[False])


def test_other_broken_files_of_runs(run_folder, data, tmp_path, capsys):
    """Many runs with one broken file each, in one report, with figures: every fault is noted."""
    runs, broken = tmp_path / "runs", []
    results, metrics = read(run_folder / "results.json"), (run_folder / "metrics.jsonl").read_text()
    record, seed = json.loads(metrics.splitlines()[0]), count(10)

    def add(name, content):
        at = runs / f"seed{(number := next(seed))}"
        shutil.copytree(run_folder, at)
        (at / "results.json").write_text(
            json.dumps(changed(results, ("args", "seed"), lambda x, k: x.update({k: number})))
        )
        (at / name).write_bytes(content)
        broken.append(at / name)

    shutil.copytree(run_folder, runs / "sound")
    for value in [None, 10**400, 1e308, float("nan"), "x", [], {}]:
        for place in [("step",), ("loss",), ("dev",), ("dev", "f1")]:
            if place == ("loss",) or value != []:
                add(
                    "metrics.jsonl",
                    as_bytes(changed(record, place, lambda x, k, v=value: x.update({k: v}))),
                )
    for content in (
        b"",
        b"[]",
        b"3",
        b"{",
        b"[" * 100_000,
        b"\xff\xfe",
        b'{"step": 1}',
        b"null",
        b'"x"',
    ):
        add("metrics.jsonl", content)
    for _, content in list(hostile_arrays())[2:28]:
        add("test_logits.npz", content)
    for name in ("nothing", "null", "UTF-16", "gzip", "deep lists", "cut to 20 of 40", "twice"):
        add("predictions.json", BYTES[name]((run_folder / "predictions.json").read_bytes()))
    found, markdown = reported(runs, "--data_dir", data, "--pair", "test 1", "0", "1")
    (group,) = found["groups"]
    notes = [*group["notes"], *group["significance"]["notes"]]
    for path in broken:
        assert sum(str(path) in note for note in notes) >= 1, path
    assert not found["left_out"] and {x["file"] for x in group["figures"]} == {
        f"figures/group1-atlop-{x}.png" for x in ("curves", "patterns", "shift", "pair1")
    }
    print("metrics, logits, predictions of runs: refused", len(broken))
