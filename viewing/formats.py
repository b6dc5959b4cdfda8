"""Predictions in the formats of other tools. Every writer takes an iterable of records (see
predict.py) and a text file; it is streaming: only one record is in memory at a time."""

import csv
import json
import re
from xml.sax.saxutils import escape, quoteattr


def write_list(items, file):
    """A JSON list with one item on each line."""
    file.write("[")
    for i, item in enumerate(items):
        file.write(("," if i else "") + "\n" + json.dumps(item, ensure_ascii=False))
    file.write("\n]\n")


def write_lines(records, file):
    """JSON lines: one record on each line."""
    for record in records:
        file.write(json.dumps(record, ensure_ascii=False) + "\n")


def write_official(records, file):
    """A submission in DocRED's format: {title, h_idx, t_idx, r, evidence} for every relation."""
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
    """One line for every relation; evidence: sentence numbers separated by blanks."""
    # Text is always quoted: before Python 3.13 csv does not quote a lone carriage return, and
    # readers would begin a new line there.
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
    """Puts an apostrophe before a text that a spreadsheet would run as a formula."""
    is_formula = isinstance(cell, str) and cell.startswith(tuple("=+-@\t\r"))
    return f"'{cell}" if is_formula else cell


NODE = {"name": "string", "type": "string", "document": "string"}
EDGE = {"relation": "string", "name": "string", "score": "double", "evidence": "string"}
# XML allows neither control characters nor unpaired surrogates.
NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def write_graphml(records, file):
    """A graph for networkx, Gephi and others: nodes are the entities with a relation, edges the
    relations. Entities of different documents are different nodes, "<document>:<entity>"."""
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
            source, target = (f"{i}:{x[end]['entity']}" for end in ("head", "tail"))
            values = {"relation": x["relation"], "name": x["name"], "score": x["score"]}
            values["evidence"] = " ".join(map(str, x["evidence"]))
            ends = {"id": f"e{number}", "source": source, "target": target}
            _element(file, "edge", ends, values)
            number += 1
    file.write("</graph>\n</graphml>\n")


def _element(file, kind, attributes, values):
    given = " ".join(f"{name}={quoteattr(value)}" for name, value in attributes.items())
    file.write(f"<{kind} {given}>")
    for name, value in values.items():
        # Readers turn an unescaped carriage return into a line feed.
        text = escape(NOT_XML.sub("\ufffd", str(value)), {"\r": "&#13;"})
        file.write(f'<data key="{kind}-{name}">{text}</data>')
    file.write(f"</{kind}>\n")


FORMATS = {
    "relations": write_list,
    "jsonl": write_lines,
    "official": write_official,
    "csv": write_csv,
    "graphml": write_graphml,
}
