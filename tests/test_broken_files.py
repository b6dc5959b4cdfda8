"""Broken and odd files: read, and then they work, or refused in one line; their code never runs.
Documents: test_prepro.py and test_documents.py; submissions: test_evaluation.py; results.json:
test_report_folders.py; saved states: test_resume.py."""

import io
import json
import shutil

import numpy as np
import pytest
import torch
from conftest import REL2ID, read, text_with
from made_runs import write_run

import report
from encoders.loading import build_encoder, load_tokenizer
from engine.checkpoint import load_state
from engine.extractor import RelationExtractor
from engine.scoring import to_official
from evaluation import evaluate
from inputs.documents import read_documents
from inputs.files import InputError, printable
from prepro import docred_features
from reporting.groups import read_pair
from utils import collate


class Payload:
    """A pickle that runs code when it is read."""

    ran = []

    def __reduce__(self):
        return exec, ("from test_broken_files import Payload; Payload.ran.append(1)",)


ODD = {
    "no entities": {"vertexSet": [], "labels": []},
    "nothing": {"sents": [], "vertexSet": [], "labels": []},
    "empty words": {"sents": [[""] * 4] * 2},
    "control words": {"sents": [["\x1b[2J", "\0", "\u202e", "\u2028"]] * 2},
    "white words": {"sents": [[" ", "\n", "\u00a0", "\u3000"]] * 2},
    "a long word": {"sents": [["x" * 20_000, *"abc"]] * 2},
    "head is tail": {"labels": [{"h": 0, "t": 0, "r": "P17"}]},
    "a label twice": {"labels": [{"h": 0, "t": 1, "r": "P17", "evidence": None}] * 2},
}


@pytest.mark.parametrize("name", ODD)
def test_odd_documents_work(tmp_path, tokenizer, name):
    mentions = [("A", 0, [0, 1]), ("B", 1, [3, 4])]
    names = ("name", "sent_id", "pos")
    document = {
        "title": "<b>|`",
        "sents": [list("abcd")] * 2,
        "vertexSet": [[dict(zip(names, x, strict=True))] for x in mentions],
        "labels": [{"h": 0, "t": 1, "r": "P17"}],
    } | ODD[name]
    (tmp_path / "a.json").write_text(json.dumps([document]))
    documents = read_documents(tmp_path / "a.json")
    features = docred_features(documents, tokenizer, 64)
    found = to_official(collate(features, ([2], [3], 0))["labels"], features, REL2ID)
    gold = {(x["h"], x["t"], x["r"]) for x in document["labels"] if x["h"] != x["t"]}
    assert {(x["h_idx"], x["t_idx"], x["r"]) for x in found} == gold
    assert evaluate(found, documents)["precision"] == bool(gold)


def test_messages_are_one_printable_line():
    assert printable("a\nb\x1b[2Jc\u202e") == "a\\nb\\x1b[2Jc\\u202e"
    short = printable("a" * 300 + "\x1b" * 5000 + "b" * 300, 100)
    assert len(short) <= 100 and short.startswith("aaa") and short.endswith("bbb")
    assert "\n" not in str(InputError("two\nlines"))


# --- Models -----------------------------------------------------------------------------------


def changed(**change):
    return lambda content: json.dumps(json.loads(content) | change).encode()


def infinite(content):
    return content[:-4] + b"\x00\x00\x80\xff"  # the last weight: -infinity


