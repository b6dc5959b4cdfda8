"""The demo's corpus and encoder."""

import os
import subprocess
import sys

import pytest
from conftest import DEMO_SIZES, ROOT, make_demo, read
from transformers import AutoModel, AutoTokenizer

from inputs.documents import read_documents
from prepro import read_docred


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    make_demo.main(["--output_dir", str(folder)])
    return folder


@pytest.mark.slow
def test_same_seed_same_bytes(tmp_path):
    """In another process, whose sets are in another order."""
    one, two = tmp_path / "one", tmp_path / "two"
    make_demo.main([*DEMO_SIZES, "--output_dir", str(one)])
    command = [sys.executable, str(ROOT / "scripts/make_demo.py"), *DEMO_SIZES]
    environment = os.environ | {"PYTHONHASHSEED": "5"}
    subprocess.run([*command, "--output_dir", str(two)], check=True, env=environment)
    files = [path.relative_to(one) for path in one.rglob("*") if path.is_file()]
    assert len(files) >= 7
    for file in files:
        assert (one / file).read_bytes() == (two / file).read_bytes(), file


def test_corpus_looks_like_redocred(corpus):
    documents = read_documents(corpus / "train_revised.json")
    assert len(documents) == 400
    assert len({d["title"] for s in ("train", "dev", "test")
                for d in read(corpus / f"{s}_revised.json")}) == 560  # fmt: skip
    entities = sum(len(d["vertexSet"]) for d in documents) / 400
    sentences = sum(len(d["sents"]) for d in documents) / 400
    assert 15 <= entities <= 20 and 7.5 <= sentences <= 9
    pairs = sum(len(d["vertexSet"]) * (len(d["vertexSet"]) - 1) for d in documents)
    related, across = {}, 0
    for i, document in enumerate(documents):
        places = [{m["sent_id"] for m in entity} for entity in document["vertexSet"]]
        for x in document["labels"]:
            related.setdefault((i, x["h"], x["t"]), []).append(x["r"])
            across += places[x["h"]].isdisjoint(places[x["t"]])
    assert 0.90 <= 1 - len(related) / pairs <= 0.95
    several = sum(len(r) > 1 for r in related.values()) / len(related)
    assert 0.1 <= several <= 0.3
    assert 0.3 <= across / sum(map(len, related.values())) <= 0.6
    for document in documents:
        for entity in document["vertexSet"]:
            for m in entity:
                words = document["sents"][m["sent_id"]][slice(*m["pos"])]
                assert " ".join(words) == m["name"]


def test_encoder_and_tokenizer_load(corpus):
    tokenizer = AutoTokenizer.from_pretrained(corpus / "encoder")
    encoder = AutoModel.from_pretrained(corpus / "encoder")
    assert encoder.config.hidden_size == 128
    features = read_docred(corpus / "test_revised.json", tokenizer)
    ids = [i for feature in features for i in feature["input_ids"]]
    assert max(ids) < encoder.config.vocab_size
    assert tokenizer.unk_token_id not in ids  # words that train lacks are spelled
    assert max(len(feature["input_ids"]) for feature in features) <= 512
