"""The numbers of results/: once more from the committed predictions, with a scorer of its own
that needs the documents (SHARED_DIR); and those of the pages, from the results and reports."""

import gc
import json
import math
import re
import tempfile
from collections import Counter
from functools import lru_cache

import convert_bio
import make_tables
import pytest
import select_documents
from conftest import ROOT, read, shared

from evaluation import RATIOS
from inputs.files import InputError, read_json, sha256_of
from reporting.groups import find_runs, group_runs
from reporting.tables import frame_of, group_tables

RUNS = ROOT / "results/redocred-992"
DATA = {  # folder of results/ -> folder of SHARED_DIR
    "redocred-992": "redocred-992",
    "redocred-992-mpnet": "redocred-992",
    "redocred-992-10-epochs": "redocred-992",
    "redocred-2612-5-epochs": "redocred-2612",
    "redocred-2612-8-epochs": "redocred-2612",
    "redocred-2612-teachers": "redocred-2612",
    "redocred-2612-types": "redocred-2612",
    "docred-2245": "docred-2245",
    "redocred-2245": "redocred-2245",
    "precision/mini": "redocred-mini",
    "cdr": "cdr",
}
REPORTS = (
    "redocred-992",
    "redocred-992-mpnet",
    "redocred-992-10-epochs",
    "redocred-2612-5-epochs",
    "redocred-2612-8-epochs",
    "docred-2245",
    "cdr",
)
# An older version's report, of runs that kept neither predictions nor logits.
OLD = "redocred-mini"


# --- Scores -----------------------------------------------------------------------------------


def documents_of(data):
    """The test and the training documents; CDR's as run_cdr.sh converts them."""
    if data in ("docred-2245", "redocred-2245"):
        labels = {"d": "docred-2415/train_annotated.json", "r": "redocred-2612/train_revised.json"}
        known = {x["title"]: x for x in read(shared(labels[data[0]]))}
        titles = (ROOT / "meta/titles_2245.txt").read_text().splitlines()
        return read(shared("redocred-2612/test_revised.json")), [known[title] for title in titles]
    if data != "cdr":
        return [read(shared(data) / f"{split}_revised.json") for split in ("test", "train")]
    documents = []
    for split in ("test", "train"):
        with tempfile.NamedTemporaryFile(suffix=".json") as file:
            source = shared(f"cdr/{split}_filter.data")
            convert_bio.main(["--corpus", "cdr", str(source), file.name])
            documents.append(read(file.name))
    return documents


@lru_cache
def gold_and_scorer(data):
    """The facts to be found (see `evidence_of`), and a function of predicted facts: F1, Ign F1,
    precision, recall and macro F1, in loops from the definitions."""
    truth, train = documents_of(data)
    names = {
        (document["title"], number): {x["name"] for x in mentions}
        for document in truth
        for number, mentions in enumerate(document["vertexSet"])
    }
    gold = evidence_of(truth)
    known = set()
    for document in train:
        for x in document["labels"]:
            for head in document["vertexSet"][x["h"]]:
                for tail in document["vertexSet"][x["t"]]:
                    known.add((head["name"], tail["name"], x["r"]))

    def f1(precision, recall):
        return 2 * precision * recall / (precision + recall) if precision + recall else 0.0

    def scores(given):
        right, seen = given & gold.keys(), 0
        for title, h, t, r in right:
            heads, tails = names[title, h], names[title, t]
            seen += any((a, b, r) in known for a in heads for b in tails)
        precision, recall = len(right) / len(given), len(right) / len(gold)
        found, there, both = (Counter(x[3] for x in part) for part in (given, gold, right))
        macro = [f1(both[r] / found[r] if found[r] else 0.0, both[r] / there[r]) for r in there]
        return {
            "f1": f1(precision, recall),
            "ign_f1": f1((len(right) - seen) / (len(given) - seen), recall),
            "precision": precision,
            "recall": recall,
            "macro_f1": sum(macro) / len(macro),
        }

    gc.freeze()  # halves the time: no collection goes through all of these again
    return gold, scores


def evidence_of(documents):
    """Fact (title, head, tail, relation) -> the sentences that are evidence for it."""
    facts = {}
    for document in documents:
        for x in document["labels"]:
            fact = document["title"], x["h"], x["t"], x["r"]
            facts.setdefault(fact, set()).update(x.get("evidence", ()))
    return facts


