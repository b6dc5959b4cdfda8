"""Raw text by a real spaCy: a blank English pipeline with a sentencizer and an entity ruler."""

import io
import random
import sys

import pytest
import spacy
from conftest import REL2ID, read
from spacy.tokens import Doc, DocBin
from test_predict import command

import predict
from inputs import spacy_documents
from inputs.documents import check_document
from inputs.files import InputError
from inputs.spacy_documents import text_documents
from inputs.span_documents import sentence_text

NAMES = {
    "PERSON": ["Ada Lovelace", "ADA\nLOVELACE", "Ada", "<b>Bob</b>"],
    "GPE": ["London", "United States", "the United States"],
    "ORDINAL": ["first"],
    "DATE": ["1815"],
    "ROBOT": ["St! Mary"],  # the sentencizer ends a sentence within it
}
TEXT = """  Ada Lovelace was the first in London.

The wife of <b>Bob</b> saw the United States' coast (united states), St! Mary in 1815. ADA
LOVELACE left.\t\tUnited States's end: Ada!"""


def make_pipeline():
    nlp = spacy.blank("en")
    nlp.add_pipe("sentencizer")
    ruler = nlp.add_pipe("entity_ruler", config={"phrase_matcher_attr": "LOWER"})
    ruler.add_patterns(
        [{"label": label, "pattern": name} for label, names in NAMES.items() for name in names]
    )
    return nlp


@pytest.fixture(scope="module")
def nlp():
    return make_pipeline()


@pytest.fixture(scope="module")
def pipeline(nlp, tmp_path_factory):
    """The same as a folder."""
    path = tmp_path_factory.mktemp("pipeline")
    nlp.to_disk(path)
    return path


@pytest.fixture(scope="module")
def with_relations(folder):
    nlp = make_pipeline()
    nlp.add_pipe("docre", config={"model": str(folder), "device": "cpu", "precision": "fp32"})
    return nlp


def entities(document):
    return [[m["name"] for m in mentions] for mentions in document["vertexSet"]]


# --- a text -> documents ------------------------------------------------------------------------


def test_sentences_and_entities(nlp):
    (document,) = text_documents(nlp(TEXT), "title")
    check_document(document, REL2ID, labelled=False)
    assert document["title"] == "title"
    assert [sentence_text(document, i) for i in range(len(document["sents"]))] == [
        "Ada Lovelace was the first in London.",
        "The wife of <b>Bob</b> saw the United States' coast (united states), St! Mary in 1815.",
        "ADA\nLOVELACE left.",
        "United States's end: Ada!",
    ]
    assert all(not word.isspace() for words in document["sents"] for word in words)
    assert entities(document) == [
        ["Ada Lovelace", "ADA\nLOVELACE"],
        ["London"],
        ["<b>Bob</b>"],
        ["the United States", "united states", "United States"],
        ["St! Mary"],
        ["1815"],
        ["Ada"],
    ]
    kinds = [mentions[0]["type"] for mentions in document["vertexSet"]]
    assert kinds == ["PER", "LOC", "PER", "LOC", "ROBOT", "TIME", "PER"]
    for mentions in document["vertexSet"]:
        for m in mentions:
            assert TEXT[m["start"] : m["end"]] == m["name"]
            words = document["sents"][m["sent_id"]][slice(*m["pos"])]
            assert "".join(words) == "".join(m["name"].split())


def mentions_of(doc, *names):
    return [doc.char_span(TEXT.index(x), TEXT.index(x) + len(x)) for x in names]


