"""No input file can hurt: changed, broken and hostile files are read, and then everything works
with them, or they are refused with one line; text stays text; no code in a file is run."""

import argparse
import ast
import contextlib
import copy
import gzip
import io
import json
import random
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
import zipfile
from collections import Counter
from html.parser import HTMLParser
from itertools import chain, count, islice, product

import numpy as np
import pytest
import torch
from conftest import ROOT, make_document, read
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_predict import extractor, folder, tokenizer  # noqa: F401
from test_report import data, write_run  # noqa: F401

import evaluation
import page
import predict
import report
from checkpoint import build_encoder, load_state, load_tokenizer
from data import Data
from documents import as_docred, open_input, read_new_documents
from evaluation import document_counts, evaluate, read_logits
from files import LONGEST, InputError, printable, read_documents, read_predictions, relation_ids
from hub import load_shared
from options import parse_runs
from predict import RelationExtractor
from prepro import docred_features
from train import to_official
from utils import collate

REL2ID = relation_ids()


# --- What is done to a file -------------------------------------------------------------------

VALUES = [
    *(None, True, False, 0, 1, -1, 2, 3, 10**30, -(10**30), 10**400, 1.5, -0.0, 1e308),
    *(float("nan"), float("inf"), "", "x", "0", "P17", "Na", "\ud800", "\0", "a\nb", "\x1b[2J"),
    *("x" * 5000, "\u202e", [], [[]], [0], [0, 1], [1, 0], [0, 10**30], [True, 2], [None], ["x"]),
    *([[[]]], {}, {"x": 1}, {"": None}, [{}], [[{}]]),
]
BYTES = {
    "nothing": lambda x: b"",
    "white space": lambda x: b" \n\t\r\n",
    "null": lambda x: b"null",
    "a number": lambda x: b"-1e5",
    "a string": lambda x: b'"text"',
    "an object": lambda x: b"{}",
    "an empty list": lambda x: b"[]",
    "in a list": lambda x: b"[" + x + b"]",
    "in an object": lambda x: b'{"data": ' + x + b"}",
    "mark of UTF-8": lambda x: b"\xef\xbb\xbf" + x,
    "UTF-16": lambda x: x.decode().encode("utf-16"),
    "UTF-32": lambda x: x.decode().encode("utf-32-be"),
    "Latin-1": lambda x: x.replace(b"Name", "Zoë".encode("latin-1")).replace(b"P17", b"\xe9"),
    "gzip": gzip.compress,
    "NUL at the end": lambda x: x + b"\0",
    "NUL inside": lambda x: x[:40] + b"\0" + x[40:],
    "escape sequence": lambda x: x[:40] + b"\x1b]0;owned\x07" + x[40:],
    "newline in a string": lambda x: x.replace(b'": "', b'": "\n', 1),
    "comma at the end": lambda x: x.rstrip()[:-1] + b",]",
    "comment": lambda x: b"// comment\n" + x,
    "block comment": lambda x: x.replace(b",", b", /* comment */", 1),
    "twice": lambda x: x + x,
    "lines twice": lambda x: x + b"\n" + x,
    "text after": lambda x: x + b" x",
    "single quotes": lambda x: x.replace(b'"', b"'"),
    "NaN": lambda x: x.replace(b" 0,", b" NaN,", 1),
    "Infinity": lambda x: x.replace(b" 0,", b" -Infinity,", 1),
    "1e999": lambda x: x.replace(b" 0,", b" 1e999,", 1),
    "long number": lambda x: x.replace(b" 0,", b" " + b"9" * 5000 + b",", 1),
    "4,000 digits": lambda x: x.replace(b" 0,", b" " + b"9" * 4000 + b",", 1),
    "leading zero": lambda x: x.replace(b" 0,", b" 00,", 1),
    "half a character": lambda x: x.replace(b'": "', b'": "\\ud800', 1),
    "unknown escape": lambda x: x.replace(b'": "', b'": "\\x', 1),
    "deep lists": lambda x: b"[" * 100_000,
    "deep objects": lambda x: b'[{"a": ' * 50_000,
    "deep and whole": lambda x: b'[{"title": ' + b"[" * 5000 + b"]" * 5000 + b"}]",
    "key twice": lambda x: x.replace(b"{", b'{"title": 1, "h_idx": 0, ', 1),
    "key twice, last counts": lambda x: x.replace(b'{"', b'{"sents": 7, "', 1),
    "pickle": lambda x: b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94.",
    "overlong UTF-8": lambda x: x[:30] + b"\xc0\xaf" + x[30:],
    "random": lambda x: random.Random(0).randbytes(500),
    **{f"cut to {i} of 40": lambda x, i=i: x[: len(x) * i // 40] for i in range(1, 40)},
    **{
        f"bit {i} of 20": lambda x, i=i: (
            x[: (k := len(x) * i // 20)] + bytes([x[k] ^ (1 << i % 7)]) + x[k + 1 :]
        )
        for i in range(20)
    },
}


def places(value, path=()):
    """Every place in a JSON value, but the value itself."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, child in items:
        yield (*path, key)
        if isinstance(child, (dict, list)):
            yield from places(child, (*path, key))


def changed(value, place, change):
    """A copy with change(parent, key) done at a place."""
    value = copy.deepcopy(value)
    parent = value
    for key in place[:-1]:
        parent = parent[key]
    change(parent, place[-1])
    return value


def doubled(parent, key):
    if isinstance(parent, list):
        parent.insert(key, copy.deepcopy(parent[key]))
    else:
        parent[f"{key}2"] = parent[key]


DELETED, DOUBLED = type("deleted", (), {}), type("doubled", (), {})


def every_change(value, values=VALUES, step=1):
    """(what, changed copy): every place deleted, doubled, and replaced by every value; of these
    every step-th."""
    kinds = [DELETED, DOUBLED, *values]
    for place, new in islice(product(places(value), kinds), 0, None, step):

        def change(parent, key, new=new):
            if new is DELETED:
                parent.pop(key)
            elif new is DOUBLED:
                doubled(parent, key)
            else:
                parent[key] = new

        yield f"{place} {new!r:.40}", changed(value, place, change)


def as_bytes(value):
    return json.dumps(value).encode()


def outcome(action, *named):
    """(result, None), or (None, message) of an InputError whose message is as it should be and has
    all of `named` in it. Any other exception is the test's failure."""
    try:
        return action(), None
    except InputError as error:
        message = str(error)
    assert message.isprintable() and len(message) <= LONGEST
    for name in named:
        assert str(name) in message, message
    return None, message


# --- Documents --------------------------------------------------------------------------------


def small_document(title, relation):
    names = [[("Name 0", 0, [0, 1]), ("She", 1, [0, 1])], [("Name 1", 0, [2, 4])]]
    return {
        "title": title,
        "sents": [["Name", "of", "Name", "1"], ["She", "wrote", "it", "."]],
        "vertexSet": [
            [{"name": name, "sent_id": i, "pos": pos, "type": "PER"} for name, i, pos in mentions]
            for mentions in names
        ],
        "labels": [{"h": 0, "t": 1, "r": relation, "evidence": [0]}],
    }


BASE = [small_document("Title 0", "P17"), small_document("Title 1", "P27")]


@pytest.fixture(scope="module")
def works(tokenizer):  # noqa: F811
    """A function that does with documents what training and scoring do, and checks the end."""

    def check(documents):
        features = docred_features(documents, tokenizer, 64, progress=False)
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


def names_its_document(message, content):
    """A fault in a document, in a file that is otherwise a list of documents, names its place."""
    with contextlib.suppress(ValueError, RecursionError):
        if isinstance(value := json.loads(content), list) and value:
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
    "evidence far": {"labels": [{"h": 0, "t": 1, "r": "P17", "evidence": [10**30]}]},
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
}


def test_documents_of_broken_bytes(tmp_path, works, folder, tokenizer, monkeypatch):  # noqa: F811
    """By every command that reads them: train.py, evaluation.py and predict.py."""
    path, good = tmp_path / "a.json", tmp_path / "good.json"
    good.write_bytes(as_bytes([{"title": "Title 0", "h_idx": 0, "t_idx": 1, "r": "P17"}]))
    args = argparse.Namespace(**ARGS | {"data_dir": tmp_path})
    monkeypatch.setattr(predict, "load_shared", lambda _: pytest.fail("it should be refused"))
    seen = Counter()
    for change in BYTES.values():
        path.write_bytes(change(as_bytes(BASE)))
        found, message = outcome(lambda: Data(args, REL2ID, tokenizer), path)
        seen[message is None] += 1
        if message is None:
            works(found.documents["dev"])
            evaluation.main(["--pred", str(good), "--truth", str(path)])
            continue
        _, other = outcome(lambda: evaluation.main(["--pred", str(good), "--truth", str(path)]))
        assert other == message
        new = read_new_documents(open_input(path), path, REL2ID)
        if outcome(lambda new=new: list(new), path)[1]:  # which also takes text and JSON lines
            options = ["--model", str(folder), "--input", str(path), "--device", "cpu"]
            output = tmp_path / "output.json"
            output.write_text("old")
            options += ["--output", str(output)]
            outcome(lambda options=options: predict.main(options), path)
            assert output.read_text() == "old"
    print("documents, bytes: read, refused", seen[True], seen[False])
    assert seen[True] >= 5 and seen[False] > 70


TEXT = {"title": "T", "text": "Ada was born in Paris. It rains.", "entities": [
    [{"start": 0, "end": 3, "type": "PER"}, {"start": 23, "end": 25}], [{"start": 16, "end": 21}],
], "labels": [{"h": 0, "t": 1, "r": "P19"}]}  # fmt: skip


@pytest.mark.parametrize("base", [BASE[:1], [TEXT]], ids=["DocRED", "text"])
def test_every_change_of_new_documents(tmp_path, extractor, base):  # noqa: F811
    """Some of what is read goes on to a model, to JSON and to a page."""
    path, seen, kept = tmp_path / "in.json", Counter(), []
    for what, value in every_change(base, step=2):
        path.write_bytes(as_bytes(value))
        with open_input(path) as file:
            new = read_new_documents(file, path, REL2ID)
            documents, message = outcome(lambda new=new: list(new), path)
        seen[message is None] += 1
        if message is None:
            kept += documents[:1]
        else:
            assert "document " in message or "the list of documents is empty" in message, what
    print("new documents: read, refused", seen[True], seen[False])
    assert seen[True] > 20 and seen[False] > 300
    kept = random.Random(0).sample(kept, 20)
    shown = list(extractor.stream(iter(kept)))
    file = io.StringIO()
    predict.write_list([record for _, record in shown], file)
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
    with open_input(path) as file:
        outcome(lambda: list(read_new_documents(file, path, REL2ID)), path)


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
        counts = document_counts(predictions, BASE, BASE).sum(0)
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
        assert message is None or "prediction " in message, what
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
        assert outcome(lambda path=path: open_input(path))[1]
        assert outcome(lambda path=path: read_logits(path))[1]


# --- Relations, logits, models ----------------------------------------------------------------


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


def hostile_arrays():
    """(name, bytes) of .npz files that are none of a run, and of two that are."""
    scores = np.zeros((4, 5), dtype=np.float32)
    arrays = {"logits": scores, "labels": scores > 0, "threshold": scores[:, :1]}
    changes = {
        "sound": {},
        "float16": {"logits": scores.astype(np.float16)},
        "no logits": {"logits": None},
        "no labels": {"labels": None},
        "objects": {"logits": np.array([[Payload()] * 5] * 4, dtype=object)},
        "strings": {"logits": scores.astype(str)},
        "labels of text": {"labels": scores.astype(str)},
        "complex": {"logits": scores.astype(complex)},
        "integers": {"logits": scores.astype(int)},
        "other end first": {"logits": scores.astype(">f4")},
        "long doubles": {"logits": scores.astype(np.longdouble)},
        "times": {"logits": scores.astype("datetime64[s]")},
        "nan": {"logits": scores + np.nan},
        "infinite": {"logits": scores - np.inf},
        "huge": {"logits": scores + 3e38},
        "flat": {"logits": scores.ravel(), "labels": scores.ravel() > 0},
        "deep": {"logits": scores[None], "labels": scores[None] > 0},
        "one class": {"logits": scores[:, :1], "labels": scores[:, :1] > 0},
        "no class": {"logits": scores[:, :0], "labels": scores[:, :0] > 0},
        "fewer labels": {"labels": scores[:3] > 0},
        "threshold of another shape": {"threshold": scores[:, :2]},
        "threshold of text": {"threshold": scores[:, :1].astype(str)},
        "threshold nan": {"threshold": scores[:, :1] + np.nan},
        "a number": {"logits": np.float32(1)},
    }
    for name, change in changes.items():
        file = io.BytesIO()
        np.savez_compressed(file, **{k: x for k, x in (arrays | change).items() if x is not None})
        yield name, file.getvalue()
        if name == "sound":
            sound = file.getvalue()
    file = io.BytesIO()
    np.save(file, scores)
    yield "an array alone", file.getvalue()
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        header = b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, "
        header += b"'shape': (1000000000000, 97), }"
        archive.writestr("logits.npy", header.ljust(127) + b"\n")
        archive.writestr("labels.npy", header.ljust(127) + b"\n")
        archive.writestr("../../escaped.npy", b"x")
    yield "a header that promises too much", file.getvalue()
    for i in range(1, 30):
        yield f"cut to {i} of 30", sound[: len(sound) * i // 30]
    for i in range(60):
        k = len(sound) * i // 60
        yield f"byte {k}", sound[:k] + bytes([sound[k] ^ 0x5A]) + sound[k + 1 :]


def test_logits_files(tmp_path):
    path, seen, sound = tmp_path / "dev_logits.npz", Counter(), []
    for name, content in hostile_arrays():
        path.write_bytes(content)
        arrays, message = outcome(lambda: read_logits(path), path)
        seen[message is None] += 1
        if message is None:
            assert sum(evaluation.count_patterns(**arrays)[x] for x in evaluation.PATTERNS) == 4
            sound.append(name)
    print("logits: read, refused", seen[True], seen[False])
    assert {"sound", "float16"} <= set(sound) and seen[False] > 60
    assert all(name in ("sound", "float16") or name.startswith("byte") for name in sound), sound
    assert not Payload.ran


class Payload:
    """A pickle that runs code when it is read."""

    ran = []

    def __reduce__(self):
        return exec, ("from test_hostile import Payload; Payload.ran.append(1)",)


@pytest.fixture
def model_folder(folder, tmp_path):  # noqa: F811
    shutil.copytree(folder, tmp_path / "model")
    return tmp_path / "model"


def predicts(folder):  # noqa: F811
    """Loads a run folder and uses it."""
    record = RelationExtractor(load_shared(folder), device="cpu")(TEXT)
    assert all(np.isfinite(x["score"]) for x in record["relations"] + record["missed"])
    return record


def test_every_change_of_a_models_configuration(model_folder):
    path, seen = model_folder / "config.json", Counter()
    base = read(path)
    values = [None, True, 0, -1, 1, 10**9, 10**30, 1.5, "", "x", "\ud800", [], {}, {"a": 1}]
    values += [float("nan"), "llama", "resnet", "../../x"]
    contents = chain(
        ((what, as_bytes(value)) for what, value in every_change(base, values, step=11)),
        ((name, BYTES[name](as_bytes(base))) for name in list(BYTES)[::5]),
    )
    for _, content in contents:
        path.write_bytes(content)
        message = outcome(lambda: predicts(model_folder))[1]
        seen[message is None] += 1
        command = ["--load_path", str(model_folder), "--device", "cpu"]
        outcome(lambda command=command: parse_runs(command))
    print("config.json: read, refused", seen[True], seen[False])
    assert seen[True] > 30 and seen[False] > 50


def test_weights_that_are_none(model_folder):
    path, seen = model_folder / "model.safetensors", Counter()
    content = path.read_bytes()
    size = 8 + int.from_bytes(content[:8], "little")
    header = content[8:size]
    cases = [content[: len(content) * i // 20] for i in range(20)]
    cases += [content[: size * i // 20] for i in range(20)]
    cases += [content[:8] + header.replace(a, b, 1) + content[size:] for a, b in [
        (b"F32", b"I32"), (b"F32", b"F16"), (b"F32", b"XXX"), (b"[0,", b"[9,"), (b"[32", b"[31"),
        (b"[32", b"[-1"), (b'"dtype"', b'"dtyqe"'), (b"head_", b"\x1b[2J"), (b"head_", b"\xff____"),
    ]]  # fmt: skip
    for size in (0, 7, 2**31, 2**63, 2**64 - 1):
        cases.append(size.to_bytes(8, "little") + content[8:])
    for number in (b"\x00\x00\xc0\x7f", b"\x00\x00\x80\xff"):  # not a number, -infinity
        cases.append(content[:-4] + number)
    cases += [b"", b"{}", b"\x80\x04.", gzip.compress(content), content + b"x"]
    cases.append((2).to_bytes(8, "little") + b"{}")
    for case in cases:
        path.write_bytes(case)
        message = outcome(lambda: predicts(model_folder), path)[1]
        seen[message is None] += 1
    print("model.safetensors: read, refused", seen[True], seen[False])
    assert seen[False] >= len(cases) - 1
    path.write_bytes(content)
    assert predicts(model_folder)["relations"]
    path.unlink()
    assert "no such file" in outcome(lambda: predicts(model_folder), path)[1]


def test_tokenizers_that_are_none(model_folder):
    seen = Counter()
    for path in sorted((model_folder / "tokenizer").iterdir()):
        content = path.read_bytes()
        base = json.loads(content)
        if "model" in base:  # its vocabulary is long
            base["model"]["vocab"] = dict(list(base["model"]["vocab"].items())[:6])
        values = [None, True, -1, 10**30, 1.5, "x", "\ud800", [], {}, [["x"]]]
        cases = [as_bytes(value) for _, value in every_change(base, values)]
        cases = random.Random(1).sample(cases, min(len(cases), 25))
        whole = json.loads(content)
        if "model" in whole:
            for number in (10**6, 7000, 2**32 - 1):
                vocabulary = whole["model"]["vocab"] | {"a": number, "##a": number}
                cases.append(as_bytes(whole | {"model": whole["model"] | {"vocab": vocabulary}}))
        for case in [*cases, *(change(content) for change in list(BYTES.values())[::8])]:
            path.write_bytes(case)
            message = outcome(lambda: predicts(model_folder))[1]
            seen[message is None] += 1
        path.write_bytes(content)
    print("tokenizer: read, refused", seen[True], seen[False])
    assert seen[True] > 5 and seen[False] > 40
    assert predicts(model_folder)["relations"]


# --- Run folders ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run_folder(data, tmp_path_factory):  # noqa: F811
    return write_run(tmp_path_factory.mktemp("one") / "sound", data, tuned=True)


@pytest.fixture
def runs(run_folder, tmp_path):
    """A folder of a sound run and of another, "b", to be broken."""
    for name in "sound", "b":
        shutil.copytree(run_folder, tmp_path / "runs" / name)
    results = read(tmp_path / "runs/b/results.json")
    results["args"]["seed"] = 2
    (tmp_path / "runs/b/results.json").write_text(json.dumps(results))
    return tmp_path / "runs"


def reported(runs, *more):
    """The report of a folder of runs, as (report.json, report.md)."""
    out = runs.parent / "out"
    report.main(["--runs", str(runs), "--out", str(out), *map(str, more)])
    markdown = (out / "report.md").read_text(encoding="utf-8")
    assert all(x.isprintable() or x == "\n" for x in markdown)
    return read(out / "report.json"), markdown


def seeds_of(found):
    rows = [row for x in found["groups"] for row in x["tables"][2]["rows"]]
    return {seed for row in rows for seed in row["seeds"]}


def test_every_change_of_a_runs_results(runs, monkeypatch, capsys):
    """The broken run is named and left out; or it is reported; the sound one always is."""
    monkeypatch.setattr(report, "figures", None)
    path, seen = runs / "b/results.json", Counter()
    base = read(path)
    values = [
        None,
        True,
        -1,
        10**30,
        10**400,
        1e308,
        float("nan"),
        "\ud800",
        "a\nb|`",
        [],
        {"a": []},
    ]
    contents = chain(
        (as_bytes(value) for _, value in every_change(base, values, step=11)),
        (change(as_bytes(base)) for change in BYTES.values()),
    )
    for content in contents:
        path.write_bytes(content)
        found, _ = reported(runs)
        left_out = [x["folder"] for x in found["left_out"]]
        seen[not left_out] += 1
        assert left_out in ([], [str(runs / "b")]) and 1 in seeds_of(found)
    print("results.json: read, refused", seen[True], seen[False])
    assert seen[True] > 50 and seen[False] > 100


def test_hostile_paths_in_a_runs_results(runs, data, monkeypatch):  # noqa: F811
    monkeypatch.setattr(report, "figures", None)
    path, base = runs / "b/results.json", read(runs / "b/results.json")
    outside = runs.parent / "outside.json"
    outside.write_text("secret")
    for name in (
        "../outside.json",
        str(outside),
        "/dev/zero",
        "/proc/self/environ",
        "x" * 5000,
        "a\0b",
        "",
    ):
        base["data"]["test"]["file"] = name
        path.write_text(json.dumps(base))
        found, markdown = reported(runs, "--data_dir", data)
        assert 1 in seeds_of(found) and found["groups"][0]["significance"]
        assert "secret" not in markdown
    for name in ("../gone", "x" * 5000, "a\0b", str(runs / "b")):
        base["args"]["load_path"] = name
        path.write_text(json.dumps(base))
        assert 1 in seeds_of(reported(runs)[0])


def test_relations_of_a_hostile_run(runs, data, monkeypatch):  # noqa: F811
    """They refuse neither the data nor the predictions of the sound runs."""
    monkeypatch.setattr(report, "figures", None)
    shutil.move(runs / "b", runs / "a")  # before the sound one by name
    for content in (
        {"Na": 0, "X": 1},
        {},
        {"Na": 0} | {"x" * 5000: 1},
        "text",
        REL2ID | {"P0": 97},
    ):
        (runs / "a/rel2id.json").write_text(json.dumps(content))
        found, _ = reported(runs, "--data_dir", data)
        sound = [x for x in found["groups"] if 1 in seeds_of({"groups": [x]})]
        notes = sound[0]["significance"]["notes"]
        assert not any(str(runs / "sound") in note for note in notes)


def test_broken_data_files_of_a_report(runs, data, monkeypatch, tmp_path, capsys):  # noqa: F811
    monkeypatch.setattr(report, "figures", None)
    shutil.copytree(data, tmp_path / "data")
    path, seen = tmp_path / "data/test_revised.json", Counter()
    content = path.read_bytes()
    for change in BYTES.values():
        path.write_bytes(change(content))
        report.read_split.cache_clear()
        found, _ = reported(runs, "--data_dir", tmp_path / "data")
        lines = [x for x in capsys.readouterr().out.splitlines() if str(path) in x]
        seen["test" in found["table6"]] += 1
        assert len(lines) == (path.read_bytes() != content)
    assert seen[True] and seen[False] > 70
    print("data files of a report: read, refused", seen[True], seen[False])


def test_other_broken_files_of_runs(run_folder, data, tmp_path, capsys):  # noqa: F811
    """Many runs with one broken file each, in one report, with figures: every fault is noted."""
    runs, broken = tmp_path / "runs", []  # noqa: F811
    results, metrics = read(run_folder / "results.json"), (run_folder / "metrics.jsonl").read_text()
    record, seed = json.loads(metrics.splitlines()[0]), count(10)

    def add(name, content):
        at = runs / f"seed{(number := next(seed))}"
        shutil.copytree(run_folder, at)
        (at / "results.json").write_text(
            json.dumps(changed(results, ("args", "seed"), lambda x, k: x.update({k: number})))
        )
        (at / name).write_bytes(content)
        broken.append(at / name)

    shutil.copytree(run_folder, runs / "sound")
    for value in [None, -1, 10**400, 1e308, float("nan"), "x", [], {}]:
        for place in [("step",), ("loss",), ("dev",), ("dev", "f1")]:
            if place == ("loss",) or value != []:
                add(
                    "metrics.jsonl",
                    as_bytes(changed(record, place, lambda x, k, v=value: x.update({k: v}))),
                )
    for content in (
        b"",
        b"[]",
        b"3",
        b"{",
        b"[" * 100_000,
        b"\xff\xfe",
        b'{"step": 1}',
        b"null",
        b'"x"',
    ):
        add("metrics.jsonl", content)
    for _, content in list(hostile_arrays())[2:28]:
        add("test_logits.npz", content)
    for name in ("nothing", "null", "UTF-16", "gzip", "deep lists", "cut to 20 of 40", "twice"):
        add("predictions.json", BYTES[name]((run_folder / "predictions.json").read_bytes()))
    found, markdown = reported(runs, "--data_dir", data, "--pair", "test 1", "0", "1")
    (group,) = found["groups"]
    notes = [*group["notes"], *group["significance"]["notes"]]
    for path in broken:
        assert sum(str(path) in note for note in notes) >= 1, path
    assert not found["left_out"] and {x["file"] for x in group["figures"]} == {
        f"figures/group1-atlop-{x}.png" for x in ("curves", "patterns", "shift", "pair1")
    }
    print("metrics, logits, predictions of runs: refused", len(broken))


# --- Text that would be something else --------------------------------------------------------

NAMES = [
    *("../../x", "/etc/passwd", "CON", "a\0b", "x" * 5000, "~", "-rf", "%s%n", "{0}", "${HOME}"),
    *(
        "<script>alert(1)</script>",
        "</script><script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
    ),
    *(
        "]]>",
        "<!--",
        "&lt;&#x41;",
        "a|b|c",
        "`x`",
        "[x](javascript:alert(1))",
        "![x](http://x/y.png)",
    ),
    *(
        "$x^{$",
        "$\\frac{$",
        "\\input{/etc/passwd}",
        "\\",
        "<!ENTITY x SYSTEM 'file:///etc/passwd'>",
    ),
    *(
        "\x1b]0;owned\x07",
        "\x9b2J",
        "\x7f\x08",
        "a\r\nb",
        "a\u2028b",
        "\u202egnp.exe",
        "# x",
        "| --- |",
    ),
    *(
        "\ufffe",
        "\U000e0041",
        "👩\u200d🔬",
        "PAGE_DATA",
        "\x1b]0;x\x07\0$x^{$</script>]]>|a`" + "x" * 5000,
    ),
]


def hostile_documents(split="test"):
    """A document for each of NAMES, which it has for its title, its entities' names and types."""
    rng = random.Random(4)
    documents = [make_document(rng, 3, 3, 4, title=f"{split} {x}") for x in NAMES]
    for document, name in zip(documents, NAMES, strict=True):
        document["title"] = name
        document["sents"][0][0] = name
        for i, mentions in enumerate(document["vertexSet"]):
            for mention in mentions:
                mention |= {"name": f"{name}{i}", "type": name}
        document["labels"] = [{"h": 0, "t": 1, "r": "P17"}, {"h": 1, "t": 2, "r": "P27"}]
    return documents


class Scripts(HTMLParser):
    """Counts the elements that a page of HTML has."""

    def __init__(self):
        super().__init__()
        self.tags = Counter()

    def handle_starttag(self, tag, attributes):
        self.tags[tag] += 1


def tags_of(path):
    parser = Scripts()
    parser.feed(path.read_text(encoding="utf-8"))
    return parser.tags


def everything_below(folder):  # noqa: F811
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_hostile_text_through_predict_and_evaluation(folder, tmp_path, capsys):  # noqa: F811
    documents = hostile_documents()
    (tmp_path / "in.json").write_text(json.dumps(documents))
    command = ["--model", str(folder), "--device", "cpu", "--input", str(tmp_path / "in.json")]
    predict.main(
        [*command, "--output", str(tmp_path / "a.json"), "--html", str(tmp_path / "a.html")]
    )
    predict.main([*command, "--output", str(tmp_path / "b.json"), "--format", "official"])
    records = read(tmp_path / "a.json")
    assert [x["title"] for x in records] == NAMES
    assert {x["title"] for x in read(tmp_path / "b.json")} <= set(NAMES)
    names = {x["head"]["name"] for record in records for x in record["relations"]}
    assert names and names <= {f"{name}{i}" for name in NAMES for i in range(3)}
    (tmp_path / "c.json").write_text(json.dumps(documents[:1] + BASE[:1]))
    predict.main(
        [*command, "--input", str(tmp_path / "c.json"), "--html", str(tmp_path / "c.html")]
    )
    assert tags_of(tmp_path / "a.html") == tags_of(tmp_path / "c.html")  # none more of other texts
    evaluation.main(["--pred", str(tmp_path / "b.json"), "--truth", str(tmp_path / "in.json")])
    printed = capsys.readouterr()
    assert all(x.isprintable() or x in "\n\r" for x in printed.out + printed.err)
    assert everything_below(tmp_path) == {
        "in.json",
        "a.json",
        "a.html",
        "b.json",
        "c.json",
        "c.html",
    }


def test_messages_of_hostile_text(tmp_path, capsys):
    """Whatever a message quotes, it is one printable line, and still says where the fault is."""
    for document in hostile_documents():
        name = document["title"]
        path = tmp_path / "in.json"
        for change in (
            {"labels": [{"h": 0, "t": 9, "r": "P17"}]},
            {"labels": [{"h": 0, "t": 1, "r": name}]},
            {"sents": name},
        ):
            path.write_text(json.dumps([BASE[0], document | change]))
            message = outcome(lambda path=path: read_documents(path), path, "document 1 ")[1]
            assert ("sents: expected" if "sents" in change else "labels[0].") in message
        path.write_text(json.dumps([document, document]))
        assert "same title" in outcome(lambda path=path: read_documents(path), path)[1]
        for key in ("title", "r", "h_idx"):
            prediction = {"title": "Title 0", "h_idx": 0, "t_idx": 1, "r": "P17", key: name}
            path.write_text(json.dumps([prediction | ({"r": "X"} if key == "title" else {})]))
            outcome(lambda path=path: read_predictions(path, BASE), path, "prediction 0: ")
        for arguments in (["--pred", name], [name], ["--truth", name, "--pred", name]):
            assert outcome(lambda arguments=arguments: evaluation.main(arguments))[1]
        if "\0" not in name:
            model = ["--model", name, "--input", str(path)]
            assert outcome(lambda model=model: predict.main(model))[1]


def test_printable():
    for text in [*NAMES, "\ud800", "", "é", "x" * 100]:
        for longest in (None, 21, 80, 400):
            line = printable(text, longest)
            assert line.isprintable() and (longest is None or len(line) <= longest)
            assert printable(line, longest) == line
    assert printable("a\nb\x1b[2Jc\u202e") == "a\\nb\\x1b[2Jc\\u202e"
    assert printable("a" * 300 + "b" * 300, 100).startswith("aaa")
    assert printable("a" * 300 + "b" * 300, 100).endswith("bbb")


def test_hostile_text_through_a_report(tmp_path, capsys):
    """Names of documents, settings, files and folders: tables keep their columns, figures are
    drawn, and nothing is written elsewhere."""
    folder = tmp_path / "data"  # noqa: F811
    folder.mkdir()
    documents = hostile_documents()
    for split in ("train", "dev", "test"):
        (folder / f"{split}_revised.json").write_text(json.dumps(documents))
    runs = tmp_path / "runs"  # noqa: F811
    settings = {
        "model_name_or_path": NAMES[10],
        "x|y\n": "a|b\n<script>`[x](y)$",
        "trained": NAMES[20],
    }
    write_run(runs / "a", folder, "ATL", 1, logits=False, **settings)
    write_run(runs / "b|c`<b>$x^{$[x](y)\n", folder, "HingeABL", 1, logits=False, **settings)
    write_run(runs / "d", folder, "HingeABL", 1, load_path="$x^{$\x1b|a.pt", **settings)
    (runs / "left\x1b]0;x\x07|out").mkdir()
    (runs / "left\x1b]0;x\x07|out/results.json").write_text('{"args": "|"}')
    with contextlib.suppress(OSError):  # where names of files must be text
        broken = runs.__fspath__().encode() + b"/\xff\xfe"
        __import__("os").mkdir(broken)
    wanted = NAMES[-1:]  # all of it at once
    pairs = [x for name in wanted for x in ("--pair", name, "0", "2")]
    before = everything_below(tmp_path)
    found, markdown = reported(runs, "--data_dir", folder, *pairs)
    assert {x.split("/")[0] for x in everything_below(tmp_path) - before} == {"out"}
    for lines in markdown.split("\n\n"):
        if lines.startswith("|"):
            rows = lines.split("\n")
            borders = [row.replace("\\\\", "").replace("\\|", "").count("|") for row in rows]
            assert len(set(borders)) == 1 and set(rows[1]) == set("|- "), lines
    unescaped = (
        markdown.replace("\\\\", "")
        .replace("\\<", "")
        .replace("\\[", "")
        .replace("\\]", "")
        .replace("\\`", "")
    )
    assert "<" not in unescaped and "`" not in unescaped
    shown = [
        x["file"] for x in [*found["figures"], *(y for g in found["groups"] for y in g["figures"])]
    ]
    links = [x.split(")")[0] for x in unescaped.split("](")[1:]]
    assert sorted(links) == sorted(shown) and len(shown) > len(wanted)
    for file in shown:
        assert (tmp_path / "out" / file).stat().st_size > 1000
        tree = ElementTree.parse((tmp_path / "out" / file).with_suffix(".svg"))
        assert not [x for x in tree.iter() if x.tag.endswith("script")]
    printed = capsys.readouterr().out
    assert all(x.isprintable() or x == "\n" for x in printed)


# --- Code in files ----------------------------------------------------------------------------

FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_NAMES = {"pickle", "cPickle", "dill", "joblib", "marshal", "shelve", "yaml", "imp"}
FORBIDDEN_FLAGS = {"allow_pickle": True, "weights_only": False, "trust_remote_code": True}


def what_runs_code(tree):
    """What in a piece of Python could run code of a file that it reads."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [getattr(node, "module", None) or "", *(x.name for x in node.names)]
            yield from (x for name in names for x in name.split(".") if x in FORBIDDEN_NAMES)
        if isinstance(node, ast.Call):
            function = ast.unparse(node.func)
            given = {x.arg: ast.literal_eval(x.value) for x in node.keywords
                     if isinstance(x.value, ast.Constant)}  # fmt: skip
            if function in FORBIDDEN_CALLS or function.split(".")[-1] in ("extractall", "system"):
                yield function
            yield from (k for k, bad in FORBIDDEN_FLAGS.items() if given.get(k) is bad)
            if any(x.arg == "shell" for x in node.keywords):
                yield "shell"
            if function == "torch.load" and given.get("weights_only") is not True:
                yield "torch.load without weights_only"
            if function == "np.load" and given.get("allow_pickle") is not False:
                yield "np.load without allow_pickle"
            if function.endswith((".from_pretrained", ".from_config")) and function[:4] == "Auto":
                options = ast.unparse(node)
                if given.get("trust_remote_code") is not False and "**options" not in options:
                    yield "transformers may ask to run code"


def test_no_code_of_files_is_run():
    paths = [
        x
        for x in ROOT.rglob("*.py")
        if not {"tests", ".venv", "runs"} & {*x.relative_to(ROOT).parts}
    ]
    assert len(paths) > 20
    for path in paths:
        assert list(what_runs_code(ast.parse(path.read_text(encoding="utf-8")))) == [], path


def test_what_runs_code_is_found():
    for code in (
        "import pickle", "from six.moves import cPickle", "np.load(x, allow_pickle=True)",
        "np.load(x)", "torch.load(x)", "torch.load(x, weights_only=False)", "eval(x)", "exec(x)",
        "import yaml", "AutoModel.from_pretrained(x)", "f(trust_remote_code=True)", "os.system(x)",
        "subprocess.run(x, shell=True)",
    ):  # fmt: skip
        assert list(what_runs_code(ast.parse(code))), code


CODE = """
import pathlib
pathlib.Path({mark!r}).write_text("payload ran")
from transformers import {base}
class Hostile({base}):
    model_type = "hostile"
"""


@pytest.mark.parametrize("model_type", ["hostile", "bert"])
def test_code_beside_an_encoder_is_not_run(tmp_path, monkeypatch, folder, model_type):  # noqa: F811
    """Neither as encoder nor as tokenizer, and nobody is asked whether to run it."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asked"))
    mark, at = tmp_path / "ran", tmp_path / "encoder"
    at.mkdir()
    for name, base in {
        "config": "PretrainedConfig",
        "model": "PreTrainedModel",
        "tok": "PreTrainedTokenizer",
    }.items():
        (at / f"{name}_x.py").write_text(CODE.format(mark=str(mark), base=base))
    automatic = {"AutoConfig": "config_x.Hostile", "AutoModel": "model_x.Hostile"}
    automatic |= {"AutoTokenizer": ["tok_x.Hostile", "tok_x.Hostile"]}
    encoder = read(folder / "config.json")["encoder"]
    config = encoder | {"model_type": model_type, "auto_map": automatic}
    (at / "config.json").write_text(json.dumps(config))
    (at / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "Hostile", "auto_map": automatic})
    )
    outcome(lambda: build_encoder(at, weights=False))
    outcome(lambda: build_encoder(at))
    outcome(lambda: load_tokenizer(at))
    run = tmp_path / "run"
    shutil.copytree(folder, run)
    shutil.copytree(at, run, dirs_exist_ok=True)
    for name in ("tok_x.py", "tokenizer_config.json"):
        shutil.copy(at / name, run / "tokenizer")
    saved = read(folder / "config.json")
    (run / "config.json").write_text(json.dumps(saved | {"encoder": config, "auto_map": automatic}))
    outcome(lambda: predicts(run))
    assert not mark.exists() and not any(name.endswith("_x") for name in sys.modules)


def test_a_checkpoint_of_code_is_not_run(tmp_path):
    for content in ({"a": Payload()}, Payload(), {"checkpoint": {"x": Payload()}}):
        for legacy in (False, True):
            torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=legacy)
            assert "not a checkpoint" in outcome(lambda: load_state(tmp_path / "a.pt"), "a.pt")[1]
    assert not Payload.ran


# --- As commands ------------------------------------------------------------------------------


def test_commands(tmp_path, folder, data):  # noqa: F811
    """One line, code 2, no traceback; what was there before is there still."""
    bad, kept = tmp_path / "bad\n\x1b[2J.json", tmp_path / "kept.json"
    documents = copy.deepcopy(BASE)
    documents[1]["title"] = "\x1b]0;owned\x07"
    documents[1]["vertexSet"][0][0]["pos"] = [0, 10**30]
    bad.write_text(json.dumps(documents))
    kept.write_text("kept")
    (tmp_path / "runs/a").mkdir(parents=True)
    (tmp_path / "runs/a/results.json").write_text('{"args": {"loss_type": ["\x1b"]}}')
    torch.save({"a": Payload()}, tmp_path / "hostile.pt")
    (tmp_path / "pred.json").write_bytes(b'[{"title": "\x1b[2J", "h_idx": 1e400}]')
    commands = [
        ["train.py", "--data_dir", data, "--load_path", tmp_path / "hostile.pt"]
        + ["--model_name_or_path", folder],
        ["evaluation.py", "--pred", tmp_path / "pred.json", "--truth", data / "dev_revised.json"]
        + ["--output", kept],
        ["predict.py", "--model", folder, "--input", bad, "--output", kept, "--html", kept],
        ["report.py", "--runs", tmp_path / "runs", "--out", tmp_path / "report"],
    ]  # fmt: skip
    started = [
        subprocess.Popen([sys.executable, ROOT / x[0], *x[1:]], cwd=tmp_path, text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for x in commands
    ]  # fmt: skip
    for process, command in zip(started, commands, strict=True):
        out, err = process.communicate(timeout=120)
        assert process.returncode == 2 and out == "", (command, err)
        assert err.startswith("error: ") and err.count("\n") == 1 and err[:-1].isprintable(), err
    assert kept.read_text() == "kept"
    assert everything_below(tmp_path) == {
        *(bad.name, kept.name, "runs", "runs/a", "runs/a/results.json", "hostile.pt", "pred.json"),
    }
