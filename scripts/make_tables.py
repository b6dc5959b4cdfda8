"""Writes the tables of the pages anew: what stands between <!-- table: NAME --> and <!-- end -->;
and docs/thresholds.png.

    python scripts/make_tables.py            # after new runs in results/, or a change of TABLES
    python scripts/make_tables.py --check    # exit code 1 if a page is not current

Scores come from the runs' results.json, what needs the documents (intervals, F1 by frequency, the
law behind the shift) from report.json.
"""

import argparse
import json
import re
import statistics
import sys
from itertools import chain
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from losses import LOSSES
from reporting import figures, tables
from reporting.groups import threshold_ends
from reporting.markdown import cell_text

# A column is named by a score of KEYS or as results.json names it: "F1" is of test, "dev F1" of
# dev, "shifted F1", the ceiling, of test with the threshold shifted to the best dev F1, and
# "shifted dev F1" of dev.
KEYS = {
    "F1": "f1",
    "Ign F1": "ign_f1",
    "macro F1": "macro_f1",
    "frequent F1": "freq_f1",
    "long-tail F1": "long_tail_f1",
    "intra F1": "intra_f1",
    "inter F1": "inter_f1",
}


def read(path):
    return json.loads((ROOT / path).read_text(encoding="utf-8"))


# --- What makes a table: (folder of results/, rows, columns) -> the cells of the rows -----------


def scores(folder, rows, columns):
    """Mean ± standard deviation over the seeds, or the paper's number. A row names run folders
    of all seeds (ATL) or one (ATL-seed1), in one of the folders."""
    for row in rows:
        runs = runs_of(folder, row)
        papers = [column.removeprefix("the paper's ") for column in columns]
        yield [
            score_text(column, runs) if column == score else paper_text(row, score)
            for column, score in zip(columns, papers, strict=True)
        ]


def runs_of(folder, row):
    name = row if "-seed" in row else f"{row}-seed*"
    paths = (path for x in folder.split() for path in ROOT.glob(f"results/{x}/{name}/results.json"))
    runs = [read(path) for path in paths]
    return sorted(runs, key=lambda run: run["args"]["seed"])


def score_text(column, runs):
    split, key = split_and_key(column)
    if column == "seeds":
        return seeds_text(run["args"]["seed"] for run in runs)
    if column == "commit":
        return runs[0]["commit"][:7]
    if column == "shift":
        return mean_text([run["tuned"]["shift"] for run in runs], "+.2f")
    if column == "ceiling":
        return score_text("shifted F1", runs)
    if column == "placement cost":
        return mean_text([100 * (x["tuned"]["test"]["f1"] - x["test"]["f1"]) for x in runs], ".2f")
    if split.startswith("shifted"):
        runs, split = [run["tuned"] for run in runs], split[8:] or "test"
    values = [run[split][key] for run in runs]
    if key in ("FP", "FN_CRK", "FN_IRK"):
        return f"{statistics.mean(values):,.0f}"
    return mean_text([100 * x for x in values], ".2f")


def split_and_key(column):
    """dev Ign F1 -> dev, ign_f1"""
    split, score = re.fullmatch("(?:(dev|shifted dev|shifted) )?(.*)", column).groups()
    return split or "test", KEYS.get(score, score)


def seeds_text(values):
    return ", ".join(map(str, values))


def mean_text(values, form):
    text = f"{statistics.mean(values):{form}}"
    return f"{text} ± {statistics.stdev(values):.2f}" if len(values) > 1 else text


def differences(folder, rows, columns):
    """HingeABL minus other losses, with 95 % intervals, as the report has them. A row is a loss, or
    BACKBONE/LOSS."""
    (group,) = groups_of(folder)
    kinds = {"test": "test", "shifted": "tuned", "dev": "patterns"}
    for row in rows:
        *backbone, loss = row.replace("-", ":").split("/")
        pair = {"loss": "HingeABL", "backbone": "".join(backbone) or "atlop", "against": loss}
        cells = []
        for column in columns:
            split, key = split_and_key(column)
            (found,) = (x for x in group["significance"][kinds[split]] if pair.items() <= x.items())
            cells.append((seeds_text if key == "seeds" else difference_text)(found[key]))
        cells[0] += " (documents alone)" * (cells[0].count(",") == 0)
        yield cells