def predicted(path):
    """The facts of a submission."""
    return {(x["title"], x["h_idx"], x["t_idx"], x["r"]) for x in read_json(path)}


# The submission of test scores -> the part of results.json that has them.
SUBMISSIONS = {"predictions": None, "test_tuned": "tuned", "test_fused": "fusion"}


@pytest.mark.parametrize("run", [
    x.parent for name in DATA for x in sorted(ROOT.glob(f"results/{name}/*/results.json"))
], ids=lambda x: str(x.relative_to(ROOT)))  # fmt: skip
def test_results_are_those_of_the_predictions(run):
    results = read(run / "results.json")
    _, scores = gold_and_scorer(DATA[str(run.parent.relative_to(ROOT / "results"))])
    paths = [*run.glob("*.json.gz")]
    assert paths
    for path in paths:
        part = SUBMISSIONS[path.name.removesuffix(".json.gz")]
        test = (results[part] if part else results)["test"]
        found = scores(predicted(path))
        assert found == pytest.approx({name: test[name] for name in found}, abs=1e-6), path


def test_all_folders_with_predictions_are_scored():
    folders = {x.parent.parent for x in ROOT.glob("results/**/*.json.gz")}
    names = {str(x.relative_to(ROOT / "results")) for x in folders}
    assert names - {"precision/demo"} == DATA.keys()  # the demo's documents are made anew


@pytest.mark.parametrize("name", REPORTS)
def test_reports_have_the_scores_of_the_runs(name):
    """All tables of a report but the differences, which take minutes."""
    folder = ROOT / "results" / name
    groups = group_runs(find_runs(folder, folder / "report")[0])
    paper = read(ROOT / "meta/paper_results.json")
    for group, reported in zip(groups, read(folder / "report/report.json")["groups"], strict=True):
        tables = group_tables(frame_of(group), paper, group["of_paper"])
        assert group["data"] == reported["data"]
        assert rounded(tables) == rounded(reported["tables"])


def rounded(content):
    return json.loads(json.dumps(content), parse_float=lambda x: round(float(x), 9))


# --- Pages ------------------------------------------------------------------------------------


def text_of(page):
    return " ".join((ROOT / page).read_text().split())


def rows_of(page, first_column):
    """The first table of a page whose head starts so: a list of {column: cell}."""
    table = re.search(rf"(?m)^\| {first_column} \|.*\n(\|.*\n)+", page)[0].splitlines()
    head, _, *rows = ([cell.strip() for cell in row.strip("|").split("|")] for row in table)
    return [dict(zip(head, row, strict=True)) for row in rows]


def test_the_tables_of_the_pages_are_current():
    make_tables.main(["--check"])


@lru_cache
def significance(name="redocred-992"):
    (group,) = read(ROOT / f"results/{name}/report/report.json")["groups"]
    return group["significance"]


def test_the_intervals_in_the_text():
    """Every difference with an interval, as +2.04 F1 (1.18 to 2.90), is one of a report's."""
    known = set()
    for name in (*REPORTS, OLD):
        groups = read(ROOT / f"results/{name}/report/report.json")["groups"]
        found = [x for group in groups for x in group["significance"].values()]
        rows = [row for kind in found if isinstance(kind, list) for row in kind]
        rows = [row for row in rows if isinstance(row, dict)]
        for x in (x for row in rows for x in row.values() if isinstance(x, dict)):
            for low_high in ([x["low"], x["high"]], x.get("pooled", ())):
                numbers = abs(x["difference"]), *low_high
                known |= {tuple(f"{y:.{digits}f}" for y in numbers) for digits in (1, 2)}
    for scores in (
        read(x)["scores"].values() for x in ROOT.glob("results/*/report/compared/*.json")
    ):
        for x in scores:
            numbers = abs(x["difference"]), x["low"], x["high"]
            known.add(tuple(f"{y:.2f}" for y in numbers))
    ranked = [100 * read(x)["dev"]["FN_CRK/FN"] for x in RUNS.glob("ATL-seed*/results.json")]
    known.add(tuple(f"{x:.1f}" for x in (sum(ranked) / 5, min(ranked), max(ranked))))  # C5
    number = r"(-?\d+\.\d+)"
    interval = rf"(\d+\.\d+)[^(,|.]{{0,40}}[(,] ?(?:95 % interval )?{number} to {number}"
    found = re.findall(interval, text_of("README.md") + text_of("docs/results.md"))
    assert len(found) > 90
    unknown = set(found) - known
    assert not unknown