@pytest.mark.parametrize("component", ["spans", "characters"])
def test_coreference_joins_names(nlp, component):
    """As spaCy's own component leaves it, and as fastcoref does; no pronoun becomes a mention."""
    doc = nlp(TEXT)
    clusters = [
        mentions_of(doc, "London", "coast"),  # one name: nothing to join
        mentions_of(doc, "Ada Lovelace", "wife", "<b>Bob</b>"),
        mentions_of(doc, "1815", "<b>Bob</b>"),
    ]
    if component == "spans":
        doc.spans["other"] = mentions_of(doc, "London", "1815")
        for i, cluster in enumerate(clusters, 1):
            doc.spans[f"coref_clusters_{i}"] = cluster
        (document,) = text_documents(doc, "")
    else:
        Doc.set_extension("coref_clusters", default=None)
        try:
            assert len(entities(text_documents(nlp(TEXT), "")[0])) == 7
            doc._.coref_clusters = [[(x.start_char, x.end_char) for x in c] for c in clusters]
            (document,) = text_documents(doc, "")
        finally:
            Doc.remove_extension("coref_clusters")
    assert entities(document) == [
        ["Ada Lovelace", "<b>Bob</b>", "1815", "ADA\nLOVELACE"],
        ["London"],
        ["the United States", "united states", "United States"],
        ["St! Mary"],
        ["Ada"],
    ]