def groups_of(folder):
    return read(f"results/{folder}/report/report.json")["groups"]


def difference_text(x):
    pooled = "; pooled {:.2f} to {:.2f}".format(*x["pooled"]) if "pooled" in x else ""
    return f"{x['difference']:+.2f} ({x['low']:.2f} to {x['high']:.2f}{pooled})"


def compared(folder, rows, columns):
    """What scripts/compare.py wrote of two runs. A row is NAME_minus_NAME."""
    for row in rows:
        cells = []
        for column in columns:
            split, key = split_and_key(column)
            path = f"results/{folder}/report/compared/{row}{'-shifted' * (split == 'shifted')}.json"
            cells.append(difference_text(read(path)["scores"][key]))
        yield cells


def details(folder, rows, columns):
    """Of a report's tables that need the documents. A row is a loss, a column is one of any."""
    found = {}
    for table in chain.from_iterable(group["details"] for group in groups_of(folder)):
        for row in table["rows"]:
            found.setdefault((row["backbone"], row["loss"]), {}).update(row["cells"])
    for row in rows:
        cells = found["atlop", row.replace("-", ":")]
        yield [cell_text(cells[column], column, cells[column]["n"]) for column in columns]


def overtaking(folder, rows, _):
    """The epoch from which HingeABL's dev F1 stays the higher one, and its lead after the last
    epoch, seed by seed."""
    for row in rows:
        seeds, epochs, ends = [run["args"]["seed"] for run in runs_of(folder, row)], [], []
        for seed in seeds:
            curves = [dev_curve(folder, f"{loss}-seed{seed}") for loss in ("HingeABL", row)]
            lead = [first - second for first, second in zip(*curves, strict=True)]
            behind = [epoch for epoch, x in enumerate(lead, 1) if x < 0]
            epochs.append("never" if lead[-1] < 0 else str(behind[-1] + 1 if behind else 1))
            ends.append(f"{100 * lead[-1]:+.2f}")
        yield list(map(seeds_text, (seeds, epochs, ends)))


