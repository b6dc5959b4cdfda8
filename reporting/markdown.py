"""report.md: the tables, notes and figures of a report as Markdown."""

import re

from tabulate import tabulate

from evaluation import PATTERNS, RATIOS
from inputs.files import printable
from reporting.statistics import RESAMPLES


def plain(text):
    """Text that Markdown shows as it is: one line, no markup, no border of a table."""
    text = re.sub(r"([\\`*\[\]<>|&$~])", r"\\\1", printable(text).strip())
    # Between letters or digits Markdown leaves _ alone.
    text = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)
    # At the start these are a heading, a list or a line across the page.
    return re.sub(r"^(\d*)([#+.)-]+)(?= |$)", r"\1\\\2", text)


def bullets(texts):
    return "\n".join(f"- {plain(text)}" for text in texts)


def pictures(figures):
    return [f"![{plain(x['caption'])}]({x['file']})\n\n{plain(x['caption'])}" for x in figures]


def markdown_table(head, rows):
    cells = [[plain(cell) for cell in row] for row in rows]
    head = [plain(name) for name in head]
    return tabulate(cells, head, "pipe", disable_numparse=True)  # 58.00 stays 58.00


def number_text(x, column):
    """Means of numbers of pairs with one decimal, all else with two."""
    return "–" if x is None else f"{x:.{1 if column in PATTERNS else 2}f}"


def cell_text(cell, column, num_seeds):
    if not cell["n"]:
        return "–" if num_seeds else "no runs"
    text = number_text(cell["mean"], column)
    if cell["std"] is not None:
        text += f" ± {number_text(cell['std'], column)}"
    return text if cell["n"] == num_seeds else f"{text} ({cell['n']} of {num_seeds} seeds)"


def runs_table(table):
    """Markdown of a table of runs; next to each of our columns the paper's, if it has the table."""
    several = any(row["backbone"] != "atlop" for row in table["rows"])
    with_paper = any("paper" in cell for row in table["rows"] for cell in row["cells"].values())
    head = ["backbone"] * several + ["loss"]
    for column in table["columns"]:
        head += [column] + [f"{column} (paper)"] * with_paper
    lines = []
    for row in table["rows"]:
        seeds, line = row["seeds"], [row["backbone"]] * several + [row["loss"]]
        for column, cell in row["cells"].items():
            line.append(cell_text(cell, column, len(seeds)))
            if with_paper:
                line.append(number_text(cell["paper"], column))
        lines.append([*line, f"{len(seeds)}: {', '.join(map(str, seeds))}" if seeds else "0"])
    title = f"### {table['name']}: {table['title']}"
    notes = [f"Paper: {note}." for note in table.get("notes", [])]
    return [title, markdown_table([*head, "seeds"], lines), *notes]


TITLES = {
    "test": "Significance: differences (test)",
    "tuned": "Significance: differences with the shifted thresholds (test)",
    "fusion": "Significance: differences with fusion (test)",
    "patterns": "Significance: differences of Table 4 (dev)",
    "equal": "Significance: differences of Table 4 with the shifted thresholds (dev)",
    "ap": "Significance: differences in average precision (test)",
}


def significance_table(found):
    smallest = [2.8 * row["f1"]["documents"] for row in found["test"]]
    text = (
        "An interval is over documents and seeds: its variance is that of a bootstrap over "
        f"documents ({RESAMPLES:,} resamples, seeds averaged) plus s²/n of the n seeds "
        "that both have, of their differences or, where two runs of a seed are of different kinds "
        "of machine, of either loss (unpaired); with Student's t. With one seed it is over "
        "documents alone. pooled: with a deviation of the seeds that is the same for all "
        "losses of the group. p is two-sided. Compared with another loss of the same backbone, or "
        "with another backbone that has the same loss. The smallest difference in F1 that these "
        "documents can show with a chance of 80 %, however many the seeds: "
        f"{min(smallest, default=0):.2f} to {max(smallest, default=0):.2f} (2.8 standard errors)."
    )
    parts = []
    for kind, title in TITLES.items():
        if found[kind]:
            parts += [f"### {title}", *([] if parts else [text]), differences(found[kind])]
    return parts + [bullets(found["notes"])] * bool(found["notes"])


