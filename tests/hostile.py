"""What is done to input files to find out whether they can hurt."""

import copy
import gzip
import io
import json
import random
import zipfile
from itertools import islice, product

import numpy as np

from encoders.loading import load_tokenizer
from engine.run_folder import load_model
from inputs.files import LONGEST, InputError
from predict import RelationExtractor

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
TEXT = {"title": "T", "text": "Ada was born in Paris. It rains.", "entities": [
    [{"start": 0, "end": 3, "type": "PER"}, {"start": 23, "end": 25}], [{"start": 16, "end": 21}],
], "labels": [{"h": 0, "t": 1, "r": "P19"}]}  # fmt: skip


class Payload:
    """A pickle that runs code when it is read."""

    ran = []

    def __reduce__(self):
        return exec, ("from hostile import Payload; Payload.ran.append(1)",)


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


def predicts(folder):
    """Loads a run folder and uses it."""
    record = RelationExtractor(load_model(folder), load_tokenizer(folder), device="cpu")(TEXT)
    assert all(np.isfinite(x["score"]) for x in record["relations"] + record["missed"])
    return record
