"""The report against slow, separate code; groups, broken folders, figures."""

import json
import math
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
import torch
from conftest import REL2ID, ROOT, read, shared
from test_evaluation import f1_of, slow_pattern

import report
from engine.options import Options
from engine.prediction import to_official
from evaluation import PATTERNS, SHARES, count_patterns, evaluate
from inputs.documents import read_documents
from inputs.files import InputError, run_main
from losses import decode, threshold_of
from prepro import entity_pairs
from reporting import figures
from reporting.runs import find_runs, group_runs
from reporting.statistics import SCORES, document_counts, scores_of_counts
from reporting.tables import data_tables, document_sizes
from utils import save_arrays

PAPER = read(ROOT / "meta/paper_results.json")


# --- Made-up runs -----------------------------------------------------------------------------


def labels_of(documents):
    """Multi-hot labels of all pairs, [pairs, 97]."""
    rows = []
    for document in documents:
        for pair in entity_pairs(len(document["vertexSet"])).tolist():
            row = np.zeros(97, dtype=bool)
            for x in document["labels"]:
                row[REL2ID[x["r"]]] |= [x["h"], x["t"]] == pair
            row[0] = not row.any()
            rows.append(row)
    return np.stack(rows)


def patterns_of_documents(scores, labels, threshold, documents):
    """patterns.json of a split, pair by pair."""
    found, rows = [], zip(scores.tolist(), labels, threshold, strict=True)
    for document in documents:
        size = len(document["vertexSet"])
        pairs = [next(rows) for _ in range(size * (size - 1))]
        names = [slow_pattern([t[0], *s[1:]], y) for s, y, t in pairs]
        found.append([names.count(name) for name in PATTERNS])
    return found


def write_run(folder, data, loss_type="ATL", seed=1, logits=True, tuned=False, fused=False, **args):
    """A run folder as train.py leaves it, of random scores that lean to what is right. Fused are
    other predictions here, those of a lower threshold."""
    folder.mkdir(parents=True)
    args = vars(Options()) | args
    args |= {"loss_type": loss_type, "seed": seed, "data_dir": str(data), "precision": "fp32"}
    args |= {"output_dir": str(folder), "rel2id": "meta/rel2id.json"}
    splits = {x: read(data / f"{x}_revised.json") for x in ("train", "dev", "test")}
    rng = np.random.default_rng([seed, *folder.name.encode()])
    results, kept = {"args": args, "data": {}}, {}
    for split, documents in splits.items():
        file = data / f"{split}_revised.json"
        sha256 = subprocess.run(["sha256sum", file], capture_output=True, text=True).stdout[:64]
        record = {"file": file.name, "sha256": sha256, "documents": len(documents)}
        results["data"][split] = record | {"triples": sum(len(d["labels"]) for d in documents)}
    for split in ("dev", "test"):
        truth, labels = splits[split], labels_of(splits[split])
        scores = rng.normal(size=labels.shape) + labels * rng.choice([1, 4], size=labels.shape)
        scores[:, 0] += rng.choice([1.5, 3.5], size=len(labels))
        scores = torch.from_numpy(scores.astype(np.float32))
        features = [{"title": d["title"], "entity_pos": d["vertexSet"]} for d in truth]
        for shift, kind in ((0.0, ""), (0.25, "tuned" * tuned), (-0.25, "fusion" * fused)):
            predicted = decode(scores, loss_type, 4, shift)
            submission = to_official(predicted, features, REL2ID)
            threshold = threshold_of(scores, loss_type).numpy()
            found = evaluate(submission, truth, splits["train"])
            found |= count_patterns(scores.numpy(), labels, threshold + shift)
            if kind:
                found |= {"pseudo_documents": 3}
                results.setdefault(kind, {"shift": shift})[split] = found
                name = f"{split}_{'fused' if kind == 'fusion' else kind}.json"
                (folder / name).write_text(json.dumps(submission))
            elif not shift:
                results[split] = found
                kept[split] = patterns_of_documents(scores, labels, threshold, truth)
                (folder / "predictions.json").write_text(json.dumps(submission))
        if logits:
            arrays = {"logits": scores.numpy(), "labels": labels, "threshold": threshold}
            save_arrays(folder / f"{split}_logits.npz", arrays)
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "patterns.json").write_text(json.dumps(kept))
    records = [{"epoch": i, "step": 7 * i, "loss": 1 / i, "dev": results["dev"]} for i in (1, 2)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in records))
    return folder


