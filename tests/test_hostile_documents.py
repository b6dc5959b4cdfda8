"""Document and submission files, changed and broken: read, and then all works, or refused."""

import argparse
import contextlib
import copy
import io
import json
import random
from collections import Counter
from itertools import chain

import msgspec
import pytest
from conftest import REL2ID
from hostile import (
    BASE,
    BYTES,
    TEXT,
    VALUES,
    as_bytes,
    changed,
    doubled,
    every_change,
    outcome,
    places,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import evaluation
import predict
from engine.data import read_data
from engine.scoring import to_official
from evaluation import evaluate, read_logits
from inputs.documents import read_documents, read_predictions
from inputs.files import read_bytes, relation_ids
from inputs.span_documents import as_docred, read_new_documents
from prepro import docred_features
from reporting.statistics import document_counts
from utils import collate
from viewing import page
from viewing.formats import write_list

# --- Documents --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def works(tokenizer):
    """A function that does with documents what training and scoring do, and checks the end."""

    def check(documents):
        features = docred_features(documents, tokenizer, 64)
        special = [tokenizer.cls_token_id], [tokenizer.sep_token_id], tokenizer.pad_token_id
        batch = collate(features, special)
        submission = to_official(batch["labels"], features, REL2ID)
        pairs = {(d["title"], x["h"], x["t"], x["r"]) for d in documents for x in d["labels"]}
        pairs = {x for x in pairs if x[1] != x[2]}  # an entity and itself are no pair
        assert {tuple(x.values()) for x in submission} == pairs
        scores = evaluate(submission, documents, documents)
        assert scores["precision"] == (1 if submission else 0)
        assert all(0 <= score <= 1 for score in scores.values())

    return check


def new_documents(path):
    return list(read_new_documents(read_bytes(path), path, REL2ID))


def names_its_document(message, content):
    """A fault in a document, in a file that is otherwise a list of documents, names its place."""
    with contextlib.suppress(ValueError, RecursionError):
        if isinstance(value := msgspec.json.decode(content), list) and value:
            assert "document " in message, message


def test_every_change_of_a_document_file(tmp_path, works):
    path, seen = tmp_path / "documents.json", Counter()
    for _, value in every_change(BASE, step=3):
        path.write_bytes(as_bytes(value))
        documents, message = outcome(lambda: read_documents(path), path)
        seen[message is None] += 1
        if message is None:
            works(documents)
        else:
            names_its_document(message, as_bytes(value))
    print("documents, every change: read, refused", seen[True], seen[False])
    assert seen[True] > 150 and seen[False] > 700


SPANS = {
    "no entities": {"vertexSet": [], "labels": []},
    "no entities, but labels": {"vertexSet": []},
    "no sentences": {"sents": []},
    "nothing": {"sents": [], "vertexSet": [], "labels": []},
    "empty sentence": {"sents": [[], *BASE[0]["sents"][1:]]},
    "empty words": {"sents": [[""] * 4] * 2},
    "NUL words": {"sents": [["\0"] * 4] * 2},
    "control words": {"sents": [["\x1b[2J", "\x9b", "\u202e", "\u2028"]] * 2},
    "white words": {"sents": [[" ", "\n", "\u00a0", "\u3000"]] * 2},
    "a long word": {"sents": [["x" * 20_000, *"abc"]] * 2},
    "many entities": {"vertexSet": BASE[0]["vertexSet"] * 30},
    "head is tail": {"labels": [{"h": 0, "t": 0, "r": "P17"}]},
    "a label twice": {"labels": [{"h": 0, "t": 1, "r": "P17"}] * 2},
    "evidence null": {"labels": [{"h": 0, "t": 1, "r": "P17", "evidence": None}]},
    "evidence true": {"labels": [{"h": 0, "t": 1, "r": "P17", "evidence": [True]}]},
    "evidence far": {"labels": [{"h": 0, "t": 1, "r": "P17", "evidence": [10**18]}]},
    **{
        f"span {pos}": {
            "vertexSet": [
                [
                    {"name": "a", "sent_id": 0, "pos": pos},
                    {"name": "b", "sent_id": 1, "pos": [0, 4]},
                ]
            ],
            "labels": [],
        }
        for pos in ([0, 4], [3, 4], [0, 0], [2, 1], [-1, 2], [3, 5], [0, 1, 2], [0.0, 1.0], [0], [])
    },
}
READ_SPANS = {
    *("no entities", "nothing", "empty words", "NUL words", "control words", "white words"),
    *("a long word", "many entities", "head is tail", "a label twice", "evidence null"),
    *("span [0, 4]", "span [3, 4]"),
}


def test_documents_at_their_limits(tmp_path, works):
    read_names = set()
    for name, change in SPANS.items():
        path = tmp_path / "documents.json"
        path.write_bytes(as_bytes([BASE[0] | change, BASE[1]]))
        documents, message = outcome(lambda path=path: read_documents(path), path)
        if message is None:
            works(documents)
            read_names.add(name)
        else:
            assert 'document 0 "Title 0": ' in message
    assert read_names == READ_SPANS


ARGS = {
    **{"data_dir": "", "train_file": "a.json", "dev_file": "a.json", "test_file": "a.json"},
    "max_seq_length": 64,
    "load_path": "a run",
}


def test_documents_of_broken_bytes(tmp_path, works, folder, tokenizer, monkeypatch):
    """By every command that reads them: train.py, evaluation.py and predict.py."""
    path, good = tmp_path / "a.json", tmp_path / "good.json"
    good.write_bytes(as_bytes([{"title": "Title 0", "h_idx": 0, "t_idx": 1, "r": "P17"}]))
    args = argparse.Namespace(**ARGS | {"data_dir": tmp_path})
    monkeypatch.setattr(predict, "load_model", lambda _: pytest.fail("it should be refused"))
    seen = Counter()
    for change in BYTES.values():
        path.write_bytes(change(as_bytes(BASE)))
        found, message = outcome(lambda: read_data(args, REL2ID, tokenizer), path)
        seen[message is None] += 1
        if message is None:
            works(found.documents["dev"])
            evaluation.main(["--pred", str(good), "--truth", str(path)])
            continue
        _, other = outcome(lambda: evaluation.main(["--pred", str(good), "--truth", str(path)]))
        assert other == message
        if outcome(lambda: new_documents(path), path)[1]:  # which also takes text and JSON lines
            options = ["--model", str(folder), "--input", str(path), "--device", "cpu"]
            output = tmp_path / "output.json"
            output.write_text("old")
            options += ["--output", str(output)]
            outcome(lambda options=options: predict.main(options), path)
            assert output.read_text() == "old"
    print("documents, bytes: read, refused", seen[True], seen[False])
    assert seen[True] >= 5 and seen[False] > 70


@pytest.mark.parametrize("base", [BASE[:1], [TEXT]], ids=["DocRED", "text"])
def test_every_change_of_new_documents(tmp_path, extractor, base):
    """Some of what is read goes on to a model, to JSON and to a page."""
    path, seen, kept = tmp_path / "in.json", Counter(), []
    for _, value in every_change(base, step=2):
        path.write_bytes(as_bytes(value))
        documents, message = outcome(lambda: new_documents(path), path)
        seen[message is None] += 1
        if message is None:
            kept += documents[:1]
        else:
            names_its_document(message, path.read_bytes())
    print("new documents: read, refused", seen[True], seen[False])
    assert seen[True] > 20 and seen[False] > 300
    kept = random.Random(0).sample(kept, 20)
    shown = list(extractor.stream(iter(kept)))
    file = io.StringIO()
    write_list([record for _, record in shown], file)
    assert "NaN" not in file.getvalue() and "Infinity" not in file.getvalue()
    assert [x["title"] for x in json.loads(file.getvalue())] == [x["title"] for x in kept]
    page.write_page(tmp_path / "page.html", shown[: page.LIMIT], len(shown))
    assert "\ud800" not in (tmp_path / "page.html").read_text(encoding="utf-8")


# --- Any change, several at once --------------------------------------------------------------

MUTATED = {"max_examples": 220, "deadline": None, "derandomize": True, "database": None}
MUTATED |= {"suppress_health_check": list(HealthCheck)}
JSON_VALUES = st.recursive(
    st.sampled_from([x for x in VALUES if not isinstance(x, (list, dict))])
    | st.integers(-3, 5)
    | st.text(max_size=5),
    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=5), x, max_size=3),
    max_leaves=5,
)