@pytest.mark.parametrize(
    "path", sorted(ROOT.glob("results/*/report/compared/*.json")), ids=lambda x: x.stem
)
def test_compared_runs_have_their_scores(path):
    """As scripts/compare.py computes them; a run may be in another folder, NAME-5-epochs is."""
    five, scores = ROOT / "results/redocred-2612-5-epochs", []
    for run in path.stem.removesuffix("-shifted").split("_minus_"):
        paths = path.parents[2] / f"{run}-seed66", five / f"{run.removesuffix('-5-epochs')}-seed66"
        results = read(next(x for x in paths if x.exists()) / "results.json")
        scores.append((results["tuned"] if path.stem.endswith("-shifted") else results)["test"])
    for score, x in read(path)["scores"].items():
        found = 100 * (scores[0][score] - scores[1][score])
        assert x["difference"] == pytest.approx(found, abs=1e-6), score


def test_the_verdicts():
    """The claims against the rule: a difference is shown if its interval leaves out 0."""
    page = (ROOT / "docs/results.md").read_text()
    claims = {
        row["claim"][:2]: re.findall(r"\*\*(.+?)\*\*", row["so far"])
        for row in rows_of(page, "claim")
    }
    losses = "ATL balance_softmax AML AFL SAT MeanSAT".split()
    micro = [compared("test", loss)[x] for loss in losses for x in ("f1", "ign_f1")]
    mpnet = [compared("test", "ATL", name="redocred-992-mpnet")[x] for x in ("f1", "ign_f1")]
    assert claims["C1"] == [verdict(micro), verdict(mpnet)] == ["holds", "contradicted"]
    ps = sorted(x["p"] for x in micro)
    assert all(p * (12 - i) < 0.05 for i, p in enumerate(ps)) and len(ps) == 12  # Holm

    errors = compared("patterns", "ATL")
    fewer = [{"low": -errors[x]["high"], "high": -errors[x]["low"]} for x in RATIOS]
    assert [verdict(fewer[1:]), verdict(fewer[:1])] == ["holds", "contradicted"]
    assert claims["C2"] == ["hold", "contradicted"]  # each loss at its own threshold
    macro = [compared("test", loss)["macro_f1"] for loss in losses]
    assert claims["C3"] == [verdict(macro[:5]), verdict(macro[5:])] == ["holds", "not shown"]
    backbones = [compared("test", "ATL"), compared("test", "balance_softmax", "docunet")]
    backbones = verdict([x["f1"] for x in backbones])
    kd_docre = verdict([compared("test", "AFL", "kd_docre")["f1"]])
    assert claims["C4"] == [backbones, kd_docre, verdict(mpnet[:1])]
    assert claims["C4"] == ["holds", "not shown", "contradicted"]


def compared(kind, against, backbone="atlop", name="redocred-992"):
    """What a report says of HingeABL."""
    pair = {"loss": "HingeABL", "backbone": backbone, "against": against}
    (row,) = (x for x in significance(name)[kind] if pair.items() <= x.items())
    return row


def verdict(differences):
    """None if they are not of one kind."""
    kinds = {
        "holds" if x["low"] > 0 else "contradicted" if x["high"] < 0 else "not shown"
        for x in differences
    }
    return kinds.pop() if len(kinds) == 1 else None


