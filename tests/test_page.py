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
        self.resize(1366, 768)

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

    def resize(self, width, height):
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self("Emulation.setDeviceMetricsOverride", **size)
        frames = "new Promise(x => requestAnimationFrame(() => requestAnimationFrame(x)))"
        self("Runtime.evaluate", expression=frames, awaitPromise=True)  # the page has seen it

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
        """The middle of an element; of an edge of the graph, of its line."""
        if selector.startswith("[data-edge"):
            line = f"document.querySelector('{selector} .line')"
            half = f"{line}.getPointAtLength({line}.getTotalLength() / 2)"
            middle = f"{half}.matrixTransform({line}.getScreenCTM())"
            return self.value(f"(p => ({{x: p.x, y: p.y}}))({middle})")
        box = f"document.querySelector('{selector}').getBoundingClientRect()"
        return self.value(f"(b => ({{x: b.x + b.width / 2, y: b.y + b.height / 2}}))({box})")

    def point(self, selector):
        self("Input.dispatchMouseEvent", type="mouseMoved", **self.centre(selector))

    def click(self, selector):
        self.click_at(self.centre(selector))

    def click_at(self, place):
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


MARKUP = "</text><script>document.title=1</script>"
LIST, GRAPH = "#view=list", "#view=graph"


def connected(entities, number, seed=3):
    """A document without labels, its record with `number` relations, of which some share a pair."""
    document = make_document(random.Random(seed), entities, title="Connected")
    del document["labels"]
    rng, relations = random.Random(seed), []
    for k in range(number):
        head = k % entities
        tail = (head + rng.choice([1, 1, 2, 5])) % entities
        relations.append(fact(head, tail, f"P{k}", 9 - k / 16))
    return document, {"title": "Connected", "relations": relations}


def written_page(folder, *pair):
    page.write_page(folder / "page.html", [pair], 1)
    return folder / "page.html"


def edges(browser):
    """(head, relation, tail) of every edge, by its name for those who cannot see it."""
    names = browser.value("[...document.querySelectorAll('.edge')].map(x => x.ariaLabel)")
    return [tuple(name.split(", ")) for name in names]


def nodes(browser):
    return browser.value("[...document.querySelectorAll('.node')].map(x => +x.dataset.node)")


def boxes(browser, selector):
    return browser.value(
        f"[...document.querySelectorAll('{selector}')].map(x => x.getBoundingClientRect())"
        ".map(b => [b.left, b.top, b.right, b.bottom])"
    )


def assert_apart(browser):
    """Labels hold their text, do not overlap, and lie inside the drawing."""
    labels, (frame,) = boxes(browser, ".node rect"), boxes(browser, "#drawing")
    texts = boxes(browser, ".node text")
    for box, text in zip(labels, texts, strict=True):
        assert box[0] <= text[0] and text[2] <= box[2] and box[1] <= text[1] and text[3] <= box[3]
        assert frame[0] <= box[0] and box[2] <= frame[2]
        assert frame[1] <= box[1] and box[3] <= frame[3]
    for i, a in enumerate(labels):
        for b in labels[:i]:
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def triples(relations):
    return [
        (f"Name {x['head']['entity']}", x["name"], f"Name {x['tail']['entity']}") for x in relations
    ]


def test_graph_is_that_of_the_record(browser, written):
    record = labelled()[1]
    browser.open(written, GRAPH)
    assert edges(browser) == triples(record["relations"] + record["missed"])
    assert sorted(nodes(browser)) == [0, 1, 2, 3, 4]
    assert browser.texts(".node text") == [f"Name {e}" for e in nodes(browser)]
    browser.click('[data-filter="FN_IRK"]')
    assert edges(browser) == triples(record["missed"][2:3]) and sorted(nodes(browser)) == [2, 3]
    style = "getComputedStyle(document.querySelector('.edge')).strokeDasharray"
    assert browser.value(style) != "none"
    browser.click('[data-filter="wrong"]')
    colour = "getComputedStyle(document.querySelector('{}')).color"
    assert browser.value(style) == "none"
    assert browser.value(colour.format(".edge")) == browser.value(colour.format(".fact .status"))


def test_arrow_heads_point_at_the_tails(browser, written):
    browser.open(written, GRAPH)
    for i, (_, _, tail) in enumerate(edges(browser)):
        (tip,) = boxes(browser, f'[data-edge="{i}"] .tip')
        (label,) = boxes(browser, f'[data-node="{tail.split()[1]}"] rect')
        assert tip[0] <= label[2] + 1 and label[0] <= tip[2] + 1
        assert tip[1] <= label[3] + 1 and label[1] <= tip[3] + 1


