"""Models that are shared: saved, loaded and uploaded, they are the same."""

import json
import random
from pathlib import Path

import huggingface_hub.hub_mixin
import pytest
import torch
from conftest import REL2ID, make_document, read, runnable, small_model

from backbones import BACKBONES
from encoders.loading import load_tokenizer
from inputs.files import InputError
from model import ATLOP, DocREModel
from prepro import docred_features
from utils import collate


@torch.no_grad()
def logits_of(model, tokenizer):
    features = docred_features([make_document(random.Random(4))], tokenizer)
    batch = collate(features, ([2], [3], 0))
    del batch["labels"]
    return model(**batch)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_saved_models_come_back_the_same(tokenizer, tmp_path, backbone):
    model = runnable(small_model(backbone=backbone), tokenizer, "HingeABL")
    model.save_pretrained(tmp_path / "saved")
    names = {path.name for path in (tmp_path / "saved").iterdir()}
    assert names >= {"config.json", "model.safetensors", "rel2id.json", "tokenizer"}
    loaded = DocREModel.from_pretrained(tmp_path / "saved")
    assert type(loaded) is BACKBONES[backbone] and not loaded.training
    assert torch.equal(logits_of(loaded, loaded.tokenizer), logits_of(model, tokenizer))
    assert (loaded.run, loaded.rel2id) == (model.run, model.rel2id)
    loaded.save_pretrained(tmp_path / "again")
    for file in ("config.json", "model.safetensors", "rel2id.json", "README.md"):
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / "saved" / file).read_bytes()
    assert "trained with the loss HingeABL" in (tmp_path / "saved/README.md").read_text()


def test_run_folder_is_a_shared_model(folder, tokenizer, extractor):
    model = DocREModel.from_pretrained(folder)
    assert isinstance(model, ATLOP) and model.rel2id == REL2ID
    assert torch.equal(logits_of(model, tokenizer), logits_of(extractor.model, tokenizer))
    assert ATLOP.from_pretrained(str(folder)).run == model.run
    with pytest.raises(InputError, match="a ATLOP, not a KDDocRE"):
        BACKBONES["kd_docre"].from_pretrained(folder)


def test_model_without_companions(tmp_path):
    small_model().save_pretrained(tmp_path)
    loaded = DocREModel.from_pretrained(tmp_path)
    assert loaded.run is None and loaded.tokenizer is None and loaded.rel2id == REL2ID
    assert not (tmp_path / "tokenizer").exists() and not (tmp_path / "rel2id.json").exists()


def test_push_to_hub_uploads_a_run_folder(folder, tmp_path, monkeypatch):
    """With a stub in place of the hub, which nothing here can reach."""
    uploaded = {}

    class StubApi:
        def __init__(self, token=None):
            pass

        def create_repo(self, repo_id, **_):
            return type("Repo", (), {"repo_id": repo_id})

        def upload_folder(self, repo_id, folder_path, **_):
            path = Path(folder_path)
            files = [x for x in path.rglob("*") if x.is_file()]
            uploaded[repo_id] = {str(x.relative_to(path)): x.read_bytes() for x in files}
            return "a commit"

    monkeypatch.setattr(huggingface_hub.hub_mixin, "HfApi", StubApi)
    assert DocREModel.from_pretrained(folder).push_to_hub("somebody/model") == "a commit"
    files = uploaded["somebody/model"]
    assert files["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    assert json.loads(files["config.json"]) == read(folder / "config.json")
    assert {"rel2id.json", "README.md"} < files.keys()
    assert any(name.startswith("tokenizer/") for name in files)


def test_tokenizer_of_the_folder_is_the_one(folder, tokenizer):
    words = ["Ada", "*", "x-ray"]
    assert load_tokenizer(folder / "tokenizer")(words)["input_ids"] == tokenizer(words)["input_ids"]
