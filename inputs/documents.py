"""Documents and submissions as the types that they are, read from JSON files of any size and
refused with one line that names file, document and field (`InputError`).

A document stays the plain dictionary that JSON gives. The types say what it has to have; further
fields are let through as they are.
"""

import gc
import json
import re
from contextlib import contextmanager
from typing import Annotated

import ijson
import msgspec
import numpy as np
from typing_extensions import NotRequired, TypedDict

from inputs.files import InputError, is_text, printable, read_json, relation_ids

CHUNK = 1 << 16  # bytes read at once
DEEPEST = 50  # levels of lists and objects; a list of documents has 6
HALF = "holds half a character (a lone surrogate)"


Pair = Annotated[list[int], msgspec.Meta(min_length=2, max_length=2)]


class Mention(TypedDict):
    name: str
    sent_id: int  # one of the sentences
    pos: Pair  # words [start, end)


class Label(TypedDict):
    h: int  # head and tail: entities
    t: int
    r: str  # property, such as P17
    evidence: NotRequired[list[int] | None]  # sentences


class Document(TypedDict):
    """A document in DocRED format."""

    title: str
    sents: list[list[str]]
    vertexSet: list[Annotated[list[Mention], msgspec.Meta(min_length=1)]]  # mentions per entity
    labels: NotRequired[list[Label]]
    candidates: NotRequired[list[Pair]]  # (head, tail) to be classified; all pairs where missing
    # Whether every mention has markers of its own. Else those that start (end) at one word share.
    own_markers: NotRequired[bool]


class Span(TypedDict):
    start: int  # characters [start, end)
    end: int
    type: NotRequired[str]


class TextDocument(TypedDict):
    """A text with entity spans, which may overlap."""

    title: NotRequired[str]
    text: str
    entities: list[Annotated[list[Span], msgspec.Meta(min_length=1)]]
    candidates: NotRequired[list[Pair]]


class Prediction(TypedDict):
    """A fact of a submission."""

    title: str
    h_idx: int
    t_idx: int
    r: str
    evidence: NotRequired[list[int] | None]


def read_documents(path, rel2id=None, **options):
    """The documents of a DocRED-format JSON file, validated: a list. See `iter_documents`."""
    with without_collector():
        return list(iter_documents(path, rel2id, **options))


@contextmanager
def without_collector():
    """Python's collector of cycles is off. Documents and features have no cycles, but so many
    objects that looking for them takes half of the time in which they are made."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def iter_documents(path, rel2id=None, labelled=True, unique_titles=True):
    """The documents of a DocRED-format JSON file, validated, one at a time: a file of any size is
    read in the memory of its largest document.

    rel2id (property -> class id) decides which relations are known, None: meta/rel2id.json.
    labelled False accepts documents without "labels", unique_titles False two with one title: in a
    file that only trains nothing is told apart by it. Raises InputError at the first fault.
    """
    rel2id = relation_ids() if rel2id is None else rel2id
    first_with = {}
    try:
        with open(path, "rb") as file:
            for index, document in enumerate(json_values(file)):
                try:
                    check_document(document, rel2id, labelled)
                    if unique_titles:
                        check_title(document, index, first_with)
                except InputError as error:
                    raise InputError(f"{document_name(document, index)}: {error}") from None
                yield document
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:  # ValueError: of a path that no file can have
        raise InputError(f"{path}: cannot be read: {error}") from None


def check_title(document, index, first_with):
    """Raises InputError if an earlier document has this one's title; first_with: title -> place."""
    first = first_with.setdefault(document["title"], index)
    if first != index:
        raise InputError(f"title: document {first} has the same title")


def document_name(document, index):
    """What messages call a document: its place, and its title if it has one."""
    title = document.get("title") if isinstance(document, dict) else None
    if not isinstance(title, str):
        return f"document {index}"
    return f"document {index} {printable(json.dumps(title, ensure_ascii=not is_text(title)), 80)}"


def check_type(value, kind):
    """Raises InputError, naming the field, unless the value is of that type (Document, ...)."""
    try:
        msgspec.convert(value, kind, strict=True)
    except UnicodeEncodeError:
        raise InputError(f"the name of a field {HALF}") from None
    except msgspec.ValidationError as error:
        # such as: Expected `int`, got `str` - at `$.labels[0].h`
        reason, _, where = str(error).replace("array", "list").partition(" - at `$")
        where = where.strip(".`")
        if reason.startswith("Object missing required field"):
            where, reason = f"{where}.{reason.split('`')[1]}".strip("."), "missing"
        reason = reason.replace("Expected", "expected").replace(" got ", " found ").replace("`", "")
        raise InputError(f"{where}: {reason}" if where else reason) from None