def test_what_a_shift_changes_in_the_text():
    """Verdicts, and the numbers of sentences, with the thresholds that are best on dev."""
    text, losses = text_of("docs/results.md"), "balance_softmax AML AFL SAT MeanSAT".split()
    verdicts = {x: verdict([compared("tuned", x)["f1"]]) for x in ("ATL", *losses)}
    assert {x for x, y in verdicts.items() if y == "not shown"} == {"ATL", "balance_softmax"}
    assert "stays ahead of AML, AFL, SAT and MeanSAT; over ATL and balance_softmax a lead" in text
    docunet = compared("tuned", "balance_softmax", "docunet")["f1"]
    assert verdict([docunet]) == "not shown"
    for kind, said in {"test": "difference of {} F1 (2.8", "tuned": "on dev, of {}."}.items():
        smallest = [2.8 * compared(kind, x)["f1"]["documents"] for x in ("ATL", *losses)]
        assert said.format(f"{min(smallest):.1f} to {max(smallest):.1f}") in text
        assert min(smallest) > 0.47  # the paper's margin over MeanSAT

    (group,) = group_runs(find_runs(RUNS, RUNS / "report")[0])
    frame = frame_of(group)
    means = frame[frame["backbone"] == "atlop"].groupby("loss").mean(numeric_only=True)
    means = means.loc[["ATL", *losses, "HingeABL"]]
    ceilings = means["tuned.test.f1"].drop(["AML", "MeanSAT"])
    f1 = means["test.f1"]
    said = f"over {f1.max() - f1.min():.1f} points of F1, the filled ones, but for AML's and Mean"
    assert f"{said}SAT's, over {ceilings.max() - ceilings.min():.1f}." in text
    more = means.loc["HingeABL"] - means.loc["ATL"]
    said = "fall of FN/F is gone ({:+.1f} points), and errors are level ({:+.2f})"
    assert said.format(*(more[f"tuned.dev.{x}"] for x in ("FN/F", "F/(T+F)"))) in text
    now, before = (-more[f"{kind}dev.FN_CRK/FN"] for kind in ("tuned.", ""))
    assert f"still lower (by {now:.1f} points, not {before:.1f})" in text
    irk = means["tuned.dev.FN_IRK"]
    assert f"wrongly, {irk['HingeABL']:,.0f} pairs instead of {irk['ATL']:,.0f}." in text


def test_f1_by_frequency_and_the_law():
    """A run's F1 of the rarest relations, and the law on mini's documents, from loops."""
    gold, train = gold_and_scorer("redocred-992")[0].keys(), documents_of("redocred-992")[1]
    counts = Counter(x["r"] for d in train for x in d["labels"])
    numbers = read_json(ROOT / "meta/rel2id.json")
    order = sorted(numbers.keys() - {"Na"}, key=lambda r: (-counts[r], numbers[r]))
    (group,) = read(RUNS / "report/report.json")["groups"]
    (table,) = (x for x in group["details"] if x["name"] == "Frequency")
    row = {"backbone": "dreeam", "loss": "ATL"}
    (cells,) = (x["cells"] for x in table["rows"] if row.items() <= x.items())
    for name, file in {"others": "predictions", "others shifted": "test_tuned"}.items():
        given = predicted(RUNS / f"dreeam-ATL-seed1/{file}.json.gz")
        given, there = ({x for x in facts if x[3] in order[60:]} for facts in (given, gold))
        f1 = 200 * len(given & there) / (len(given) + len(there))
        assert cells[name]["mean"] == pytest.approx(f1), name

    dense = []
    for split in ("train", "dev"):
        documents = read(shared("redocred-mini") / f"{split}_revised.json")
        pairs = sum(len(d["vertexSet"]) * (len(d["vertexSet"]) - 1) for d in documents)
        dense.append(sum(len(facts_of(d)) for d in documents) / pairs)
    runs = [read(x) for x in ROOT.glob("results/redocred-mini/ATL-*/results.json")]
    law = [
        math.log(f / (2 - f) * dense[0] / dense[1]) for f in (x["tuned"]["dev"]["f1"] for x in runs)
    ]
    found = sum(x["tuned"]["shift"] for x in runs) / 2
    (group,) = read(ROOT / "results/cdr/report/report.json")["groups"]
    (table,) = (x for x in group["details"] if x["name"] == "Law")
    (cells,) = (x["cells"] for x in table["rows"] if x["loss"] == "ATL")
    said = f"it asks {sum(law) / 2:.2f} of ATL, and {found:.2f} was found; on [CDR](#cdr) "
    said += f"{cells['shift by the law']['mean']:.2f}, and "
    said += "{mean:+.2f} ± {std:.2f} was found.".format(**cells["shift found"])
    assert said in text_of("docs/results.md")


