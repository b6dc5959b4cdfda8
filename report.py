"""Run folders -> the tables and figures of the paper, with the paper's own numbers.

    python report.py --runs runs/table3-bert --out runs/table3-bert/report \\
        --data_dir dataset/redocred --pair "Ross Alger" "University of Toronto" Canadian

Writes report.md, report.json and figures/ (PNG and SVG). Runs that differ in data, encoder or
recipe are never averaged: each combination is a group with tables of its own.
"""

import os
import re
from functools import lru_cache
from pathlib import Path

from backbones import BACKBONES
from engine.run_folder import METRICS, logits_file
from inputs.documents import read_documents
from inputs.files import (
    META_DIR,
    InputError,
    OneLineParser,
    printable,
    read_json,
    run_main,
    sha256_of,
    write_atomically,
    write_json,
)
from losses import LOSSES
from prepro import candidate_pairs
from reporting import figures
from reporting.groups import find_runs, group_runs, read_curve, read_pair, threshold_ends
from reporting.markdown import cell_text, to_markdown
from reporting.ranking import curves
from reporting.tables import (
    data_tables,
    detail_tables,
    frame_of,
    group_tables,
    make_table,
    significance,
)

# --- Data files -------------------------------------------------------------------------------


@lru_cache
def read_split(path, classes, is_train):
    """The SHA-256 and the documents of a data file; classes: (property, class id) pairs."""
    return sha256_of(path), read_documents(path, dict(classes), unique_titles=not is_train)


def documents_of(group, data_dir):
    """Of the data files of a group's runs in data_dir (None: no folder) the documents of those
    with the recorded SHA-256, split -> documents; the documents of all files with the first run's
    names; and notes on files that are missing, changed or broken."""
    of_runs, of_folder, notes = {}, {}, []
    classes = tuple(group["classes"].items())
    for split in ("train", "dev", "test") if data_dir else ():
        if record := group["data"].get(split):
            path = Path(data_dir) / Path(record["file"]).name
            try:
                sha256, of_folder[split] = read_split(path, classes, split == "train")
            except InputError as error:
                notes.append(str(error))
                continue
            if sha256 == record["sha256"]:
                of_runs[split] = of_folder[split]
            else:
                notes.append(f"{path}: not the file of these runs (its SHA-256 differs)")
    return of_runs, of_folder, notes


def entity_number(document, text):
    """The index in vertexSet of an entity, which is given by it or by the name of a mention."""
    entities = document["vertexSet"]
    if text.isdecimal() and int(text) < len(entities):
        return int(text)
    named = [i for i, mentions in enumerate(entities) if text in {m["name"] for m in mentions}]
    if len(named) == 1:
        return named[0]
    fault = f"the entities {named} are all" if named else "no entity is"
    raise InputError(f"--pair: document {document['title']!r}: {fault} named {text!r}")


def find_pair(splits, title, head, tail):
    """A pair's split, row in the logits and readable name; None if no document has this title."""
    for split in ("test", "dev"):
        row = 0
        for document in splits.get(split, []):
            pairs = candidate_pairs(document)
            if document["title"] == title:
                ends = [entity_number(document, text) for text in (head, tail)]
                if ends[0] == ends[1]:
                    raise InputError(f"--pair: {head!r} and {tail!r} are one entity")
                found = (pairs == ends).all(1)
                if not found.any():
                    raise InputError(f"--pair: {head!r} and {tail!r} are no candidate pair")
                row += int(found.argmax())
                names = [document["vertexSet"][i][0]["name"] for i in ends]
                names = [printable(name, 60) for name in (*names, title)]
                return split, row, f"{names[0]} → {names[1]} ({names[2]})"
            row += len(pairs)
    return None


# --- Figures of a group -----------------------------------------------------------------------


def readable(read, runs, notes):
    """Yields read(run) of each run where it is not None. A failure is added to the notes."""
    for run in runs:
        try:
            if (found := read(run)) is not None:
                yield found
        except InputError as error:
            notes.append(str(error))