def test_long_text_becomes_parts(nlp, monkeypatch):
    """No word and no mention is lost; parts are of like length."""
    monkeypatch.setattr(spacy_documents, "LONGEST", 50)
    rng = random.Random(0)
    sentences = [
        f"{rng.choice(['Ada', 'London', 'He'])} {'went on ' * rng.randint(1, 6)}to London."
        for _ in range(40)
    ]
    doc = nlp(" ".join(sentences))
    documents = text_documents(doc, "long")
    count = -(-len(doc) // 50)
    assert [x["title"] for x in documents] == [
        f"long, part {i} of {count}" for i in range(1, count + 1)
    ]
    words = [word for x in documents for sentence in x["sents"] for word in sentence]
    assert words == [token.text for token in doc]
    lengths = [sum(map(len, x["sents"])) for x in documents]
    assert max(lengths) <= 50 + 15 and min(lengths) >= 50 - 30
    found = [m["start"] for x in documents for mentions in x["vertexSet"] for m in mentions]
    assert sorted(found) == [span.start_char for span in doc.ents]
    for document in documents:
        check_document(document, REL2ID, labelled=False)


def test_last_names(nlp):
    """Of the one person before it; Paris is no person, and of two Byrons it is neither."""
    nlp = spacy.blank("en")
    nlp.add_pipe("sentencizer")
    names = {"PERSON": ["Ada Byron", "Byron", "Anne Byron", "King", "Ada King"], "GPE": ["Paris"]}
    names["PERSON"] += ["Joan Paris"]
    nlp.add_pipe("entity_ruler").add_patterns(
        [{"label": label, "pattern": name} for label, given in names.items() for name in given]
    )
    text = "King met Ada Byron. Byron left. Anne Byron, Byron, Ada King, King, Joan Paris, Paris."
    (document,) = text_documents(nlp(text), "")
    assert entities(document) == [
        ["King"],
        ["Ada Byron", "Byron"],
        ["Anne Byron"],
        ["Byron"],
        ["Ada King", "King"],
        ["Joan Paris"],
        ["Paris"],
    ]


def test_a_sentence_without_end_is_cut(nlp, monkeypatch):
    """Not inside a mention, and no part is empty."""
    monkeypatch.setattr(spacy_documents, "LONGEST", 50)
    doc = nlp("word " * 49 + "Ada Lovelace " + "word " * 200)
    documents = text_documents(doc, "list")
    lengths = [[len(words) for words in x["sents"]] for x in documents]
    assert lengths == [[100], [50], [50], [50], [1]]
    assert [x["title"] for x in documents] == [
        f"list, part {i} of {len(documents)}" for i in range(1, len(documents) + 1)
    ]
    assert [entities(x) for x in documents if x["vertexSet"]] == [[["Ada Lovelace"]]]


# --- predict.py ---------------------------------------------------------------------------------


def run(folder, pipeline, target, *files):
    given = ["--ner", pipeline, "--output", target, "--text", *files]
    predict.main(command(folder, *given))
    return read(target)


def test_command_gives_the_documents_relations(tmp_path, nlp, pipeline, folder, extractor):
    paths = [tmp_path / "one.txt", tmp_path / "none.txt"]
    paths[0].write_text("\ufeff" + TEXT, encoding="utf-8")
    paths[1].write_text("No names here.", encoding="utf-8")
    one, none = run(folder, pipeline, tmp_path / "found.json", *paths)
    (document,) = text_documents(nlp(TEXT), "one")
    expected = [record for _, record in extractor.stream([document])][0]
    assert len(expected["relations"]) > 5
    keys = [(x["head"], x["tail"], x["relation"]) for x in expected["relations"]]
    assert [(x["head"], x["tail"], x["relation"]) for x in one["relations"]] == keys
    assert none == {"title": "none", "relations": []}


def test_standard_input_and_line_ends(tmp_path, pipeline, folder, monkeypatch):
    """Characters are counted as they stand in the file."""
    text = "Nothing.\r\nAda Lovelace saw\r\nLondon.\r\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    (record,) = run(folder, pipeline, tmp_path / "out.json", "-")
    assert record["title"] == "standard input" and record["relations"]
    for x in record["relations"]:
        for m in x["head"]["mentions"] + x["tail"]["mentions"]:
            assert text[m["start"] : m["end"]] == m["name"]


def test_bad_text_is_one_line(tmp_path, pipeline, folder, monkeypatch):
    path, target = tmp_path / "a.txt", tmp_path / "b.json"

    def refused(content, match, ner=pipeline):
        path.write_bytes(content)
        with pytest.raises(InputError, match=match) as raised:
            run(folder, ner, target, path)
        assert "\n" not in str(raised.value) and not target.exists()

    refused(b" \n", "a.txt: the file is empty")
    refused(b"\xff\xfe", "a.txt: cannot be read: .*utf-8")
    refused(b"word " * 250_000, "a.txt: longer than the pipeline's 1,000,000 characters")
    refused(b"a", "--ner en_none: .*find model 'en_none'.*spacy download en_none", "en_none")
    spacy.blank("en").to_disk(tmp_path / "blank")
    refused(b"a. b", "--ner .*blank: the pipeline finds no sentences", tmp_path / "blank")
    with pytest.raises(InputError, match="--text: not allowed with argument --input"):
        predict.parse_args(["--model", "a", "--input", "b", "--text", "c"])
    monkeypatch.setitem(sys.modules, "spacy", None)
    refused(b"a", "--text needs spaCy: pip install -r requirements-spacy.txt")


# --- the component ------------------------------------------------------------------------------


def test_component_gives_spans(with_relations, nlp, extractor):
    doc = with_relations(TEXT)
    (document,) = text_documents(nlp(TEXT), "")
    expected = [record for _, record in extractor.stream([document])][0]["relations"]
    assert len(doc._.relations) == len(expected) > 5
    for x, record in zip(doc._.relations, expected, strict=True):
        assert (x.relation, x.name) == (record["relation"], record["name"])
        assert x.score == pytest.approx(record["score"], abs=2e-3)
        for spans, end in ((x.head, "head"), (x.tail, "tail")):
            assert [span.text for span in spans] == [m["name"] for m in record[end]["mentions"]]
            assert all(span.doc is doc for span in spans)
        texts = [sentence_text(document, number) for number in record["evidence"]]
        assert [span.text for span in x.evidence] == texts
    assert any(x.evidence for x in doc._.relations)


def facts(doc):
    return [
        (str(x.head), x.relation, str(x.tail), str(x.evidence), round(x.score, 1))
        for x in doc._.relations
    ]


def test_component_in_batches_and_saved(with_relations):
    texts = [TEXT, "", "London is in the United States.", "no names", "Ada saw London. " * 100]
    alone = [facts(with_relations(text)) for text in texts]
    assert [len(x) > 0 for x in alone] == [True, False, True, False, True]
    assert [facts(doc) for doc in with_relations.pipe(texts, batch_size=2)] == alone
    saved = DocBin(docs=with_relations.pipe(texts), store_user_data=True).to_bytes()
    docs = DocBin(store_user_data=True).from_bytes(saved).get_docs(with_relations.vocab)
    assert [facts(doc) for doc in docs] == alone