@pytest.fixture(scope="session")
def made(data, tmp_path_factory):
    """A folder of runs, and its report as (out, report.json, report.md)."""
    root = tmp_path_factory.mktemp("made")
    for seed in (1, 5, 42):
        write_run(root / f"runs/atl/seed{seed}", data, "ATL", seed, tuned=seed < 40)
        write_run(root / f"runs/hinge-{seed}", data, "HingeABL", seed, tuned=seed == 5, fused=True)
    write_run(root / "runs/joint", data, "HingeABL", 5, hinge_norm="joint", logits=False)
    write_run(root / "runs/m3", data, "HingeABL", 66, margin=3.0, logits=False)
    write_run(root / "runs/softmax", data, "balance_softmax", 1)
    write_run(root / "runs/unet", data, "HingeABL", 1, backbone="docunet", logits=False)
    evidence = {"backbone": "dreeam", "logits": False, "fused": True}
    write_run(root / "runs/dreeam", data, "HingeABL", 1, **evidence)
    write_run(root / "runs/taught", data, "HingeABL", 1, evidence_weight=0.1, **evidence)
    pair = ["--pair", "test 1", "0", "1", "--pair", "dev 0", "Name 3", "Name 2"]
    where = ["--runs", str(root / "runs"), "--out", str(root / "out"), "--data_dir", str(data)]
    report.main([*where, *pair])
    markdown = re.sub(" +", " ", (root / "out/report.md").read_text())  # columns are padded
    return root / "out", read(root / "out/report.json"), markdown


def row_of(rows, loss, backbone="atlop", **more):
    """The row of a loss, in a table or a list."""
    rows = rows["rows"] if isinstance(rows, dict) else rows
    wanted = {"loss": loss, "backbone": backbone} | more
    (row,) = (x for x in rows if wanted.items() <= x.items())
    return row


# --- Numbers ----------------------------------------------------------------------------------


def slow_scores(folder, data):
    """Micro F1, macro F1 and dev patterns of a run from its raw files."""
    truth = {
        (d["title"], x["h"], x["t"], x["r"])
        for d in read(data / "test_revised.json")
        for x in d["labels"]
    }
    found = {
        (x["title"], x["h_idx"], x["t_idx"], x["r"]) for x in read(folder / "predictions.json")
    }

    def f1(r=None):
        a, b = ({x for x in keys if r in (None, x[3])} for keys in (found, truth))
        return 100 * f1_of(len(a & b) / max(len(a), 1), len(a & b) / len(b))

    relations = {x[3] for x in truth}
    arrays = np.load(folder / "dev_logits.npz")
    scores = arrays["logits"].copy()
    scores[:, :1] = arrays["threshold"]
    patterns = [slow_pattern(s, y) for s, y in zip(scores, arrays["labels"], strict=True)]
    many = (arrays["labels"][:, 1:].sum(1) >= 4) & np.char.startswith(patterns, "FN")
    return f1(), sum(map(f1, relations)) / len(relations), patterns, many.sum()