def test_hingeabl_is_ahead_with_every_seed():
    text = text_of("docs/results.md")
    for loss in "ATL balance_softmax AML AFL SAT MeanSAT".split():
        runs = RUNS.glob(f"{loss}-seed*/results.json")
        pairs = [(RUNS / x.parent.name.replace(loss, "HingeABL") / x.name, x) for x in runs]
        lead = [100 * (read(x)["test"]["f1"] - read(y)["test"]["f1"]) for x, y in pairs]
        assert min(lead) > 0
        said = f"of {loss} by {min(lead):.2f} to {max(lead):.2f}" in text
        assert said or loss in ("AML", "MeanSAT")


def evidence_f1(path, gold):
    """Of the predictions but those that are right and whose evidence nobody named."""
    given = {}
    for x in read_json(path):
        fact = x["title"], x["h_idx"], x["t_idx"], x["r"]
        if gold.get(fact) != set():
            given.setdefault(fact, set(x.get("evidence", ())))
    right = sum(len(found & gold.get(fact, set())) for fact, found in given.items())
    number = sum(map(len, given.values()))
    return 2 * right / (number + sum(map(len, gold.values()))) if number else None


def test_the_table_of_evidence():
    gold, _ = gold_and_scorer("redocred-992")
    page = (ROOT / "docs/results.md").read_text()
    page = page[page.index("## Evidence and fusion") :]
    kinds = {"": "predictions", "threshold shifted": "test_tuned", "fused": "test_fused"}
    columns = {"F1": "f1", "Ign F1": "ign_f1", "macro F1": "macro_f1", "Evi F1": "evi_f1"}
    for row in rows_of(page, "model"):
        model, loss, seed, *kind = row["model"].split(", ")
        prefix = {"ATLOP": "", "DREEAM": "dreeam-", "DREEAM with evidence": "dreeam-e0.1-"}[model]
        run = RUNS / f"{prefix}{loss}-{seed.replace(' ', '')}"
        file, results = kinds["".join(kind)], read(run / "results.json")
        scores = (results[SUBMISSIONS[file]] if kind else results)["test"]
        scores = {name: scores[key] for name, key in columns.items()}
        scores["Evi F1, where there is some"] = evidence_f1(run / f"{file}.json.gz", gold)
        for name, x in scores.items():
            assert row[name] == ("–" if x is None else f"{100 * x:.2f}"), (row["model"], name)
    share = sum(not x for x in gold.values()) / len(gold)
    assert f"of those of test {100 * share:.0f} % have none" in " ".join(page.split())


def test_what_fusion_exchanges():
    gold, text = gold_and_scorer("redocred-992")[0].keys(), text_of("docs/results.md")
    for loss in ("ATL", "HingeABL"):
        files = [RUNS / f"{loss}-seed1/test_{kind}.json.gz" for kind in ("tuned", "fused")]
        shifted, fused = (predicted(path) for path in files)
        gone, new = (
            f"{len(x):,} ({100 * len(x & gold) / len(x):.1f} %)"
            for x in (shifted - fused, fused - shifted)
        )
        assert f"with {loss} {gone} for {new}" in text


# --- Training files ---------------------------------------------------------------------------


@pytest.mark.parametrize("size, form", [(992, []), (2612, ["--compact"])])
def test_training_files_are_made_again(tmp_path, size, form):
    source = shared("redocred-2612/train_revised.json")
    output, titles = tmp_path / "new/train.json", ROOT / f"meta/titles_{size}.txt"
    where = ["--input", str(source), "--titles", str(titles), "--output", str(output)]
    select_documents.main([*where, *form])
    same = shared(f"redocred-{size}/train_revised.json")
    assert sha256_of(output) == sha256_of(same)
    if size == 992:
        recorded = read(RUNS / "ATL-seed66/results.json")["data"]["train"]
        assert (recorded["documents"], recorded["sha256"]) == (992, sha256_of(output))


def test_incomplete_labels_are_of_the_same_documents():
    titles = (ROOT / "meta/titles_2245.txt").read_text().splitlines()
    sources = shared("docred-2415/train_annotated.json"), shared("redocred-2612/train_revised.json")
    counts = []
    for source in sources:
        known = {document["title"]: document for document in read(source)}
        counts.append(Counter(r for title in titles for *_, r in facts_of(known[title])))
    text = text_of("docs/data.md")
    few, many = (sum(x.values()) for x in counts)
    assert f"DocRED labels {few:,} facts there ({few / len(titles):.1f} a document)" in text
    more = {r: n / counts[0][r] for r, n in counts[1].items()}
    said = (
        f"Re-DocRED {many:,}: {many / few:.1f} times as many, but of P54 (member of a sports team) "
    )
    said += (
        f"{more['P54']:.1f}, of P131 (located in) {more['P131']:.1f} and of P800 (notable work) "
    )
    assert f"{said}{more['P800']:.0f} times as many" in text


