"""A run folder is a model of transformers' own kind: its Auto classes read it, and save_pretrained
writes one. Nothing here may reach for the hub."""

import random
import subprocess
import sys

import pytest
import torch
from conftest import REL2ID, ROOT, make_document, read, save_run, small_model
from huggingface_hub import ModelCard
from transformers import AutoConfig, AutoModel, AutoTokenizer

from backbones import BACKBONES
from encoders.loading import build_encoder
from engine.run_folder import load_model
from inputs.files import InputError
from model import ATLOP, DocREConfig, DocREModel, new_model
from prepro import docred_features
from utils import collate


@torch.no_grad()
def logits_of(model, tokenizer):
    features = docred_features([make_document(random.Random(4))], tokenizer)
    batch = collate(features, ([2], [3], 0))
    del batch["labels"]
    return model(**batch)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_run_folder_is_read_by_auto_classes(tokenizer, tmp_path, backbone):
    model = small_model(backbone=backbone, settings={"loss_type": "AFL", "gamma": 2.0})
    save_run(model, tokenizer, tmp_path)
    config = AutoConfig.from_pretrained(tmp_path, trust_remote_code=False)
    assert (type(config), config.backbone, config.gamma) == (DocREConfig, backbone, 2.0)
    assert config.label2id == REL2ID and config.id2label[1] == "P17"
    found = AutoTokenizer.from_pretrained(tmp_path, trust_remote_code=False)
    auto = AutoModel.from_pretrained(tmp_path, trust_remote_code=False)
    ours = load_model(tmp_path).eval()
    for loaded in (auto, ours, DocREModel.from_pretrained(tmp_path)):
        assert type(loaded) is BACKBONES[backbone] and not loaded.training
        assert torch.equal(logits_of(loaded, found), logits_of(model, tokenizer))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_model_loaded_in_bf16_scores_in_float32(tokenizer, tmp_path, backbone):
    save_run(small_model(backbone=backbone), tokenizer, tmp_path)
    name = "dtype" if "dtype" in DocREConfig().to_dict() else "torch_dtype"  # transformers 4
    half = AutoModel.from_pretrained(tmp_path, trust_remote_code=False, **{name: torch.bfloat16})
    assert {x.dtype for x in half.parameters()} == {torch.bfloat16}
    expected = logits_of(load_model(tmp_path).eval(), tokenizer)
    logits = logits_of(half, tokenizer)
    assert logits.dtype == torch.float32
    assert 0 < (logits - expected).std() < 0.1 * expected.std()


@pytest.mark.parametrize("backbone", BACKBONES)
def test_what_save_pretrained_writes_is_a_run_folder_again(tokenizer, tmp_path, backbone):
    model = small_model(backbone=backbone, settings={"loss_type": "SAT", "labels_per_pair": 7})
    model.save_pretrained(tmp_path)
    loaded = load_model(tmp_path).eval()
    assert loaded.config.loss_type == "SAT" and loaded.config.labels_per_pair == 7
    assert torch.equal(logits_of(loaded, tokenizer), logits_of(model, tokenizer))
    loaded.save_pretrained(tmp_path / "again")
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / file).read_bytes()


def test_a_model_over_an_encoder_in_half_precision_comes_back_whole(tokenizer, tmp_path):
    small_model().model.half().save_pretrained(tmp_path / "encoder")
    model = new_model(build_encoder(str(tmp_path / "encoder")), emb_size=64).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1e-5 * torch.randn_like(parameter)
    save_run(model, tokenizer, tmp_path / "run")
    auto = AutoModel.from_pretrained(tmp_path / "run", trust_remote_code=False)
    for loaded in (load_model(tmp_path / "run"), auto):
        state = loaded.state_dict()
        assert all(torch.equal(x, state[name]) for name, x in model.state_dict().items())


def test_own_relations_and_the_backbone_that_is_unknown_yet(folder):
    config = DocREConfig(read(folder / "config.json")["encoder"], emb_size=64)
    config = DocREConfig(config.encoder, label2id={"no": 0, "likes": 1}, emb_size=64)
    assert isinstance(DocREModel(config), ATLOP) and DocREModel(config).bilinear.out_features == 2
    config.backbone = "docu_net"
    with pytest.raises(ValueError, match="backbone docu_net: unknown before `import backbones`"):
        DocREModel(config)


@pytest.mark.slow
def test_a_process_that_has_imported_model_alone(folder, tokenizer, extractor):
    code = (
        "import sys, torch; from transformers import AutoModel, AutoTokenizer; import model; "
        "model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=False); "
        "tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=False); "
        "sys.path.insert(0, 'tests'); from test_transformers import logits_of; "
        "torch.save(logits_of(model, tokenizer), sys.argv[2])"
    )
    path = folder.parent / f"{folder.name}-logits.pt"
    subprocess.run([sys.executable, "-c", code, folder, path], check=True, cwd=ROOT)
    expected = logits_of(extractor.model, extractor.tokenizer)
    assert torch.equal(torch.load(path, weights_only=True), expected)


def test_the_card_of_a_run_has_its_scores(finished):
    results = read(finished / "results.json")
    card = ModelCard.load(finished / "README.md")
    scores = {(x.dataset_split, x.metric_name): x.metric_value for x in card.data.eval_results}
    assert scores["test", "F1"] == round(100 * results["test"]["f1"], 2)
    assert scores["dev", "Ign F1"] == round(100 * results["dev"]["ign_f1"], 2)
    assert len(scores) == 6 and card.data.library_name == "transformers"
    assert f"trained with the loss {results['args']['loss_type']}" in card.text


def test_a_foreign_model_is_no_run(tmp_path):
    small_model().model.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="config.json: model_type: not docre"):
        load_model(tmp_path)