def test_numbers_from_raw_predictions(made, data):
    out, found, markdown = made
    tables = {x["name"]: x for x in found["groups"][0]["tables"]}
    folders = [out.parent / f"runs/atl/seed{seed}" for seed in (1, 5, 42)]
    f1, macro, patterns, many = zip(*(slow_scores(x, data) for x in folders), strict=True)
    assert sum(many) > 0, "no missed pair with four and more relations"
    crk = [x.count("FN_CRK") for x in patterns]
    missed = [x.count("FN_CRK") + x.count("FN_IRK") for x in patterns]
    false = [x.count("FP") + y for x, y in zip(patterns, missed, strict=True)]
    expected = {
        ("Table 1", "FN_CRK"): crk,
        ("Table 3", "F1"): f1,
        ("Table 2", "F1"): f1,
        ("Table 4", "F/(T+F)"): [100 * a / len(x) for a, x in zip(false, patterns, strict=True)],
        ("Table 4", "FN/F"): [100 * a / b for a, b in zip(missed, false, strict=True)],
        ("Table 4", "FN_CRK/FN"): [100 * a / b for a, b in zip(crk, missed, strict=True)],
        ("Table 7", "macro F1"): macro,
    }
    for (table, column), values in expected.items():
        row = row_of(tables[table], "ATL")
        cell = row["cells"][column]
        mean = sum(values) / 3
        assert cell["mean"] == pytest.approx(mean), (table, column)
        assert cell["std"] == pytest.approx(math.sqrt(sum((x - mean) ** 2 for x in values) / 2))
        assert cell["n"] == 3 and row["seeds"] == [1, 5, 42]
    cell = row_of(tables["Table 3"], "ATL")["cells"]["F1"]
    assert f"| ATL | {cell['mean']:.2f} ± {cell['std']:.2f} | – |" in markdown
    assert "Paper: ATL: F1 is not legible in our copy of the paper." in markdown


def test_paper_numbers_stand_beside_and_cells_without_runs_say_so(made):
    _, found, markdown = made
    tables = {x["name"]: x for x in found["groups"][0]["tables"]}
    for loss, numbers in PAPER["table3_bert_base_micro"].items():
        row = row_of(tables["Table 3"], loss)
        assert row["cells"]["Ign F1"]["paper"] == numbers["Ign_F1"]
        macro = row_of(tables["Table 7"], loss)["cells"]["macro Ign F1"]
        assert macro["paper"] == PAPER["table7_bert_base_macro"][loss]["Ign_F1"]
    assert row_of(tables["Table 1"], "ATL")["cells"]["FP"]["paper"] == 2859
    assert row_of(tables["Table 4"], "AML")["cells"]["FN/F"]["paper"] == 65.30
    for backbone, numbers in PAPER["table2_roberta_large"].items():
        cells = row_of(tables["Table 2"], numbers["own_loss"], backbone)["cells"]
        printed = [cells[column]["paper"] for column in ("F1", "Ign F1")]
        cells = row_of(tables["Table 2"], "HingeABL", backbone)["cells"]
        printed += [cells[column]["paper"] for column in ("F1", "Ign F1")]
        assert printed == [numbers[k] for k in ("F1", "Ign_F1", "F1_HingeABL", "Ign_F1_HingeABL")]
    docunet = row_of(tables["Table 2"], "HingeABL", "docunet")["cells"]["F1"]
    assert (docunet["paper"], docunet["n"], docunet["std"]) == (79.43, 1, None)
    assert row_of(tables["Table 3"], "AML")["cells"]["F1"]["mean"] is None
    assert "| AML | no runs | 72.60 | no runs | 71.78 | 0 |" in markdown
    assert "| loss | F1 | F1 (paper) | Ign F1 | Ign F1 (paper) | seeds |" in markdown
    assert "these are not the paper's data" in markdown


def test_another_corpus_has_no_numbers_of_the_paper(data, tmp_path):
    folder = write_run(tmp_path / "runs/a", data, logits=False)
    own = {f"my {name}": number for name, number in REL2ID.items()}
    (folder / "rel2id.json").write_text(json.dumps(own))
    report.main(["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")])
    tables = read(tmp_path / "out/report.json")["groups"][0]["tables"]
    assert [x["name"] for x in tables] == [f"Table {x}" for x in (1, 2, 3, 4, 7)]
    assert all([row["loss"] for row in x["rows"]] == ["ATL"] for x in tables)
    markdown = re.sub(" +", " ", (tmp_path / "out/report.md").read_text())
    assert "### Table 3: losses (test)\n\n| loss | F1 | Ign F1 | seeds |" in markdown
    assert "(paper)" not in markdown and "these are not" not in markdown