@st.composite
def mutated(draw, base):
    """The bytes of a JSON file after one to three changes of its values, or of its bytes."""
    if draw(st.booleans()):
        content = bytearray(as_bytes(base))
        for _ in range(draw(st.integers(1, 3))):
            start = draw(st.integers(0, len(content)))
            end = min(len(content), start + draw(st.integers(0, 4)))
            content[start:end] = draw(st.binary(max_size=4) | st.sampled_from([b"", b'"', b"[{"]))
        return bytes(content)
    value = copy.deepcopy(base)
    for _ in range(draw(st.integers(1, 3))):
        if not (found := list(places(value))):
            break
        place, other = (draw(st.sampled_from(found)) for _ in range(2))
        kind, new = draw(st.sampled_from(["set", "delete", "double", "move"])), draw(JSON_VALUES)
        if kind == "move":
            new = value
            for key in other:
                new = new[key]
        new = copy.deepcopy(new)

        def change(parent, key, kind=kind, new=new):
            if kind == "delete":
                parent.pop(key)
            elif kind == "double":
                doubled(parent, key)
            else:
                parent[key] = new

        value = changed(value, place, change)
    return as_bytes(value)


DOCUMENT_CASES, SUBMISSION_CASES = Counter(), Counter()


@settings(**MUTATED)
@given(content=mutated(BASE))
def test_any_document_file(tmp_path_factory, works, content):
    path = tmp_path_factory.getbasetemp() / "any_documents.json"
    path.write_bytes(content)
    documents, message = outcome(lambda: read_documents(path), path)
    DOCUMENT_CASES[message is None] += 1
    if message is None:
        works(documents)
    else:
        names_its_document(message, content)
    outcome(lambda: new_documents(path), path)


