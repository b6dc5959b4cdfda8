"""Run folders: find them, check them, put together what may be averaged.

A run is a dict: folder, trained_in (the same, or of a run that only evaluates: the folder whose
weights it has), classes (property -> class id), seed, backbone, loss (its name in tables, e.g.
HingeABL:joint:m3), loss_type, num_labels, settings (encoder and recipe, flag -> value) and data,
dev, test, tuned and fusion, as in results.json (the last three may be None).
"""

import json
import os
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import numpy as np
import torch
from typing_extensions import NotRequired, TypedDict  # Python 3.10 lacks the first

from backbones import BACKBONES
from engine.options import SAVED_WITH_MODEL, SETTINGS, Options
from engine.scoring import shift_curve
from evaluation import PATTERNS, RATIOS, f1_score, prediction_patterns, read_logits
from inputs.files import META_DIR, InputError, printable, read_json, relation_ids
from losses import LOSSES, margins
from model import DocREConfig

DEFAULTS = vars(Options())  # of flags that an older run does not have
# Flags that change no score, and those that a row of a table names. Every other flag is a setting,
# so runs that differ in it are never averaged.
NOT_SETTINGS = DEFAULTS.keys() - SETTINGS
OF_DOCUNET = ("max_height", "unet_in_dim", "unet_out_dim", "down_dim", "unet_lr")
# An option of a loss -> what stands before its value in the name of a variant; else its own name.
LETTERS = {
    "margin": "m",
    "gamma": "g",
    "hinge_norm": "",
    "entropy_weight": "e",
    "ncrl_shift": "s",
    "positive_weight": "w",
}
SCORES = ("f1", "ign_f1", "precision", "recall", "macro_f1", "macro_ign_f1", *RATIOS)
FUSED = ("f1", "ign_f1", "evi_f1")

# --- The files that train.py writes, as far as the report reads them ---------------------------

