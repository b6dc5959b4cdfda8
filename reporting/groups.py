"""Finds and checks run folders, and groups the runs that may be averaged.

A run is a dict:

folder, trained_in    its folder, and the one that trained its weights: another one if it only
                      evaluates
classes               property -> class id
seed, backbone, loss  as the tables name them, e.g. HingeABL:joint:m3
device                the kind of machine that made it, if it says so
settings              encoder and recipe, flag -> value
data, dev, test, tuned, fusion    of results.json; the last three may be None
"""

import json
import os
from hashlib import sha256
from pathlib import Path

import msgspec
import numpy as np

from backbones import BACKBONES
from engine.options import FLAGS, SAVED_WITH_MODEL, SETTINGS, Options, check_value
from engine.run_folder import (
    CONFIG,
    FAULTS,
    METRICS,
    RELATIONS,
    RESULTS,
    check_fields,
    logits_file,
    read_results,
)
from evaluation import PATTERNS, RATIOS, prediction_patterns
from inputs.files import REL2ID_FILE, InputError, printable, read_json, relation_ids
from losses import LOSSES, loss_label, read_label
from model import DocREConfig

DEFAULTS = vars(Options())
# Flags that change no score, and those that a row of a table names. Every other flag is a setting:
# runs that differ in it are never averaged.
NOT_SETTINGS = DEFAULTS.keys() - SETTINGS
SCORES = ("f1", "ign_f1", "precision", "recall", "macro_f1", "macro_ign_f1", "evi_f1", *RATIOS)

# --- The files that train.py writes, as far as the report reads them ---------------------------

# What results.json says of the data file of each split -> its kind, see `check_fields`.
DATA_FIELDS = {"sha256": str, "file": str, "documents": float, "triples": float}


def read_checked(folder):
    """The results of a run folder, checked for what the report needs. F1 and Ign F1 are the only
    scores that it needs: a run of another version may lack others or have more. Raises InputError,
    which names the file and the field."""
    results = read_results(folder)
    try:
        check_results(results)
    except InputError as error:
        raise InputError(f"{folder / RESULTS} is not a finished run's: {error}") from None
    return results


def check_results(results):
    for flag in FLAGS.keys() - {"rel2id"}:
        check_value(flag, results["args"][flag], f"args.{flag}")
    splits = ["dev", "test"] if results.get("test") else ["dev"]
    for split in ("train", *splits):
        for name, kind in DATA_FIELDS.items():
            check_fields(results, f"data.{split}.{name}", kind=kind)
    parts = [f"{name}." for name in ("tuned", "fusion") if results.get(name)]
    for scored in [part + split for part in ("", *parts) for split in splits]:
        check_fields(results, f"{scored}.f1", f"{scored}.ign_f1")
        others = (f"{scored}.{name}" for name in (*SCORES, *PATTERNS))
        check_fields(results, *others, needed=False)
    check_fields(results, "tuned.shift", needed="tuned." in parts)


# --- Run folders ------------------------------------------------------------------------------


def find_runs(root, skip):
    """All runs below a folder (links are followed), and a (folder, reason) pair for each folder
    that cannot be reported.

    skip: the report's own folder, which is not searched.
    """
    root, found, runs, left_out = Path(root), [], [], []
    if not os.path.isdir(root):
        raise InputError(f"--runs {root}: no such folder")
    seen = {os.path.realpath(skip)}
    for name, subfolders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(name)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(x for x in subfolders if x[0] != ".")
        # A run that has just begun has only a config.json; so has any encoder.
        if {RESULTS, METRICS} & set(files) or is_model(Path(name) / CONFIG):
            found.append(Path(name))
    for folder in found:
        try:
            runs.append(read_run(folder))
        except InputError as error:
            left_out.append((folder, str(error).removeprefix(printable(f"{folder}/"))))
    for folder in sorted(root.iterdir()) if root not in found else []:
        passed_over = folder.name[0] == "." or os.path.realpath(folder) == os.path.realpath(skip)
        if folder.is_dir() and not passed_over and not any(x.is_relative_to(folder) for x in found):
            left_out.append((folder, f"not a run: neither {RESULTS} nor {METRICS} in it"))
    return runs, left_out


