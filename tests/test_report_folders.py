"""The report of folders: which runs belong together, what is no run, what the figures show."""

import json
import math
import re
import shutil
import sys
import xml.etree.ElementTree as ElementTree
from functools import reduce
from operator import getitem

import numpy as np
import pytest
import torch
from conftest import REL2ID, ROOT, read
from made_runs import labels_of, row_of, write_run

import report
from inputs.files import InputError, run_main
from reporting import figures
from reporting.groups import find_runs, group_runs, read_curve, threshold_ends
from reporting.tables import data_tables

PAPER = read(ROOT / "meta/paper_results.json")


# --- Groups and folders that are no runs ------------------------------------------------------


def test_runs_that_differ_are_never_averaged(data, tmp_path):
    write_run(tmp_path / "a", data)
    write_run(tmp_path / "b", data, seed=5)
    changes = {
        "rate": {"learning_rate": 1e-3},
        "encoder": {"model_name_or_path": "roberta-large"},
        "cap": {"num_labels": 3},
        "flag": {"of_another_version": 3},
        "evidence": {"evidence_threshold": 0.3},
        "precision": {},
        "data": {},
    }
    for name, change in changes.items():
        write_run(tmp_path / name, data, seed=5, **change)
    for name, path in {
        "precision": ("args", "precision"),
        "data": ("data", "dev", "sha256"),
    }.items():
        results = read(tmp_path / name / "results.json")
        record = results
        for key in path[:-1]:
            record = record[key]
        record[path[-1]] = "bf16" if name == "precision" else "other"
        (tmp_path / name / "results.json").write_text(json.dumps(results))
    # these do not change a score, or name a row
    write_run(tmp_path / "batch", data, seed=7, test_batch_size=3, device="cuda", wandb="offline")
    write_run(tmp_path / "margin", data, "AML", seed=7, margin=2.0)
    write_run(tmp_path / "gamma", data, "AFL", seed=7, gamma=2.0)
    write_run(tmp_path / "taught", data, seed=7, backbone="dreeam", evidence_weight=0.1)
    write_run(tmp_path / "untaught", data, seed=7, backbone="dreeam")
    write_run(tmp_path / "unet", data, seed=7, backbone="docunet", down_dim=128)
    # weights of unknown training: each checkpoint counts as a seed, apart from all that was trained
    write_run(tmp_path / "x1", data, load_path="released/x1.pt")
    write_run(tmp_path / "x2", data, load_path="released/x2.pt")
    groups = group_runs(find_runs(tmp_path, tmp_path / "out")[0])
    members = [sorted(run["folder"].name for x in g["rows"].values() for run in x) for g in groups]
    assert members[0] == ["a", "b", "batch", "gamma", "margin", "taught", "unet", "untaught"]
    assert members[1] == ["x1", "x2"] and list(groups[1]["rows"]) == [("atlop", "ATL")]
    assert sorted(x for (x,) in members[2:]) == sorted(changes)
    assert [*groups[0]["rows"]] == [
        *(("atlop", x) for x in ("ATL", "AML:m2", "AFL:g2")), ("docunet (down_dim 128)", "ATL"),
        ("dreeam", "ATL"), ("dreeam (evidence_weight 0.1)", "ATL"),
    ]  # fmt: skip


def test_an_evaluation_has_the_curve_of_the_run_that_it_evaluates(data, tmp_path):
    trained = write_run(tmp_path / "runs/a", data)
    again = write_run(tmp_path / "runs/b", data, fused=True, load_path=str(trained))
    (again / "metrics.jsonl").unlink()
    runs = find_runs(tmp_path / "runs", tmp_path)[0]
    (group,) = group_runs(runs)
    ((run,),) = group["rows"].values()  # the one that has more
    assert run["folder"] == again and [x["step"] for x in read_curve(run["trained_in"])] == [7, 14]


