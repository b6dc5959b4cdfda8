"""New documents as they are read: text with spans, every form of a file, everything bad."""

import gzip
import json
import random
import tracemalloc

import pytest
from conftest import REL2ID, make_document, text_with
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inputs.documents import json_values, read_documents
from inputs.files import InputError, read_bytes
from inputs.span_documents import as_docred, read_new_documents, sentence_text
from prepro import docred_features

FORMS = {
    "list": json.dumps,
    "pretty list": lambda documents: "\n" + json.dumps(documents, indent=4),
    "lines": lambda documents: "\n".join(map(json.dumps, documents)),
    "lines with breaks": lambda documents: "\r\n\n".join(map(json.dumps, documents)) + "\n",
    "pretty objects": lambda documents: "\n".join(json.dumps(x, indent=1) for x in documents),
    "byte order mark": lambda documents: "\ufeff" + json.dumps(documents),
}


# --- text with spans --------------------------------------------------------------------------

TEXT = 'Dr. Ada J. Lovelace left Paris. She wrote "Notes." In London-Soho she met Ada\'s heir… Fine'


def span(text, part, occurrence=0):
    start = -1
    for _ in range(occurrence + 1):
        start = text.index(part, start + 1)
    return {"start": start, "end": start + len(part), "type": "X"}


def test_words_and_sentences_of_a_text():
    entities = [[span(TEXT, "Ada J. Lovelace"), span(TEXT, "Ada", 1)], [span(TEXT, "Lond")]]
    document = as_docred({"text": TEXT, "entities": entities}, 7, REL2ID)
    assert document["title"] == "document 7"
    assert [" ".join(sentence) for sentence in document["sents"]] == [
        "Dr . Ada J . Lovelace left Paris .",
        'She wrote " Notes . "',
        "In Lond on - Soho she met Ada ' s heir …",
        "Fine",
    ]
    places = [[(m["name"], m["sent_id"], m["pos"]) for m in e] for e in document["vertexSet"]]
    assert places == [
        [("Ada J. Lovelace", 0, [2, 6]), ("Ada", 2, [7, 8])],
        [("Lond", 2, [1, 2])],
    ]
    assert [sentence_text(document, i) for i in range(4)] == [
        "Dr. Ada J. Lovelace left Paris.",
        'She wrote "Notes."',
        "In London-Soho she met Ada's heir…",
        "Fine",
    ]


@pytest.mark.parametrize("text,sentences", [
    ("", []),
    (" \n ", []),
    ("Who? Me! And 3.5 of it. the rest", ["Who?", "Me!", "And 3.5 of it. the rest"]),
    ("One\n\nTwo\nlines", ["One", "Two\nlines"]),
    ("东京。大阪（日本）。", ["东京。", "大阪（日本）。"]),
    ("He said: “Go.” “Why?” Off.", ["He said: “Go.”", "“Why?”", "Off."]),
    ("Wait... Now", ["Wait...", "Now"]),
    ("." * 20_000, ["." * 20_000]),
])  # fmt: skip
def test_sentences(text, sentences):
    document = as_docred({"text": text, "entities": []}, 0, REL2ID)
    found = [sentence_text(document, i) for i in range(len(document["sents"]))]
    assert found == sentences


def test_no_sentence_ends_inside_a_mention():
    text = "We saw Who? Me! And You."
    document = as_docred({"text": text, "entities": [[span(text, "Who? Me!")]]}, 0, REL2ID)
    assert [len(x) for x in document["sents"]] == [6, 3]


SPELLED = ["Ada", "Obama", "was", "in", ",", ".", "é", "e\u0301a", "1962", "(", "東京", "x_y", "😀"]


@st.composite
def spelled_documents(draw):
    """A document in DocRED format with words of SPELLED, and the same as text with spans."""
    sents = draw(st.lists(st.lists(st.sampled_from(SPELLED), min_size=1, max_size=6), max_size=5))
    flat = [word for sentence in sents for word in sentence]
    text, offsets = draw(st.sampled_from(["", " ", "\n"])), []
    for word in flat:
        offsets.append((len(text), len(text) + len(word)))
        text += word + draw(st.sampled_from([" ", "  ", "\n", "\t", "\n\n", "\u3000"]))
    places = [(i, j) for i, sentence in enumerate(sents) for j in range(len(sentence))]
    entities, vertex_set = [], []
    for _ in range(draw(st.integers(0, 4)) if flat else 0):
        mentions, spans = [], []
        for _ in range(draw(st.integers(1, 3))):
            i, j = draw(st.sampled_from(places))
            end = draw(st.integers(j + 1, len(sents[i])))
            first = places.index((i, j))
            start_char, end_char = offsets[first][0], offsets[first + end - j - 1][1]
            mentions.append({"name": text[start_char:end_char], "sent_id": i, "pos": [j, end]})
            spans.append({"start": start_char, "end": end_char})
        entities.append(spans)
        vertex_set.append(mentions)
    docred = {"title": "t", "sents": sents, "vertexSet": vertex_set}
    return docred, {"title": "t", "text": text, "entities": entities}


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(documents=spelled_documents())
def test_text_with_spans_is_the_same_document(tokenizer, documents):
    """The same tokens, markers and mentions, whatever the blanks, and so the same logits."""
    docred, text = documents
    converted = as_docred(text, 0, REL2ID)
    one, other = docred_features([as_docred(docred, 0, REL2ID), converted], tokenizer)
    assert one["input_ids"] == other["input_ids"] and one["entity_pos"] == other["entity_pos"]
    for mentions, spans in zip(converted["vertexSet"], text["entities"], strict=True):
        for mention, given_span in zip(mentions, spans, strict=True):
            assert {k: mention[k] for k in given_span} == given_span
            words = converted["sents"][mention["sent_id"]][slice(*mention["pos"])]
            assert "".join(words) == "".join(mention["name"].split())


