"""The numbers of the report: the paper's tables from groups of runs (see groups.py) and from data.

A table of runs is a dict: name, title, columns, rows; a row has backbone, loss, seeds and cells,
column -> {mean, std (sample; None of one run), n} and, where the paper has the table, "paper".
Scores are in percent, patterns are numbers of pairs, shifts are in units of the score.
"""

from functools import partial
from itertools import chain

import msgspec
import numpy as np
import pandas as pd

from engine.run_folder import FAULTS, PATTERN_COUNTS, PREDICTIONS, submission_file
from evaluation import (
    PATTERNS,
    RATIOS,
    count_relations,
    f1_score,
    named_facts,
    pattern_ratios,
)
from inputs.files import InputError
from reporting import ranking
from reporting.groups import SCORES
from reporting.statistics import (
    COMPARED_SCORES,
    compare,
    pooled_variance,
    read_counts,
    resampled_scores,
    scores_of_counts,
)

# Columns of a table -> columns of `frame_of`.
MICRO = {"F1": "test.f1", "Ign F1": "test.ign_f1"}
MACRO = {"macro F1": "test.macro_f1", "macro Ign F1": "test.macro_ign_f1"}
FALSE = {name: f"dev.{name}" for name in ("FP", "FN_CRK", "FN_IRK")}
TABLE_4 = {name: f"dev.{name}" for name in RATIOS}
SHIFTED = {name: f"tuned.dev.{name}" for name in (*FALSE, *RATIOS)}
TUNED = {
    "F1": "test.f1",
    "ceiling": "tuned.test.f1",
    "placement cost": "placement",
    "Ign F1": "test.ign_f1",
    "Ign F1, shifted": "tuned.test.ign_f1",
    "dev F1": "dev.f1",
    "dev F1, shifted": "tuned.dev.f1",
    "shift": "tuned.shift",
}
EVIDENCE = {
    "F1": "test.f1",
    "F1, fused": "fusion.test.f1",
    "Ign F1": "test.ign_f1",
    "Ign F1, fused": "fusion.test.ign_f1",
    "Evi F1": "test.evi_f1",
    "Evi F1, fused": "fusion.test.evi_f1",
}
VARIANTS = MICRO | {x: f"test.{x}" for x in ("precision", "recall", "FN/F", "FN_CRK/FN")}


def frame_of(group):
    """The runs of a group as a DataFrame, one a row: backbone, loss, seed, and the scores by their
    field of results.json, e.g. tuned.test.f1, in percent (numbers of pairs and the shift as they
    are); placement is what the learned threshold costs. NaN: the run does not have it."""
    parts = ("backbone", "loss", "seed", "dev", "test", "tuned", "fusion")
    runs = [run for runs in group["rows"].values() for run in runs]
    frame = pd.json_normalize([{name: run[name] for name in parts} for run in runs])
    splits = ("dev", "test", "tuned.dev", "tuned.test", "fusion.test")
    scores = [f"{split}.{score}" for split in splits for score in SCORES]
    others = *FALSE.values(), *SHIFTED.values(), "tuned.shift"
    frame = frame.reindex(columns=dict.fromkeys([*parts[:3], *scores, *others]))
    frame[scores] *= 100
    return frame.assign(placement=frame["tuned.test.f1"] - frame["test.f1"])


def measure(values):
    """Mean, sample standard deviation and number of the values of a Series that are not NaN."""
    mean, std, n = values.agg(["mean", "std", "count"])
    return {
        "mean": float(mean) if n else None,
        "std": float(std) if n > 1 else None,
        "n": int(n),
    }


def make_table(name, title, columns, runs, paper=None):
    """columns: name -> column of runs; runs: see `frame_of`; paper: (backbone, loss) -> column ->
    number. The rows of the paper come first, also those without runs."""
    table = {"name": name, "title": title, "columns": list(columns), "rows": []}
    rows = zip(runs["backbone"], runs["loss"], strict=True)
    for backbone, loss in dict.fromkeys([*(paper or {}), *rows]):
        own = runs[(runs["backbone"] == backbone) & (runs["loss"] == loss)]
        cells = {column: measure(own[field]) for column, field in columns.items()}
        if paper is not None:
            printed = paper.get((backbone, loss), {})
            for column, cell in cells.items():
                cell["paper"] = printed.get(column)
        seeds = own["seed"].tolist()
        table["rows"].append({"backbone": backbone, "loss": loss, "seeds": seeds, "cells": cells})
    return table


def paper_numbers(paper):
    """meta/paper_results.json as table -> (backbone, loss) -> column -> number."""

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