def check_document(document, rel2id, labelled=True):
    """Raises InputError, naming the field, unless `document` is in DocRED format."""
    check_type(document, Document)
    if labelled and "labels" not in document:
        raise InputError("labels: missing")
    if not is_text(document["title"]):
        raise InputError(f"title: {HALF}")
    sentences, entities = document["sents"], document["vertexSet"]
    for i, words in enumerate(sentences):
        if not is_text("".join(words)):
            raise InputError(f"sents[{i}]: {HALF}")
    for i, mentions in enumerate(entities):
        for j, mention in enumerate(mentions):
            if fault := _mention_fault(mention, sentences):
                raise InputError(f"vertexSet[{i}][{j}].{fault}")
    check_candidates(document.get("candidates", ()), len(entities))
    for i, label in enumerate(document.get("labels", ())):
        if fault := _label_fault(label, len(entities), len(sentences), rel2id):
            raise InputError(f"labels[{i}].{fault}")


def check_candidates(candidates, num_entities):
    """Raises InputError unless they are pairs of two entities each, none there twice."""
    seen = set()
    for i, pair in enumerate(map(tuple, candidates)):
        where = f"candidates[{i}]: {list(pair)}"
        if not all(0 <= entity < num_entities for entity in pair):
            raise InputError(f"{where}: not two of {num_entities} entities")
        if pair[0] == pair[1]:
            raise InputError(f"{where}: an entity and itself")
        if pair in seen:
            raise InputError(f"{where}: is there twice")
        seen.add(pair)


def _mention_fault(mention, sentences):
    number, (start, end) = mention["sent_id"], mention["pos"]
    if not 0 <= number < len(sentences):
        return f"sent_id: {number} is not one of {len(sentences)} sentences"
    length = len(sentences[number])
    if not 0 <= start < end <= length:
        span = f"[{start}, {end}]"
        return f"pos: {span} is outside its sentence, number {number} of {length} words"
    if not is_text(mention["name"]):
        return f"name: {HALF}"


def _label_fault(label, num_entities, num_sentences, rel2id):
    for end in "ht":
        if not 0 <= label[end] < num_entities:
            return f"{end}: {label[end]} is not one of {num_entities} entities"
    if rel2id.get(label["r"], 0) == 0:
        return f"r: unknown relation {label['r']!r:.80}"
    for sentence in label.get("evidence") or ():
        if not 0 <= sentence < num_sentences:
            return f"evidence: {sentence} is not one of {num_sentences} sentences"


def check_text_document(document):
    """Raises InputError, naming the field, unless `document` is a text with entity spans."""
    check_type(document, TextDocument)
    text = document["text"]
    for name in ("title", "text"):
        if not is_text(document.get(name, "")):
            raise InputError(f"{name}: {HALF}")
    for i, mentions in enumerate(document["entities"]):
        for j, mention in enumerate(mentions):
            start, end = mention["start"], mention["end"]
            where = f"entities[{i}][{j}]"
            if not 0 <= start < end <= len(text):
                raise InputError(
                    f"{where}: start {start}, end {end} is no span of a text of {len(text)} "
                    "characters"
                )
            if text[start:end].isspace():
                raise InputError(f"{where}: start {start}, end {end} holds only white space")
            if not is_text(mention.get("type", "")):
                raise InputError(f"{where}.type: {HALF}")


def read_predictions(path, truth, rel2id=None):
    """A submission, validated against the documents it is about: a list of Predictions.

    Raises InputError for anything else, an entity that its document does not have or an unknown
    relation. Unknown titles are allowed: they count as predicted.
    """
    predictions = read_json(path)
    if not isinstance(predictions, list):
        kind = type(predictions).__name__
        raise InputError(f"{path}: expected a list of predictions, found {kind}")
    rel2id = relation_ids() if rel2id is None else rel2id
    num_entities = {document["title"]: len(document["vertexSet"]) for document in truth}
    for i, x in enumerate(predictions):
        try:
            _check_prediction(x, num_entities, rel2id)
        except InputError as error:
            raise InputError(f"{path}: prediction {i}: {error}") from None
    return predictions


def _check_prediction(x, num_entities, rel2id):
    check_type(x, Prediction)
    if rel2id.get(x["r"], 0) == 0:
        raise InputError(f"r: unknown relation {x['r']!r:.80}")
    limit = num_entities.get(x["title"])
    for name in ("h_idx", "t_idx"):
        if limit is not None and not 0 <= x[name] < limit:
            raise InputError(f"{name}: {x[name]} is not one of {limit} entities")


