"""Shared fixtures. Real documents lie outside the repository, in SHARED_DIR (default: ../shared
beside it); tests that need them skip where they are missing. Golden files: see golden_dir."""

import copy
import gzip
import json
import os
import random
import re
import shutil
import sys
from pathlib import Path
from unittest.mock import Mock

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach for the network
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / x) for x in ("", "scripts", "bench")]

import make_demo
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import BertPreTokenizer
from transformers import AutoModel, PreTrainedTokenizerFast

import train
from encoders.loading import (
    build_encoder,
    load_tokenizer,
)
from engine import device
from engine.run_folder import save_config, save_weights
from inputs.documents import read_documents
from inputs.files import relation_ids
from model import new_model
from predict import RelationExtractor
from prepro import docred_features
from utils import set_seed

# Tests compare more digits than bf16 has, and what "auto" is differs by processor.
faster_on_cpu, device.faster_on_cpu = device.faster_on_cpu, lambda: "fp32"
SHARED_DIR = Path(os.environ.get("SHARED_DIR", ROOT.parent / "shared"))
REL2ID = relation_ids()


def shared(name):
    """A path in SHARED_DIR; skips the test where it does not exist."""
    path = SHARED_DIR / name
    if not path.exists():
        pytest.skip(f"needs {name} of SHARED_DIR, which is not here")
    return path


def lacking(what):
    """Skips the test for want of what can be installed; where CI is set, which does, it fails."""
    if os.environ.get("CI"):
        pytest.fail(f"needs {what}, which .ci/run was to install")
    pytest.skip(f"needs {what}")


@pytest.fixture(scope="session")
def committed_golden(tmp_path_factory):
    """tests/golden, unpacked: all golden files but the models."""
    folder = tmp_path_factory.mktemp("golden") / "files"
    shutil.copytree(ROOT / "tests/golden", folder)
    for packed in folder.rglob("*.gz"):
        packed.with_suffix("").write_bytes(gzip.decompress(packed.read_bytes()))
        packed.unlink()
    return folder


@pytest.fixture(scope="session")
def golden_dir(committed_golden):
    """GOLDEN_DIR, else golden/ of SHARED_DIR, else the committed files. Nothing is optional."""
    if "GOLDEN_DIR" in os.environ:
        return Path(os.environ["GOLDEN_DIR"])
    beside = SHARED_DIR / "golden"
    return beside if beside.exists() else committed_golden


@pytest.fixture(scope="session")
def golden_models(golden_dir, committed_golden):
    """golden_dir with its models; skips where only the committed files are."""
    if golden_dir == committed_golden:
        pytest.skip("needs golden models (too large to commit) of SHARED_DIR, which is not here")
    return golden_dir


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
        "dropout": dropout,  # DistilBERT's
    }
    return build_encoder("", sizes | more, weights=False)


def eager_copy(encoder):
    """The same encoder with textbook attention, which it returns when asked."""
    config = copy.deepcopy(encoder.config)  # which keeps the encoder's own attention
    copied = AutoModel.from_config(config, attn_implementation="eager").eval()
    copied.pooler = None
    copied.load_state_dict(encoder.state_dict())
    return copied


SMALL = {"docunet": {"unet_out_dim": 16, "down_dim": 8, "max_height": 12}}


def small_model(seed=0, backbone="atlop", settings=None, **more):
    """A model in eval mode with large enough random weights that its logits differ."""
    set_seed(seed)
    sizes = {"emb_size": 64, **SMALL.get(backbone, {}), **(settings or {})}
    model = new_model(small_encoder(**more), backbone=backbone, **sizes)
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


def text_with(**mention):
    return {"text": "Ada was born in Paris.", "entities": [[{"start": 0, "end": 3} | mention]]}


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """Three files of made-up documents; some pairs hold up to six relations."""
    folder, rng = tmp_path_factory.mktemp("data"), random.Random(5)
    for split, size in {"train": 3, "dev": 4, "test": 5}.items():
        documents = [make_document(rng, 6, title=f"{split} {i}") for i in range(size)]
        for document in documents:
            for r in "P17 P131 P27 P150 P175 P577".split():
                known = [(x["h"], x["t"], x["r"]) for x in document["labels"]]
                new = [(h, t, r) for h, t in [(0, 1), (2, 3)] if (h, t, r) not in known]
                document["labels"] += [{"h": h, "t": t, "r": r} for h, t, r in new]
        (folder / f"{split}_revised.json").write_text(json.dumps(documents))
    return folder


