"""A relation set of one's own, of any size and names, through all commands; no flag repeats it."""

import json
import random

import pytest
from conftest import flags, make_document, read

import evaluation
import predict
import report
import train
from inputs.files import InputError

RELATIONS = ["works for", "lives in", "married to", "born in", "owner_of"]
REL2ID = {"no relation": 0} | {name: i for i, name in enumerate(RELATIONS, 1)}


@pytest.fixture
def corpus(tmp_path):
    rng = random.Random(0)
    for split, size in {"train": 8, "dev": 4, "test": 4}.items():
        documents = [make_document(rng, title=f"{split} {i}") for i in range(size)]
        for x in [x for document in documents for x in document["labels"]]:
            x["r"] = rng.choice(RELATIONS)
        (tmp_path / f"{split}_revised.json").write_text(json.dumps(documents))
    (tmp_path / "rel2id.json").write_text(json.dumps(REL2ID))
    return tmp_path


def test_own_relations_through_all_commands(demo, corpus, capsys):
    run = corpus / "runs/a"
    where = ["--data_dir", str(corpus), "--learning_rate", "1e-9", "--classifier_lr", "1e-9"]
    own = ["--rel2id", str(corpus / "rel2id.json")]
    train.main(flags(demo, run, *where, *own, "--num_train_epochs", "1"))
    results = read(run / "results.json")
    assert results["args"]["num_class"] == 6 and read(run / "config.json")["label2id"] == REL2ID
    assert results["test"]["recall"] > 0  # untrained weights predict some of everything
    submission = read(run / "predictions.json")
    assert {x["r"] for x in submission} <= set(RELATIONS)

    again = ["--data_dir", str(corpus), "--load_path", str(run), "--device", "cpu"]
    train.main([*again, "--output_dir", str(corpus / "again")])
    assert read(corpus / "again/results.json")["test"] == results["test"]
    with pytest.raises(InputError, match="rel2id.json has other relations than the run in"):
        train.main([*again, "--rel2id", str(reordered(corpus))])
    with pytest.raises(InputError, match="--num_class: 97, but .* has 6 classes"):
        train.main([*again, "--num_class", "97"])

    files = ["--input", str(corpus / "test_revised.json"), "--output", str(corpus / "out.json")]
    predict.main(["--model", str(run), "--device", "cpu", "--format", "official", *files])
    assert sorted(map(str, read(corpus / "out.json"))) == sorted(map(str, submission))
    truth = ["--truth", str(corpus / "test_revised.json")]
    scores = ["--pred", str(corpus / "out.json"), "--output", str(corpus / "scores.json")]
    evaluation.main([*truth, "--train", str(corpus / "train_revised.json"), *scores, *own])
    expected = read(corpus / "scores.json")
    assert {name: results["test"][name] for name in expected} == pytest.approx(expected)

    places = ["--runs", str(corpus / "runs"), "--out", str(corpus / "report")]
    report.main([*places, "--data_dir", str(corpus)])
    assert "HingeABL" in (corpus / "report/report.md").read_text()
    assert "left out" not in capsys.readouterr().out


def reordered(corpus):
    path = corpus / "other/rel2id.json"
    path.parent.mkdir()
    names = ["no relation", *reversed(RELATIONS)]
    path.write_text(json.dumps({name: i for i, name in enumerate(names)}))
    return path