def test_variants_and_tuned_thresholds_have_tables(made):
    out, found, _ = made
    tables = {x["name"]: x for x in found["groups"][0]["tables"]}
    losses = [x["loss"] for x in tables["Variants"]["rows"] if x["backbone"] == "atlop"]
    assert losses == ["HingeABL", "HingeABL:m3", "HingeABL:joint"]
    assert row_of(tables["Variants"], "HingeABL:joint")["seeds"] == [5]
    row = row_of(tables["Threshold"], "ATL")
    runs = [read(out.parent / f"runs/atl/seed{seed}/results.json") for seed in (1, 5)]
    assert row["seeds"] == [1, 5] and row["cells"]["shift"]["mean"] == 0.25
    for column, path in {"test F1": ("test",), "test F1, shifted": ("tuned", "test")}.items():
        values = []
        for run in runs:
            for name in path:
                run = run[name]
            values.append(100 * run["f1"])
        assert row["cells"][column]["mean"] == pytest.approx(sum(values) / 2)


def test_data_tables_on_the_real_dev_split():
    documents = read_documents(shared("redocred/dev_revised.json"))
    table5, table6 = data_tables({"dev": documents}, PAPER)
    words = entities = sentences = pairs = without = triples = 0
    relations = set()
    for d in documents:
        triples += len(d["labels"])
        entities += len(d["vertexSet"])
        for sentence in d["sents"]:
            sentences += 1
            words += len(sentence)
        holds = {(x["h"], x["t"]) for x in d["labels"]}
        relations |= {x["r"] for x in d["labels"]}
        for h in range(len(d["vertexSet"])):
            for t in range(len(d["vertexSet"])):
                pairs += h != t
                without += h != t and (h, t) not in holds
    assert pairs == 193_232  # as in the paper's Table 1 and 4
    expected = [len(relations), words / 500, entities / 500, pairs / 500, 100 * without / pairs]
    assert [x["ours"] for x in table5.values()] == pytest.approx(expected)
    assert [x["ours"] for x in table6["dev"].values()] == pytest.approx(
        [500, entities / 500, triples / 500, sentences / 500]
    )
    documents[0]["labels"].append({"h": 3, "t": 3, "r": "P17"})  # a self-relation is no pair
    assert document_sizes(documents)["related"].sum() == pairs - without
    rounded = {name: round(x["ours"], 1) for name, x in table6["dev"].items()}
    assert rounded == {name: x["paper"] for name, x in table6["dev"].items()}


# --- Significance -----------------------------------------------------------------------------