def test_runs_that_began_with_runs_of_one_recipe_are_averaged(data, tmp_path):
    """As where each seed is first trained on distant data."""
    for seed in (1, 5, 7):
        rate = {"learning_rate": 1e-3} if seed == 7 else {}
        first = write_run(tmp_path / f"first/{seed}", data, seed=seed, **rate)
        write_run(tmp_path / f"runs/{seed}", data, seed=seed, init_path=str(first))
    write_run(tmp_path / "runs/gone", data, seed=9, init_path="gone")
    write_run(tmp_path / "runs/own", data, seed=11, init_path=str(tmp_path / "runs/own"))
    groups = group_runs(find_runs(tmp_path / "runs", tmp_path)[0])
    seeds = [[run["seed"] for runs in x["rows"].values() for run in runs] for x in groups]
    assert seeds == [[1, 5], [7], [9], [11]]
    assert "ATL of atlop, trained on train_revised.json" in groups[0]["settings"]["init_path"]


def test_runs_with_teachers_of_one_recipe_are_averaged(data, tmp_path, no_figures):
    """Not those that learned from other documents without labels."""
    for seed in (1, 5, 7):
        teacher = write_run(tmp_path / f"teachers/{seed}", data, seed=seed)
        folder = write_run(tmp_path / f"runs/{seed}", data, seed=seed, teacher=[str(teacher)])
        results = read(folder / "results.json")
        results["data"]["unlabelled"] = results["data"]["train"] | {"sha256": f"{seed // 7}" * 64}
        (folder / "results.json").write_text(json.dumps(results))
    groups = group_runs(find_runs(tmp_path / "runs", tmp_path)[0])
    seeds = [[run["seed"] for runs in x["rows"].values() for run in runs] for x in groups]
    assert seeds == [[1, 5], [7]]
    sizes = {"train": 3053, "dev": 500, "test": 500}
    for path in (tmp_path / "runs").glob("*/results.json"):
        results = read(path)
        for split, number in sizes.items():
            results["data"][split]["documents"] = number
        path.write_text(json.dumps(results))
    where = ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    report.main([*where, "--data_dir", str(data)])
    assert read(tmp_path / "out/report.json")["table6"].keys() == sizes.keys()


def test_released_weights_are_known_by_their_file(data, tmp_path):
    (tmp_path / "best.ckpt").write_text("")
    write_run(tmp_path / "runs/a", data, load_path=str(tmp_path / "best.ckpt"))
    write_run(tmp_path / "runs/again", data, load_path=str(tmp_path / "runs/a"))
    runs, left_out = find_runs(tmp_path / "runs", tmp_path)
    assert [run["seed"] for run in runs] == 2 * [str(tmp_path / "best.ckpt")] and not left_out


def test_runs_that_were_not_tested(data, tmp_path, no_figures):
    folder = write_run(tmp_path / "runs/a", data, logits=False)
    results = read(folder / "results.json")
    del results["test"], results["data"]["test"]
    (folder / "results.json").write_text(json.dumps(results))
    report.main(["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")])
    markdown = re.sub(" +", " ", (tmp_path / "out/report.md").read_text())
    assert "| ATL | – | 73.29 | – | 72.46 | 1: 1 |" in markdown
    assert "| AML | no runs | 72.60 | no runs | 71.78 | 0 |" in markdown