BROKEN = {
    "cut weights": ("model.safetensors", lambda x: x[: len(x) // 2], "model.safetensors"),
    "infinite weight": ("model.safetensors", infinite, "not a finite number"),
    "cut configuration": ("config.json", lambda x: x[:-9], "config.json"),
    "size": ("config.json", changed(emb_size=-1), "emb_size"),
    "classes": ("config.json", changed(label2id={"Na": "x"}), "config.json"),
    "cut tokenizer": ("tokenizer.json", lambda x: x[: len(x) // 2], "tokenizer"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_model_is_one_line(folder, tmp_path, name):
    shutil.copytree(folder, tmp_path / "model")
    file, change, word = BROKEN[name]
    path = tmp_path / "model" / file
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(InputError, match=word):
        RelationExtractor.from_pretrained(tmp_path / "model", device="cpu")(text_with())


def test_a_checkpoint_of_code_is_not_run(tmp_path):
    for content in ({"a": Payload()}, {"checkpoint": {"x": Payload()}}):
        torch.save(content, tmp_path / "a.pt")
        with pytest.raises(InputError, match="a.pt: not a checkpoint"):
            load_state(tmp_path / "a.pt")
    assert not Payload.ran


CODE = """
import pathlib
pathlib.Path({mark!r}).write_text("it ran")
from transformers import {base}
class Hostile({base}):
    model_type = "hostile"
"""


@pytest.mark.parametrize("model_type", ["hostile", "bert"])
def test_code_beside_an_encoder_is_not_run(tmp_path, monkeypatch, folder, model_type):
    """Neither as encoder nor as tokenizer, and nobody is asked whether to run it."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asked"))
    mark, at = tmp_path / "ran", tmp_path / "encoder"
    at.mkdir()
    automatic = {"AutoTokenizer": ["code.Hostile", "code.Hostile"]}
    for kind, base in ("AutoConfig", "PretrainedConfig"), ("AutoModel", "PreTrainedModel"):
        (at / f"{kind}.py").write_text(CODE.format(mark=str(mark), base=base))
        automatic[kind] = f"{kind}.Hostile"
    (at / "code.py").write_text(CODE.format(mark=str(mark), base="PreTrainedTokenizer"))
    config = read(folder / "config.json")["encoder"]
    config |= {"model_type": model_type, "auto_map": automatic}
    (at / "config.json").write_text(json.dumps(config))
    (at / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "Hostile", "auto_map": automatic})
    )
    for load in (build_encoder, load_tokenizer):
        with pytest.raises(InputError, match="cannot be loaded"):
            load(str(at))
    assert not mark.exists()


# --- Runs -------------------------------------------------------------------------------------


def arrays(**change):
    """The bytes of a logits file of 4 pairs and 5 classes."""
    scores, file = np.zeros((4, 5), dtype=np.float32), io.BytesIO()
    sound = {"logits": scores, "labels": scores > 0, "threshold": scores[:, :1]}
    np.savez(file, **{k: x for k, x in (sound | change).items() if x is not None})
    return file.getvalue()


LOGITS = {
    "cut": arrays()[:300],
    "no labels": arrays(labels=None),
    "code": arrays(logits=np.array([[Payload()] * 5] * 4, dtype=object)),
}


@pytest.mark.parametrize("name", LOGITS)
def test_broken_logits_are_one_line(tmp_path, name):
    run = {"folder": tmp_path, "loss": "ATL", "seed": 1}
    (tmp_path / "dev_logits.npz").write_bytes(arrays())
    assert read_pair(run, "dev", 3)["scores"].shape == (4,)
    (tmp_path / "dev_logits.npz").write_bytes(LOGITS[name])
    with pytest.raises(InputError, match="dev_logits.npz: not a logits file"):
        read_pair(run, "dev", 3)
    assert not Payload.ran


def test_a_report_notes_the_broken_files_of_a_run(data, tmp_path, no_figures):
    run, runs, broken = write_run(tmp_path / "sound", data, tuned=True), tmp_path / "runs", []
    shutil.copytree(run, runs / "sound")
    for seed, (name, content) in enumerate(
        [
            ("metrics.jsonl", b'{"step": 1}'),
            ("metrics.jsonl", b"\xff\xfe"),
            ("test_margins.xz", b"{}"),
            ("dev_margins.xz", b""),
            ("predictions.json", b"[{"),
            ("predictions.json", b"null"),
        ],
        start=10,
    ):
        shutil.copytree(run, runs / str(seed))
        results = read(run / "results.json")
        results["args"]["seed"] = seed
        (runs / str(seed) / "results.json").write_text(json.dumps(results))
        (runs / str(seed) / name).write_bytes(content)
        broken.append(str(runs / str(seed) / name))
    report.main(["--runs", str(runs), "--out", str(tmp_path / "out"), "--data_dir", str(data)])
    found = read(tmp_path / "out/report.json")
    notes = [y for x in found["groups"] for y in (*x["notes"], *x["significance"]["notes"])]
    for path in broken:
        assert any(path in note for note in notes), path
    assert not found["left_out"]
