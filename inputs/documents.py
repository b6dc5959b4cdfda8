"""The types of documents and submissions, and reading them from JSON files. What is not of its type
is refused with one line that names file, document and field (`InputError`).

A document stays the plain dictionary that JSON gives. The types say which fields it must have;
further fields are kept unchanged.
"""

import gc
import json
import re
from contextlib import contextmanager
from typing import Annotated

import msgspec
from typing_extensions import NotRequired, TypedDict

from inputs.files import InputError, parse_json, printable, read_bytes, read_json, relation_ids

# A Raw is a value that is not decoded yet: a view of its bytes.
LIST = msgspec.json.Decoder(list[msgspec.Raw])
LINES = msgspec.json.Decoder(msgspec.Raw)

Pair = Annotated[list[int], msgspec.Meta(min_length=2, max_length=2)]


class Mention(TypedDict):
    name: str
    sent_id: int  # index of its sentence
    pos: Pair  # words [start, end)


class Label(TypedDict):
    h: int  # head and tail: indices of entities
    t: int
    r: str  # property, such as P17
    evidence: NotRequired[list[int] | None]  # indices of sentences


class Document(TypedDict):
    """A document in DocRED format."""

    title: str
    sents: list[list[str]]
    vertexSet: list[Annotated[list[Mention], msgspec.Meta(min_length=1)]]  # mentions per entity
    labels: NotRequired[list[Label]]
    candidates: NotRequired[list[Pair]]  # (head, tail) to be classified; without it, all pairs
    # Whether every mention has markers of its own. By default mentions that start (end) at one word
    # have one marker in common.
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


def read_documents(path, rel2id=None, unique_titles=True):
    """The list of `iter_documents`."""
    with without_collector():
        return list(iter_documents(path, rel2id, unique_titles))


@contextmanager
def without_collector():
    """Turns off Python's garbage collector, which looks for reference cycles. Documents and
    features have none, but so many objects that the search takes half of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def iter_documents(path, rel2id=None, unique_titles=True, labelled=True):
    """Yields the documents of a DocRED-format JSON file, validated. The bytes of the file
    are in memory, but only one document at a time is decoded, which takes several times its bytes.

    rel2id: the known relations, property -> class id, None: meta/rel2id.json. unique_titles: two
    documents with one title are an error; a file that is only trained on may have them. labelled:
    all must have labels. Raises InputError at the first error.
    """
    rel2id = relation_ids() if rel2id is None else rel2id
    content = read_bytes(path)

    def check(document, index):
        check_document(document, rel2id, labelled)
        return document

    try:
        yield from validated(json_values(content), check, unique_titles)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def validated(documents, check, unique_titles):
    """Yields check(document, index) of every document. Raises InputError, naming the document,
    where `check` does, or with unique_titles for a title that an earlier document has."""
    first_with = {}  # title -> index
    for index, given in enumerate(documents):
        try:
            document = check(given, index)
            first = first_with.setdefault(document["title"], index)
            if unique_titles and first != index:
                raise InputError(f"title: document {first} has the same title")
        except InputError as error:
            raise InputError(f"{document_name(given, index)}: {error}") from None
        yield document


def json_values(content):
    """Yields the items of a JSON list, or JSON values one after another (JSON lines), decoded one
    at a time. content: bytes. Raises InputError if they are not JSON or hold no item."""
    is_list = re.match(rb"\s*\[", content)
    values = parse_json(content, LIST.decode if is_list else LINES.decode_lines)
    if not values:
        raise InputError("the list of documents is empty")
    for index, value in enumerate(values):
        try:  # bytes that are not UTF-8 and numbers out of range are found here
            yield parse_json(value)
        except InputError as error:
            raise InputError(f"document {index}: {error}") from None


def document_name(document, index):
    """A document in messages: its index, and its title if it has one."""
    title = document.get("title") if isinstance(document, dict) else None
    if not isinstance(title, str):
        return f"document {index}"
    return f"document {index} {printable(json.dumps(title, ensure_ascii=False), 80)}"


def check_type(value, expected):
    """Raises InputError, naming the field, unless the value is of that type (Document, ...)."""
    try:
        msgspec.convert(value, expected, strict=True)
    except msgspec.ValidationError as error:
        # such as: Expected `int`, got `str` - at `$.labels[0].h`
        reason, _, where = str(error).replace("array", "list").partition(" - at `$")
        where = where.strip(".`")
        if reason.startswith("Object missing required field"):
            where, reason = f"{where}.{reason.split('`')[1]}".strip("."), "missing"
        reason = reason.replace("Expected", "expected").replace(" got ", " found ").replace("`", "")
        raise InputError(f"{where}: {reason}" if where else reason) from None


def check_document(document, rel2id, labelled=True):
    """Raises InputError, naming the field, unless `document` is in DocRED format. labelled: it must
    have labels."""
    check_type(document, Document)
    if labelled and "labels" not in document:
        raise InputError("labels: missing")
    sentences, entities = document["sents"], document["vertexSet"]
    for i, mentions in enumerate(entities):
        for j, mention in enumerate(mentions):
            if fault := _mention_fault(mention, sentences):
                raise InputError(f"vertexSet[{i}][{j}].{fault}")
    check_candidates(document.get("candidates", ()), len(entities))
    for i, label in enumerate(document.get("labels", ())):
        if fault := _label_fault(label, len(entities), len(sentences), rel2id):
            raise InputError(f"labels[{i}].{fault}")


def check_candidates(candidates, num_entities):
    """Raises InputError unless every candidate is a pair of two entities, and none is repeated."""
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
    for i, mentions in enumerate(document["entities"]):
        for j, mention in enumerate(mentions):
            start, end = mention["start"], mention["end"]
            where = f"entities[{i}][{j}]: start {start}, end {end}"
            if not 0 <= start < end <= len(text):
                raise InputError(f"{where} is no span of a text of {len(text)} characters")
            if text[start:end].isspace():
                raise InputError(f"{where} holds only white space")


def read_predictions(path, truth, rel2id=None):
    """The Predictions of a submission, a list, validated against the documents that it is about.

    Raises InputError if the file holds anything else, an entity that its document does not have, or
    an unknown relation. Unknown titles are allowed: they count as predicted.
    """
    predictions = read_json(path)
    if not isinstance(predictions, list):
        found = type(predictions).__name__
        raise InputError(f"{path}: expected a list of predictions, found {found}")
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
