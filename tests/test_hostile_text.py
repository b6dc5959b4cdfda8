"""Text that would be a path, HTML, Markdown or an escape sequence stays text."""

import contextlib
import copy
import json
import random
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from html.parser import HTMLParser

import torch
from conftest import ROOT, make_document, read
from hostile import BASE, Payload, outcome
from made_runs import write_run
from test_hostile_runs import reported

import evaluation
import predict
from inputs.documents import read_documents, read_predictions
from inputs.files import printable

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


def everything_below(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_hostile_text_through_predict_and_evaluation(folder, tmp_path, capsys):
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
    folder = tmp_path / "data"
    folder.mkdir()
    documents = hostile_documents()
    for split in ("train", "dev", "test"):
        (folder / f"{split}_revised.json").write_text(json.dumps(documents))
    runs = tmp_path / "runs"
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
            assert len(set(borders)) == 1 and set(rows[1]) <= set("|:- "), lines
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


# --- As commands ------------------------------------------------------------------------------


def test_commands(tmp_path, folder, data):
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