DEMO_SIZES = "--num_train", "16", "--num_dev", "4", "--num_test", "5"


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    """The demo's corpus and encoder, cut down, but with dropout."""
    folder = tmp_path_factory.mktemp("demo")
    make_demo.main([*DEMO_SIZES, "--output_dir", str(folder)])
    return with_dropout(folder, 0.1)


def with_dropout(folder, rate):
    """Sets the dropout of the demo's encoder. Returns the folder."""
    path = folder / "encoder/config.json"
    config = read(path)
    assert config.keys() >= {"hidden_dropout_prob", "attention_probs_dropout_prob"}
    rates = {"hidden_dropout_prob": rate, "attention_probs_dropout_prob": rate}
    path.write_text(json.dumps(config | rates))
    return folder


def flags(demo, output, *more):
    """The flags of a short run; a name may be given anew in `more`."""
    return [
        *("--data_dir", str(demo), "--model_name_or_path", str(demo / "encoder")),
        *("--output_dir", str(output), "--emb_size", "64", "--num_train_epochs", "2"),
        *("--learning_rate", "1e-3", "--classifier_lr", "1e-3"),
        *("--device", "cpu", "--precision", "fp32", *more),
    ]


@pytest.fixture(scope="session")
def finished(demo, tmp_path_factory):
    """A finished run."""
    output = tmp_path_factory.mktemp("run") / "a"
    train.main(flags(demo, output, "--save_logits", "--evaluation_steps", "3"))
    return output


@pytest.fixture(scope="session")
def tokenizer():
    """A WordPiece tokenizer that can spell any word in ASCII."""
    characters = [chr(i) for i in range(33, 127)]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *characters, *(f"##{x}" for x in characters)]
    vocabulary = {word: i for i, word in enumerate(words)}
    pieces = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    pieces.pre_tokenizer = BertPreTokenizer()
    names = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]"}
    specials = {f"{name}_token": token for name, token in names.items()}
    return PreTrainedTokenizerFast(tokenizer_object=pieces, **specials)


def save_run(model, tokenizer, path):
    """What train.py leaves of a model."""
    path.mkdir(exist_ok=True)
    save_config(model, path)
    save_weights(model, path)
    tokenizer.save_pretrained(path)


@pytest.fixture(scope="session")
def folder(tokenizer, tmp_path_factory):
    """A run folder, as train.py writes it."""
    path = tmp_path_factory.mktemp("run")
    save_run(small_model(), tokenizer, path)
    return path


@pytest.fixture(scope="session")
def extractor(folder):
    return RelationExtractor.from_pretrained(folder, device="cpu")


@pytest.fixture
def no_figures(monkeypatch):
    """Drawing takes most of a report's time."""
    monkeypatch.setattr("report.figures", Mock())


@pytest.fixture(scope="session")
def made(data, tmp_path_factory):
    """A folder of runs, and its report as (out, report.json, report.md)."""
    from made_runs import write_run  # which needs this file

    import report  # here, because pandas and matplotlib are slow to start

    root = tmp_path_factory.mktemp("made")
    for seed in (1, 5, 42):
        more = {"tuned": seed < 40, "margins": True, "device": "cpu" if seed < 40 else "cuda"}
        write_run(root / f"runs/atl/seed{seed}", data, "ATL", seed, **more)
        more = {"tuned": seed == 5, "fused": True, "margins": True, "device": "cpu"}
        write_run(root / f"runs/hinge-{seed}", data, "HingeABL", seed, **more)
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


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    from browser import Browser, find_browser

    browser = Browser(find_browser(), tmp_path_factory.mktemp("browser"))
    yield browser
    browser.close()


@pytest.fixture
def written(tmp_path):
    from browser import labelled, plain

    from viewing import page

    path = tmp_path / "page.html"
    page.write_page(path, [labelled(), plain()], 7)
    return path