def group_tables(runs, paper, of_paper):
    """Tables 1, 2, 3, 4 and 7 of a group's runs (see `frame_of`), then those beyond the paper that
    it has runs for. of_paper: whether the relations are the paper's, whose numbers are then shown,
    too."""
    numbers, of_atlop = paper_numbers(paper), runs["backbone"] == "atlop"
    in_table2 = pd.MultiIndex.from_frame(runs[["backbone", "loss"]]).isin(list(numbers[2]))
    kind = runs["loss"].str.split(":").str[0]
    of_hinge, of_others = kind == "HingeABL", ~kind.isin(paper["table3_bert_base_micro"])
    micro, one_loss = runs[of_atlop & ~of_others], runs[in_table2 | ~of_atlop]
    tuned, hinge = runs[runs["tuned.shift"].notna()], runs[of_hinge]
    fused = runs[runs["fusion.test.f1"].notna()]
    tables = []
    for number, title, encoder, columns, chosen in (
        (1, "false predictions, number of pairs (dev)", None, FALSE, runs),
        (2, "backbones (test)", "RoBERTa-large", MICRO, one_loss),
        (3, "losses (test)", "BERT-base", MICRO, micro),
        (4, "shares of the prediction patterns (dev)", None, TABLE_4, runs),
        (7, "macro scores (test)", "BERT-base", MACRO, runs),
    ):
        if encoder and of_paper:
            title = f"{title[:-1]}; the paper: {encoder})"
        printed = numbers[number] if of_paper else None
        tables.append(make_table(f"Table {number}", title, columns, chosen, printed))
    if of_paper:
        printed = paper["table3_bert_base_micro"].items()
        tables[2]["notes"] = [f"{loss}: {x['note']}" for loss, x in printed if "note" in x]
    tables = [table for table in tables if table["rows"]]
    if len(tuned):
        title = (
            "F1 = ceiling - placement cost; the ceiling is F1 with the threshold shifted to the "
            "best dev F1: a relation needs s_r > s_TH + shift (test)"
        )
        tables.append(make_table("Threshold", title, TUNED, tuned))
        title = "the patterns with the threshold shifted so (dev)"
        tables.append(make_table("Table 4 at the best thresholds", title, SHIFTED, tuned))
    if len(fused):
        title = "the document alone, and fused with its evidence (test)"
        tables.append(make_table("Evidence", title, EVIDENCE, fused))
    if hinge["loss"].nunique() > 1:
        title = "HingeABL's norm (separate, unless joint) and margin (5, unless m...) (test)"
        tables.append(make_table("Variants", title, VARIANTS, hinge))
    if of_others.any():
        title = "losses that the paper does not compare (test)"
        tables.append(make_table("Other losses", title, VARIANTS, runs[of_others]))
    return tables


# --- Significance -----------------------------------------------------------------------------


# What is compared on test -> the run folder's submission of it.
SUBMISSIONS = {"test": PREDICTIONS} | {x: submission_file("test", x) for x in ("tuned", "fusion")}


def run_counts(run, kind, truth, facts, rel2id):
    """`document_counts` of one of a run's SUBMISSIONS; None if the run was not scored so or, being
    older, did not keep the submission. Raises InputError unless its scores are those of
    results.json."""
    path = run["folder"] / SUBMISSIONS[kind]
    packed = path.with_name(f"{path.name}.gz")
    path = packed if packed.exists() and not path.exists() else path
    scores = run["test"] if kind == "test" else (run[kind] or {}).get("test")
    if not scores or (kind != "test" and not path.exists()):
        return None
    counts = read_counts(path, truth, rel2id, facts or ())
    f1, ign_f1, _ = scores_of_counts(counts.sum(0))
    same = abs(f1 - scores["f1"]) < 1e-6
    if not same or (facts is not None and abs(ign_f1 - scores["ign_f1"]) > 1e-6):
        raise InputError(f"{path}: its scores are not those of results.json")
    return counts


def run_patterns(run):
    """The patterns of a run's dev documents, [documents, 5]; None if the run did not keep them.
    Raises InputError unless their sums are those of results.json."""
    path = run["folder"] / PATTERN_COUNTS
    if not path.exists():
        return None
    try:
        counts = msgspec.json.decode(path.read_bytes(), type=dict[str, list[list[int]]])
        counts = np.array(counts.get("dev", ()), dtype=np.int64)
        same = counts.shape == (run["data"]["dev"]["documents"], len(PATTERNS))
        same = same and counts.sum(0).tolist() == [run["dev"].get(name) for name in PATTERNS]
    except (*FAULTS, OverflowError) as error:
        raise InputError(f"{path}: not the patterns of a run: {error}") from None
    if not same:
        raise InputError(f"{path}: its numbers are not those of results.json")
    return counts


# What is compared -> the names of its scores, their split, and how what was kept is resampled.
RATIOS_OF = partial(resampled_scores, scores_of=pattern_ratios)
COMPARED = {kind: (COMPARED_SCORES, "test", resampled_scores) for kind in SUBMISSIONS} | {
    "patterns": (RATIOS, "dev", RATIOS_OF),
    "equal": (RATIOS, "dev", lambda x: RATIOS_OF(ranking.patterns_at(x, x["shift"]))),
    "ap": (("ap",), "test", ranking.resampled_precision),
}