def test_which_view_comes_first_and_that_the_address_keeps_it(browser, written):
    def shown():
        height = "document.getElementById('{}').offsetHeight > 0"
        pressed = browser.texts('#views [aria-pressed="true"]')
        found = [x for x in ("graph", "list") if browser.value(height.format(x))]
        assert pressed == found
        return found

    for fragment, first in (("#document=0", "list"), ("#document=1&view=x", "graph")):
        browser.open(written, fragment)
        assert shown() == [first]
    browser.click('[data-view="list"]')
    assert shown() == ["list"]
    fragment = browser.value("location.hash")
    assert "view=list" in fragment and "document=1" in fragment
    browser.open(written, fragment)
    assert shown() == ["list"]
    browser.open(written, GRAPH)
    assert shown() == ["graph"]


def test_an_edge_selects_what_its_row_does(browser, written):
    document, record = labelled()
    for i, relation in enumerate(record["relations"] + record["missed"]):
        browser.open(written, LIST)
        browser.click(f'[data-fact="{i}"]')
        browser.point("h1")
        expected = state(browser)
        browser.open(written, GRAPH)
        browser.point(f'[data-edge="{i}"]')
        assert state(browser) == expected
        browser.point("h1")
        assert state(browser)["head"] == [] and browser.texts("#name text") == []
        browser.click(f'[data-edge="{i}"]')
        browser.point("h1")
        assert state(browser) == expected and browser.texts("#name text") == [relation["name"]]
        assert_shows(browser, document, relation)
        assert f"relation={i}" in browser.value("location.hash")
        pressed = "[...document.querySelectorAll('[aria-pressed=true][data-{0}]')]"
        for kind in ("edge", "fact"):
            chosen = browser.value(pressed.format(kind) + f".map(x => x.dataset.{kind})")
            assert chosen == [str(i)]
        ((left, top, _, _),) = boxes(browser, "#drawing")
        browser.click_at({"x": left + 2, "y": top + 2})  # empty space
        assert state(browser) == expected


def test_a_node_shows_its_relations_alone(browser, written):
    document, record = labelled()
    browser.open(written, GRAPH + "&relation=1")
    browser.click('[data-node="3"]')
    for _ in range(2):  # also after a look at another relation
        lit = browser.texts(".words mark.lit")
        assert sorted(lit) == sorted(mention_texts(document, 3))
        numbers = "[...document.querySelectorAll('.edge.on')].map(x => +x.dataset.edge)"
        assert browser.value(numbers) == [3, 4] and "Name 3" in browser.texts("#detail")[0]
        assert len(browser.texts(".fact.dim")) == 4 and state(browser)["head"] == []
        browser.point('[data-edge="0"]')
        assert browser.texts(".words mark.lit") == [] and state(browser)["head"]
        browser.point("h1")
    browser.click('[data-node="3"]')
    assert browser.texts("mark.lit") == []
    browser.click('[data-node="3"]')
    browser.press("Escape")
    assert browser.texts("mark.lit") == [] and browser.texts(".edge.on, .fact.dim") == []


def test_graph_by_keyboard(browser, written):
    document, record = labelled()
    browser.open(written, GRAPH)
    for key in ("ArrowDown", "ArrowDown", "ArrowDown", "ArrowUp"):
        browser.press(key)
    assert_shows(browser, document, record["relations"][1])
    focus = "getComputedStyle(document.querySelector('.edge:focus-visible .area')).stroke"
    assert browser.value(focus) == "rgb(188, 211, 242)"
    browser.press("Enter")
    browser.point("h1")
    assert "relation=1" in browser.value("location.hash")
    browser.press("Escape")
    assert state(browser)["head"] == [] and "relation" not in browser.value("location.hash")
    browser.value("document.querySelectorAll('.node')[0].focus()")
    browser.press("Enter")
    assert browser.texts("mark.lit")


def test_labels_lie_apart(browser, tmp_path):
    document, record = connected(20, 35)
    for k, mentions in enumerate(document["vertexSet"]):
        mentions[0]["name"] = f"Name {k} of the county"[: 8 + k]
    path = written_page(tmp_path, document, record)
    for size in ((1366, 768), (390, 844)):
        browser.resize(*size)
        browser.open(path)
        assert len(nodes(browser)) == 20 and len(edges(browser)) == 35
        assert_apart(browser)
    browser.resize(1366, 768)
    assert_apart(browser)  # laid out anew
    size = "document.querySelector('.node text').getScreenCTM().a * 12"
    assert browser.value(size) >= 11


def test_relations_of_one_pair_stay_apart(browser, tmp_path):
    document = plain()[0]
    ends = [(0, 1)] * 3 + [(1, 0)] * 2 + [(2, 2)] * 2
    relations = [fact(*pair, f"P{k}", 9 - k) for k, pair in enumerate(ends)]
    browser.open(written_page(tmp_path, document, {"title": "", "relations": relations}))
    for i in range(len(ends)):
        browser.click(f'[data-edge="{i}"]')
        assert f"relation={i}" in browser.value("location.hash")
    assert_apart(browser)


