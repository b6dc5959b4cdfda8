#!/usr/bin/env python
"""Precision, recall and F1 of what predict.py found, with entities told apart by their names, so
also for raw text, whose entities a pipeline found.

    python predict.py --model runs/my --ner en_core_web_md --text my/*.txt --output found.json
    python scripts/score_by_name.py --pred found.json --truth my/documents.json

A found entity is the first of the document's entities that has a mention of the same name (case
aside). A relation with an entity that is none of them is wrong. What was found in the parts of a
long text counts for the whole.
"""

import re
import sys
from pathlib import Path

from typing_extensions import TypedDict

sys.path.insert(0, str(Path(__file__).parent.parent))

from inputs.documents import check_type, read_documents
from inputs.files import (
    REL2ID_FILE,
    InputError,
    OneLineParser,
    read_json,
    relation_ids,
    run_main,
)


class Mention(TypedDict):
    name: str


class Entity(TypedDict):
    name: str
    mentions: list[Mention]


class Relation(TypedDict):
    head: Entity
    tail: Entity
    relation: str  # property, such as P17


class Record(TypedDict):
    """What predict.py writes of a document, as far as it is read here."""

    title: str
    relations: list[Relation]


def main(argv=None):
    parser = OneLineParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pred", required=True, help="what predict.py wrote, JSON")
    parser.add_argument("--truth", required=True, help="the same documents with labels")
    parser.add_argument("--rel2id", type=Path, default=REL2ID_FILE, help="property -> class id")
    args = parser.parse_args(argv)
    documents = read_documents(args.truth, relation_ids(args.rel2id))
    truth = {document["title"]: document for document in documents}
    found, gold = set(), set()
    for title, document in truth.items():
        gold |= {(title, x["h"], x["r"], x["t"]) for x in document["labels"]}
    for record in read_records(args.pred):
        title = record["title"]
        if title not in truth:
            title = re.sub(r", part \d+ of \d+$", "", title)  # see inputs/spacy_documents.py
        if title not in truth:
            raise InputError(f"{args.pred}: {title} is no document of {args.truth}")
        for x in record["relations"]:
            head, tail = (place(x[end], truth[title]["vertexSet"]) for end in ("head", "tail"))
            found.add((title, head, x["relation"], tail))
    right = len(found & gold)
    precision, recall = right / max(len(found), 1), right / max(len(gold), 1)
    f1 = 2 * right / max(len(found) + len(gold), 1)
    print(f"{len(found)} found, {len(gold)} in the truth, {right} right")
    print(f"precision {100 * precision:.1f}, recall {100 * recall:.1f}, F1 {100 * f1:.1f}")


def read_records(path):
    """The Records that predict.py wrote. Raises InputError."""
    records = read_json(path)
    try:
        check_type(records, list[Record])
    except InputError as error:
        raise InputError(f"{path}: not as predict.py writes it (as JSON): {error}") from None
    return records


def place(entity, entities):
    """The index of the entity that has one of these names, else the found entity's own name."""
    names = {mention["name"].casefold() for mention in entity["mentions"]}
    for i, mentions in enumerate(entities):
        if names & {mention["name"].casefold() for mention in mentions}:
            return i
    return entity["name"]


if __name__ == "__main__":
    run_main(main)
