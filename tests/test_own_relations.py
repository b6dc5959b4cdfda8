"""A relation set of one's own, of any size and names, through all commands; no flag repeats it."""

import json
import random
import re
import subprocess
import sys

import convert_text
import pytest
from conftest import ROOT, flags, make_document, read, save_run, small_model

import evaluation
import predict
import report
import train
from engine.extractor import RelationExtractor
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


def test_own_relations_through_all_commands(demo, corpus, capsys, no_figures):
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


TEXTS = [  # head, tail, relation
    ("Ada", "Charles", "works for"),
    ("Ada", "London", "lives in"),
    ("Charles", "Ada", "works for"),
]


def text_of(number, labelled=True):
    head, tail, relation = TEXTS[number % 3]
    text = f"{head} is here. {head} {relation} {tail}."
    spans = [[(0, len(head)), (len(head) + 10, 2 * len(head) + 10)]]
    spans.append([(len(text) - len(tail) - 1, len(text) - 1)])
    entities = [[{"start": a, "end": b} for a, b in mentions] for mentions in spans]
    assert text[slice(*spans[0][1])] == head and text[slice(*spans[1][0])] == tail
    document = {"title": str(number), "text": text, "entities": entities}
    return document | ({"labels": [{"h": 0, "t": 1, "r": relation}]} if labelled else {})


@pytest.mark.slow
def test_the_commands_of_the_page(demo, tmp_path):
    """docs/data.md, "From a text to a model": its very commands and examples, with a small encoder
    for a short time."""
    page = (ROOT / "docs/data.md").read_text().split("### From a text to a model")[1]
    example, rel2id, commands = re.findall(r"(?m)(?:^    .*\n)+", page)[:3]
    (tmp_path / "my").mkdir()
    (tmp_path / "my/rel2id.json").write_text(rel2id)
    for name, size in {"train": 12, "dev": 3, "test": 3, "new": 2}.items():
        lines = [json.dumps(text_of(i, name != "new")) for i in range(size)]
        if name == "train":
            lines.append(example.replace("\n", " ").replace('"1"', '"of the page"'))
        (tmp_path / f"my/{name}.jsonl").write_text("\n".join(lines))
    short = "--output_dir runs/my --emb_size 64 --num_train_epochs 1 --device cpu"
    changes = {
        "    ": "",
        "bert-base-cased": str(demo / "encoder"),
        "--output_dir runs/my": short,
        "python ": f"{sys.executable} {ROOT}/",
    }
    for old, new in changes.items():
        assert old in commands
        commands = commands.replace(old, new)
    result = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands], cwd=tmp_path, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert "my/train.json: 13 documents, 14 facts" in result.stdout
    assert "documents: 2, relations: " in result.stderr
    assert read(tmp_path / "runs/my/config.json")["label2id"] == json.loads(rel2id)
    assert "Ada" in (tmp_path / "my/page.html").read_text()


def test_texts_to_train_on_need_labels(tmp_path):
    (tmp_path / "rel2id.json").write_text(json.dumps({"none": 0, "works for": 1}))
    (tmp_path / "in.jsonl").write_text("\n".join(json.dumps(text_of(i, i == 0)) for i in (0, 1)))
    command = ["--rel2id", str(tmp_path / "rel2id.json"), str(tmp_path / "in.jsonl")]
    with pytest.raises(InputError, match='in.jsonl: document 1 "1": labels: missing'):
        convert_text.main([*command, str(tmp_path / "out.json")])
    assert not (tmp_path / "out.json").exists()


def test_relations_without_a_name_are_called_by_their_property(tokenizer, tmp_path):
    """Without one in meta/rel_info.json, that is."""
    rel2id = {"Na": 0} | {f"X{i}": i for i in range(1, 97)}
    save_run(small_model(settings={"rel2id": rel2id}), tokenizer, tmp_path)
    extractor = RelationExtractor.from_pretrained(tmp_path, device="cpu")
    relations = extractor(make_document(random.Random(0)) | {"labels": []})["relations"]
    assert relations and all(x["relation"] == x["name"] and x["name"][0] == "X" for x in relations)
