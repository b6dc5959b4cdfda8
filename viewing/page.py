"""Documents and their relations as one HTML page that works offline.

page.html is the page without its data. The documents are inserted as JSON, which the page's script
shows as text, so no title, name or word can become markup.
"""

import json
from pathlib import Path

from inputs.files import write_atomically

TEMPLATE = Path(__file__).with_name("page.html")
LIMIT = 50  # most documents on a page, so that a browser stays quick

# DocRED's documents are lists of words without the blanks between them. These words have none.
NO_BLANK_BEFORE = frozenset(", . ; : ! ? ) ] } % … ’ ' 's ’s n't".split())
NO_BLANK_AFTER = frozenset("( [ { $ £ €".split())


def write_page(path, shown, total):
    """shown: at most LIMIT pairs (document, record) of `RelationExtractor.stream`; total: number of
    all documents, which the page names. Raises InputError if the file cannot be written."""
    data = {"total": total, "documents": [_document(*pair) for pair in shown]}
    # Escaped, because "</script>" in a text would end the element. (json.dumps escapes all that is
    # not ASCII, unpaired surrogates too, which a file cannot hold.)
    text = json.dumps(data).replace("<", "\\u003c")
    html = TEMPLATE.read_text(encoding="utf-8").replace("PAGE_DATA", text, 1)
    write_atomically(path, lambda temporary: temporary.write_text(html, encoding="utf-8"))


def _document(document, record):
    facts = [_fact(x, _status(x)) for x in record["relations"] + record.get("missed", [])]
    return {
        "title": document["title"],
        "labelled": "labels" in document,
        "entities": [
            {"name": mentions[0]["name"], "type": str(mentions[0].get("type", ""))}
            for mentions in document["vertexSet"]
        ],
        "sentences": [_runs(document, i) for i in range(len(document["sents"]))],
        "facts": sorted(facts, key=lambda fact: -fact["score"]),
    }


def _status(relation):
    if "pattern" in relation:  # a label that was not predicted; FP: another one of its pair was
        pattern = relation["pattern"]
        return pattern if pattern.startswith("FN") else "missed"
    return {True: "correct", False: "wrong", None: "found"}[relation.get("correct")]


def _fact(relation, status):
    return {
        "head": relation["head"]["entity"],
        "tail": relation["tail"]["entity"],
        "property": relation["relation"],
        "name": relation["name"],
        "score": relation["score"],
        "status": status,
        "sentences": [[x["sentence"], x["weight"]] for x in relation["sentences"]],
        "evidence": relation["evidence"],
    }


def _runs(document, number):
    """A sentence as a list of [text, entities]: the entities with a mention that covers the text,
    that of the shortest mention first."""
    words = document["sents"][number]
    covering = [[] for _ in words]  # of each word (length, entity, index) of the mentions
    for e, mentions in enumerate(document["vertexSet"]):
        for k, mention in enumerate(mentions):
            if mention["sent_id"] == number:
                start, end = mention["pos"]
                for members in covering[start:end]:
                    members.append((end - start, e, k))
    pieces = []
    for j, word in enumerate(words):
        if j:
            both = [x for x in covering[j - 1] if x in covering[j]]
            pieces.append((_gap(document, number, j), both))
        pieces.append((word, covering[j]))
    runs = []
    for text, members in pieces:
        if runs and runs[-1][1] == members:
            runs[-1][0] += text
        elif text:
            runs.append([text, members])
    return [[text, list(dict.fromkeys(e for _, e, _ in sorted(m)))] for text, m in runs]


def _gap(document, number, j):
    """The text between word j - 1 and word j."""
    if "offsets" in document:
        words = document["offsets"][number]
        return document["text"][words[j - 1][1] : words[j][0]]
    before, word = document["sents"][number][j - 1 : j + 1]
    return "" if word in NO_BLANK_BEFORE or before in NO_BLANK_AFTER else " "
