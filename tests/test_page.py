"""The page of relations as a list, in a real browser (CHROMIUM names one); skipped without one."""

import json
import re
from html.parser import HTMLParser

from browser import (
    HOSTILE,
    assert_shows,
    labelled,
    plain,
    state,
)
from conftest import REL2ID

from inputs.span_documents import as_docred
from viewing import page


def test_selecting_a_relation_by_mouse(browser, written):
    document, record = labelled()
    browser.open(written)
    assert state(browser)["head"] == [] and "Point at a relation" in state(browser)["detail"]
    browser.point('[data-fact="1"]')
    assert_shows(browser, document, record["relations"][1])
    browser.point("h1")
    assert state(browser)["head"] == []
    browser.click('[data-fact="2"]')
    browser.point("h1")
    assert_shows(browser, document, record["missed"][0])
    assert browser.texts('.fact[aria-pressed="true"]')[0].startswith("Name 0name of P131Name 2")
    assert browser.texts(".gutter")[:3] == ["010 %", "1", "240 %"]


def test_selecting_a_relation_by_keyboard(browser, written):
    document, record = labelled()
    browser.open(written)
    browser.press("ArrowDown")
    assert_shows(browser, document, record["relations"][0])
    browser.press("ArrowDown")
    browser.press("ArrowDown")
    browser.press("ArrowUp")
    browser.press("Enter")
    assert_shows(browser, document, record["relations"][1])
    browser.press("Tab")
    browser.press("Escape")
    assert state(browser)["head"] == [] and state(browser)["attended"] == []


def test_gold_and_predicted_side_by_side(browser, written):
    browser.open(written)
    rows = browser.value(
        "[...document.querySelectorAll('.fact')].map(r => [...r.children].map(x => x.textContent))"
    )
    assert [row[3:] for row in rows] == [
        ["+2.50", "✓", "✓", "correct"],
        ["+0.25", "–", "✓", "wrong"],
        ["−1.50", "✓", "–", "FN_CRK"],
        ["−2.00", "✓", "–", "FN_CRK"],
        ["−3.00", "✓", "–", "FN_IRK"],
        ["−4.00", "✓", "–", "missed"],
    ]
    assert rows[2][:3] == ["Name 0", "name of P131", "Name 2"]


def test_filters(browser, written):
    document, record = labelled()
    browser.open(written)
    assert browser.texts("#filters button") == [
        "all 6", "correct 1", "wrong 1", "FN_CRK 2", "FN_IRK 1", "missed 1",
    ]  # fmt: skip
    browser.click('[data-filter="FN_CRK"]')
    assert browser.texts(".fact .status") == ["FN_CRK", "FN_CRK"]
    assert browser.texts('#filters [aria-pressed="true"]') == ["FN_CRK 2"]
    browser.click('[data-fact="3"]')
    assert_shows(browser, document, record["missed"][1])
    browser.click('[data-filter="wrong"]')
    assert browser.texts(".fact .status") == ["wrong"]
    browser.click('[data-filter="all"]')
    assert len(browser.texts(".fact")) == 6


def test_address_keeps_what_is_shown(browser, written):
    document, record = labelled()
    browser.open(written)
    browser.click('[data-filter="FN_CRK"]')
    browser.click('[data-fact="2"]')
    fragment = browser.value("location.hash")
    browser.open(written, fragment)
    assert browser.texts(".fact .status") == ["FN_CRK", "FN_CRK"]
    assert_shows(browser, document, record["missed"][0])
    browser.open(written, "#document=99&relation=-1&show=constructor")
    assert browser.texts("article h2") == ["Labelled"] and len(browser.texts(".fact")) == 6


def test_other_documents_and_how_many_there_are(browser, written):
    browser.open(written)
    assert browser.texts("#extent") == ["the first 2 of 7 documents"]
    assert browser.texts("option") == ["0: Labelled", "1: Plain"]
    browser.click('[data-filter="FN_CRK"]')
    browser.click("#next")
    assert browser.texts("article h2") == ["Plain"]
    assert browser.texts("#filters button") == ["all 2"]
    scores = browser.texts(".fact .score")
    assert scores == ["+3.00", "+1.00"] and not browser.texts(".fact .status")
    document = plain()[0]
    words = "".join("".join(words) for words in document["sents"])
    assert "".join("".join(browser.texts(".words")).split()) == words
    browser.click("#previous")
    assert browser.texts("article h2") == ["Labelled"]


def test_hostile_text_stays_text(browser, tmp_path):
    """In the title, the words, the names, the types and the relations' names."""
    document, record = labelled(HOSTILE)
    document["sents"][0][0] = HOSTILE
    for mentions in document["vertexSet"]:
        for mention in mentions:
            mention |= {"name": HOSTILE, "type": HOSTILE}
    document["vertexSet"][0][0]["type"] = "constructor"  # what every object of JavaScript has
    for relation in record["relations"] + record["missed"]:
        relation["name"] = HOSTILE
    page.write_page(tmp_path / "page.html", [(document, record)], 1)
    browser.open(tmp_path / "page.html")
    browser.click('[data-fact="0"]')
    assert browser.texts("h2") == [HOSTILE] and browser.texts("option") == [f"0: {HOSTILE}"]
    assert browser.texts(".words")[0].startswith(HOSTILE)
    assert HOSTILE in browser.texts("#detail .relation")[0]
    assert browser.value("document.title") == "Relations"
    assert browser.value("document.querySelectorAll('img').length") == 0
    assert browser.value("document.scripts.length") == 2


def test_nothing_is_asked_of_the_network(browser, written):
    browser.open(written)
    browser.click('[data-fact="0"]')
    assert {x.split(":")[0] for x in browser.requests} <= {"file"}
    assert len({x.split("#")[0] for x in browser.requests}) <= 1
    text = written.read_text()
    assert not re.search(r"""https?://|\bsrc=|@import|url\(|<link""", text)


class Data(HTMLParser):
    """The text of the data element, as a parser of HTML sees it, and the tags of the page."""

    def __init__(self):
        super().__init__()
        self.tags, self.text, self.inside = [], "", False

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.inside = dict(attributes).get("id") == "data"

    def handle_data(self, data):
        self.text += data if self.inside else ""


def test_data_survives_a_parser_of_html(tmp_path):
    """Needs no browser: no text can end the element that holds it; half a character is kept."""
    title = HOSTILE + "PAGE_DATA <!-- \ud800 \u2028"
    page.write_page(tmp_path / "page.html", [plain(title)], 1)
    data, plain_data = Data(), Data()
    data.feed((tmp_path / "page.html").read_text())
    page.write_page(tmp_path / "other.html", [plain()], 1)
    plain_data.feed((tmp_path / "other.html").read_text())
    assert json.loads(data.text.strip())["documents"][0]["title"] == title
    assert data.tags == plain_data.tags


def test_runs_of_nested_and_overlapping_mentions():
    text = "New York City Hall, (Paris)"
    spans = {0: "New York City", 1: "York City Hall", 2: "York", 3: "Paris"}
    entities = [
        [{"start": text.index(part), "end": text.index(part) + len(part)}]
        for part in spans.values()
    ]
    expected = [
        ["New ", [0]], ["York", [2, 0, 1]], [" City", [0, 1]], [" Hall", [1]],
        [", (", []], ["Paris", [3]], [")", []],
    ]  # fmt: skip
    document = as_docred({"text": text, "entities": entities}, 0, REL2ID)
    assert page._runs(document, 0) == expected
    docred = {name: document[name] for name in ("sents", "vertexSet")}
    assert page._runs(docred, 0) == expected