def test_documents_without_labels_are_none_of_the_others(tmp_path):
    """And are chosen by the same script."""
    source, output = shared("docred-unlabelled/documents.json"), tmp_path / "documents.json"
    titles = ROOT / "meta/titles_999.txt"
    select_documents.main(
        ["--input", str(source), "--titles", str(titles), "--output", str(output)]
    )
    assert read(output) == read(source) and len(read(source)) == 999
    splits = [read(shared(f"redocred-2612/{x}_revised.json")) for x in ("train", "dev", "test")]
    known = {document["title"] for documents in splits for document in documents}
    assert not known & set(titles.read_text().splitlines())


def test_titles_are_taken_in_their_order_and_a_missing_one_is_named(tmp_path):
    source, titles, output = (tmp_path / name for name in ("a.json", "titles.txt", "b.json"))
    source.write_text(
        json.dumps([{"title": x, "sents": [], "vertexSet": []} for x in ("A", "B\u2028B")])
    )

    def select(titles):
        where = ["--input", str(source), "--titles", str(titles), "--output", str(output)]
        select_documents.main(where)

    titles.write_text("B\u2028B\r\nA\n\n", newline="")
    select(titles)
    assert [x["title"] for x in read(output)] == ["B\u2028B", "A"]
    titles.write_text("A\nA\n")
    with pytest.raises(InputError, match="titles.txt: names 'A' twice"):
        select(titles)
    titles.write_text("A\nC\nD\n")
    with pytest.raises(InputError, match="a.json: lacks 2 of the 3 titles of .*, first 'C'$"):
        select(titles)
    with pytest.raises(InputError, match="none.txt: no such file"):
        select("none.txt")


def test_what_the_page_says_of_the_training_files():
    page = (ROOT / "docs/data.md").read_text()
    files = {"train, 992": "redocred-992/train", "train, 2,612": "redocred-2612/train"}
    files |= {"dev": "redocred-2612/dev", "test": "redocred-2612/test"}
    splits = {name: read(shared(f"{file}_revised.json")) for name, file in files.items()}
    rows = {row["Re-DocRED"]: row for row in rows_of(page, "Re-DocRED")}
    assert rows.keys() == files.keys()
    chosen, counts = {"P54", "P58", "P86", "P1412", "P3373"}, []
    for name, documents in splits.items():
        facts = sum(len(facts_of(d)) for d in documents)
        pairs = sum(len(d["vertexSet"]) * (len(d["vertexSet"]) - 1) for d in documents)
        assert rows[name]["documents"] == f"{len(documents):,}"
        assert rows[name]["facts"] == f"{facts:,}"
        assert rows[name]["facts a document"] == f"{facts / len(documents):.1f}"
        assert rows[name]["facts in 1,000 pairs"] == f"{1000 * facts / pairs:.1f}"
        counts.append(sum(any(r in chosen for *_, r in facts_of(d)) for d in documents))
    shares = [f"{100 * n / len(d):.0f} %" for n, d in zip(counts, splits.values(), strict=True)]
    text = " ".join(page.split())
    assert counts[0] == counts[1] and f"{counts[0]} contain one of" in text
    said = "({}; of the 2,612 they are {}, of dev {}, of test {})"
    assert said.format(*shares) in text

    known = {d["title"]: d for d in splits["train, 2,612"]}
    (dev,) = (d for name in ("dev", "test") for d in splits[name] if d["title"] in known)
    train = known["Lark Force"]
    assert (dev["sents"], dev["vertexSet"]) == (train["sents"], train["vertexSet"])
    ours, theirs = facts_of(train), facts_of(dev)
    said = "but {} facts in the one and {} in the other ({} in common)"
    assert said.format(len(ours), len(theirs), len(ours & theirs)) in text


def facts_of(document):
    return {(x["h"], x["t"], x["r"]) for x in document["labels"]}
