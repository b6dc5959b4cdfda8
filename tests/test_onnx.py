"""The ONNX graph against the model; what needs requirements-onnx.txt skips without it."""

import sys
from importlib import import_module
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from conftest import NO_TEST, ROOT, lacking, small_model

from encoders.loading import load_tokenizer
from inputs.documents import read_documents
from inputs.files import InputError
from prepro import docred_features
from utils import collate

sys.path.insert(0, str(ROOT / "scripts"))
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


@pytest.mark.parametrize("model_type", ["bert", "roberta"])
def test_onnx_gives_the_models_logits(tmp_path, committed_golden, model_type):
    """Also on real features, which the script's own check does not see."""
    onnxruntime = runtime()
    model = small_model(model_type=model_type, max_position_embeddings=514)
    path = tmp_path / "model.onnx"
    assert 0 < export_onnx.export(model, path) < 1e-4
    session = onnxruntime.InferenceSession(path)
    tokenizer = load_tokenizer(committed_golden / "tokenizer")
    documents = read_documents(committed_golden / "documents.json")
    features = [f for f in docred_features(documents, tokenizer) if len(f["input_ids"]) <= 512]
    assert len({len(f["entity_pos"]) for f in features}) > 2
    for feature in features:
        batch = collate([feature], ([2], [3], 0))
        given = {name: batch[name].numpy() for name in export_onnx.INPUTS}
        (logits,) = session.run(None, given | {"pairs": given["pairs"][:, 1:]})
        del batch["labels"]
        with torch.no_grad():
            assert np.abs(logits - model(**batch).numpy()).max() < 1e-4


def test_onnx_refuses_other_backbones(tmp_path):
    with pytest.raises(InputError, match="a KDDocRE; only ATLOP can be exported"):
        export_onnx.export(small_model(backbone="kd_docre"), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_onnx_graph_in_torch():
    """What becomes the graph gives the model's logits; this needs no ONNX."""
    model = small_model().double()
    graph = export_onnx.OneDocument(model).double().eval()
    for num_tokens, num_entities in ((60, 5), (9, 2), (512, 20)):
        inputs = export_onnx.made_up_inputs(num_tokens, num_entities, 8000)
        doc = torch.zeros(len(inputs["pairs"]), 1, dtype=torch.int64)
        batch = inputs | {"pairs": torch.cat([doc, inputs["pairs"]], dim=1)}
        with torch.no_grad():
            expected = model(**batch, num_entities=torch.tensor([num_entities]))
            assert torch.allclose(graph(**inputs), expected, atol=1e-9)
