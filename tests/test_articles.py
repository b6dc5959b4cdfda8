"""docs/articles: marks and texts belong together, and the page's counts are theirs."""

import pytest
import score_by_name
from conftest import ROOT, read, shared

from inputs.documents import read_documents
from inputs.files import InputError, write_json
from inputs.spacy_documents import LONGEST, read_article

FOLDER = ROOT / "docs/articles"
INVERSE = dict(
    zip(
        "P26 P3373 P190 P36 P1376 P361 P527 P155 P156 P749 P355 P1344 P710 P150 P674".split(),
        "P26 P3373 P190 P1376 P36 P527 P361 P156 P155 P355 P749 P710 P1344 P131 P1441".split(),
        strict=True,
    )
)
WITH_NOTABLE_WORK = "P50 P57 P58 P162 P175".split()


def articles():
    return read_documents(FOLDER / "articles.json")


def sentences(mentions):
    return {x["sent_id"] for x in mentions}


def test_texts_and_mentions_are_the_words_of_the_documents():
    found = articles()
    assert {x["title"] for x in found} == {x.stem for x in FOLDER.glob("*.txt")}
    for document in found:
        text = read_article(FOLDER / f"{document['title']}.txt", 10_000)
        words = [word for sentence in document["sents"] for word in sentence]
        assert "".join(text.split()) == "".join(words) and len(words) <= LONGEST
        spans = set()
        for mention in (x for mentions in document["vertexSet"] for x in mentions):
            (start, end), number = mention["pos"], mention["sent_id"]
            name = "".join(document["sents"][number][start:end])
            assert name == mention["name"].replace(" ", "") and mention["name"] in text
            assert mention["type"] in "PER ORG LOC TIME NUM MISC".split()
            assert (number, start) not in spans
            spans.add((number, start))


def test_evidence_names_both_ends():
    for document in articles():
        for label in document["labels"]:
            for end in "ht":
                named = sentences(document["vertexSet"][label[end]])
                assert named & set(label["evidence"]), (document["title"], label)


def test_inverse_relations_are_marked():
    for document in articles():
        labels = [(x["h"], x["r"], x["t"]) for x in document["labels"]]
        facts = set(labels)
        assert len(facts) == len(labels)
        for head, relation, tail in labels:
            back = {r for r in (*INVERSE.values(), "P22", "P25", "P40", "P800", "P1001")}
            back = {r for r in back if (tail, r, head) in facts}
            where = document["title"], head, relation, tail
            assert relation not in INVERSE or INVERSE[relation] in back, where
            assert relation != "P40" or back & {"P22", "P25"}, where
            assert relation not in ("P22", "P25") or "P40" in back, where
            assert relation not in WITH_NOTABLE_WORK or "P800" in back, where
            assert relation != "P6" or "P1001" in back, where
            place = document["vertexSet"][head][0]["type"] in ("LOC", "ORG")
            assert relation != "P17" or not place or (head, "P131", tail) in facts, where


def test_the_page_counts_right():
    page, totals = (FOLDER / "README.md").read_text(), [0] * 5
    for document in articles():
        at = [sentences(x) for x in document["vertexSet"]]
        across = sum(not at[x["h"]] & at[x["t"]] for x in document["labels"])
        words, mentions = (sum(map(len, document[x])) for x in ("sents", "vertexSet"))
        counts = words, len(at), mentions, len(document["labels"]), across
        totals = [x + y for x, y in zip(totals, counts, strict=True)]
        title, row = document["title"], " | ".join(map(str, counts))
        assert f"| [{title.replace('_', ' ')}]({title}.txt) | {row} |" in page
    share = f"({totals[-1] / totals[-2]:.0%})".replace("%", " %")
    assert f"| all | {' | '.join(f'{x:,}' for x in totals)} {share} |" in page
    relations = {x["r"] for document in articles() for x in document["labels"]}
    assert f"{len(relations)} different relations" in page


def test_relations_are_scored_by_the_names_of_their_entities(tmp_path, capsys):
    """Two right (one of them by another mention's name, and found twice), one wrong, and one with
    an entity that is not marked."""
    document = articles()[0]
    first, second = document["labels"][:2]

    def found(label, name=None):
        ends = {}
        for end, key in ("head", "h"), ("tail", "t"):
            last = document["vertexSet"][label[key]][-1]["name"].upper()
            ends[end] = {"name": last, "mentions": [{"name": last}]}
        if name:
            ends["tail"] = {"name": name, "mentions": [{"name": name}]}
        return {**ends, "relation": label["r"]}

    relations = [found(first), found(first), found(second), found(first | {"r": "P1"})]
    relations.append(found(first, "Nobody"))
    parts = [f"{document['title']}, part {i} of 2" for i in (1, 2)]
    records = [{"title": x, "relations": relations} for x in (document["title"], *parts)]
    where = ["--pred", str(tmp_path / "found.json"), "--truth", str(FOLDER / "articles.json")]
    write_json(tmp_path / "found.json", records)
    score_by_name.main(where)
    assert capsys.readouterr().out == (
        "4 found, 260 in the truth, 2 right\nprecision 50.0, recall 0.8, F1 1.5\n"
    )
    write_json(tmp_path / "found.json", [{"title": "T", "h_idx": 0, "t_idx": 1, "r": "P17"}])
    with pytest.raises(InputError, match=r"not as predict.py writes it .*\[0\].relations: missing"):
        score_by_name.main(where)


def test_where_places_lie_in_the_train_documents():
    """Of the documents with one tail of P17, the other places that have P17 with it."""
    documents, place, apart = 0, [], []
    for document in read(shared("redocred-2612/train_revised.json")):
        facts = [x for x in document["labels"] if x["r"] == "P17"]
        if len({x["t"] for x in facts}) != 1:
            continue
        documents, country = documents + 1, facts[0]["t"]
        heads = {x["h"] for x in facts}
        of = [{m["sent_id"] for m in mentions} for mentions in document["vertexSet"]]
        for i, mentions in enumerate(document["vertexSet"]):
            if i != country and mentions[0]["type"] == "LOC":
                place.append(i in heads)
                if not of[i] & of[country]:
                    apart.append(i in heads)
    said = " ".join((ROOT / "docs/articles/README.md").read_text().split())
    assert f"Of the 2,612, {documents:,} name just one country" in said
    shares = [f"{100 * sum(x) / len(x):.0f} %" for x in (place, apart)]
    assert "there {} of the other places have P17 with it, and {} of those".format(*shares) in said