def dev_curve(folder, run):
    text = (ROOT / f"results/{folder}/{run}/metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line)["dev"]["f1"] for line in text.splitlines()]


def papers(_, rows, columns):
    """The paper's own numbers."""
    return [[paper_text(loss, column) for column in columns] for loss in rows]


def paper_text(loss, score):
    printed = tables.paper_numbers(read("meta/paper_results.json"))
    found = [printed[table].get(("atlop", loss), {}).get(score) for table in (3, 7, 4)]
    return next((f"{x:.2f}" for x in found if x is not None), "–")


# --- The tables -------------------------------------------------------------------------------

OF_PAPER = "ATL balance_softmax AML AFL SAT MeanSAT HingeABL"
LATER = "PMTEM NCRL ATGL"
OTHERS = OF_PAPER.replace("HingeABL", f"HingeABL-joint {LATER}")
ALL = f"{OF_PAPER} HingeABL-joint {LATER}"
MINI = "ATL MeanSAT HingeABL HingeABL-joint"
CDR = "ATL-seed1 ATL-seed5 ATL-seed66 HingeABL-seed1 HingeABL-seed5 HingeABL-seed66"
OF_README = "loss, seeds, F1, Ign F1, FN/F, FN_CRK/FN, ceiling, the paper's F1"
ON_TEST = "loss, seeds, F1, Ign F1, precision, recall, macro F1, FN/F, FN_CRK/FN"
TAUGHT = "run, F1, Ign F1, precision, recall, macro F1"
ON_DEV = "loss, seeds, dev FP, dev FN_CRK, dev FN_IRK, dev F/(T+F), dev FN/F, dev FN_CRK/FN"
PAIRS = f"{OTHERS} docunet/balance_softmax kd_docre/AFL"
BANDS = ", ".join(x for band in tables.BANDS for x in (band, f"{band} shifted"))
LAW = "loss, shift by the law, shift found"
RANKING = f"{LAW}, F1 / 2, local precision, local shifted, AP, ranked right"

# page, name of the table, what makes it, folder of results/, rows, columns (first that of the rows)
TABLES = [
    ("README.md", "losses", scores, "redocred-992", "ATL AFL HingeABL", OF_README),
    ("README.md", "2,612", scores, "redocred-2612-8-epochs", "ATL HingeABL", OF_README),
    ("docs/results.md", "differences", differences, "redocred-992",
     PAIRS, "against, seeds, F1, Ign F1, macro F1"),
    ("docs/results.md", "losses", scores, "redocred-992", ALL, ON_TEST),
    ("docs/results.md", "patterns", scores, "redocred-992", ALL, ON_DEV),
    ("docs/results.md", "overtaking", overtaking, "redocred-992",
     "ATL balance_softmax AML AFL SAT MeanSAT PMTEM NCRL ATGL",
     "against, seeds, ahead from epoch, lead after epoch 20"),
    ("docs/results.md", "ceiling", scores, "redocred-992", ALL,
     "loss, seeds, F1, ceiling, placement cost, shift, shifted Ign F1, shifted precision, "
     "shifted recall, shifted macro F1"),
    ("docs/results.md", "differences, shifted", differences, "redocred-992", PAIRS,
     "against, seeds, shifted F1, shifted Ign F1, shifted macro F1"),
    ("docs/results.md", "patterns, shifted", scores, "redocred-992", ALL,
     ON_DEV.replace("dev", "shifted dev")),
    ("docs/results.md", "frequency", details, "redocred-992", ALL, f"loss, {BANDS}"),
    ("docs/results.md", "law", details, "redocred-992", ALL, LAW),
    ("docs/results.md", "law, mpnet", details, "redocred-992-mpnet", "ATL HingeABL", LAW),
    ("docs/results.md", "mpnet", scores, "redocred-992-mpnet", "ATL HingeABL",
     f"{ON_TEST}, shift, ceiling"),
    ("docs/results.md", "half", scores, "redocred-992-10-epochs", "ATL HingeABL",
     f"{ON_TEST}, shift, ceiling"),
    ("docs/results.md", "half, ranking", details, "redocred-992-10-epochs", "ATL HingeABL",
     RANKING),
    ("docs/results.md", "2,612", scores, "redocred-2612-5-epochs", "ATL HingeABL",
     f"{ON_TEST}, shift, ceiling"),
    ("docs/results.md", "2,612, ranking", details, "redocred-2612-5-epochs", "ATL HingeABL",
     RANKING),
    ("docs/results.md", "2,612, 8 epochs", scores, "redocred-2612-8-epochs", "ATL HingeABL",
     f"{ON_TEST}, shift, ceiling"),
    ("docs/results.md", "2,612, 8 epochs, ranking", details, "redocred-2612-8-epochs",
     "ATL HingeABL", RANKING),
    ("docs/results.md", "teachers", scores, "redocred-2612-5-epochs redocred-2612-teachers",
     "ATL ATL+teacher ATL+teacher+999 teacher HingeABL HingeABL+teacher HingeABL+teacher+999",
     f"{TAUGHT}, shift, ceiling, shifted dev F1"),
    ("docs/results.md", "teachers, differences", compared, "redocred-2612-teachers",
     "ATL+teacher_minus_ATL ATL+teacher+999_minus_ATL+teacher teacher_minus_ATL "
     "teacher_minus_ATL+teacher HingeABL+teacher_minus_HingeABL HingeABL+teacher_minus_ATL+teacher "
     "HingeABL+teacher+999_minus_HingeABL+teacher",
     "difference, F1, Ign F1, macro F1, shifted F1, shifted macro F1"),
    ("docs/results.md", "types", scores, "redocred-2612-5-epochs redocred-2612-types",
     "ATL ATL+types", f"{TAUGHT}, shift, ceiling, shifted macro F1, shifted dev F1"),
    ("docs/results.md", "incomplete", scores, "docred-2245 redocred-2245",
     "ATL SSR_PU ATL+complete",
     f"{TAUGHT}, shift, ceiling, shifted precision, shifted recall, shifted macro F1"),
    ("docs/results.md", "incomplete, ranking", details, "docred-2245", "ATL SSR_PU-f2.2",
     RANKING),
    ("docs/results.md", "cdr", scores, "cdr", "ATL HingeABL",
     "loss, seeds, F1, Ign F1, precision, recall, shift, ceiling"),
    ("docs/results.md", "mini", scores, "redocred-mini", MINI, f"{ON_TEST}, shift, ceiling"),
    ("docs/results.md", "the paper's", papers, None, OF_PAPER,
     "loss, F1, Ign F1, macro F1, F/(T+F), FN/F, FN_CRK/FN"),
    ("docs/performance.md", "precisions", scores, "precision",
     "mini/bf16 mini/fp32 demo/bf16 demo/fp32", "corpus, seeds, F1, Ign F1, shifted F1"),
    ("results/cdr/README.md", "runs", scores, "cdr", CDR,
     "loss, commit, F1, Ign F1, precision, recall, intra F1, inter F1, shift, shifted F1"),
]  # fmt: skip


# The panels of docs/thresholds.png: title -> folder of results/, rows.
PANELS = {
    "MiniLM, 992 documents, 4,960 steps": ("redocred-992", OF_PAPER),
    "MPNet, 992 documents, 2,480 steps": ("redocred-992-mpnet", "ATL HingeABL"),
    "MiniLM, 2,612 documents, 5,224 steps": ("redocred-2612-8-epochs", "ATL HingeABL"),
}


def draw_thresholds():
    groups = {
        title: {row: threshold_ends(runs_of(folder, row)) for row in rows.split()}
        for title, (folder, rows) in PANELS.items()
    }
    figure = figures.arrows(groups, figures.line_styles([*LOSSES]))
    figure.savefig(ROOT / "docs/thresholds.png", dpi=150, bbox_inches="tight")


def with_tables(page, text):
    """The text of a page with its tables as they are to be."""
    for of, name, make, folder, rows, columns in TABLES:
        if of == page:
            rows, head = rows.split(), columns.split(", ")
            lines = [head, ["---"] * len(head)]
            for row, cells in zip(rows, make(folder, rows, head[1:]), strict=True):
                label = row.replace("-seed", ", seed ").replace("-", ":").replace("/", ": ")
                label = label.replace("_minus_", " minus ")
                lines.append([label, *cells])
            table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
            begin, end = f"<!-- table: {name} -->", "<!-- end -->"
            new = f"{begin}\n\n{table}\n\n{end}"
            text, count = re.subn(f"{begin}.*?{end}", new, text, flags=re.DOTALL)
            if count != 1:
                sys.exit(f"{page}: {begin} ... {end} is there {count} times, not once")
    return text


def main(argv=None):
    parser = argparse.ArgumentParser(description="Writes the tables of the pages anew.")
    parser.add_argument("--check", action="store_true", help="write nothing, only compare")
    check = parser.parse_args(argv).check
    for page in dict.fromkeys(page for page, *_ in TABLES):
        text = (ROOT / page).read_text(encoding="utf-8")
        new = with_tables(page, text)
        if check and new != text:
            sys.exit(f"{page}: its tables are not current; python scripts/make_tables.py")
        if new != text:
            (ROOT / page).write_text(new, encoding="utf-8")
    if not check:
        draw_thresholds()


if __name__ == "__main__":
    main()