def test_significance_in_the_report(made, data):
    out, found, markdown = made
    compared = found["groups"][0]["significance"]
    row = row_of(compared["test"], "HingeABL")
    assert row["seeds"] == [1, 5, 42] and row_of(compared["test"], "HingeABL:joint")["seeds"] == [5]
    truth, facts = (read(data / f"{x}_revised.json") for x in ("test", "train"))
    means, folders_of = {}, {}
    for name in ("hinge-{}", "atl/seed{}"):
        folders = folders_of[name] = [
            out.parent / "runs" / name.format(seed) for seed in (1, 5, 42)
        ]
        scores = [evaluate(read(x / "predictions.json"), truth, facts) for x in folders]
        means[name] = {k: np.mean([x[k] for x in scores]) for k in SCORES}
        counts = document_counts(read(folders[0] / "predictions.json"), truth, REL2ID, facts)
        assert counts[..., 3].sum() > 0
        expected = [scores[0][name] for name in SCORES]
        assert scores_of_counts(counts.sum(0)) == pytest.approx(expected)
    for score in SCORES:
        difference = 100 * (means["hinge-{}"][score] - means["atl/seed{}"][score])
        assert row[score]["difference"] == pytest.approx(difference)
        assert row[score]["low"] <= difference <= row[score]["high"]
    text = f"| atlop | HingeABL | ATL | 1, 5, 42 | {row['f1']['difference']:+.2f} | "
    assert f"{text}{row['f1']['low']:+.2f} to {row['f1']['high']:+.2f} |" in markdown
    row = row_of(compared["patterns"], "HingeABL")
    for name in SHARES:
        runs = [
            [read(x / "results.json") for x in folders_of[y]] for y in ("hinge-{}", "atl/seed{}")
        ]
        first, second = (np.mean([x["dev"][name] for x in of_loss]) for of_loss in runs)
        assert row[name]["difference"] == pytest.approx(100 * (first - second))
        assert row[name]["low"] <= row[name]["difference"] <= row[name]["high"]
    assert f"| {row['FN/F']['low']:+.2f} to {row['FN/F']['high']:+.2f} |" in markdown
    assert "HingeABL:m3 (atlop): no seed with ATL to compare with" in compared["notes"]
    assert "HingeABL (docunet): no runs of balance_softmax to compare with" in compared["notes"]
    assert "the interval is over documents and seeds together" in markdown


def test_shifted_and_fused_scores_are_compared_too(made, data):
    """So are backbones of the same loss, with ATLOP and with their own plain form."""
    out, found, markdown = made
    compared, runs = found["groups"][0]["significance"], out.parent / "runs"
    taught = "dreeam (evidence_weight 0.1)"
    tuned, fused = (compared[kind] for kind in ("tuned", "fusion"))
    against = [(x["backbone"], x["against"]) for x in fused]
    assert against == [("dreeam", "atlop"), (taught, "atlop"), (taught, "dreeam")]
    assert [(x["loss"], x["against"]) for x in tuned] == [("HingeABL", "ATL")]
    unfused = [(x["backbone"], x["against"]) for x in compared["test"] if x["against"] != "ATL"]
    assert unfused == [("docunet", "atlop"), *against]

    truth, facts = (read(data / f"{x}_revised.json") for x in ("test", "train"))
    for kind, row, files in (
        ("tuned", tuned[0], ("hinge-5/test_tuned", "atl/seed5/test_tuned")),
        ("fusion", fused[2], ("taught/test_fused", "dreeam/test_fused")),
    ):
        first, second = (evaluate(read(runs / f"{x}.json"), truth, facts) for x in files)
        for score in SCORES:
            expected = 100 * (first[score] - second[score])
            assert row[score]["difference"] == pytest.approx(expected), kind
        interval = f"{row['f1']['low']:+.2f} to {row['f1']['high']:+.2f}"
        assert f"{row['f1']['difference']:+.2f} | {interval} |" in markdown

    table = {x["name"]: x for x in found["groups"][0]["tables"]}["Evidence"]
    results = read(runs / "taught/results.json")
    cells = row_of(table, "HingeABL", taught)["cells"]
    for column, name in {"F1": "f1", "Ign F1": "ign_f1", "Evi F1": "evi_f1"}.items():
        assert cells[column]["mean"] == pytest.approx(100 * results["test"][name])
        fused = 100 * results["fusion"]["test"][name]
        assert cells[f"{column}, fused"]["mean"] == pytest.approx(fused)
    assert [x["backbone"] for x in table["rows"]] == ["atlop", "dreeam", taught]


# --- Groups and folders that are no runs ------------------------------------------------------