def differences(rows):
    names = {"f1": "F1", "ign_f1": "Ign F1", "macro_f1": "macro F1", "ap": "AP"}
    names |= {x: x for x in RATIOS}
    names = {key: name for key, name in names.items() if key in rows[0]}
    head = ["backbone", "loss", "against", "seeds"]
    for name in names.values():
        head += [name, "95 % interval", "p"]
    lines = []
    for row in rows:
        seeds = ", ".join(map(str, row["seeds"]))
        if len(row["seeds"]) == 1 or not row["paired"]:
            seeds += " (documents alone)" if len(row["seeds"]) == 1 else " (unpaired)"
        line = [row["backbone"], row["loss"], row["against"], seeds]
        for x in (row[key] for key in names):
            line += [f"{x['difference']:+.2f}", f"{x['low']:+.2f} to {x['high']:+.2f}"]
            if "pooled" in x:
                line[-1] += " (pooled: {:+.2f} to {:+.2f})".format(*x["pooled"])
            line.append(f"{x['p']:.4f}")
        lines.append(line)
    return markdown_table(head, lines)


def data_markdown(table5, table6):
    lines = [
        [name.replace("_", " "), *(f"{number:g}" for number in (round(x["ours"], 2), x["paper"]))]
        for name, x in table5.items()
    ]
    parts = ["### Table 5: all splits in --data_dir together"]
    parts.append(markdown_table(["", "counted", "paper (Re-DocRED)"], lines))
    head = ["", *(f"{split}{paper}" for split in table6 for paper in ("", " (paper)"))]
    lines = []
    for name in next(iter(table6.values())):
        cells = [x for split in table6.values() for x in split[name].values()]
        lines.append([name, *(f"{x:,}" if name == "documents" else f"{x:.2f}" for x in cells)])
    parts += ["### Table 6: means over the documents of each split", markdown_table(head, lines)]
    return ["## Data", *parts]


def settings_text(group, first, paper):
    """What the runs of a group have in common, and in what it differs from the first group."""
    settings = dict(group["settings"])
    data = [
        f"{split}: {x['file']}, {x['documents']:,} documents, {x['triples']:,} triples, SHA-256 "
        f"{x['sha256'][:12]}"
        for split, x in group["data"].items()
    ]
    encoder = settings.pop("model_name_or_path")
    recipe = ", ".join(f"{k} {v}" for k, v in settings.items() if v not in ("", None))
    lines = [f"data: {'; '.join(data)}", f"encoder: {encoder}", f"recipe: {recipe}"]
    if group is not first:
        now, then = group["settings"], first["settings"]
        other = [
            f"{k} {now.get(k, 'unknown')}, not {then.get(k, 'unknown')}"
            for k in sorted({*now, *then})
            if now.get(k, "unknown") != then.get(k, "unknown")
        ]
        for split in sorted({*group["data"], *first["data"]}):
            files = [x["data"].get(split, {}).get("sha256") for x in (group, first)]
            other += [f"another {split} file"] * (files[0] != files[1])
        other += ["other relations"] * (group["classes"] != first["classes"])
        lines.append(f"differs from group 1 in: {'; '.join(other)}")
    parts = [bullets(lines)]
    documents = {split: x["documents"] for split, x in group["data"].items()}
    theirs = {split: x["documents"] for split, x in paper["table6_splits"].items()}
    if group["of_paper"] and any(documents[x] != theirs[x] for x in documents.keys() & theirs):
        parts.append(
            "- **these are not the paper's data** (Re-DocRED, "
            f"{' / '.join(map(str, theirs.values()))} documents): its numbers are no yardstick here"
        )
    return "\n".join(parts)


HEADER = """# Report

Mean ± sample standard deviation (n - 1) over seeds; scores are in percent. "paper" marks the
paper's own numbers: {source}. Runs of different data, encoder or recipe are in different
groups. HingeABL is with --hinge_norm separate and margin 5 unless its name says otherwise
(:joint, :m3), AML with margin 1 (:m2), AFL with gamma 1 (:g2)."""


def to_markdown(report, groups, paper):
    parts = [HEADER.format(source=paper["source"])]
    if report["left_out"]:
        lines = [f"{x['folder']}: {x['reason']}" for x in report["left_out"]]
        parts += ["## Left out", bullets(lines)]
    for number, (group, found) in enumerate(zip(groups, report["groups"], strict=True), 1):
        runs = sum(map(len, group["rows"].values()))
        parts.append(f"## Group {number}: {runs} run{'s' * (runs > 1)}")
        parts.append(settings_text(group, groups[0], paper))
        for table in found["tables"]:
            parts += runs_table(table)
        if found["significance"]:
            parts += significance_table(found["significance"])
        for table in found["details"]:
            parts += runs_table(table)
        parts += pictures(found["figures"])
        parts += [bullets(found["notes"])] if found["notes"] else []
    if report["table6"]:
        parts += data_markdown(report["table5"], report["table6"])
    if report["figures"]:
        parts.append("## Losses")
        parts += pictures(report["figures"])
    return "\n\n".join(parts) + "\n"
