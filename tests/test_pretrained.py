"""Weights in 8 bits, and the model that comes with the repository."""

import random

import pack_model
import pytest
import torch
from conftest import ROOT, make_document, save_run, shared, small_model

from engine.checkpoint import PACKED, pack, unpack, weights_of
from engine.extractor import RelationExtractor
from engine.run_folder import load_model
from inputs.documents import read_documents
from inputs.files import InputError, sha256_of

MODEL = ROOT / "pretrained/redocred-minilm"


def test_pack_rounds_every_row_to_its_own_steps():
    state = small_model().state_dict()
    state["model.embeddings.word_embeddings.weight"][3] = 0  # a row with nothing to scale
    state["model.embeddings.word_embeddings.weight"][4] *= 1000
    found = unpack(pack(state))
    assert found.keys() == state.keys()
    for name, tensor in state.items():
        if tensor.dim() < 2:
            assert torch.equal(found[name], tensor)
            continue
        step = tensor.abs().amax(1, keepdim=True) / 127
        assert found[name].dtype == torch.float32
        assert ((found[name] - tensor).abs() <= 0.5001 * step).all()
        assert (found[name] != tensor).float().mean() > 0.9
    assert unpack(state).keys() == state.keys()


def test_packed_folder(tmp_path, tokenizer, capsys):
    run, packed = tmp_path / "run", tmp_path / "packed"
    model = small_model()
    save_run(model, tokenizer, run)
    pack_model.main(["--model", str(run), "--output", str(packed)])
    assert sha256_of(packed / PACKED) in capsys.readouterr().out
    assert (packed / PACKED).stat().st_size < 0.3 * (run / "model.safetensors").stat().st_size
    loaded = load_model(packed)
    for name, tensor in unpack(pack(model.state_dict())).items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert weights_of(packed) == packed / PACKED and weights_of(run).name == "model.safetensors"
    given = ["--model", str(run), "--output", str(packed)]
    with pytest.raises(InputError, match="packed: not empty"):
        pack_model.main(given)
    with pytest.raises(InputError, match=r"--evidence_threshold: 20.0 is not in \[0, 1\]"):
        pack_model.main([*given, "--evidence_threshold", "20"])


@pytest.mark.parametrize(
    "backbone, loss_type",
    [("atlop", "HingeABL"), ("docunet", "balance_softmax"), ("kd_docre", "AFL")],
)
def test_a_packed_threshold_is_a_shift(tmp_path, tokenizer, backbone, loss_type):
    run, document = tmp_path / "run", make_document(random.Random(3))
    save_run(small_model(backbone=backbone, settings={"loss_type": loss_type}), tokenizer, run)
    found = {}
    for packed, of_flag in ((0, 15), (15, 0), (0, 0)):
        output = tmp_path / f"{packed}{of_flag}"
        given = ["--model", str(run), "--output", str(output), "--threshold_shift", str(packed)]
        pack_model.main(given)
        how = {"device": "cpu", "threshold_shift": of_flag}
        relations = RelationExtractor.from_pretrained(output, **how)(document)["relations"]
        found[packed, of_flag] = [
            (x["head"]["name"], x["tail"]["name"], x["name"]) for x in relations
        ]
    assert sorted(found[15, 0]) == sorted(found[0, 15])
    assert 0 < len(found[15, 0]) < len(found[0, 0])


@pytest.fixture(scope="module")
def extractor():
    return RelationExtractor.from_pretrained(MODEL, device="cpu", precision="fp32")


def test_the_model_is_the_one_of_its_card():
    assert sha256_of(MODEL / PACKED) in (MODEL / "README.md").read_text()
    assert sum(path.stat().st_size for path in MODEL.iterdir()) < 28e6


def test_the_model_knows_relations(extractor):
    text = "Ada Lovelace was born in London. She married William King in 1835."
    names = "Ada Lovelace", "London", "William King", "1835"
    spans = [(text.index(name), text.index(name) + len(name)) for name in names]
    entities = [[{"start": start, "end": end}] for start, end in spans]
    record = extractor({"text": text, "entities": entities})
    found = {(x["head"]["name"], x["name"], x["tail"]["name"]) for x in record["relations"]}
    assert ("Ada Lovelace", "place of birth", "London") in found
    assert ("Ada Lovelace", "spouse", "William King") in found
    assert len(found) < 8


@pytest.mark.slow
def test_the_model_on_official_documents(extractor):
    """The first 40 of the test split, which are easier than the whole, which has 67.8 F1."""
    documents = read_documents(shared("redocred-992/test_revised.json"))[:40]
    correct = predicted = 0
    for record in extractor(documents):
        predicted += len(record["relations"])
        correct += sum(x["correct"] for x in record["relations"])
    labels = sum(len({(x["h"], x["t"], x["r"]) for x in d["labels"]}) for d in documents)
    assert 200 * correct / (predicted + labels) == pytest.approx(72.5, abs=0.5)