LARGEST = 2**53  # beyond, a float cannot count
Whole = Annotated[int, msgspec.Meta(gt=-LARGEST, lt=LARGEST)]
Count = Annotated[int, msgspec.Meta(ge=0, lt=LARGEST)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Setting = str | bool | Whole | float | None

REQUIRED = {"loss_type": Literal[tuple(LOSSES)], "seed": Whole, "model_name_or_path": str}
OPTIONAL = dict.fromkeys(DEFAULTS, Setting) | {
    "backbone": Literal[tuple(BACKBONES)],
    "hinge_norm": Literal["separate", "joint"],
    "margin": float | None,
    "gamma": float,
    "evidence_weight": float,
    "entropy_weight": list[float] | None,
    "ncrl_shift": float | None,
    "positive_weight": float | None,
    "num_labels": Whole,
    "load_path": str,
    "init_path": str,
    **dict.fromkeys(OF_DOCUNET, float),
}
OPTIONAL = [(flag, kind, None) for flag, kind in OPTIONAL.items() if flag not in REQUIRED]
Args = msgspec.defstruct("Args", [*REQUIRED.items(), *OPTIONAL])
Scores = TypedDict(
    "Scores",
    dict.fromkeys(SCORES, Share) | dict.fromkeys(PATTERNS, Count) | {"evi_f1": NotRequired[Share]},
)
Fused = TypedDict("Fused", dict.fromkeys(FUSED, Share))


class File(msgspec.Struct):
    sha256: str
    file: str
    documents: Count
    triples: Count


class Data(msgspec.Struct, omit_defaults=True):
    train: File
    dev: File
    test: File | None = None


class Tuned(msgspec.Struct, omit_defaults=True):
    shift: float
    dev: Scores
    test: Scores | None = None


class Fusion(msgspec.Struct, omit_defaults=True):
    dev: Fused
    test: Fused | None = None


class Results(msgspec.Struct):
    args: Args
    data: Data
    dev: Scores
    test: Scores | None = None
    tuned: Tuned | None = None
    fusion: Fusion | None = None

    def __post_init__(self):
        for name in ("data", "tuned", "fusion") if self.test else ():
            part = getattr(self, name)
            if part and not part.test:
                raise ValueError(f"test is there, but {name}.test is missing")


class Flags(msgspec.Struct):
    args: dict[
        str, Setting | list[float]
    ]  # also those that this version does not know: they are settings


Positive = Annotated[float, msgspec.Meta(ge=0, le=1e30)]
Curve = dict.fromkeys(("precision", "recall", "f1"), Share)
Curve |= {"above_threshold": NotRequired[Positive], "FN_CRK/FN": NotRequired[Share]}


class Record(TypedDict):  # a line of metrics.jsonl
    step: Count
    loss: Positive
    dev: TypedDict("Curve", Curve)


class Patterns(msgspec.Struct):  # patterns.json
    # of each document the numbers of its pairs
    dev: list[
        Annotated[list[Count], msgspec.Meta(min_length=len(PATTERNS), max_length=len(PATTERNS))]
    ]


FAULTS = (OSError, ValueError, RecursionError, msgspec.MsgspecError)  # of reading such a file


def read_results(path):
    """A run's results, a dict, args: flag -> value. Raises InputError, naming the field."""
    try:
        content = path.read_bytes()
        results = msgspec.to_builtins(msgspec.json.decode(content, type=Results))
        return results | {"args": DEFAULTS | msgspec.json.decode(content, type=Flags).args}
    except FAULTS as error:
        raise InputError(f"{path} is not a finished run's: {error}") from None


# --- Run folders ------------------------------------------------------------------------------


def find_runs(root, skip):
    """All runs below a folder (links are followed), and what is none: (folder, reason) pairs.

    skip: a folder to pass over, the report's own.
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
        # a run that has just begun has only its model's configuration, as any encoder has one
        if {"results.json", "metrics.jsonl"} & set(files) or is_model(Path(name) / "config.json"):
            found.append(Path(name))
    for folder in found:
        try:
            runs.append(read_run(folder))
        except InputError as error:
            left_out.append((folder, str(error).removeprefix(printable(f"{folder}/"))))
    for folder in sorted(root.iterdir()) if root not in found else []:
        passed_over = folder.name[0] == "." or os.path.realpath(folder) == os.path.realpath(skip)
        if folder.is_dir() and not passed_over and not any(x.is_relative_to(folder) for x in found):
            left_out.append((folder, "not a run: neither results.json nor metrics.jsonl in it"))
    return runs, left_out


def is_model(config):
    try:
        return read_json(config)["model_type"] == DocREConfig.model_type
    except (InputError, LookupError, TypeError):
        return False


def read_run(folder):
    """The run of a folder. Raises InputError, which says why it cannot be reported."""
    if not (folder / "results.json").exists():
        raise InputError("unfinished: it has no results.json")
    results = read_results(folder / "results.json")
    args = trained_with(results["args"])
    relations = folder / "config.json"
    if not is_model(relations):  # of an older run
        relations = folder / "rel2id.json"
        relations = relations if relations.exists() else META_DIR / "rel2id.json"
    return {
        "classes": relation_ids(relations),
        "folder": folder,
        "trained_in": Path(results["args"]["load_path"] or folder),
        "seed": args["seed"],
        "backbone": backbone_label(args),
        "loss": loss_label(args),
        "loss_type": args["loss_type"],
        "num_labels": args["num_labels"],
        "settings": settings_of(args),
        **{name: results[name] for name in ("data", "dev", "test", "tuned", "fusion")},
    }


def trained_with(args):
    """The settings that trained the weights. A run that only evaluated (--load_path) has them from
    the run folder it loaded; of a foreign checkpoint nobody knows them, and it counts as a seed of
    its own."""
    source = Path(args["load_path"])
    if not args["load_path"]:
        return args
    if os.path.isfile(source) or source.suffix in (".pt", ".safetensors"):
        kept = {*SAVED_WITH_MODEL, *NOT_SETTINGS, "model_name_or_path"}
        known = {name: value for name, value in args.items() if name in kept}
        return known | {"seed": str(source), "trained": "elsewhere"}
    if not os.path.isfile(source / "results.json"):  # False, not an error, of a name with a NUL
        raise InputError(f"only evaluates {source}, whose results.json is not there")
    trained = read_results(source / "results.json")["args"]
    return trained | {name: args[name] for name in SAVED_WITH_MODEL}


def settings_of(args):
    """What runs must share to be averaged, apart from data, backbone and loss: flag -> value. Runs
    that began with the weights of other run folders (--init_path) share what trained those."""

    def kept(args):
        return {name: value for name, value in args.items() if name not in NOT_SETTINGS}

    settings = kept(args)
    source = settings.get("init_path")
    if source and os.path.isfile(Path(source) / "results.json"):
        results = read_results(Path(source) / "results.json")
        args, data = results["args"], results["data"]["train"]
        recipe = json.dumps(kept(args), sort_keys=True).encode()
        settings["init_path"] = (
            f"{loss_label(args)} of {backbone_label(args)}, trained on {data['file']}, SHA-256 "
            f"{data['sha256'][:12]}, with settings of SHA-256 {sha256(recipe).hexdigest()[:12]}"
        )
    return settings


def loss_label(args):
    """The loss with what is not its default, in the notation of scripts/run_table3.sh: HingeABL,
    HingeABL:joint, HingeABL:m3 (--margin 3), HingeABL:joint:m3, AML:m2, AFL:g2 (--gamma 2),
    PMTEM:e0.1,0.5 (--entropy_weight), NCRL:s0.05 (--ncrl_shift), ATGL:w4 (--positive_weight)."""
    label = args["loss_type"]
    for name, default in reversed(LOSSES[label][1].items()):
        value = args[name]
        if isinstance(value, list):
            value = tuple(value)
        if value not in (None, default):
            label += f":{LETTERS.get(name, name)}{shown(value)}"
    return label


def shown(value):
    if isinstance(value, tuple):
        return ",".join(f"{x:g}" for x in value)
    return value if isinstance(value, str) else f"{value:g}"


def backbone_label(args):
    """The backbone with what is not its default, e.g. docunet (down_dim 128) or dreeam
    (evidence_weight 0.1)."""
    names = [*(OF_DOCUNET if args["backbone"] == "docunet" else ()), "evidence_weight"]
    changed = [f"{x} {args[x]:g}" for x in names if args[x] != DEFAULTS[x]]
    return f"{args['backbone']} ({', '.join(changed)})" if changed else args["backbone"]


def order_of(row):
    """Sorts (backbone, loss): the paper's order of backbones and losses, then by variant."""
    backbone, loss = row
    parts = loss.split(":")
    default = LOSSES[parts[0]][1].get("margin", 0)
    margin = [float(x[1:]) for x in parts[1:] if x[0] == "m"] or [default]
    kind = backbone.split(" ")[0]
    rank = [*BACKBONES].index(kind), backbone, [*LOSSES].index(parts[0])
    return *rank, "joint" in parts, loss.count(":m"), margin, loss


def group_runs(runs):
    """The runs by data, relations and settings: groups {data, settings, classes, of_paper, rows,
    notes}, the largest first; of_paper: whether the relations are the paper's; rows:
    (backbone, loss) -> runs of distinct seeds. Where one seed ran twice, one run is taken: one with
    fusion and a tuned threshold before one without, then the first by name; the notes say so."""
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
    path = folder / "metrics.jsonl"
    try:
        records = msgspec.json.Decoder(Record).decode_lines(path.read_bytes())
        if not records:
            raise ValueError("the file is empty")
    except FAULTS as error:
        raise InputError(f"{path}: no evaluations of a run: {error}") from None
    return records


def read_shifts(run):
    """Test F1 against the shift of the threshold, from a run's logits: shifts [K] rising, F1 [K].
    Raises InputError."""
    path = run["folder"] / "test_logits.npz"
    if not run["test"]:
        raise InputError(f"{path}: results.json has no test scores")
    arrays = read_logits(path)
    above = margins(torch.from_numpy(arrays["logits"]), run["loss_type"], run["num_labels"])
    shifts, correct, predicted = shift_curve(above.numpy(), arrays["labels"])
    f1 = f1_score(correct, predicted, run["data"]["test"]["triples"])
    unshifted = np.abs(shifts).argmin()  # the curve has 0 itself
    if abs(f1[unshifted] - run["test"]["f1"]) > 1e-6:
        raise InputError(f"{path}: its F1 is not that of results.json")
    return shifts[::-1], f1[::-1]


def read_pair(run, split, row):
    """One pair of a run's logits, as figures.pair_scores takes it. Raises InputError."""
    path = run["folder"] / f"{split}_logits.npz"
    arrays = {k: x if x is None else x[row : row + 1] for k, x in read_logits(path).items()}
    if len(arrays["logits"]) == 0:
        raise InputError(f"{path}: it has no pair number {row}")
    if arrays["logits"].shape[1] != len(run["classes"]):
        raise InputError(f"{path}: the scores are not those of {len(run['classes'])} classes")
    pattern = PATTERNS[prediction_patterns(**arrays)[0]]
    threshold = arrays["logits"] if arrays["threshold"] is None else arrays["threshold"]
    return {
        "title": f"{run['loss']}, seed {printable(run['seed'], 40)}: {pattern}",
        "scores": arrays["logits"][0, 1:],
        "labels": arrays["labels"][0, 1:] > 0,
        "threshold": float(threshold[0, 0]),
    }