def read_kept(group, splits):
    """What the runs of a group kept of each of COMPARED, kind -> (backbone, loss) -> seed -> counts
    or, of "equal" and "ap", `read_ranking` of dev and test; and notes on what cannot be read.
    splits: "test" and, if there are any, "dev" and "train" -> documents."""
    rel2id = group["classes"]
    facts = named_facts(splits["train"]) if "train" in splits else None
    gold = {
        split: ranking.facts_of_pairs(x, rel2id) for split, x in splits.items() if split != "train"
    }
    readers = {
        kind: partial(run_counts, kind=kind, truth=splits["test"], facts=facts, rel2id=rel2id)
        for kind in SUBMISSIONS
    } | {
        "patterns": run_patterns,
        "equal": lambda run: run["tuned"] and ranking.read_ranking(run, "dev", gold.get("dev")),
        "ap": lambda run: ranking.read_ranking(run, "test", gold["test"]),
    }
    kept, notes = {kind: {} for kind in COMPARED}, []
    for row, run in ((row, run) for row, runs in group["rows"].items() for run in runs):
        for kind, read in readers.items():
            try:
                if (x := read(run)) is not None:
                    kept[kind].setdefault(row, {})[run["seed"]] = x
            except InputError as error:
                notes.append(str(error))
    return kept, notes


def significance(group, references, splits):
    """Every loss against the reference loss of its backbone, HingeABL against all its losses, and
    every backbone against ATLOP and its own plain form with the same loss, by the seeds that both
    have.

    references: backbone -> loss; splits: see `read_kept`. Returns for each of COMPARED a list of
    rows, with the values of `compare`; and what the runs kept.
    """
    kept, notes = read_kept(group, splits)
    found = {}
    for kind, (names, split, resample) in COMPARED.items():
        scores = {row: {s: resample(x) for s, x in own.items()} for row, own in kept[kind].items()}
        documents = group["data"][split]["documents"]
        found[kind] = compared(scores, group["rows"], references, documents, names)
    if "train" not in splits:
        for row in chain.from_iterable(found[kind] for kind in SUBMISSIONS):
            del row["ign_f1"]
    for kind, name in {"test": "", "patterns": f"{PATTERN_COUNTS}: "}.items():
        notes += [name + note for note in not_compared(kept[kind], references)]
    return found | {"notes": notes}, kept


def compared(scores, runs, references, documents, names):
    """The rows of `significance`. scores: (backbone, loss) -> seed -> `resampled_scores` of a run;
    runs: (backbone, loss) -> runs. Where two runs of one seed were made on two kinds of machine,
    none are paired."""
    devices = {(row, x["seed"]): x["device"] for row, of_row in runs.items() for x in of_row}
    pooled = pooled_variance([[x[0] for x in own.values()] for own in scores.values()])
    rows = []
    for row, own in scores.items():
        backbone, loss = row
        others = [(backbone, references[backbone])]
        # The paper claims of HingeABL that it is above all others.
        if loss == "HingeABL" != references[backbone]:  # else they are compared with it anyway
            others += [other for other in scores if other[0] == backbone]
        others += ("atlop", loss), (backbone.split(" ")[0], loss)
        for other in dict.fromkeys(others):
            base = scores.get(other, {})
            seeds = [seed for seed in own if seed in base]
            if other == row or not seeds:
                continue
            paired = all(devices[row, seed] == devices[other, seed] for seed in seeds)
            pair = [[x[seed] for seed in seeds] for x in (own, base)]
            few = pooled if len(seeds) in (2, 3) else None
            found = compare(*pair, documents, names, paired, few)
            against = other[1] if other[0] == backbone else other[0]
            rows.append({"backbone": backbone, "loss": loss, "against": against, "seeds": seeds})
            rows[-1] |= {"paired": paired} | found
    return rows


def not_compared(counts, references):
    """Notes on losses that have no seed in common with their reference."""
    notes = []
    for (backbone, loss), own in counts.items():
        reference = references[backbone]
        base = counts.get((backbone, reference))
        if loss != reference and not own.keys() & (base or {}).keys():
            reason = f"no seed with {reference}" if base else f"no runs of {reference}"
            notes.append(f"{loss} ({backbone}): {reason} to compare with")
    return notes


# --- What needs the documents ------------------------------------------------------------------