def draw_group(group, rankings, pairs, draw):
    """Draws the figures of a group, backbone by backbone; draw(figure, name, caption) saves one.
    rankings: (backbone, loss) -> seed -> `read_ranking` of test; pairs: see `locate_pairs`. Returns
    notes on what could not be drawn."""
    notes = []
    for backbone in dict.fromkeys(backbone for backbone, _ in group["rows"]):
        rows = {loss: runs for (b, loss), runs in group["rows"].items() if b == backbone}
        styles = figures.line_styles([*LOSSES, *(loss for loss in rows if loss not in LOSSES)])
        draw_training(backbone, rows, styles, draw, notes)
        ends = {loss: threshold_ends(runs) for loss, runs in rows.items()}
        if ends := {loss: seeds for loss, seeds in ends.items() if seeds}:
            caption = f"{backbone}: from the learned threshold to the one best on dev (test)"
            draw(figures.arrows({backbone: ends}, styles), f"{backbone} thresholds", caption)
        found = {loss: x for (b, loss), x in rankings.items() if b == backbone}
        if found := {loss: list(map(curves, x.values())) for loss, x in found.items()}:
            caption = f"{backbone}: precision and recall, reliability (test); means of the seeds"
            draw(figures.ranking_curves(found, styles), f"{backbone} ranking", caption)
        for pair in pairs:
            draw_pair(backbone, rows, pair, group["classes"], draw, notes)
    return notes


def draw_training(backbone, rows, styles, draw, notes):
    def read(run):
        folder = run["trained_in"]
        return read_curve(folder) if (folder / METRICS).exists() else None

    found = {loss: list(readable(read, runs, notes)) for loss, runs in rows.items()}
    found = {loss: records for loss, records in found.items() if records}
    if found:
        caption = f"{backbone}: dev scores and training loss; mean and range of the seeds"
        draw(figures.training_curves(found, styles), f"{backbone} curves", caption)


def draw_pair(backbone, rows, pair, classes, draw, notes):
    number, split, row, title = pair
    info = read_json(META_DIR / "rel_info.json")
    names = [printable(info.get(name, name), 80) for name in sorted(classes, key=classes.get)][1:]
    file, cases = logits_file(split), []

    def read(run):
        return read_pair(run, split, row) if (run["folder"] / file).exists() else None

    for loss in ("ATL", "HingeABL"):
        if case := next(readable(read, rows.get(loss, []), notes), None):
            cases.append(case)
        else:
            notes.append(f"pair {number} ({title}): no run of {loss} with {backbone} has {file}")
    if cases:
        caption = f"Figure 1b and 1c, {backbone}, {split}: {title}"
        draw(figures.pair_scores(cases, names, title), f"{backbone} pair{number}", caption)


# --- The command ------------------------------------------------------------------------------


def build_parser():
    parser = OneLineParser(description="Run folders -> the paper's tables and figures.")
    add = parser.add_argument
    add("--runs", required=True, help="folder that holds run folders, at any depth")
    add("--out", required=True, help="folder of the report")
    add("--data_dir", help="folder of the data files: adds Tables 5 and 6 and significance")
    add("--reference", help="compare with this loss (default: each backbone's own)")
    pair = {"nargs": 3, "metavar": ("TITLE", "HEAD", "TAIL"), "action": "append", "default": []}
    add("--pair", **pair, help="draw Figure 1b, 1c for this pair (entity names or numbers)")
    return parser


def locate_pairs(args, documents):
    """For each group the pairs of --pair that are in its documents: (number, split, row, title)."""
    if args.pair and not args.data_dir:
        raise InputError("--pair: needs --data_dir")
    found = [[] for _ in documents]
    for number, pair in enumerate(args.pair, 1):
        of_groups = [find_pair(splits, *pair) for splits in documents]
        if not any(of_groups):
            raise InputError(f"--pair: no dev or test document of the runs is titled {pair[0]!r}")
        for pairs, of_group in zip(found, of_groups, strict=True):
            pairs += [(number, *of_group)] if of_group else []
    return found