def test_broken_unfinished_and_foreign_folders_are_named(data, tmp_path, capsys):
    root = tmp_path / "runs"
    write_run(root / "sound", data, logits=False)
    shutil.copytree(root / "sound", root / "twin")
    sound = (root / "sound/results.json").read_text()
    contents = {"empty": "", "cut": sound[:500], "foreign": '{"accuracy": 0.9}', "list": "[]"}
    left_out = {
        "empty": "Input data was truncated",
        "cut": "Input data was truncated",
        "foreign": "args.seed is missing",
        "list": "args.seed is missing",
    }
    for path, value, reason in (
        ("version", 99, "version 99, this code knows up to 1"),
        ("version", "1", "version: '1' is no number"),
        ("args.loss_type", "X", "args.loss_type: 'X': "),
        ("args.backbone", [], "args.backbone: []: "),
        ("args.margin", "x", "args.margin: 'x': "),
        ("args.learning_rate", [], "args.learning_rate: []: "),
        ("data.dev", 3, "data.dev.sha256 is missing"),
        ("data.test", None, "data.test.sha256 is missing"),
        ("data.train.sha256", None, "data.train.sha256: None is no text"),
        ("dev.f1", math.nan, "JSON is malformed: invalid character"),
        ("dev.f1", "x", "dev.f1: 'x' is no number"),
        ("test.FP", None, "test.FP: None is no number"),
        ("tuned", {"dev": {}}, "tuned.dev.f1 is missing"),
    ):
        name = f"broken {len(contents)}"
        results = json.loads(sound)
        *parents, key = path.split(".")
        reduce(getitem, parents, results)[key] = value
        contents[name], left_out[name] = json.dumps(results), reason
    for name, content in contents.items():
        (root / name).mkdir()
        (root / name / "results.json").write_text(content)
    write_run(root / "evaluation", data, logits=False, load_path="gone/run")
    (root / "unfinished").mkdir()
    shutil.copy(root / "sound/metrics.jsonl", root / "unfinished")
    (root / "other/checkpoints").mkdir(parents=True)
    (root / "sound/metrics.jsonl").write_text('{"step": 1}\n')
    (root / "twin/predictions.json").write_text("[]")
    report.main(["--runs", str(root), "--out", str(root / "out"), "--data_dir", str(data)])
    found = read(root / "out/report.json")
    reasons = {x["folder"].rsplit("/")[-1]: x["reason"] for x in found["left_out"]}
    for name, reason in left_out.items():
        assert reasons.pop(name).startswith(f"results.json is not a finished run's: {reason}")
    assert reasons.pop("unfinished") == "unfinished: it has no results.json"
    assert reasons.pop("evaluation") == "only evaluates gone/run, whose results.json is not there"
    assert reasons.pop("other").startswith("not a run")
    assert not reasons
    printed = capsys.readouterr().out
    assert f"left out: {root / 'unfinished'}: unfinished" in printed
    (group,) = found["groups"]
    notes = "\n".join(group["notes"])
    assert f"{root / 'sound'} and {root / 'twin'} have the same settings and seed (1)" in notes
    assert f"{root / 'sound/metrics.jsonl'}: no evaluations of a run" in notes
    assert row_of(group["tables"][2], "ATL")["seeds"] == [1]


def test_runs_of_other_versions_have_other_scores(data, tmp_path):
    """A score that one lacks is the others' mean, or blank; one that nobody knows is not shown."""
    older, newer = (write_run(tmp_path / f"runs/{x}", data, seed=x, logits=False) for x in (1, 5))
    results = [read(folder / "results.json") for folder in (older, newer)]
    for name in ("macro_f1", "evi_f1", "FN_CRK", "FN/F"):
        for split in ("dev", "test"):
            del results[0][split][name]
    del results[0]["args"]["evidence_threshold"], results[1]["dev"]["FN/F"]
    results[1] |= {"version": 1, "calibration": 3}
    results[1]["test"] |= {"new_score": 0.5, "of_relations": {"P17": 0.25}}
    for folder, content in zip((older, newer), results, strict=True):
        (folder / "results.json").write_text(json.dumps(content))
    report.main(["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")])
    (group,) = read(tmp_path / "out/report.json")["groups"]
    tables = {x["name"]: row_of(x, "ATL")["cells"] for x in group["tables"]}
    assert [tables["Table 3"]["F1"][x] for x in ("n", "mean")] == [
        2, pytest.approx(50 * sum(x["test"]["f1"] for x in results))
    ]  # fmt: skip
    macro = {"mean": pytest.approx(100 * results[1]["test"]["macro_f1"]), "std": None, "n": 1}
    assert tables["Table 7"]["macro F1"].items() >= macro.items()
    assert tables["Table 4"]["FN/F"]["mean"] is None


def test_what_a_run_did_not_score_is_not_compared(data, tmp_path, no_figures):
    """Its seed is left out, and the note names the file."""
    for seed in (1, 5):
        for loss in ("ATL", "HingeABL"):
            write_run(tmp_path / f"runs/{loss}-{seed}", data, loss, seed=seed)
    run = tmp_path / "runs/HingeABL-5"
    (run / "predictions.json").write_text("[]")
    patterns = read(run / "patterns.json")
    for i, change in enumerate(
        (
            {"dev": patterns["dev"][:-1] + [[0, 0, 0, 0, 0]]},
            {"dev": patterns["dev"] + [[0, 0, 0, 0, 0]]},
            {"dev": [["x"]]},
        )
    ):
        (run / "patterns.json").write_text(json.dumps(patterns | change))
        where = ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / f"out{i}")]
        report.main([*where, "--data_dir", str(data)])
        compared = read(tmp_path / f"out{i}/report.json")["groups"][0]["significance"]
        for kind in ("test", "patterns"):
            (row,) = compared[kind]
            assert row["seeds"] == [1], kind
        first, second = compared["notes"]
        assert first == f"{run / 'predictions.json'}: its scores are not those of results.json"
        fault = ("its numbers are not those of results.json",) * 2 + ("not the patterns of a run",)
        assert second.startswith(f"{run / 'patterns.json'}: {fault[i]}")


