"""Shared fixtures. Real documents and golden files lie outside the repository, in SHARED_DIR
(default: ../shared beside it); tests that need them skip where they are missing."""

import json
import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach for the network
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import pytest  # noqa: E402
from transformers import AutoModel  # noqa: E402

from checkpoint import build_encoder  # noqa: E402
from files import read_documents  # noqa: E402
from model import BACKBONES  # noqa: E402
from prepro import docred_features  # noqa: E402
from train import load_tokenizer  # noqa: E402
from utils import set_seed  # noqa: E402

SHARED_DIR = Path(os.environ.get("SHARED_DIR", ROOT.parent / "shared"))
GOLDEN_DIR = Path(os.environ.get("GOLDEN_DIR", SHARED_DIR / "golden"))


def shared(name):
    """A path in SHARED_DIR; skips the test where it does not exist."""
    path = SHARED_DIR / name
    if not path.exists():
        pytest.skip(f"needs {name} of SHARED_DIR, which is not here")
    return path


@pytest.fixture(scope="session")
def golden_dir():
    """GOLDEN_DIR. Not there and not asked for: skip. What is missing inside of it is a failure."""
    if not GOLDEN_DIR.exists() and "GOLDEN_DIR" not in os.environ:
        pytest.skip("needs the golden files of SHARED_DIR, which are not here")
    return GOLDEN_DIR


@pytest.fixture(scope="session")
def golden_tokenizer(golden_dir):
    return load_tokenizer(golden_dir / "tokenizer")


@pytest.fixture(scope="session")
def golden_documents(golden_dir):
    return read_documents(golden_dir / "documents.json")


@pytest.fixture(scope="session")
def golden_features(golden_documents, golden_tokenizer):
    """title -> feature"""
    return {f["title"]: f for f in docred_features(golden_documents, golden_tokenizer)}


def read(path):
    return json.loads(Path(path).read_text())


def small_encoder(model_type="bert", vocab_size=8000, dropout=0.0, **more):
    """An encoder with random weights, width 32, 4 heads, 2 layers."""
    sizes = {
        "model_type": model_type,
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "pad_token_id": 0,
        "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": dropout,
    }
    return build_encoder("", sizes | more, weights=False)


def eager_copy(encoder):
    """The same encoder with textbook attention, which it returns when asked."""
    copy = AutoModel.from_config(encoder.config, attn_implementation="eager").eval()
    copy.pooler = None
    copy.load_state_dict(encoder.state_dict())
    return copy


SMALL = {"docunet": {"unet_out_dim": 16, "down_dim": 8, "max_height": 12}}


def small_model(seed=0, backbone="atlop", **more):
    """A model in eval mode with large enough random weights that its logits differ."""
    set_seed(seed)
    model = BACKBONES[backbone](small_encoder(**more), emb_size=64, **SMALL.get(backbone, {}))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(std=0.2)
    return model.eval()


WORDS = "the of and in was a is by river town company album film born died wrote".split()


def make_document(rng, num_entities=6, num_sentences=5, sentence_length=12, title="Doc"):
    """A made-up document: entities with one to three mentions, some relations."""
    sents = [[rng.choice(WORDS) for _ in range(sentence_length)] for _ in range(num_sentences)]
    entities = []
    for e in range(num_entities):
        mentions = []
        for _ in range(rng.randint(1, 3)):
            sentence = rng.randrange(num_sentences)
            start = rng.randrange(sentence_length - 2)
            pos = [start, start + rng.randint(1, 2)]
            mentions.append({"name": f"Name {e}", "sent_id": sentence, "pos": pos, "type": "PER"})
        entities.append(mentions)
    labels = []
    for h in range(num_entities):
        for t in range(num_entities):
            if h != t and rng.random() < 0.3:
                r = rng.choice(["P17", "P131", "P27"])
                labels.append({"h": h, "t": t, "r": r, "evidence": [0]})
    return {"title": title, "sents": sents, "vertexSet": entities, "labels": labels}
