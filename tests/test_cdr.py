"""CDR and GDA: the files that ATLOP reads, as documents with candidate pairs."""

import os
import shutil
import subprocess
import sys
from collections import Counter

import convert_bio
import numpy as np
import pytest
from conftest import ROOT, read, shared

from encoders.loading import load_tokenizer
from inputs.documents import read_documents
from inputs.files import InputError
from prepro import docred_features, pairs_of

TEXT = "Lithium causes cyanosis .|It and aspirin are chemicals ."
LITHIUM = ["D1", "Lithium|It", "Chemical", "0:4", "1:5", "0:1"]
CYANOSIS = ["D2", "cyanosis", "Disease", "2", "3", "0"]
ASPIRIN = ["D3", "aspirin", "Chemical", "6", "7", "1"]


def pair(relation, direction, left, right):
    return [relation, direction, "CROSS", "0-1", "2-3", *left, *right]


def line_of(*pairs, title="1", text=TEXT):
    return "\t".join([title, text, *(x for fields in pairs for x in fields)])


def test_a_line_by_hand():
    pairs = [
        pair("not_include", "L2R", ASPIRIN, CYANOSIS),
        pair("1:CID:2", "R2L", CYANOSIS, LITHIUM),
    ]
    document = convert_bio.read_line(line_of(*pairs), "CID")
    names = [[x["name"] for x in mentions] for mentions in document["vertexSet"]]
    assert names == [["Lithium", "It"], ["cyanosis"], ["aspirin"]]  # the last is no candidate
    assert document["sents"][1][:3] == ["It", "and", "aspirin"]
    second = {"name": "It", "type": "Chemical", "sent_id": 1, "pos": [0, 1]}
    assert document["vertexSet"][0][1] == second
    assert document["candidates"] == [[0, 1]]
    assert document["labels"] == [{"h": 0, "t": 1, "r": "CID"}]


def test_the_genes_of_gda():
    line = line_of(pair("1:GDA:2", "L2R", LITHIUM, CYANOSIS))
    assert convert_bio.read_line(line, "GDA")["labels"] == [{"h": 0, "t": 1, "r": "GDA"}]


def test_a_mention_across_sentences_joins_them():
    across = ["D4", "x", "Disease", "3", "6", "0"]
    document = convert_bio.read_line(line_of(pair("1:NR:2", "L2R", LITHIUM, across)), "CID")
    assert len(document["sents"]) == 1 and document["labels"] == []
    assert document["vertexSet"][1][0]["pos"] == [3, 6]


@pytest.mark.parametrize("line,message", [
    ("1\tA text .", "line 2: expected 2 \\+ 17 k fields, found 2"),
    (line_of(pair("1:X:2", "L2R", LITHIUM, CYANOSIS)), "line 2: pair 0: field 1, the relation: "),
    (line_of(pair("1:NR:2", "L2R", [*LITHIUM[:3], "0:x", *LITHIUM[4:]], CYANOSIS)),
     "line 2: pair 0: field 9, first words of mentions: '0:x'"),
    (line_of(pair("1:NR:2", "L2R", LITHIUM, [*CYANOSIS[:4], "99", "0"])),
     r"line 2: pair 0: field 15, mentions: \[\(2, 99\)\] in a text of 10 words"),
])  # fmt: skip
def test_a_broken_line_is_named(tmp_path, line, message):
    path = tmp_path / "dev_filter.data"
    good = line_of(pair("1:CID:2", "L2R", LITHIUM, CYANOSIS), title="0")
    path.write_text(f"{good}\n{line}\n")
    with pytest.raises(InputError, match=f"dev_filter.data: {message}"):
        convert_bio.read_bio(path, "cdr")
    path.write_text("\n")
    with pytest.raises(InputError, match="dev_filter.data: the file is empty"):
        convert_bio.read_bio(path, "cdr")
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="dev_filter.data: cannot be read: .*utf-8"):
        convert_bio.read_bio(path, "cdr")


