"""The page of relations, in a real browser; skipped where there is none. CHROMIUM names one."""

import base64
import json
import os
import random
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from conftest import NO_TEST, REL2ID, lacking, make_document

from inputs.texts import as_docred
from viewing import page

NAMES = "chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome"
HOSTILE = (
    '</script><script>document.title="broken"</script><img src=x onerror="document.title=1"> & \''
)


class Browser:
    """A headless Chromium, spoken to in its own protocol over two pipes (its files 3 and 4)."""

    def __init__(self, program, folder):
        commands, self.commands = os.pipe()
        self.answers, answers = os.pipe()
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe"]
        flags += ["--window-size=1366,768", f"--user-data-dir={folder}", "--no-first-run"]
        shell = f'exec "$@" 3<&{commands} 4>&{answers}'
        self.process = subprocess.Popen(
            ["bash", "-c", shell, "-", program, *flags, "about:blank"],
            pass_fds=(commands, answers), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(commands), os.close(answers)
        self.number, self.buffer, self.session = 0, b"", None
        (target,) = [
            x["targetId"] for x in self("Target.getTargets")["targetInfos"] if x["type"] == "page"
        ]
        attached = self("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        self("Page.enable")
        self.requests = []
        self("Network.enable")
        size = {"width": 1366, "height": 768, "deviceScaleFactor": 1, "mobile": False}
        self("Emulation.setDeviceMetricsOverride", **size)

    def message(self):
        while b"\0" not in self.buffer:
            block = os.read(self.answers, 1 << 20)
            assert block, "the browser ended"
            self.buffer += block
        text, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(text)

    def __call__(self, method, **parameters):
        """Sends a command and waits for its answer; notes what the page asks the network for."""
        self.number += 1
        session = {"sessionId": self.session} if self.session else {}
        content = {"id": self.number, "method": method, "params": parameters} | session
        os.write(self.commands, json.dumps(content).encode() + b"\0")
        while True:
            answer = self.message()
            if answer.get("method") == "Network.requestWillBeSent":
                self.requests.append(answer["params"]["request"]["url"])
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return answer["result"]

    def open(self, path, fragment=""):
        self("Page.navigate", url="about:blank")  # or a fragment alone would not load it anew
        self.requests = []
        self("Page.navigate", url=path.as_uri() + fragment)
        while self.value("document.readyState + location.protocol") != "completefile:":
            pass

    def value(self, expression):
        result = self("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def texts(self, selector):
        return self.value(f"[...document.querySelectorAll('{selector}')].map(x => x.textContent)")

    def centre(self, selector):
        box = f"document.querySelector('{selector}').getBoundingClientRect()"
        return self.value(f"(b => ({{x: b.x + b.width / 2, y: b.y + b.height / 2}}))({box})")

    def point(self, selector):
        self("Input.dispatchMouseEvent", type="mouseMoved", **self.centre(selector))

    def click(self, selector):
        place = self.centre(selector)
        for kind in ("mousePressed", "mouseReleased"):
            self("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **place)

    def press(self, key):
        codes = {"Tab": 9, "Enter": 13, "Escape": 27, "ArrowUp": 38, "ArrowDown": 40}
        text = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            key_code = {"key": key, "code": key, "windowsVirtualKeyCode": codes[key]}
            self("Input.dispatchKeyEvent", type=kind, **key_code, **text)

    def close(self):
        self.process.terminate()
        self.process.wait()
        os.close(self.commands), os.close(self.answers)


def find_browser():
    program = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    return program or lacking("a Chromium or Chrome on the PATH, or named by CHROMIUM")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(find_browser(), tmp_path_factory.mktemp("browser"))
    yield browser
    browser.close()


def test_a_missing_browser_fails_under_ci_alone(monkeypatch):
    monkeypatch.delenv("CHROMIUM", raising=False)
    monkeypatch.setenv("PATH", "")
    for setting, outcome in zip(("true", ""), NO_TEST, strict=True):
        monkeypatch.setenv("CI", setting)
        with pytest.raises(NO_TEST, match="needs a Chromium") as raised:
            find_browser()
        assert raised.type is outcome


def fact(head, tail, relation, score, **more):
    sentences = [{"sentence": 2, "weight": 0.4}, {"sentence": 0, "weight": 0.1}]
    ends = {"head": {"entity": head}, "tail": {"entity": tail}}
    name = {"relation": relation, "name": f"name of {relation}"}
    shown = {"score": score, "sentences": sentences, "evidence": [2]}
    return ends | name | shown | more


def labelled(title="Labelled"):
    """A document with labels, and a record with one relation of every kind."""
    document = make_document(random.Random(1), 5, title=title)
    relations = [
        fact(0, 1, "P17", 2.5, correct=True),
        fact(1, 0, "P27", 0.25, correct=False),
    ]
    missed = [
        fact(0, 2, "P131", -1.5, pattern="FN_CRK"),
        fact(3, 4, "P150", -2.0, pattern="FN_CRK"),
        fact(2, 3, "P19", -3.0, pattern="FN_IRK"),
        fact(0, 1, "P20", -4.0, pattern="FP"),
    ]
    return document, {"title": title, "relations": relations, "missed": missed}


def plain(title="Plain"):
    document = make_document(random.Random(2), 4, title=title)
    del document["labels"]
    relations = [fact(0, 1, "P17", 1.0), fact(2, 3, "P27", 3.0)]
    return document, {"title": title, "relations": relations}


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "page.html"
    page.write_page(path, [labelled(), plain()], 7)
    return path


def state(browser):
    """What the page shows of the selected relation."""
    return {
        "head": browser.texts("mark.head"),
        "tail": browser.texts("mark.tail"),
        "attended": browser.value(
            "[...document.querySelectorAll('.sentence')].map((x, i) => "
            "x.classList.contains('attended') ? i : -1).filter(i => i >= 0)"
        ),
        "detail": browser.texts("#detail")[0],
    }


def mention_texts(document, entity):
    """The pieces that a mention of the entity is shown in; overlaps cut a mention."""
    runs = [run for i in range(len(document["sents"])) for run in page._runs(document, i)]
    return [text for text, entities in runs if entity in entities]


def assert_shows(browser, document, relation):
    shown = state(browser)
    head, tail = relation["head"]["entity"], relation["tail"]["entity"]
    assert set(shown["head"]) == set(mention_texts(document, head)) != set()
    assert set(shown["tail"]) <= set(mention_texts(document, tail)) and shown["tail"]
    assert shown["attended"] == [0, 2]
    for text in (f"headName {head}", f"tailName {tail}", relation["name"], "40 %", "10 %"):
        assert text in shown["detail"]
    sign = "above" if relation["score"] > 0 else "below"
    assert f"{abs(relation['score']):.2f}, {sign} the threshold" in shown["detail"]


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
    assert browser.texts('[aria-pressed="true"]') == ["FN_CRK 2"]
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


def test_document_without_anything(browser, tmp_path):
    document = as_docred({"text": "", "entities": []}, 0, REL2ID)
    page.write_page(tmp_path / "page.html", [(document, {"title": "", "relations": []})], 1)
    browser.open(tmp_path / "page.html")
    assert browser.texts("article h2") == ["document 0"]
    assert browser.texts("#facts") == ["No relation was found."]
    assert browser.texts("#extent") == ["1 document"]


def test_nothing_is_asked_of_the_network(browser, written):
    browser.open(written)
    browser.click('[data-fact="0"]')
    assert {x.split(":")[0] for x in browser.requests} <= {"file"}
    assert len({x.split("#")[0] for x in browser.requests}) <= 1
    text = written.read_text()
    assert not re.search(r"""https?://|\bsrc=|@import|url\(|<link""", text)


def test_fits_the_window(browser, written):
    """No scroll bars of the whole page, nothing beside it, text of enough contrast."""
    browser.open(written)
    browser.click('[data-fact="0"]')
    assert browser.value("document.documentElement.scrollHeight <= innerHeight")
    assert browser.value("document.documentElement.scrollWidth <= innerWidth")
    picture = base64.b64decode(browser("Page.captureScreenshot")["data"])
    assert picture[:8] == b"\x89PNG\r\n\x1a\n" and len(picture) > 20_000


def luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in channels]
    return sum(w * x for w, x in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(colour, other):
    low, high = sorted((luminance(colour), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_of_colours():
    """At least 4.5 to 1 of text, as WCAG asks for."""
    text = page.TEMPLATE.read_text()
    tints = re.findall(r'\["(#\w{6})", "#\w{6}"\]', text)
    assert len(tints) == 6 and all(contrast("#14181d", tint) > 7 for tint in tints)
    variables = dict(re.findall(r"--(\w+): (#\w{6})", text))
    assert all(contrast("#ffffff", variables[name]) > 4.5 for name in ("head", "tail", "quiet"))
    assert all(contrast(variables["quiet"], tint) > 4.5 for tint in tints)  # the legend
    statuses = re.findall(r"\.status \{ color: (#\w{6})", text)
    assert len(statuses) == 3 and all(contrast("#eaf1fb", colour) > 4.5 for colour in statuses)


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


def test_limit_of_documents(tmp_path):
    assert Path(page.TEMPLATE).read_text().count("PAGE_DATA") == 1
    assert page.LIMIT == 50