TEXTS = st.text(alphabet=st.sampled_from("ab .!?\n'\"é\u0301。东\u200b-A1"), max_size=40)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(text=TEXTS, spans=st.lists(st.tuples(st.integers(-2, 45), st.integers(-2, 45)), max_size=5))
def test_any_span_becomes_its_words_or_is_refused(text, spans):
    entities = [[{"start": start, "end": end}] for start, end in spans]
    bad = [not (0 <= a < b <= len(text)) or text[a:b].isspace() for a, b in spans]
    try:
        document = as_docred({"text": text, "entities": entities}, 0, REL2ID)
    except InputError as error:
        assert any(bad) and f"entities[{bad.index(True)}][0]: " in str(error)
        return
    assert not any(bad)
    assert "".join(w for s in document["sents"] for w in s) == "".join(text.split())
    assert all(document["sents"])
    for (mention,), (a, b) in zip(document["vertexSet"], spans, strict=True):
        words = document["sents"][mention["sent_id"]][slice(*mention["pos"])]
        assert "".join(words) == "".join(text[a:b].split())


# --- what is refused --------------------------------------------------------------------------

BAD_DOCUMENTS = {
    "past the end": (text_with(end=23), "entities[0][0]: start 0, end 23 is no span of a text"),
    "backwards": (text_with(start=5), "entities[0][0]: start 5, end 3 is no span"),
    "blank": (text_with(start=3, end=4), "entities[0][0]: start 3, end 4 holds only white space"),
    "bool": (text_with(start=True), "entities[0][0].start: expected int, found bool"),
    "no mention": ({"text": "a", "entities": [[]]}, "entities[0]: expected list of length >= 1"),
    "no entities": ({"text": "a"}, "entities: missing"),
    "label": (
        text_with() | {"labels": [{"h": 0, "t": 1, "r": "P17"}]},
        "labels[0].t: 1 is not one of 1 entities",
    ),
    "neither": ({"title": "x"}, "neither sents and vertexSet (DocRED format) nor text"),
    "no title": ({"sents": [], "vertexSet": []}, "title: missing"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_DOCUMENTS)
def test_bad_document_is_refused_with_one_line(tmp_path, name):
    document, message = BAD_DOCUMENTS[name]
    given_title = document.get("title")
    named = f" {json.dumps(given_title)}" if isinstance(given_title, str) else ""
    path = tmp_path / "in.json"
    path.write_text("\n".join(map(json.dumps, [text_with(), document])))
    with pytest.raises(InputError) as error:
        list(read_new_documents(read_bytes(path), path, REL2ID))
    assert str(error.value).startswith(f"{path}: document 1{named}: {message}")
    assert "\n" not in str(error.value)


GOOD = json.dumps(text_with())
BAD_FILES = {
    "": "the file is empty",
    "[]": "the list of documents is empty",
    "7": "document 0: expected object, found int",
    f"[{GOOD}, [1]]": "document 1: expected object, found list",
    f"[{GOOD}\n{GOOD}]": "not valid JSON: expected ',' or ']' in line 2 near ",
    f"[{GOOD}": "not valid JSON: Input data was truncated",
    f"[{GOOD}] x": "not valid JSON: trailing characters in line 1 near ",
    f"{GOOD}\n{GOOD[:-3]}": "not valid JSON: Input data was truncated",
    '{"a": ' + "[" * 100_000: "not valid JSON: nested too deeply",
    '[{"a": NaN}]': 'not valid JSON: invalid character in line 1 near [{"a": NaN}]',
}


@pytest.mark.parametrize("text", BAD_FILES, ids=lambda text: repr(text[:12] + text[-12:]))
def test_bad_file_is_refused_with_one_line(tmp_path, text):
    path = tmp_path / "in.json"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        list(read_new_documents(read_bytes(path), path, REL2ID))
    assert str(error.value).startswith(f"{path}: {BAD_FILES[text]}")
    assert "\n" not in str(error.value)


def test_every_form_of_a_file(tmp_path):
    """Further fields come through, too. A file that is cut anywhere is refused."""
    documents = [make_document(random.Random(0), title=f"Doc {i}") for i in range(3)]
    documents[1] |= {"own": ['é"\\😀', -1.5e-7, 10**30, True, None, {}]}
    documents[1]["vertexSet"][0][0] |= {"type": "PER", "own": 1}
    documents[1]["labels"][0]["own"] = 2
    for form in FORMS.values():
        for packed in "", ".gz":
            path = tmp_path / f"a.json{packed}"
            with (gzip.open if packed else open)(path, "wt", encoding="utf-8") as file:
                file.write(form(documents))
            assert read_documents(path) == documents
    for length in range(1, len(text := json.dumps(documents)), 7):
        with pytest.raises(InputError, match="not valid JSON"):
            list(json_values(text[:length].encode()))


def test_documents_are_decoded_one_at_a_time():
    """Of ten times the documents only the bytes, which are there, and views of them are held."""
    peaks = []
    for size in (100, 1000):
        content = json.dumps([make_document(random.Random(0))] * size).encode()
        tracemalloc.start()
        assert sum(1 for _ in read_new_documents(content, "a.json", REL2ID)) == size
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert len(content) > 10 * peaks[1]
    assert peaks[1] < 1.2 * peaks[0] + 100 * 900