BANDS = {"top 10": slice(10), "11 to 30": slice(10, 30), "31 to 60": slice(30, 60)}
BANDS["others"] = slice(60, None)
DETAILS = {  # table -> title, columns
    "Frequency": (
        "F1 of the relations by their rank in train, the one with most facts first (test)",
        [f"{band}{kind}" for band in BANDS for kind in ("", " shifted")],
    ),
    "Law": (
        "the shift of the threshold that a calibrated loss needs, and the one found; precision "
        f"among the {ranking.NEAR} entries above and the {ranking.NEAR} below a threshold (dev)",
        ["shift by the law", "shift found", "F1 / 2", "local precision", "local shifted"],
    ),
    "Ranking": (
        "average precision by margin, and the related pairs that are ranked right (test)",
        ["AP", "ranked right"],
    ),
}


def detail_tables(group, splits, kept):
    """The tables of DETAILS that there are runs for. splits: "train", "dev" and "test" ->
    documents; kept: see `read_kept`."""
    facts, classes = count_relations(splits["train"]), group["classes"]
    order = sorted(classes, key=lambda r: (-facts[r], classes[r]))
    order = [classes[r] for r in order if classes[r]]
    dense = [ranking.facts_a_pair(splits[split]) for split in ("train", "dev")]
    rows, tables = [], []
    for row, run in ((row, run) for row, runs in group["rows"].items() for run in runs):
        own = {kind: x.get(row, {}).get(run["seed"]) for kind, x in kept.items()}
        rows.append({name: run[name] for name in ("backbone", "loss", "seed")})
        rows[-1] |= run_details(run, own, order, dense)
    frame = pd.DataFrame(rows)
    for name, (title, columns) in DETAILS.items():
        if known := {x: x for x in columns if x in frame}:
            chosen = frame[frame[[*known]].notna().any(axis=1)]
            tables.append(make_table(name, title, known, chosen))
    return tables


def run_details(run, kept, order, dense):
    """The columns of DETAILS of a run, shares in percent. kept: what it kept, by kind of COMPARED;
    order: class ids, the most frequent in train first; dense: see `shift_by_law`."""
    found = {}
    for kind, name in {"test": "", "tuned": " shifted"}.items():
        for band, chosen in BANDS.items():
            if kept[kind] is not None and order[chosen]:
                counts = kept[kind].sum(0)[order[chosen]].sum(0)
                found[f"{band}{name}"] = 100 * f1_score(*counts[:3])
    if run["tuned"]:
        best, shift = run["tuned"]["dev"]["f1"], run["tuned"]["shift"]
        law = ranking.shift_by_law(best, dense)
        found |= {"shift by the law": law, "shift found": shift, "F1 / 2": 50 * best}
    if kept["equal"]:
        shift = kept["equal"]["shift"]
        found["local precision"] = 100 * ranking.local_precision(kept["equal"], 0)
        found["local shifted"] = 100 * ranking.local_precision(kept["equal"], shift)
    if kept["ap"]:
        found["AP"] = 100 * ranking.resampled_precision(kept["ap"], 0)[0, 0]
        found["ranked right"] = 100 * kept["ap"]["ranked_right"].mean()
    return found


# --- Tables 5 and 6 ---------------------------------------------------------------------------


def document_sizes(documents):
    """A DataFrame, one document a row: numbers of words, entities, sentences, distinct triples,
    ordered pairs, and pairs with a relation."""
    rows = []
    for document in documents:
        number = len(document["vertexSet"])
        triples = {(x["h"], x["t"], x["r"]) for x in document["labels"]}
        rows.append(
            {
                "words": sum(map(len, document["sents"])),
                "entities": number,
                "triples": len(triples),
                "sentences": len(document["sents"]),
                "pairs": len(document.get("candidates", range(number * (number - 1)))),
                "related": len({(h, t) for h, t, _ in triples if h != t}),
            }
        )
    return pd.DataFrame(rows)


def data_tables(splits, paper):
    """Tables 5 (all splits together) and 6: measure -> (ours, the paper's). splits: name ->
    documents."""
    sizes = {split: document_sizes(documents) for split, documents in splits.items()}
    whole, relations = pd.concat(sizes.values()), set()
    for document in (x for documents in splits.values() for x in documents):
        relations |= {x["r"] for x in document["labels"]}
    ours = {
        "relations": len(relations),
        "words_per_document": float(whole["words"].mean()),
        "entities_per_document": float(whole["entities"].mean()),
        "entity_pairs_per_document": float(whole["pairs"].mean()),
        "NA_percent": float(100 * (1 - whole["related"].sum() / max(whole["pairs"].sum(), 1))),
    }

    def with_paper(ours, printed):
        return {name: {"ours": number, "paper": printed[name]} for name, number in ours.items()}

    table6 = {}
    for split, x in sizes.items():
        means = x[["entities", "triples", "sentences"]].mean().to_dict()
        table6[split] = with_paper({"documents": len(x)} | means, paper["table6_splits"][split])
    return with_paper(ours, paper["table5_whole_set"]), table6