def is_model(config):
    try:
        return read_json(config)["model_type"] == DocREConfig.model_type
    except (InputError, LookupError, TypeError):
        return False


def read_run(folder):
    """The run of a folder. Raises InputError, which says why it cannot be reported."""
    if not (folder / RESULTS).exists():
        raise InputError(f"unfinished: it has no {RESULTS}")
    results = read_checked(folder)
    args = trained_with(results["args"])
    splits = [x for x in results["data"] if x != "test" or results.get("test")]
    relations = folder / CONFIG
    if not is_model(relations):  # it was only evaluated, or is kept without its model
        relations = folder / RELATIONS
        relations = relations if relations.exists() else REL2ID_FILE
    return {
        "classes": relation_ids(relations),
        "folder": folder,
        "trained_in": Path(results["args"]["load_path"] or folder),
        "seed": args["seed"],
        "backbone": backbone_label(args),
        "loss": loss_label(args["loss_type"], args),
        "settings": settings_of(args),
        "device": results.get("device"),
        "data": {split: {x: results["data"][split][x] for x in DATA_FIELDS} for split in splits},
        **{name: results.get(name) for name in ("dev", "test", "tuned", "fusion")},
    }


def trained_with(args):
    """The flags that trained the weights. Those of a run that only evaluated (--load_path) are in
    the run folder that it loaded. Those of a released checkpoint are unknown: its path counts as
    the seed."""
    source = Path(args["load_path"])
    if not args["load_path"]:
        return args
    if os.path.isfile(source) or source.suffix in (".pt", ".safetensors"):
        kept = {*SAVED_WITH_MODEL, *NOT_SETTINGS, "model_name_or_path"}
        known = {name: value for name, value in args.items() if name in kept}
        return known | {"seed": str(source), "trained": "elsewhere"}
    if not os.path.isfile(source / RESULTS):  # False, not an error, of a name with a NUL
        raise InputError(f"only evaluates {source}, whose {RESULTS} is not there")
    trained = trained_with(read_checked(source)["args"])
    return trained | {name: args[name] for name in SAVED_WITH_MODEL}


def settings_of(args, within=()):
    """What must be equal in runs to be averaged, apart from data, backbone and loss: flag -> value.
    A run that began with the weights of another (--init_path) or was taught by others (--teacher)
    has their recipes instead of their paths, so that runs of several seeds are averaged."""
    settings = {name: value for name, value in args.items() if name not in NOT_SETTINGS}
    for name in ("init_path", "teacher"):
        sources = settings.get(name)
        if isinstance(sources, list):
            settings[name] = [recipe_of(source, within) for source in sources]
        else:
            settings[name] = recipe_of(sources, within)
    return settings


def recipe_of(source, within=()):
    """How the run in a folder was trained; the source itself, if it is no finished run, or one of
    `within`, because a folder may have been overwritten by a run that began with it."""
    if not source or source in within or not os.path.isfile(Path(source) / RESULTS):
        return source
    results = read_checked(Path(source))
    args, data = results["args"], results["data"]["train"]
    recipe = json.dumps(settings_of(args, (*within, source)), sort_keys=True).encode()
    return (
        f"{loss_label(args['loss_type'], args)} of {backbone_label(args)}, trained on "
        f"{data['file']}, SHA-256 {data['sha256'][:12]}, with settings of SHA-256 "
        f"{sha256(recipe).hexdigest()[:12]}"
    )


def backbone_label(args):
    """The backbone, and its options that are not the default, e.g. docunet (down_dim 128) or dreeam
    (evidence_weight 0.1)."""
    backbone = BACKBONES[args["backbone"]]
    names = (*backbone.sizes, *backbone.learning_rates, "evidence_weight")
    changed = [f"{x} {args[x]:g}" for x in names if args[x] != DEFAULTS[x]]
    return f"{args['backbone']} ({', '.join(changed)})" if changed else args["backbone"]


