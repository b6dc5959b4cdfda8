"""The files of a run: features, facts and counts."""

import os
import random
from argparse import Namespace

import numpy as np
import pytest
from conftest import REL2ID, read, shared

from encoders.loading import load_tokenizer
from engine import data
from engine.data import read_data
from evaluation import evaluate, gold_facts, known_facts, named_facts
from inputs.documents import read_documents
from inputs.files import InputError, write_json
from prepro import docred_features


@pytest.fixture(scope="module")
def bert(demo):
    return load_tokenizer(demo / "encoder")


def data_of(folder, tokenizer, trains=True):
    names = {f"{split}_file": f"{split}_revised.json" for split in ("train", "dev", "test")}
    args = Namespace(data_dir=folder, max_seq_length=512, evidence_weight=0.0, **names)
    args.train_batch_size, args.gradient_accumulation_steps = 4, 1
    args.load_path, args.unlabelled_file = "" if trains else "a run", ""
    return read_data(args, REL2ID, tokenizer)


def test_class_priors_are_in_the_order_of_the_classes():
    triples = np.array([[0, 1, 2], [1, 0, 2], [1, 0, 1]])
    features = [{"entity_pos": [[]] * n, "triples": triples[:n]} for n in (2, 3)]
    assert list(data.class_priors(features, {"b": 2, "Na": 0, "c": 3, "a": 1}).items()) == [
        *(("a", 1 / 8), ("b", 4 / 8), ("c", 0.0))
    ]


def assert_same_features(ours, theirs):
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine["input_ids"] == other["input_ids"]
        assert mine["entity_pos"] == other["entity_pos"]
        assert mine["triples"].dtype == other["triples"].dtype
        assert np.array_equal(mine["triples"], other["triples"])


def test_one_pass_gives_what_reading_whole_does(demo, bert, monkeypatch):
    monkeypatch.setattr(data, "CHUNK", 3)
    ours = data_of(demo, bert)
    train, dev, test = (
        read_documents(demo / f"{split}_revised.json") for split in ("train", "dev", "test")
    )
    assert_same_features(ours.features["train"], docred_features(train, bert, 512, REL2ID))
    assert_same_features(ours.features["dev"], docred_features(dev, bert, 512, REL2ID))
    assert ours.documents == {"dev": dev, "test": test}
    assert ours.train_facts == named_facts(train) & (named_facts(dev) | named_facts(test))
    described = ours.files
    assert described["train"]["documents"] == len(train)
    assert described["train"]["triples"] == len(gold_facts(train))
    only_evaluates = data_of(demo, bert, trains=False)
    assert "train" not in only_evaluates.features
    assert only_evaluates.train_facts == ours.train_facts
    assert only_evaluates.files == described


def test_ign_scores_need_no_other_facts(bert, tmp_path):
    """On real documents whose facts occur in the training file."""
    folder = shared("redocred-mini")
    ours = data_of(folder, bert, trains=False)
    truth = ours.documents["test"]
    rng, submission = random.Random(0), []
    for document in truth:
        for x in document["labels"]:
            keep = rng.random()
            tail = x["t"] if keep < 0.6 else rng.randrange(len(document["vertexSet"]))
            found = {"title": document["title"], "h_idx": x["h"], "t_idx": tail, "r": x["r"]}
            submission += [found] * (keep < 0.8)
    scores = evaluate(submission, truth, read_documents(folder / "train_revised.json"))
    assert 0 < scores["ign_f1"] < scores["f1"]
    assert evaluate(submission, truth, ours.train_facts) == scores
    facts, _ = known_facts(folder / "train_revised.json", truth)
    assert evaluate(submission, truth, facts) == scores


def test_titles_of_the_training_file_tell_nothing_apart(demo, bert, tmp_path):
    for split in ("train", "dev", "test"):
        documents = read(demo / f"{split}_revised.json")
        documents += documents[:1] if split == "train" else []
        write_json(tmp_path / f"{split}_revised.json", documents)
    ours, whole = data_of(tmp_path, bert), data_of(demo, bert)
    assert len(ours.features["train"]) == len(whole.features["train"]) + 1
    assert ours.train_facts == whole.train_facts
    write_json(tmp_path / "dev_revised.json", documents[:1] * 2)
    with pytest.raises(InputError, match="dev_revised.json: document 1 .* has the same title"):
        data_of(tmp_path, bert)


def test_a_fault_of_the_training_file_is_named(demo, bert, tmp_path):
    documents = read(demo / "train_revised.json")
    documents[5]["labels"][0]["r"] = "P0"
    for split in ("dev", "test"):
        os.symlink(demo / f"{split}_revised.json", tmp_path / f"{split}_revised.json")
    write_json(tmp_path / "train_revised.json", documents)
    for trains in (True, False):
        with pytest.raises(InputError, match="train_revised.json: document 5 .*relation 'P0'"):
            data_of(tmp_path, bert, trains=trains)
