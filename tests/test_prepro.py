"""Reading documents: features against a slow version, and everything bad that may come in."""

import copy
import json
import os
import random

import baseline
import pytest
from conftest import make_document, read, shared

from inputs.documents import read_documents
from inputs.files import InputError, relation_ids, write_json
from prepro import docred_features, read_docred


@pytest.fixture
def documents():
    rng = random.Random(0)
    return [make_document(rng, title=f"Document {i}") for i in range(3)]


def write(tmp_path, content):
    path = tmp_path / "docs.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def assert_as_the_textbook(path, tokenizer, *max_seq_length):
    """Returns our features."""
    ours = read_docred(path, tokenizer, *max_seq_length)
    theirs = baseline.read_docred(path, tokenizer, relation_ids(), *max_seq_length)
    for a, b in zip(ours, theirs, strict=True):
        assert a["input_ids"] == b["input_ids"] and a["entity_pos"] == b["entity_pos"]
    return ours


def test_features_that_are_cut(golden_tokenizer):
    path = shared("redocred-mini/test_revised.json")
    features = assert_as_the_textbook(path, golden_tokenizer, 200)
    assert max(len(feature["input_ids"]) for feature in features) == 200


def test_a_tokenizer_that_pads_and_cuts(tmp_path, documents, tokenizer):
    """As sentence-transformers' do: words are not texts to be cut to one length."""
    path = write(tmp_path, documents)
    expected = [x["input_ids"] for x in read_docred(path, tokenizer)]
    changed = copy.deepcopy(tokenizer)
    changed.backend_tokenizer.enable_padding(length=16)
    changed.backend_tokenizer.enable_truncation(1)
    assert [x["input_ids"] for x in read_docred(path, changed)] == expected


def byte_level_tokenizer(tmp_path):
    """A RoBERTa-like tokenizer, trained on a few words."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import RobertaTokenizerFast

    trainer = ByteLevelBPETokenizer()
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer.train_from_iterator(["the river * the town"] * 3, 400, special_tokens=specials)
    trainer.save_model(str(tmp_path))
    return RobertaTokenizerFast.from_pretrained(str(tmp_path))


def test_features_of_a_roberta_tokenizer(tmp_path, documents):
    tokenizer = byte_level_tokenizer(tmp_path)
    marker = tokenizer.convert_tokens_to_ids("*")
    for feature in assert_as_the_textbook(write(tmp_path, documents), tokenizer):
        starts = [start for spans in feature["entity_pos"] for start, _ in spans]
        assert {feature["input_ids"][start + 1] for start in starts} == {marker}


def test_tokenizer_without_marker_is_refused(tmp_path, documents):
    from transformers import BertTokenizerFast

    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the"]))
    tokenizer = BertTokenizerFast(str(tmp_path / "vocab.txt"))
    assert tokenizer("the", add_special_tokens=False)["input_ids"] == [4]
    with pytest.raises(InputError, match='no token "\\*"'):
        docred_features(documents, tokenizer)


BAD_FIELDS = {
    "no title": (lambda d: d.pop("title"), "title: missing"),
    "sents": (lambda d: d.update(sents="a text"), "sents: expected list, found str"),
    "sentence": (lambda d: d["sents"].insert(1, "text"), "sents[1]: expected list, found str"),
    "word": (lambda d: d["sents"][2].append(5), "sents[2][12]: expected str, found int"),
    "no mention": (
        lambda d: d["vertexSet"].insert(2, []),
        "vertexSet[2]: expected list of length >= 1",
    ),
    "sent_id": (
        lambda d: d["vertexSet"][1][0].update(sent_id=99),
        "vertexSet[1][0].sent_id: 99 is not one of 5 sentences",
    ),
    "past the end": (
        lambda d: d["vertexSet"][1][0].update(pos=[11, 13]),
        "vertexSet[1][0].pos: [11, 13] is outside its sentence",
    ),
    "empty span": (
        lambda d: d["vertexSet"][1][0].update(pos=[4, 4]),
        "vertexSet[1][0].pos: [4, 4] is outside its sentence",
    ),
    "h": (lambda d: d["labels"][0].update(h=6), "labels[0].h: 6 is not one of 6 entities"),
    "r": (lambda d: d["labels"][0].update(r="P0"), "labels[0].r: unknown relation 'P0'"),
    "evidence type": (
        lambda d: d["labels"][0].update(evidence=1),
        "labels[0].evidence: expected list | null, found int",
    ),
    "evidence": (
        lambda d: d["labels"][0].update(evidence=[5]),
        "labels[0].evidence: 5 is not one of 5 sentences",
    ),
}


@pytest.mark.parametrize("name", BAD_FIELDS)
def test_bad_field_names_file_document_and_field(tmp_path, documents, name):
    change, message = BAD_FIELDS[name]
    change(documents[1])
    path = write(tmp_path, documents)
    with pytest.raises(InputError) as error:
        read_documents(path)
    text = str(error.value)
    title = documents[1].get("title")
    named = f' "{title}"' if isinstance(title, str) else ""
    assert text.startswith(f"{path}: document 1{named}: {message}") and "\n" not in text


def test_missing_and_unreadable_files(tmp_path):
    with pytest.raises(InputError, match="nothing.json: no such file"):
        read_documents(tmp_path / "nothing.json")
    with pytest.raises(InputError, match="cannot be read"):
        read_documents(tmp_path)
    (tmp_path / "latin.json").write_bytes('["é"]'.encode("latin-1"))
    with pytest.raises(InputError, match="latin.json: document 0: not valid JSON: .*(?i:utf-8)"):
        read_documents(tmp_path / "latin.json")


def test_a_path_that_no_file_can_have_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "x.json", tmp_path / ("x" * 300)):
        with pytest.raises(InputError, match="cannot be written"):
            write_json(path, {})


def test_links_devices_and_pipes_stay_what_they_are(tmp_path):
    (tmp_path / "folder").mkdir()
    link, pipe = tmp_path / "link.json", tmp_path / "pipe"
    link.symlink_to(tmp_path / "folder" / "real.json")
    write_json(link, {"a": 1})
    assert link.is_symlink() and read(tmp_path / "folder/real.json") == {"a": 1}
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_json(pipe, {"a": 2})
    assert pipe.is_fifo() and json.loads(os.read(reader, 1000)) == {"a": 2}
    os.close(reader)
    assert sorted(x.name for x in tmp_path.iterdir()) == ["folder", "link.json", "pipe"]
