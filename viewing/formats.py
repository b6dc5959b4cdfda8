"""Predictions in the formats of other tools: every writer takes records (see predict.py) as they
come and a text file, and holds one record at a time."""

import csv
import json
import re
from xml.sax.saxutils import quoteattr


def write_list(items, file):
    """A JSON list, an item a line."""
    file.write("[")
    for i, item in enumerate(items):
        file.write(("," if i else "") + "\n" + json.dumps(item, ensure_ascii=False))
    file.write("\n]\n")


def write_lines(records, file):
    """JSON lines: a record a line."""
    for record in records:
        file.write(json.dumps(record, ensure_ascii=False) + "\n")


def write_official(records, file):
    """A submission: {title, h_idx, t_idx, r, evidence} of every relation."""
    write_list(official_triples(records), file)


def official_triples(records):
    for record in records:
        for x in record["relations"]:
            yield {
                "title": record["title"],
                "h_idx": x["head"]["entity"],
                "t_idx": x["tail"]["entity"],
                "r": x["relation"],
                "evidence": x["evidence"],
            }


COLUMNS = "title head head_name relation name tail tail_name score evidence".split()


def write_csv(records, file):
    """A line for every relation; evidence: numbers of sentences with blanks between."""
    # Texts are quoted: below Python 3.13 csv leaves a lone carriage return bare, where readers
    # begin a new line.
    table = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    table.writerow(COLUMNS)
    for record in records:
        for x in record["relations"]:
            head, tail = x["head"], x["tail"]
            evidence = " ".join(map(str, x["evidence"]))
            cells = [record["title"], head["entity"], head["name"], x["relation"], x["name"]]
            cells += [tail["entity"], tail["name"], x["score"], evidence]
            table.writerow([_no_formula(cell) for cell in cells])


def _no_formula(cell):
    """A text that a spreadsheet would run as a formula gets an apostrophe, as is usual."""
    starts = isinstance(cell, str) and cell.startswith(tuple("=+-@\t\r"))
    return f"'{cell}" if starts else cell


NODE = {"name": "string", "type": "string", "document": "string"}
EDGE = {"relation": "string", "name": "string", "score": "double", "evidence": "string"}
# What XML has no place for: control characters, and half of a character.
NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def write_graphml(records, file):
    """A graph, which networkx, Gephi and others read: nodes are the entities that have a relation,
    edges the relations. An entity of a document is a node of its own, "<document>:<entity>"."""
    file.write('<?xml version="1.0" encoding="UTF-8"?>\n')
    file.write('<graphml xmlns="http://graphml.graphdrawing.org/xmlns">\n')
    for kind, names in (("node", NODE), ("edge", EDGE)):
        for name, of_type in names.items():
            file.write(
                f'<key id="{kind}-{name}" for="{kind}" attr.name="{name}" attr.type="{of_type}"/>\n'
            )
    file.write('<graph edgedefault="directed">\n')
    number = 0
    for i, record in enumerate(records):
        entities = {}
        for x in record["relations"]:
            entities |= {x[end]["entity"]: x[end] for end in ("head", "tail")}
        for e, entity in entities.items():
            kind = entity["mentions"][0].get("type", "")
            values = {"name": entity["name"], "type": kind, "document": record["title"]}
            _element(file, "node", {"id": f"{i}:{e}"}, values)
        for x in record["relations"]:
            ends = {end: f"{i}:{x[name]['entity']}" for end, name in ENDS.items()}
            values = {"relation": x["relation"], "name": x["name"], "score": x["score"]}
            values["evidence"] = " ".join(map(str, x["evidence"]))
            _element(file, "edge", {"id": f"e{number}"} | ends, values)
            number += 1
    file.write("</graph>\n</graphml>\n")


ENDS = {"source": "head", "target": "tail"}


def _element(file, kind, attributes, values):
    given = " ".join(f"{name}={quoteattr(value)}" for name, value in attributes.items())
    file.write(f"<{kind} {given}>")
    for name, value in values.items():
        text = NOT_XML.sub("\ufffd", str(value))
        text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        text = text.replace("\r", "&#13;")  # a bare one is read as a line feed
        file.write(f'<data key="{kind}-{name}">{text}</data>')
    file.write(f"</{kind}>\n")


FORMATS = {
    "relations": write_list,
    "jsonl": write_lines,
    "official": write_official,
    "csv": write_csv,
    "graphml": write_graphml,
}