def test_no_sound_run_is_one_line_and_code_2(tmp_path, monkeypatch, capsys):
    (tmp_path / "runs/a").mkdir(parents=True)
    (tmp_path / "runs/a/results.json").write_text("{}")
    where = ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["report.py", *where])
    with pytest.raises(SystemExit) as end:
        run_main(report.main)
    printed = capsys.readouterr()
    assert end.value.code == 2 and printed.out == "" and printed.err.count("\n") == 1
    assert f"no finished run ({tmp_path}/runs/a: results.json is not" in printed.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("more,message", [
    (["--pair", "test 9", "0", "1"], "no dev or test document of the runs is titled 'test 9'"),
    (["--pair", "test 1", "0", "9"], "document 'test 1': no entity is named '9'"),
    (["--pair", "test 1", "0", "0"], "'0' and '0' are one entity"),
    (["--data_dir", "nowhere"], "--data_dir nowhere: no such folder"),
    (["--out", "{made}/runs"], "the runs are there"),
])  # fmt: skip
def test_bad_arguments(made, data, tmp_path, more, message):
    root = made[0].parent
    more = [x.format(made=root) for x in more]
    where = ["--runs", str(root / "runs"), "--out", str(tmp_path / "out"), "--data_dir", str(data)]
    with pytest.raises(InputError) as error:
        report.main([*where, *more])
    assert message in str(error.value) and not (tmp_path / "out").exists()


def test_data_of_other_runs_is_not_used(made, data, tmp_path):
    """Another test file: no significance for these runs, but Tables 5 and 6 of what is there."""
    shutil.copytree(data, tmp_path / "data")
    documents = read(data / "test_revised.json")[:3]
    (tmp_path / "data/test_revised.json").write_text(json.dumps(documents))
    (group,) = group_runs(find_runs(made[0].parent / "runs", tmp_path)[0])
    splits, found, notes = report.documents_of(group, tmp_path / "data")
    assert list(splits) == ["train", "dev"]
    path = tmp_path / "data/test_revised.json"
    assert notes == [f"{path}: not the file of these runs (its SHA-256 differs)"]
    assert data_tables(found, PAPER)[1]["test"]["documents"] == {"ours": 3, "paper": 500}


def test_training_documents_may_have_one_title(data, tmp_path):
    """As when they train."""
    shutil.copytree(data, tmp_path / "data")
    path = tmp_path / "data/train_revised.json"
    path.write_text(json.dumps(read(path) * 2))
    write_run(tmp_path / "runs/a", tmp_path / "data", logits=False)
    (group,) = group_runs(find_runs(tmp_path / "runs", tmp_path)[0])
    splits, _, notes = report.documents_of(group, tmp_path / "data")
    assert len(splits["train"]) == 6 and not notes


# --- Figures ----------------------------------------------------------------------------------


def test_figures_exist_and_parse(made):
    out, found, markdown = made
    shown = [x["file"] for x in found["groups"][0]["figures"] + found["figures"]]
    names = {file.split("/")[1].removesuffix(".png") for file in shown}
    assert names == {
        *(f"group1-atlop-{x}" for x in ("curves", "thresholds", "ranking", "pair1", "pair2")),
        *(f"group1-{x}-curves" for x in ("docunet", "dreeam", "dreeam-evidence_weight-0.1")),
        "figure3", "appendix-e",
    }  # fmt: skip
    for file in shown:
        assert f"]({file})" in markdown
        pixels = figures.matplotlib.image.imread(out / file)
        assert pixels.shape[1] > 400 and pixels[..., :3].std() > 0.02
        ElementTree.parse((out / file).with_suffix(".svg"))
    texts = {
        x.text
        for x in ElementTree.parse(out / "figures/group1-atlop-pair1.svg").iter()
        if x.tag.endswith("}text")
    }
    for name in ("country", "country of citizenship", "publication date"):
        assert name in texts
    assert any(x and x.startswith("HingeABL, seed 1: ") for x in texts)
    svg = (out / "figures/group1-atlop-curves.svg").read_text()
    assert "dev precision" in svg and "HingeABL:joint" in svg


