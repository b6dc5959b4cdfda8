"""The ONNX graph against the model; what needs requirements-onnx.txt skips without it."""

import sys
from contextlib import nullcontext
from importlib import import_module
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import NO_TEST, ROOT, lacking, save_run, small_model

import model as model_module
from encoders.loading import load_tokenizer
from inputs.documents import read_documents
from inputs.files import InputError
from prepro import docred_features
from utils import collate, special_tokens

sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "bench")]
import export_onnx


def runtime(find=find_spec):
    """onnxruntime, where all of requirements-onnx.txt is installed."""
    missing = [name for name in ("onnx", "onnxruntime", "onnxscript") if find(name) is None]
    return lacking("requirements-onnx.txt") if missing else import_module("onnxruntime")


@pytest.mark.parametrize("missing", ["onnx", "onnxruntime", "onnxscript"])
def test_a_missing_package_fails_under_ci_alone(monkeypatch, missing):
    def find(name):
        return None if name == missing else name

    for setting, outcome in zip(("true", ""), NO_TEST, strict=True):
        monkeypatch.setenv("CI", setting)
        with pytest.raises(NO_TEST, match="needs requirements-onnx.txt") as raised:
            runtime(find)
        assert raised.type is outcome


CASES = {"atlop": "bert", "dreeam": "roberta", "docunet": "bert", "kd_docre": "bert"}


def model_of(backbone, positions):
    """Over an encoder of windows of this many tokens. Entities are more and fewer than DocuNet's
    image has rows; its logits, large with these weights, are made as small as the others'."""
    more = {"max_position_embeddings": positions + (CASES[backbone] == "roberta")}
    settings = {"max_height": 20}
    model = small_model(backbone=backbone, model_type=CASES[backbone], settings=settings, **more)
    if backbone == "docunet":
        model.bilinear.weight.data *= 0.1
    return model


@pytest.mark.parametrize("backbone", ["dreeam", "docunet", "kd_docre"])
def test_onnx_gives_what_the_model_does(tmp_path, committed_golden, backbone, capfd):
    """Also on real features, which the script's own check does not see. ATLOP's graph is a part of
    DREEAM's."""
    onnxruntime = runtime()
    model, path = model_of(backbone, 300), tmp_path / "model.onnx"
    tokenizer = load_tokenizer(committed_golden / "tokenizer")
    save_run(model, tokenizer, tmp_path / "run")
    export_onnx.main(["--model", str(tmp_path / "run"), "--output", str(path)])
    said = capfd.readouterr()
    assert "as the model's, logits to " in said.out and "W:onnxruntime" not in said.err
    session = onnxruntime.InferenceSession(path)
    documents = read_documents(committed_golden / "documents.json")
    tokens = *special_tokens(tokenizer, CASES[backbone]), tokenizer.pad_token_id
    windows = set()
    for i, feature in enumerate(docred_features(documents, tokenizer)):
        batch = collate([feature], tokens, size=300, sentences=True)
        del batch["labels"]
        batch["pairs"] = batch["pairs"][:: 1 + i % 2]
        windows.add(len(batch["input_ids"]))
        names = [x.name for x in session.get_inputs()]
        logits, shares = session.run(None, {name: batch[name].numpy() for name in names})
        with torch.no_grad():
            expected = model(**batch)
        assert np.abs(logits - expected[0].numpy()).max() < 1e-4
        assert np.abs(shares - expected[1].numpy()).max() < 1e-5 and shares.max() > 1e-3
    assert windows == {1, 2, 3}


@pytest.mark.parametrize("backbone", CASES)
def test_onnx_graph_in_torch(backbone):
    """What becomes the graph gives what the model does; this needs no ONNX."""
    model = model_of(backbone, 40).double()
    graph = export_onnx.OneDocument(model).eval()
    for num_tokens, num_entities in ((40, 5), (9, 2), (30, 25), (41, 6), (80, 6), (115, 3), (9, 1)):
        batch = export_onnx.made_up_batch(model, num_tokens, num_entities)
        batch["sentences"] = batch["sentences"].double()
        with torch.no_grad():
            expected = model(**batch)
            with export_onnx.as_graph(model):
                found = graph(**{name: batch[name] for name in export_onnx.INPUTS})
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)
    assert model.cpu_kernels and model_module.localized_contexts.__module__ == "model"