GOLD = [
    {"title": d["title"], "h_idx": x["h"], "t_idx": x["t"], "r": x["r"], "evidence": [0]}
    for d in BASE
    for x in d["labels"]
]


def scored(path):
    """What may be done with a submission that was read."""
    predictions = read_predictions(path, BASE)
    scores = evaluate(predictions, BASE, BASE)
    assert all(0 <= score <= 1 for score in scores.values())
    if all(x["title"] in {d["title"] for d in BASE} for x in predictions):
        counts = document_counts(predictions, BASE, REL2ID, BASE).sum((0, 1))
        assert counts[1] == len(
            {tuple(x[k] for k in "title h_idx t_idx r".split()) for x in predictions}
        )
        assert scores["precision"] == pytest.approx(counts[0] / max(counts[1], 1))
    return scores


@settings(**MUTATED)
@given(content=mutated(GOLD))
def test_any_submission(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any_submission.json"
    path.write_bytes(content)
    SUBMISSION_CASES[outcome(lambda: scored(path), path)[1] is None] += 1


def test_any_file_was_read_and_refused():
    """Neither outcome is a rarity; without the tests above there is nothing to count."""
    for cases in (DOCUMENT_CASES, SUBMISSION_CASES):
        print("any file: read, refused", cases[True], cases[False])
        assert not cases or (cases[True] > 20 and cases[False] > 100)


# --- Submissions ------------------------------------------------------------------------------


def test_every_change_of_a_submission(tmp_path):
    path, seen = tmp_path / "predictions.json", Counter()
    for what, value in every_change(GOLD):
        path.write_bytes(as_bytes(value))
        message = outcome(lambda: scored(path), path)[1]
        seen[message is None] += 1
        assert message is None or "prediction " in message or "not valid JSON" in message, what
    print("submissions, every change: read, refused", seen[True], seen[False])
    assert seen[True] > 50 and seen[False] > 300


def test_submissions_of_broken_bytes(tmp_path):
    truth, path = tmp_path / "truth.json", tmp_path / "predictions.json"
    output, seen = tmp_path / "scores.json", Counter()
    truth.write_bytes(as_bytes(BASE))
    command = ["--pred", str(path), "--truth", str(truth), "--output", str(output)]
    for change in BYTES.values():
        output.write_text("old")
        path.write_bytes(change(as_bytes(GOLD)))
        message = outcome(lambda: evaluation.main(command), path)[1]
        seen[message is None] += 1
        assert (output.read_text() == "old") == (message is not None)
    print("submissions, bytes: read, refused", seen[True], seen[False])
    assert seen[True] >= 3 and seen[False] > 70


def test_files_that_are_none(tmp_path):
    for path in (
        tmp_path,
        tmp_path / "none",
        tmp_path / "none/none",
        tmp_path / ("x" * 300),
        "a\0b",
    ):
        for action in (read_documents, lambda x: read_predictions(x, BASE), relation_ids):
            assert outcome(lambda path=path, action=action: action(path))[1]
        assert outcome(lambda path=path: read_bytes(path))[1]
        assert outcome(lambda path=path: read_logits(path))[1]


def test_relation_files(tmp_path):
    path, seen = tmp_path / "rel2id.json", Counter()
    base = {"Na": 0, "P17": 1, "P27": 2}
    contents = chain(
        (change(as_bytes(base)) for change in BYTES.values()),
        (as_bytes(value) for _, value in every_change(base)),
        map(as_bytes, ({"\ud800": 0}, {"\ud800": 0, "a": 1}, {"": 0}, {"\x1b": 0, "b": 1})),
    )
    for content in contents:
        path.write_bytes(content)
        found, message = outcome(lambda: relation_ids(path), path)
        seen[message is None] += 1
        if message is None:
            assert sorted(found.values()) == list(range(len(found)))
            document = BASE[0] | {"labels": [{"h": 0, "t": 1, "r": x} for x in found if found[x]]}
            assert as_docred(document, 0, found) == document
    print("rel2id.json: read, refused", seen[True], seen[False])
    assert seen[True] >= 5 and seen[False] > 150
