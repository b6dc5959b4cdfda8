"""What predict.py writes for other tools, read back by their own readers."""

import csv
import io
import json
import random

import networkx
import pytest
from conftest import make_document

import predict
from viewing import formats

HOSTILE = 'a "b" <c> & \x00 \x1b[2J ]]> \ud800 \n, é 𝒳'


@pytest.fixture(scope="module")
def records(extractor):
    documents = [make_document(random.Random(i), 5, title=f"Doc {i}") for i in range(3)]
    documents[1]["title"] = HOSTILE.replace("\ud800", "")
    for mentions in documents[1]["vertexSet"]:
        for mention in mentions:
            mention["name"] = HOSTILE.replace("\ud800", "")
    documents.append({"title": "empty", "sents": [["a"]], "vertexSet": []})
    found = extractor(documents)
    assert [len(x["relations"]) > 0 for x in found] == [True, True, True, False]
    return found


def written(form, records):
    file = io.StringIO()
    formats.FORMATS[form](iter(records), file)
    return file.getvalue()


def test_json(records):
    assert json.loads(written("relations", records)) == records
    lines = written("jsonl", records).splitlines()
    assert [json.loads(line) for line in lines] == records


def test_csv(records):
    rows = list(csv.DictReader(io.StringIO(written("csv", records), newline="")))
    facts = [(record, x) for record in records for x in record["relations"]]
    assert len(rows) == len(facts) > 3
    for row, (record, x) in zip(rows, facts, strict=True):
        assert (row["title"], row["relation"], row["name"]) == (
            record["title"], x["relation"], x["name"],
        )  # fmt: skip
        for end in ("head", "tail"):
            assert row[end] == str(x[end]["entity"]) and row[f"{end}_name"] == x[end]["name"]
        assert float(row["score"]) == x["score"]
        assert [int(i) for i in row["evidence"].split()] == x["evidence"]


def test_graphml_opens_in_networkx(records, tmp_path):
    """Every relation is an edge; two entities of one name in two documents are two nodes."""
    path = tmp_path / "graph.graphml"
    predict.write_output(records, path, "graphml")
    graph = networkx.read_graphml(path, force_multigraph=True)
    facts = [(i, x) for i, record in enumerate(records) for x in record["relations"]]
    assert graph.is_directed() and graph.number_of_edges() == len(facts)
    edges = {key: (a, b, edge) for a, b, key, edge in graph.edges(keys=True, data=True)}
    for number, (i, x) in enumerate(facts):
        head, tail, edge = edges[f"e{number}"]
        assert (head, tail) == (f"{i}:{x['head']['entity']}", f"{i}:{x['tail']['entity']}")
        assert (edge["relation"], edge["score"]) == (x["relation"], x["score"])
        node = graph.nodes[head]
        assert node["document"] == formats.NOT_XML.sub("\ufffd", records[i]["title"])
        assert node["name"] == formats.NOT_XML.sub("\ufffd", x["head"]["name"])


def test_carriage_returns_are_kept_and_formulas_are_text(tmp_path):
    end = {"entity": 0, "name": "a\rb", "mentions": [{"type": "c\rd"}]}
    fact = {"head": end, "tail": end | {"entity": 1, "name": "-1"}, "relation": "@r", "name": "+n"}
    record = {"title": "=1+1", "relations": [fact | {"score": -1.5, "evidence": [0, 2]}]}
    row = list(csv.reader(io.StringIO(written("csv", [record]), newline="")))[1]
    assert row == ["'=1+1", "0", "a\rb", "'@r", "'+n", "1", "'-1", "-1.5", "0 2"]
    predict.write_output([record], tmp_path / "graph", "graphml")
    node = networkx.read_graphml(tmp_path / "graph").nodes["0:0"]
    assert (node["name"], node["type"]) == ("a\rb", "c\rd")