def test_runs_that_differ_are_never_averaged(data, tmp_path):
    write_run(tmp_path / "a", data)
    write_run(tmp_path / "b", data, seed=5)
    changes = {
        "rate": {"learning_rate": 1e-3},
        "encoder": {"model_name_or_path": "roberta-large"},
        "cap": {"num_labels": 3},
        "flag": {"of_another_version": 3},
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
        record[path[-1]] = "other"
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


def test_broken_unfinished_and_foreign_folders_are_named(data, tmp_path, capsys):
    root = tmp_path / "runs"
    write_run(root / "sound", data, logits=False)
    shutil.copytree(root / "sound", root / "twin")
    for name, content in {
        "empty": "",
        "cut": (root / "sound/results.json").read_text()[:500],
        "foreign": '{"accuracy": 0.9}',
        "list": "[]",
    }.items():
        (root / name).mkdir()
        (root / name / "results.json").write_text(content)
    for name, change in {
        "nan": ("dev", "f1", math.nan),
        "high": ("dev", "f1", 1.5),
        "count": ("test", "FP", None),
        "loss": ("args", "loss_type", "X"),
        "margin": ("args", "margin", "x"),
        "flag": ("args", "learning_rate", []),
        "split": ("data", "dev", 3),
        "untested": ("data", "test", None),
    }.items():
        results = read(root / "sound/results.json")
        results[change[0]][change[1]] = change[2]
        (root / name).mkdir()
        (root / name / "results.json").write_text(json.dumps(results))
    write_run(root / "evaluation", data, logits=False, load_path="gone/run")
    (root / "unfinished").mkdir()
    shutil.copy(root / "sound/metrics.jsonl", root / "unfinished")
    (root / "other/checkpoints").mkdir(parents=True)
    (root / "sound/metrics.jsonl").write_text('{"step": 1}\n')
    (root / "twin/predictions.json").write_text("[]")
    report.main(["--runs", str(root), "--out", str(root / "out"), "--data_dir", str(data)])
    found = read(root / "out/report.json")
    reasons = {x["folder"].rsplit("/")[-1]: x["reason"] for x in found["left_out"]}
    no_run = "results.json is not a finished run's: "
    assert reasons.pop("empty") == reasons.pop("cut") == no_run + "Input data was truncated"
    assert reasons.pop("foreign") == no_run + "Object missing required field `args`"
    assert reasons.pop("list") == no_run + "Expected `object`, got `array`"
    assert reasons.pop("nan").startswith(no_run + "JSON is malformed: invalid character")
    for name, field in {
        "high": "dev.f1",
        "count": "test.FP",
        "loss": "args.loss_type",
        "margin": "args.margin",
        "flag": "args.learning_rate",
        "split": "data.dev",
    }.items():
        reason = reasons.pop(name)
        assert reason.startswith(no_run) and reason.endswith(f" - at `$.{field}`")
    assert "data.test is missing" in reasons.pop("untested")
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
    splits, notes = report.documents_of(group, tmp_path / "data")
    assert list(splits) == ["train", "dev"]
    path = tmp_path / "data/test_revised.json"
    assert notes == [f"{path}: not the file of these runs (its SHA-256 differs)"]
    found = report.all_documents(group, tmp_path / "data")
    assert data_tables(found, PAPER)[1]["test"]["documents"] == {"ours": 3, "paper": 500}


# --- Figures ----------------------------------------------------------------------------------


def test_figures_exist_and_parse(made):
    out, found, markdown = made
    shown = [x["file"] for x in found["groups"][0]["figures"] + found["figures"]]
    names = {file.split("/")[1].removesuffix(".png") for file in shown}
    assert names == {
        *(f"group1-atlop-{x}" for x in ("curves", "patterns", "shift", "pair1", "pair2")),
        *(f"group1-{x}-{y}" for x in ("docunet", "dreeam", "dreeam-evidence_weight-0.1")
          for y in ("curves", "patterns")), "figure3", "appendix-e",
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
    curves = figures.penalties(distance, 5.0)
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
    places = figures.spread([0.5, 0.5, 0.1, 0.9, 0.52], [0.1] * 5)
    assert places[[2, 3]].tolist() == [0.1, 0.9]
    assert places[[0, 1, 4]] == pytest.approx(np.array([0.4, 0.5, 0.6]) + 0.02 / 3)