def order_of(row):
    """The sort key of (backbone, loss): the paper's order of backbones and losses, then by
    variant."""
    backbone, loss = row
    loss_type, options = read_label(loss)
    rank = [*BACKBONES].index(backbone.split(" ")[0]), backbone, [*LOSSES].index(loss_type)
    return *rank, options.get("hinge_norm", ""), options.get("margin", 0), loss


def group_runs(runs):
    """Groups of runs with the same data, relations and settings, the largest group first. A group
    is a dict of data, settings, classes, of_paper (whether the relations are the paper's), rows
    ((backbone, loss) -> runs of distinct seeds) and notes.

    Of two runs with the same seed, one with fusion and a tuned threshold is taken, else the first
    by name; a note says so.
    """
    together = {}
    for run in runs:
        files = {split: x["sha256"] for split, x in run["data"].items()}
        sizes = [[x["documents"], x["triples"]] for x in run["data"].values()]
        key = json.dumps([files, sizes, run["settings"], run["classes"]], sort_keys=True)
        together.setdefault(key, []).append(run)
    groups = []
    for members in sorted(together.values(), key=lambda x: (-len(x), str(x[0]["folder"]))):
        rows, notes = {}, []
        members.sort(key=lambda x: (x["fusion"] is None, x["tuned"] is None, str(x["folder"])))
        for run in members:
            seeds = rows.setdefault((run["backbone"], run["loss"]), {})
            first = seeds.setdefault(run["seed"], run)
            if first is not run:
                notes.append(
                    f"{first['folder']} and {run['folder']} have the same settings and seed "
                    f"({run['seed']}): the first is used"
                )
        rows = {
            row: [rows[row][seed] for seed in sorted(rows[row], key=lambda x: (str(type(x)), x))]
            for row in sorted(rows, key=order_of)
        }
        first = members[0]
        groups.append(
            {name: first[name] for name in ("data", "settings", "classes")}
            | {"of_paper": first["classes"] == relation_ids(), "rows": rows, "notes": notes}
        )
    return groups


# --- The other files of a run folder ----------------------------------------------------------


def read_curve(folder):
    """The records of a run folder's metrics.jsonl. Raises InputError."""
    path = folder / METRICS
    try:
        records = msgspec.json.Decoder().decode_lines(path.read_bytes())
        if not records:
            raise InputError("the file is empty")
        for record in records:
            check_fields(record, "step", "loss", "dev.f1")
            others = (f"dev.{name}" for name in (*SCORES, "above_threshold"))
            check_fields(record, *others, needed=False)
    except FAULTS as error:
        raise InputError(f"{path}: no evaluations of a run: {error}") from None
    return records


def threshold_ends(runs):
    """Precision and recall on test, in percent, of the learned threshold and of the one that is
    best on dev, [2, 2], of each of the runs that has them."""
    scores = [(run["test"], run["tuned"]["test"]) for run in runs if run["tuned"] and run["test"]]
    names = "precision", "recall"
    known = [both for both in scores if all(x.keys() >= set(names) for x in both)]
    return [[[100 * x[name] for name in names] for x in both] for both in known]


def read_pair(run, split, row):
    """One pair of a run's logits, as figures.pair_scores takes it. Raises InputError."""
    path = run["folder"] / logits_file(split)
    try:
        with np.load(path, allow_pickle=False) as file:
            names = "logits", "labels", "threshold"
            logits, labels, threshold = (file[name][row : row + 1] for name in names)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except Exception as error:  # whatever numpy and zipfile raise on a foreign file
        raise InputError(f"{path}: not a logits file: {error!r}") from None
    if len(logits) == 0:
        raise InputError(f"{path}: it has no pair number {row}")
    pattern = PATTERNS[prediction_patterns(logits, labels, threshold)[0]]
    return {
        "title": f"{run['loss']}, seed {printable(run['seed'], 40)}: {pattern}",
        "scores": logits[0, 1:],
        "labels": labels[0, 1:] > 0,
        "threshold": float(threshold[0, 0]),
    }