def test_features_are_those_of_the_released_reader(golden_models, tmp_path):
    path = tmp_path / "cdr.json"
    convert_bio.main(["--corpus", "cdr", str(golden_models / "cdr_documents.data"), str(path)])
    rel2id = read(tmp_path / "rel2id.json")
    assert rel2id == {"NR": 0, "CID": 1}
    (tmp_path / "rel2id.json").write_text('{"none": 0, "mine": 1}')
    with pytest.raises(InputError, match="rel2id.json: has other relations"):
        convert_bio.main(["--corpus", "cdr", str(golden_models / "cdr_documents.data"), str(path)])
    documents = read_documents(path, rel2id)
    tokenizer = load_tokenizer(golden_models / "tokenizer")
    features = docred_features(documents, tokenizer, rel2id=rel2id)
    expected = [x for x in read(golden_models / "cdr_features.json") if x["hts"]]
    features = [x for x in features if len(pairs_of(x))]
    assert len(features) == len(expected) > 0
    for ours, theirs in zip(features, expected, strict=True):
        assert (ours["title"], ours["input_ids"]) == (theirs["title"], theirs["input_ids"])
        spans = [list(map(list, mentions)) for mentions in ours["entity_pos"]]
        assert spans[: len(theirs["entity_pos"])] == theirs["entity_pos"]
        assert pairs_of(ours).tolist() == theirs["hts"]
        labels = np.zeros((len(theirs["hts"]), 2), dtype=int)
        for h, t, r in ours["triples"].tolist():
            labels[theirs["hts"].index([h, t]), r] = 1
        labels[:, 0] = labels[:, 1] == 0
        assert labels.tolist() == theirs["labels"]


def test_the_whole_corpus_is_read():
    counts = Counter()
    for split, facts in {"train": 1038, "dev": 1012, "test": 1066}.items():
        documents = convert_bio.read_bio(shared(f"cdr/{split}_filter.data"), "cdr")
        counts[len(documents)] += 1
        assert sum(len(x["labels"]) for x in documents) == facts
    assert counts == {500: 3}


def test_run_cdr(tmp_path):
    """From the files to train.py's flags, on three abstracts of one line each."""
    root = tmp_path / "repo"  # a copy, for the converted documents go to its dataset/
    shutil.copytree(ROOT / "scripts", root / "scripts")
    (root / "inputs").symlink_to(ROOT / "inputs")
    stub = tmp_path / "python"
    stub.write_text(f"""#!{sys.executable}
import os, sys
if sys.argv[1].endswith("train.py"):
    print(*sys.argv[2:])
else:
    os.execv({sys.executable!r}, [{sys.executable!r}, *sys.argv[1:]])
""")
    stub.chmod(0o755)
    env = os.environ | {"PYTHON": str(stub), "CDR_DIR": str(tmp_path), "ENCODER": "e"}
    command = ["bash", str(root / "scripts/run_cdr.sh"), "--seed", "1"]
    result = subprocess.run(command, capture_output=True, text=True, env=env)
    assert result.returncode == 2 and result.stderr.count("\n") == 1
    assert f"CDR_DIR={tmp_path}: no train_filter.data; the files are made by" in result.stderr
    for split in ("train", "dev", "test"):
        line = line_of(pair("1:CID:2", "L2R", LITHIUM, CYANOSIS))
        (tmp_path / f"{split}_filter.data").write_text(line)
    recipe = env | {"RECIPE": "scibert"}
    result = subprocess.run(command, capture_output=True, text=True, env=recipe, check=True)
    said = result.stdout.split()
    flags = dict(zip(said, said[1:], strict=False))  # of a flag that is there twice, the last
    assert flags["--num_labels"] == "1" and flags["--num_train_epochs"] == "30"
    assert flags["--learning_rate"] == "2e-5" and flags["--seed"] == "1"
    assert flags["--data_dir"].startswith(str(root))
    assert read(f"{flags['--data_dir']}/dev.json")[0]["labels"]
