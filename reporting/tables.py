"""The numbers of the report: the paper's tables from groups of runs (see runs.py) and from data.

A table of runs is a dict: name, title, columns, rows; a row has backbone, loss, seeds and cells,
column -> {mean, std (sample; None of one run), n} and, where the paper has the table, "paper".
Scores are in percent, patterns are numbers of pairs, shifts are in units of the score.
"""

import statistics

import numpy as np

from evaluation import (
    PATTERNS,
    document_counts,
    named_facts,
    paired_bootstrap,
    scores_of_counts,
)
from inputs.documents import read_predictions
from inputs.files import InputError
from reporting.runs import RATIOS

MICRO = {"F1": ("test", "f1"), "Ign F1": ("test", "ign_f1")}
MACRO = {"macro F1": ("test", "macro_f1"), "macro Ign F1": ("test", "macro_ign_f1")}
FALSE = {name: ("dev", name) for name in ("FP", "FN_CRK", "FN_IRK")}
TUNED = {
    "test F1": ("test", "f1"),
    "test F1, shifted": ("tuned", "test", "f1"),
    "test Ign F1": ("test", "ign_f1"),
    "test Ign F1, shifted": ("tuned", "test", "ign_f1"),
    "dev F1": ("dev", "f1"),
    "dev F1, shifted": ("tuned", "dev", "f1"),
    "shift": ("tuned", "shift"),
}
VARIANTS = MICRO | {name: ("test", name) for name in ("precision", "recall", "FN/F", "FN_CRK/FN")}


def look_up(run, path):
    """run[path[0]][path[1]] ..., in percent where it is a score; None where it is missing."""
    value = run
    for name in path:
        value = (value or {}).get(name)
    is_share = path[-1] not in (*PATTERNS, "shift")
    return 100 * value if is_share and value is not None else value


def measure(values):
    """Mean, sample standard deviation and number of the values that are there."""
    values = [x for x in values if x is not None]
    return {
        "mean": statistics.fmean(values) if values else None,
        "std": statistics.stdev(values) if len(values) > 1 else None,
        "n": len(values),
    }


def make_table(name, title, columns, rows, paper=None):
    """columns: name -> path (see `look_up`); rows: (backbone, loss) -> runs; paper: (backbone,
    loss) -> column -> number; its rows stand first, with or without runs."""
    paper_rows = paper or {}
    table = {"name": name, "title": title, "columns": list(columns), "rows": []}
    for backbone, loss in [*paper_rows, *(row for row in rows if row not in paper_rows)]:
        runs = rows.get((backbone, loss), [])
        cells = {
            column: measure([look_up(run, path) for run in runs])
            for column, path in columns.items()
        }
        if paper is not None:
            printed = paper_rows.get((backbone, loss), {})
            for column, cell in cells.items():
                cell["paper"] = printed.get(column)
        seeds = [run["seed"] for run in runs]
        table["rows"].append({"backbone": backbone, "loss": loss, "seeds": seeds, "cells": cells})
    return table


def paper_numbers(paper):
    """Table -> (backbone, loss) -> column -> number, of the paper's results file."""

    def of_atlop(table, names):
        losses = {loss: x for loss, x in paper[table].items() if isinstance(x, dict)}
        return {
            ("atlop", loss): {column: x[name] for column, name in names.items()}
            for loss, x in losses.items()
        }

    backbones = {}
    for backbone, x in paper["table2_roberta_large"].items():
        backbones[backbone, x["own_loss"]] = {"F1": x["F1"], "Ign F1": x["Ign_F1"]}
        shown = {"F1": x["F1_HingeABL"], "Ign F1": x["Ign_F1_HingeABL"]}
        backbones[backbone, "HingeABL"] = shown
    ratios, macro = {name: name for name in RATIOS}, {"macro F1": "F1", "macro Ign F1": "Ign_F1"}
    return {
        1: {("atlop", "ATL"): paper["table1_atl_patterns"]},
        2: backbones,
        3: of_atlop("table3_bert_base_micro", {"F1": "F1", "Ign F1": "Ign_F1"}),
        4: of_atlop("table4_patterns_percent", ratios),
        7: of_atlop("table7_bert_base_macro", macro),
    }


def group_tables(group, paper):
    """Tables 1, 2, 3, 4 and 7 of a group, then those beyond the paper that it has runs for."""
    rows, numbers = group["rows"], paper_numbers(paper)
    of_atlop = {row: runs for row, runs in rows.items() if row[0] == "atlop"}
    others = {row: runs for row, runs in rows.items() if row in numbers[2] or row[0] != "atlop"}
    ratios = {name: ("dev", name) for name in RATIOS}
    tables = [
        make_table("Table 1", "false predictions, number of pairs (dev)", FALSE, rows, numbers[1]),
        make_table(
            "Table 2", "backbones (test; the paper: RoBERTa-large)", MICRO, others, numbers[2]
        ),
        make_table("Table 3", "losses (test; the paper: BERT-base)", MICRO, of_atlop, numbers[3]),
        make_table("Table 4", "shares of the prediction patterns (dev)", ratios, rows, numbers[4]),
        make_table("Table 7", "macro scores (test; the paper: BERT-base)", MACRO, rows, numbers[7]),
    ]
    tuned = {row: [run for run in runs if run["tuned"]] for row, runs in rows.items()}
    tuned = {row: runs for row, runs in tuned.items() if runs}
    if tuned:
        title = "the threshold shifted to the best dev F1: a relation needs s_r > s_TH + shift"
        tables.append(make_table("Threshold", title, TUNED, tuned))
    hinge = {row: runs for row, runs in rows.items() if row[1].split(":")[0] == "HingeABL"}
    if len({loss for _, loss in hinge}) > 1:
        title = "HingeABL's norm (separate, unless joint) and margin (5, unless m...) (test)"
        tables.append(make_table("Variants", title, VARIANTS, hinge))
    printed = paper["table3_bert_base_micro"].items()
    tables[2]["notes"] = [f"{loss}: {x['note']}" for loss, x in printed if "note" in x]
    return tables