def test_curves_have_what_the_runs_have():
    """Runs of older versions do not say where the threshold lies."""
    dev = {"precision": 0.5, "recall": 0.25, "f1": 1 / 3}
    old = [{"step": x, "loss": 1 / x, "dev": dev} for x in (1, 2)]
    new = [x | {"dev": dev | {"above_threshold": x["step"] / 4}} for x in old]
    curves = {"ATL": [old, new], "SAT": [old]}
    figure = figures.training_curves(curves, figures.line_styles(list(curves)))
    precision, _, _, place, ranked, loss = figure.axes
    assert [x.get_label() for x in precision.lines] == ["ATL", "SAT"]
    assert [list(x.get_ydata()) for x in place.lines] == [[0.25, 0.5]]
    assert [list(x.get_ydata()) for x in precision.lines] == [[50, 50]] * 2
    assert not ranked.get_visible() and place.get_visible()
    assert [list(x.get_ydata()) for x in loss.lines] == [[1, 0.5]] * 2


def test_an_arrow_leads_to_the_best_threshold(data, tmp_path):
    """Runs without a tuned threshold have none."""
    for seed, tuned in ((1, True), (5, True), (7, False)):
        write_run(tmp_path / f"{seed}", data, seed=seed, tuned=tuned, logits=False)
    (group,) = group_runs(find_runs(tmp_path, tmp_path / "out")[0])
    ends = threshold_ends(group["rows"]["atlop", "ATL"])
    figure = figures.arrows({"a": {"ATL": ends}}, figures.line_styles(["ATL"]))
    (arrow,) = (x for x in figure.axes[0].texts if x.arrow_patch)
    results = [read(tmp_path / f"{seed}/results.json") for seed in (1, 5)]
    for point, of_run in (
        (arrow.xyann, lambda x: x["test"]),
        (arrow.xy, lambda x: x["tuned"]["test"]),
    ):
        means = [50 * sum(of_run(x)[name] for x in results) for name in ("recall", "precision")]
        assert list(point) == pytest.approx(means)


def test_pair_is_the_right_row(made, data):
    documents = read(data / "test_revised.json")
    split, row, title = report.find_pair({"test": documents}, "test 1", "0", "Name 1")
    assert (split, title) == ("test", "Name 0 → Name 1 (test 1)")
    assert labels_of(documents)[row].sum() >= 6 and row == 30  # after the 30 pairs of test 0
    arrays = np.load(made[0].parent / "runs/hinge-1/test_logits.npz")
    case = report.read_pair(
        {"folder": made[0].parent / "runs/hinge-1", "loss": "", "seed": 1, "classes": REL2ID},
        split,
        row,
    )
    assert (case["scores"] == arrays["logits"][30, 1:]).all()
    assert case["threshold"] == arrays["logits"][30, 0] and case["labels"].sum() >= 6


def test_penalties_are_the_papers():
    """Eq. 13, 14, 17 and 19, with c = -d."""
    distance = torch.linspace(-8, 8, 50, dtype=torch.float64)
    curves = figures.penalties(distance)
    assert list(curves) == ["HingeABL, m = 5", "AML, m = 5", "AML, m = 1"]
    for i, c in enumerate((-distance).tolist()):
        inside = c > -5
        hinge = (5 + c) * math.log(1 + math.exp(c)) if inside else 0
        slope = math.log(1 + math.exp(c)) + (5 + c) / (math.exp(-c) + 1) if inside else 0
        found = [x[i].item() for x in curves["HingeABL, m = 5"]]
        assert found == pytest.approx([hinge, slope])
        assert [x[i].item() for x in curves["AML, m = 1"]] == pytest.approx(
            [max(0, 1 + c), float(c > -1)]
        )


def test_labels_are_moved_apart():
    places = figures.without_overlap([0.5, 0.5, 0.1, 0.9, 0.52], [0.1] * 5)
    assert places[[2, 3]].tolist() == [0.1, 0.9]
    assert places[[0, 1, 4]] == pytest.approx(np.array([0.4, 0.5, 0.6]) + 0.02 / 3)
