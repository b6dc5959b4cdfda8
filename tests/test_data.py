"""The training file in passing: features as numbers, facts and counts, against reading it whole."""

import os
import random
import sys
import tracemalloc
from argparse import Namespace

import numpy as np
import pytest
from conftest import REL2ID, make_document, read, shared

from encoders.loading import load_tokenizer
from engine import data
from engine.data import Data
from evaluation import evaluate, gold_facts, known_facts, named_facts
from inputs.documents import iter_documents, read_documents
from inputs.files import InputError, write_json
from prepro import Features, docred_features


@pytest.fixture(scope="module")
def bert(demo):
    return load_tokenizer(demo / "encoder")


def data_of(folder, tokenizer, **more):
    names = {f"{split}_file": f"{split}_revised.json" for split in ("train", "dev", "test")}
    args = Namespace(data_dir=folder, max_seq_length=512, **names)
    return Data(args, REL2ID, tokenizer, **more)


def assert_same_features(ours, theirs):
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine["input_ids"] == other["input_ids"]
        assert mine["entity_pos"] == other["entity_pos"]
        assert mine["triples"].dtype == other["triples"].dtype
        assert np.array_equal(mine["triples"], other["triples"])


def test_features_in_memory_are_those_that_were_given(golden_features):
    """Real documents, and made-up ones without entities, mentions cut off, candidate pairs."""
    features = list(golden_features.values())
    empty = {"input_ids": [2, 3], "entity_pos": [], "triples": np.zeros((0, 3), np.int32)}
    empty |= {"evidence": [], "sentence_bounds": [0]}
    alone = empty | {"input_ids": [2, 9, 3], "entity_pos": [[(0, 1), (7, 9)]]}
    two = {"pairs": np.array([[1, 0], [1, 2]]), "evidence": [(1, 0, 4), (1, 0, 5)]}
    two |= {"triples": np.array([[1, 0, 7], [1, 0, 8]], np.int32)}
    features = [empty, *features, alone, features[0] | two]
    kept = Features(iter(features))
    assert_same_features(kept, features)
    for mine, other in zip(kept, features, strict=True):
        assert all(mine[name] == other[name] for name in ("evidence", "sentence_bounds"))
    assert np.array_equal(kept[-1]["pairs"], two["pairs"])
    assert kept.lengths.tolist() == [len(x["input_ids"]) for x in features]
    counts = [len(x["entity_pos"]) for x in features]
    assert kept.num_entities.tolist() == counts
    assert kept.num_pairs.tolist() == [*(n * (n - 1) for n in counts[:-1]), 2]
    related = [len({(h, t) for h, t, _ in x["triples"].tolist()}) for x in features]
    assert kept.num_related.tolist() == related and related[-1] == 1 < max(related)
    assert kept.num_evidence.tolist() == [len(x["evidence"]) for x in features]
    assert kept.largest.tolist() == [max(x["input_ids"]) for x in features]
    with pytest.raises(IndexError):
        kept[len(features)]


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
    described = ours.description
    assert described["train"]["documents"] == len(train)
    assert described["train"]["triples"] == len(gold_facts(train))
    only_evaluates = data_of(demo, bert, trains=False)
    assert "train" not in only_evaluates.features
    assert only_evaluates.train_facts == ours.train_facts
    assert only_evaluates.description == described


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


def test_memory_does_not_grow_with_the_training_file(bert, tmp_path, monkeypatch):
    """Ten times the documents; their features are kept, packed, and some numbers of each."""
    monkeypatch.setattr(data, "CHUNK", 10)
    monkeypatch.setattr("inputs.documents.CHUNK", 10_000)
    peaks = []
    for size in (100, 1000):
        folder = tmp_path / str(size)
        folder.mkdir()
        rng = random.Random(0)
        for split, count in {"train": size, "dev": 2, "test": 2}.items():
            documents = [make_document(rng, title=f"{split} {i}") for i in range(count)]
            write_json(folder / f"{split}_revised.json", documents)
        data_of(folder, bert)  # what is made once
        tracemalloc.start()
        features = data_of(folder, bert).features["train"]
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert (folder / "train_revised.json").stat().st_size > 1_000_000
    kept = sum(map(sys.getsizeof, features.records))
    assert peaks[1] < peaks[0] + 1.1 * kept + 100 * 900
    assert sum(1 for _ in iter_documents(folder / "train_revised.json")) == 1000