# --- Significance -----------------------------------------------------------------------------


def run_counts(run, truth, facts, rel2id):
    """`document_counts` of a run's predictions. Raises InputError where they are not those that
    its results.json scores."""
    path = run["folder"] / "predictions.json"
    predictions = read_predictions(path, truth, rel2id)
    try:
        counts = document_counts(predictions, truth, facts or ())
    except KeyError as error:
        raise InputError(f"{path}: the test file has no document {error}") from None
    f1, ign_f1 = scores_of_counts(counts.sum(0))
    same = abs(f1 - run["test"]["f1"]) < 1e-6
    if not same or (facts is not None and abs(ign_f1 - run["test"]["ign_f1"]) > 1e-6):
        raise InputError(f"{path}: its scores are not those of results.json")
    return counts


def significance(group, reference, splits, rel2id, resamples=10_000):
    """Every loss against the reference loss (of the same backbone), by paired bootstrap over the
    test documents, over the seeds that both have. splits: "test" and, for Ign F1, "train" ->
    documents. Returns a table whose rows have f1 and ign_f1, see `paired_bootstrap`, in percent."""
    facts = named_facts(splits["train"]) if "train" in splits else None
    rows, notes, counts = [], [], {}
    for row, runs in group["rows"].items():
        for run in runs:
            try:
                if run["test"]:
                    found = run_counts(run, splits["test"], facts, rel2id)
                    counts.setdefault(row, {})[run["seed"]] = found
            except InputError as error:
                notes.append(str(error))
    for (backbone, loss), own in counts.items():
        base = counts.get((backbone, reference))
        if loss == reference:
            continue
        seeds = [seed for seed in own if seed in (base or {})]
        if not seeds:
            reason = f"no runs of {reference}" if base is None else f"no seed with {reference}"
            notes.append(f"{loss} ({backbone}): {reason} to compare with")
            continue
        pair = [np.stack([x[seed] for seed in seeds]) for x in (own, base)]
        found = {
            name: {k: float(x if k == "p" else 100 * x) for k, x in values.items()}
            for name, values in paired_bootstrap(*pair, resamples).items()
            if name == "f1" or facts is not None
        }
        rows.append({"backbone": backbone, "loss": loss, "seeds": seeds} | found)
    return {"reference": reference, "resamples": resamples, "rows": rows, "notes": notes}


# --- Tables 5 and 6 ---------------------------------------------------------------------------


def data_counts(documents):
    """Totals over documents: documents, words, entities, pairs (ordered), related pairs, triples
    (distinct), sentences, and the set of relations."""
    triples = {(i, x["h"], x["t"], x["r"]) for i, d in enumerate(documents) for x in d["labels"]}
    sizes = [len(document["vertexSet"]) for document in documents]
    return {
        "documents": len(documents),
        "words": sum(len(sentence) for document in documents for sentence in document["sents"]),
        "entities": sum(sizes),
        "pairs": sum(n * (n - 1) for n in sizes),
        "related": len({x[:3] for x in triples if x[1] != x[2]}),
        "triples": len(triples),
        "sentences": sum(len(document["sents"]) for document in documents),
        "relations": {x[3] for x in triples},
    }


def data_tables(splits, paper):
    """Tables 5 (all splits together) and 6: measure -> (ours, the paper's). splits: name ->
    documents."""
    counts = {split: data_counts(documents) for split, documents in splits.items()}
    whole = {
        name: sum(x[name] for x in counts.values())
        for name in ("documents", "words", "entities", "pairs", "related")
    }
    printed = paper["table5_whole_set"]
    ours = {
        "relations": len(set().union(*(x["relations"] for x in counts.values()))),
        "words_per_document": whole["words"] / whole["documents"],
        "entities_per_document": whole["entities"] / whole["documents"],
        "entity_pairs_per_document": whole["pairs"] / whole["documents"],
        "NA_percent": 100 * (1 - whole["related"] / max(whole["pairs"], 1)),
    }
    table5 = {name: {"ours": ours[name], "paper": printed[name]} for name in ours}
    table6 = {}
    for split, x in counts.items():
        means = {name: x[name] / x["documents"] for name in ("entities", "triples", "sentences")}
        means = {"documents": x["documents"]} | means
        printed = paper["table6_splits"][split]
        table6[split] = {n: {"ours": means[n], "paper": printed[n]} for n in means}
    return table5, table6