# --- JSON of any size -------------------------------------------------------------------------


def json_values(file):
    """The items of a JSON list, or JSON values one after another, parsed as the bytes come in.

    file: binary. Holds one chunk and its documents. Raises InputError, naming the document by its
    place, where the file is no JSON, has no documents or is nested deeper than DEEPEST.
    """
    source, number = _Source(file), 0
    if not source.first:
        raise InputError("the file is empty")
    options = {"use_float": True, "multiple_values": not source.is_list}
    try:
        for value in ijson.items(source, "item" if source.is_list else "", **options):
            yield _with_halves(value) if source.halves else value
            number += 1
    except InputError:
        raise
    except (ijson.JSONError, ValueError) as error:  # ValueError: bytes that are not UTF-8
        raise InputError(f"document {number}: not valid JSON: {_reason(error)}") from None
    if not number:
        raise InputError("the list of documents is empty")


def _reason(error):
    """What the parser says, and the text at which it says so."""
    text = error.args[0]
    text = text.decode(errors="replace") if isinstance(text, bytes) else str(error)
    reason, _, near = text.partition("\n")
    near = near.split("\n")[0].strip()
    return f"{reason} near {near}" if near else reason


# ijson makes "?" of half a character, or fails. So its escape is escaped and comes through as text,
# of which the half is made again, for the checks to say where it is. (In a file with such a fault,
# text that spells an escape out is taken for one, too.)
LONE = re.compile(rb"\\u[dD][89a-fA-F]")
ESCAPE = re.compile(rb"(?s)\\(?:u[dD][89abAB]..\\u[dD][c-fC-F]..|(u[dD][89a-fA-F]..)|.)")
BRACKETS, OTHERS = bytes.maketrans(b"{}", b"[]"), bytes(set(range(256)) - set(b'"[]{}'))


class _Source:
    """The bytes of a file, as ijson asks for them, without what it cannot take: deep nesting, at
    which its time is the square of the depth, and lone surrogates.

    first: the start of the file, empty if there is nothing but white space. is_list: whether it
    starts a list. halves: whether a lone surrogate was met.
    """

    def __init__(self, file):
        self.file, self.rest = file, b""
        self.depth, self.number, self.in_string, self.halves = 0, 0, False, False
        self.first = self._chunk().removeprefix(b"\xef\xbb\xbf").lstrip()  # a byte order mark
        self.is_list = self.first.startswith(b"[")

    def read(self, size):
        """The next piece, whatever the size."""
        if not size:  # ijson asks so whether they are bytes
            return b""
        chunk, self.first = self.first or self._chunk(), b""
        self._check_depth(chunk)
        if LONE.search(chunk):
            given = chunk
            chunk = ESCAPE.sub(lambda x: rb"\\" + x[1] if x[1] else x[0], given)
            self.halves |= chunk != given
        return chunk

    def _chunk(self):
        """The next piece; no escape lies across its end, nor a pair of them that is one character,
        since the 12 bytes before it hold no backslash."""
        while fresh := self.file.read(max(CHUNK, len(self.rest))):
            self.rest += fresh
            if clean := re.match(rb"(?s).*[^\\]{12}", self.rest):
                chunk, self.rest = self.rest[: clean.end()], self.rest[clean.end() :]
                return chunk
        chunk, self.rest = self.rest, b""
        return chunk

    def _check_depth(self, chunk):
        if b"\\" in chunk:
            chunk = re.sub(rb"(?s)\\.", b"", chunk)
        marks = b'"' * self.in_string + chunk.translate(BRACKETS, OTHERS)
        self.in_string = marks.count(b'"') % 2 == 1
        brackets = re.sub(rb'"[^"]*"?', b"", marks.replace(b'""', b""))  # not those in strings
        steps = ord("\\") - np.frombuffer(brackets, dtype=np.int8)  # "[": 1, "]": -1
        depths = self.depth + steps.cumsum(dtype=np.int64)
        ends = (depths == self.is_list) & (steps < 0)  # of documents
        if (deep := depths > DEEPEST).any():
            number = self.number + ends[: deep.argmax()].sum()
            raise InputError(f"document {number}: nested deeper than {DEEPEST} levels")
        self.number += ends.sum()
        self.depth = depths[-1] if len(depths) else self.depth


def _with_halves(value):
    text = json.dumps(value, ensure_ascii=False)
    return json.loads(re.sub(r"\\\\(u[dD][89a-fA-F][0-9a-fA-F]{2})", r"\\\1", text))