def test_lines_stay_inside(browser, tmp_path):
    document, record = connected(12, 24)
    record["relations"] += [fact(e, e, "P1", 1.0) for e in range(12)]
    browser.open(written_page(tmp_path, document, record))
    (frame,) = boxes(browser, "#drawing")
    for line in boxes(browser, ".edge .line"):
        assert frame[0] <= line[0] and frame[1] <= line[1]
        assert line[2] <= frame[2] and line[3] <= frame[3]


def test_more_entities_than_are_readable(browser, tmp_path):
    document, record = connected(60, 95)
    browser.open(written_page(tmp_path, document, record))
    kept, entities = [], set()
    for relation in record["relations"]:
        entities |= {relation["head"]["entity"], relation["tail"]["entity"]}
        if len(entities) > 40:
            break
        kept.append(relation)
    assert edges(browser) == triples(kept) and 38 < len(nodes(browser)) <= 40
    note = f"The strongest {len(kept)} of 95 relations; all are in the list."
    assert browser.texts("#note") == [note] and len(browser.texts(".fact")) == 95
    assert_apart(browser)


def test_hostile_names_in_the_graph(browser, tmp_path):
    document, record = connected(7, 12)
    names = [MARKUP, "W" * 300, "", "\u0645\u062f\u064a\u0646\u0629 " * 9]
    names += ["\u202e reversed", HOSTILE, "\u6771" * 30]
    for name, mentions in zip(names, document["vertexSet"], strict=True):
        mentions[0]["name"] = name
    record["relations"].append(fact(0, 0, "P1", 5.0))
    record["relations"][0]["name"] = MARKUP * 9
    path = written_page(tmp_path, document, record)
    for width in (1366, 390):
        browser.resize(width, 800)
        browser.open(path, GRAPH + "&relation=0")
        assert len(nodes(browser)) == 7 and len(edges(browser)) == 13
        titles = dict(zip(nodes(browser), browser.texts(".node title"), strict=True))
        assert [titles[e] for e in range(7)] == names
        assert browser.value("document.scripts.length") == 2
        assert browser.value("document.title") == "Relations"
        assert browser.value("document.documentElement.scrollWidth <= innerWidth")
        assert_apart(browser)
    browser.resize(1366, 768)


def test_on_a_phone(browser, written):
    """Text, detail, and list or graph one under the other; nothing is wider than the window."""
    browser.resize(390, 844)
    for fragment in (GRAPH, LIST):
        browser.open(written, fragment + "&relation=0")
        assert browser.value("document.documentElement.scrollWidth <= innerWidth")
        parts = boxes(browser, "article, #detail, #shown")
        assert all(a[3] <= b[1] + 1 for a, b in zip(parts, parts[1:], strict=False))
        assert all(left >= 0 and right <= 390 for left, _, right, _ in parts)
    cut = "[...document.querySelectorAll('.fact span')].filter(x => x.scrollWidth > x.clientWidth)"
    assert browser.value(cut + ".filter(x => x.clientWidth).length") == 0
    browser.resize(1366, 768)


def test_print(browser, written):
    """Text, graph and list in this order, whole, without what cannot be pressed on paper."""
    browser.resize(794, 1123)
    for fragment in (GRAPH, LIST):
        browser.open(written, fragment + "&relation=0")
        browser("Emulation.setEmulatedMedia", media="print")
        parts = boxes(browser, "article, #graph, #list")
        assert all(bottom - top > 100 for _, top, _, bottom in parts)
        assert all(a[3] <= b[1] + 1 for a, b in zip(parts, parts[1:], strict=False))
        hidden = boxes(browser, "header, #filters, #views, button:not(.fact), select")
        assert all(box == [0, 0, 0, 0] for box in hidden)
        assert len(boxes(browser, ".fact")) == 6
        boxed = "[...document.querySelectorAll('article, aside, #facts, .fact span')]"
        scrolls = ".filter(x => getComputedStyle(x).overflow !== 'visible').length"
        assert browser.value(boxed + scrolls) == 0
        browser("Emulation.setEmulatedMedia", media="")
    browser.resize(1366, 768)


def test_contrast_of_the_graph(browser, written):
    """Of the labels at rest, beside a chosen relation, beside a chosen entity."""
    browser.open(written, GRAPH)
    for click in (None, '[data-edge="0"]', '[data-node="4"]'):
        if click:
            browser.click(click)
        pairs = browser.value(
            "[...document.querySelectorAll('.node')].map(n => ['text', 'rect'].map("
            "x => getComputedStyle(n.querySelector(x)).fill.match(/\\d+/g)))"
        )
        for pair in pairs:
            text, box = ("#" + "".join(f"{int(x):02x}" for x in channels) for channels in pair)
            assert contrast(text, box) > 4.5


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
