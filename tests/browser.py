"""A headless Chromium for the tests of the page, and what they show in it."""

import json
import os
import random
import shutil
import subprocess
import time
from select import select

from conftest import lacking, make_document

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
            assert select([self.answers], [], [], 30)[0], "the browser does not answer"
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
        deadline = time.monotonic() + 30
        while self.value("document.readyState + location.protocol") != "completefile:":
            assert time.monotonic() < deadline, "the page does not load"

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