def test_made_up_documents_have_what_is_rare():
    """An entity that no window sees, whose attention sums to 0, and one that was cut off."""
    batch = export_onnx.made_up_batch(small_model(), 1024, 12)
    place = batch["mention_pos"][0, 0] - batch["window_start"]
    assert place.tolist() == [511, -1] and not batch["window_valid"][0, 511]
    assert batch["entity_mentions"][0].any(1).tolist() == [True] * 11 + [False]


@pytest.mark.parametrize("logits,shares", [(2e-4, 0), (0, 2e-5), (np.nan, 0), (0, np.nan)])
def test_a_graph_that_differs_is_not_written(tmp_path, monkeypatch, logits, shares):
    program = SimpleNamespace(save=lambda path, external_data: path.write_text("graph"))
    monkeypatch.setattr(export_onnx, "graph_of", lambda model: program)
    found = {"logits": 9e-5, "shares": 9e-6}
    monkeypatch.setattr(export_onnx, "largest_differences", lambda model, path: found)
    path = tmp_path / "model.onnx"
    assert export_onnx.export(small_model(), path) == found and path.read_text() == "graph"
    path.unlink()
    found |= {"logits": logits, "shares": shares}
    with pytest.raises(InputError, match="not written: its (logits|shares) differ by"):
        export_onnx.export(small_model(), path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("wrong", [0.5, np.nan])
@pytest.mark.parametrize("output", [0, 1])
def test_the_check_finds_one_wrong_number(monkeypatch, wrong, output):
    model = model_of("atlop", 40)
    runs = []

    class Session:
        def __init__(self, *args, **kwargs):
            pass

        def run(self, names, given):
            runs.append(given["input_ids"].shape)
            with torch.no_grad(), export_onnx.as_graph(model):
                graph = export_onnx.OneDocument(model)
                found = graph(**{name: torch.from_numpy(x) for name, x in given.items()})
            outputs = [x.numpy() for x in found]
            if len(runs) == 3:
                outputs[output][1, 0] += wrong
            return outputs

    monkeypatch.setitem(sys.modules, "onnxruntime", SimpleNamespace(InferenceSession=Session))
    found = list(export_onnx.largest_differences(model, "no file").values())
    assert found.pop(output) == pytest.approx(wrong, abs=1e-3, nan_ok=True) and found[0] < 1e-4
    assert [count for count, _ in runs] == [1, 1, 1, 2, 2, 3]


def test_onnx_refuses_in_one_line(tmp_path, monkeypatch):
    model, path = small_model(), tmp_path / "model.onnx"
    with monkeypatch.context() as patch:
        patch.setattr(export_onnx, "LARGEST", 1000)
        with pytest.raises(InputError, match=r"GiB of weights; an ONNX file holds 2$"):
            export_onnx.export(model, path)
    runtime()
    monkeypatch.setattr(export_onnx, "as_graph", lambda model: nullcontext())
    with pytest.raises(InputError, match="no graph can be made of atlop over bert: .") as raised:
        export_onnx.export(model, path)
    assert "\n" not in str(raised.value) and not list(tmp_path.iterdir())


def test_bench_finds_the_same_relations_in_every_way(folder, monkeypatch, capsys):
    runtime()
    serving = import_module("serving")
    monkeypatch.setattr(serving, "SIZES", {"tiny": (2, 192)})
    flags = ["--tokenizer", str(folder), "--documents", "2", "--repeats", "1"]
    serving.main(flags)
    said = capsys.readouterr().out
    assert "onnxruntime" in said.split("|")[0] and "2 documents" in said.split("|")[0]
    rows = [line.split("|")[1:-1] for line in said.splitlines() if line.startswith("| tiny")]
    names, found = [row[1].strip() for row in rows], [int(row[4]) for row in rows]
    assert names[0] == serving.FIRST and float(rows[0][3]) == 1
    fp32 = {n for n, name in zip(found, names, strict=True) if "bf16" not in name}
    assert len(names) == 5 and len(fp32) == 1 and min(fp32) > 10
