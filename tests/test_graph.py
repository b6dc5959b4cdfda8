"""The page's drawing of the relations, in a real browser; skipped where there is none."""

import random

from browser import HOSTILE, assert_shows, fact, labelled, mention_texts, state
from conftest import make_document

from viewing import page

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