def drawer(out, shown, prefix=""):
    """A function draw(figure, name, caption) that saves a figure and lists it in `shown`."""

    def draw(figure, name, caption):
        name = re.sub(r"[^\w.]+", "-", prefix + name).strip("-")
        figures.save(figure, out / "figures" / name)
        shown.append({"file": f"figures/{name}.png", "caption": caption})

    return draw


def report_group(number, group, splits, pairs, paper, args):
    """Tables, significance and figures of a group. splits: its documents, see `documents_of`."""
    shown, compared, kept, details = [], None, {"ap": {}}, []
    if "test" in splits:
        references = {
            backbone: args.reference or BACKBONES[backbone.split(" ")[0]].own_loss
            for backbone, _ in group["rows"]
        }
        compared, kept = significance(group, references, splits)
        if splits.keys() >= {"train", "dev"}:
            details = detail_tables(group, splits, kept)
    draw = drawer(Path(args.out), shown, f"group{number} ")
    notes = draw_group(group, kept["ap"], pairs, draw)
    runs = frame_of(group)
    for row in make_table("", "", {"F1": "test.f1"}, runs)["rows"]:
        text = cell_text(row["cells"]["F1"], "F1", len(row["seeds"]))
        print(f"group {number}  {row['backbone']:10} {row['loss']:18} test F1 {text}")
    return {
        "settings": group["settings"],
        "data": group["data"],
        "tables": group_tables(runs, paper, group["of_paper"]),
        "significance": compared,
        "details": details,
        "figures": shown,
        "notes": notes,
    }


def main(argv=None):
    args = build_parser().parse_args(argv)
    out, paper = Path(args.out), read_json(META_DIR / "paper_results.json")
    if out.resolve() == Path(args.runs).resolve():
        raise InputError(f"--out {out}: the runs are there; name a folder in it or beside it")
    if args.data_dir and not os.path.isdir(args.data_dir):
        raise InputError(f"--data_dir {args.data_dir}: no such folder")
    runs, left_out = find_runs(args.runs, out)
    if not runs:
        reasons = "; ".join(f"{folder}: {reason}" for folder, reason in left_out)
        raise InputError(f"--runs {args.runs}: no finished run ({reasons or 'it is empty'})")
    left_out = [(printable(folder), reason) for folder, reason in left_out]
    groups = group_runs(runs)
    documents = [documents_of(group, args.data_dir) for group in groups]
    for number, (_, _, missing) in enumerate(documents, 1):
        for note in missing:
            print(f"group {number}: not used: {note}")
    pairs = locate_pairs(args, [splits for splits, *_ in documents])
    try:
        (out / "figures").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {out}: {error.strerror}") from None

    report = {"paper": paper["source"], "groups": [], "figures": [], "table5": {}, "table6": {}}
    report["left_out"] = [{"folder": x, "reason": reason} for x, reason in left_out]
    for number, group in enumerate(groups, 1):
        splits, _, missing = documents[number - 1]
        found = report_group(number, group, splits, pairs[number - 1], paper, args)
        found["notes"] = list(map(printable, group["notes"] + missing + found["notes"]))
        report["groups"].append(found)
    if of_folder := documents[0][1]:
        report["table5"], report["table6"] = data_tables(of_folder, paper)
    draw = drawer(out, report["figures"])
    draw(figures.hinge_weights(), "figure3", "Figure 3: hinge weighting")
    caption = "Appendix E: the penalty of a relation and its slope, AML and HingeABL"
    draw(figures.penalty_curves(), "appendix-e", caption)
    write_json(out / "report.json", report)
    text = to_markdown(report, groups, paper)
    write_atomically(out / "report.md", lambda path: path.write_text(text, encoding="utf-8"))
    for folder, reason in left_out:
        print(f"left out: {folder}: {reason}")
    print(f"report: {out / 'report.md'}")


if __name__ == "__main__":
    run_main(main)
