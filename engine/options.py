"""The flags of train.py. ATLOP's keep their names; the defaults are the paper's recipe for BERT.

A flag is declared once: as a field of `Own` below, as a parameter of a loss (losses.py) or in a
backbone's class (DocREModel.sizes and learning_rates). The parser, the checks and the rest follow
from that.
"""

import dataclasses
import math
import os
import re
from pathlib import Path
from types import NoneType
from typing import Annotated, Literal, get_args, get_origin

import msgspec

from backbones import BACKBONES
from engine import distributed
from engine.device import pick_device
from inputs.files import META_DIR, InputError, OneLineParser, read_json, reason_of, relation_ids
from losses import LOSSES, all_options
from model import DocREConfig


def flag(default, help=None, *, saved=None, free=False, row=False, scored=False):
    """A field of the flags.

    saved    the name under which DocREConfig has it, True: the flag's own; what evaluates a run
             folder (--load_path) or goes on from it (--init_path) takes it from there
    free     nothing that is trained depends on it, so a run may go on with another, and it is of no
             account in a report (unless scored: evidence and fusion depend on it)
    row      the report names it in a row, or elsewhere. Runs that differ in a flag that is neither
             free nor row are never averaged
    """
    facts = {"help": help, "saved": saved, "free": free, "row": row, "scored": scored}
    return dataclasses.field(default=default, metadata=facts)


def at_least(number, kind=int):
    return Annotated[kind, msgspec.Meta(ge=number)]


Positive = Annotated[float, msgspec.Meta(gt=0)]
Fraction = Annotated[float, msgspec.Meta(ge=0, le=1)]


@dataclasses.dataclass
class Own:
    data_dir: str = flag("dataset/redocred", "folder of the three files", free=True)
    train_file: str = flag("train_revised.json", row=True)
    dev_file: str = flag("dev_revised.json", row=True)
    test_file: str = flag("test_revised.json", '"" for none', row=True)
    rel2id: Path = flag(META_DIR / "rel2id.json", "property -> class id", free=True)
    transformer_type: Literal["bert", "roberta"] | None = flag(
        None, "default: read from the encoder", row=True
    )
    model_name_or_path: str = flag("bert-base-cased", "encoder: hub name or folder")
    config_name: str = flag("", "default: model_name_or_path")
    tokenizer_name: str = flag("", "default: model_name_or_path")
    load_path: str = flag("", "run folder or released .pt: only evaluate", row=True)
    init_path: str = flag("", "run folder or released .pt: train on from its weights")
    output_dir: str = flag("", "run folder; default: runs/<run_name>", free=True)
    overwrite: bool = flag(False, "replace the run in output_dir", free=True)
    resume: bool = flag(False, "go on with the interrupted run in output_dir", free=True)
    save_steps: int = flag(-1, "between saved states; default: an epoch", free=True)
    save_logits: bool = flag(False, "keep dev_logits.npz and test_logits.npz", free=True)
    tune_threshold: bool = flag(
        False, "also score with the threshold shifted to the best dev F1", free=True
    )
    fusion: bool = flag(
        False, "also score together with pseudo documents of the pairs' evidence", free=True
    )

    backbone: Literal[tuple(BACKBONES)] = flag("atlop", saved=True, row=True)
    loss_type: Literal[tuple(LOSSES)] = flag("HingeABL", saved=True, row=True)
    evidence_weight: at_least(0, float) = flag(
        0.0, "of the evidence loss (DREEAM: 0.1 BERT, 0.05 RoBERTa)", saved=True, row=True
    )
    evidence_threshold: Fraction = flag(
        0.2,
        "a sentence with more of a pair's attention is its evidence",
        saved=True,
        free=True,
        scored=True,
    )
    num_labels: int = flag(4, "most relations a pair; -1: no limit", saved="labels_per_pair")
    num_class: int | None = flag(None, "follows from --rel2id; given, it is only checked")
    emb_size: at_least(64) = flag(768, "width of head and tail representations", saved=True)
    # [CLS], a word, [SEP]
    max_seq_length: at_least(3) = flag(1024, "tokens; longer documents are cut", saved=True)

    attention_dropout: Annotated[float, msgspec.Meta(ge=0, lt=1)] | None = flag(
        None, "default: the encoder's own; 0 is faster on a CPU"
    )
    train_batch_size: at_least(1) = flag(4, "documents, of all processes together")
    test_batch_size: at_least(1) = flag(8, "documents", free=True)
    gradient_accumulation_steps: at_least(1) = flag(1)
    learning_rate: Positive = flag(5e-5, "of the encoder")
    classifier_lr: Positive = flag(1e-4, "of the new layers")
    adam_epsilon: Positive = flag(1e-6)
    max_grad_norm: Positive = flag(1.0)
    warmup_ratio: Fraction = flag(0.06, "of all steps")
    num_train_epochs: at_least(1) = flag(30)
    group_by_length: bool = flag(False, "train on batches of documents of like length")
    evaluation_steps: int = flag(-1, "also evaluate every so many steps")
    seed: Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)] = flag(66, row=True)
    precision: Literal["auto", "fp32", "fp16", "bf16"] = flag(
        "auto", "auto: the fastest of this device"
    )
    device: str = flag(
        "auto", "auto, cpu, cuda or cuda:N; with torchrun, cuda: one each", free=True
    )
    cpu_kernels: Literal["auto", "off"] = flag(
        "auto", "off: the encoder's way on a GPU, on a CPU too"
    )
    deterministic: bool = flag(False, "same bits on a GPU too, slower; a CPU always")
    wandb: Literal["disabled", "offline", "online"] = flag("disabled", free=True)
    proj_name: str = flag("HingeABL", "wandb project", free=True)
    run_name: str = flag("", "default: <encoder>-<backbone>-<loss>-seed<seed>", free=True)


def of_losses():
    """A field for every option of a loss; None is the loss's own default."""
    for name, parameters in all_options().items():
        losses = (f"{loss} (default {_shown(x.default)})" for loss, x in parameters.items())
        kind = next(iter(parameters.values())).annotation | None
        yield name, kind, flag(None, f"of {' and '.join(losses)}", saved=True, row=True)


def of_backbones():
    """A field for every size and learning rate that a backbone alone has."""
    for backbone in BACKBONES.values():
        for name, (kind, default, help) in backbone.sizes.items():
            yield name, kind, flag(default, help, saved=True, row=True)
        for name, (default, help, _) in backbone.learning_rates.items():
            yield name, Positive, flag(default, help, row=True)


def _shown(value):
    return " ".join(map(str, value)) if isinstance(value, tuple) else value


Options = dataclasses.make_dataclass("Options", [*of_losses(), *of_backbones()], bases=(Own,))
FLAGS = {field.name: field for field in dataclasses.fields(Options)}
# Flag -> the name under which the model's configuration has it.
SAVED_WITH_MODEL = {
    name: name if x.metadata["saved"] is True else x.metadata["saved"]
    for name, x in FLAGS.items()
    if x.metadata["saved"]
}
FREE_TO_CHANGE = frozenset(name for name, x in FLAGS.items() if x.metadata["free"])
# What report.py groups runs by.
SETTINGS = [
    name
    for name, x in FLAGS.items()
    if x.metadata["scored"] or not (x.metadata["free"] or x.metadata["row"])
]
MACHINE = {"precision", "cpu_kernels", "deterministic"}  # what may differ from machine to machine
# What a finished run must have in common with one that is asked for.
COMPARED = FLAGS.keys() - FREE_TO_CHANGE - MACHINE
# How weights were trained: an evaluation (--load_path) takes it from their run.
RECIPE = {*SETTINGS, "seed"} - {"init_path", "num_class", *MACHINE}


def plain_kind(kind):
    """The type of a flag's value without None and limits: int, Literal[...], tuple[...], ..."""
    if NoneType in get_args(kind):
        kind = next(x for x in get_args(kind) if x is not NoneType)
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


def build_parser():
    parser = OneLineParser(description="Train, select on dev, test; or only evaluate.")
    for name, field in FLAGS.items():
        kind = plain_kind(field.type)
        if kind is bool:
            more = {"action": "store_true"}
        elif get_origin(kind) is Literal:
            more = {"choices": get_args(kind)}
        elif get_origin(kind) is tuple:
            parts = get_args(kind)
            more = {"type": plain_kind(parts[0]), "nargs": len(parts)}
        else:
            more = {"type": kind}
        help, default = field.metadata["help"] or "", field.default
        if default not in (None, "", False, FLAGS["rel2id"].default) and "default" not in help:
            help = f"{help} (default {default})".strip()
        parser.add_argument(f"--{name}", default=default, help=help, **more)
    parser.add_argument("--seeds", type=int, nargs="+", help="several runs, one each, not --seed")
    return parser


def check_value(name, value, shown):
    """Raises InputError, with the name `shown`, unless the flag can have that value."""
    kind = FLAGS[name].type
    try:
        if not isinstance(value, Path):
            msgspec.convert(value, kind, strict=True)
    except msgspec.ValidationError as error:
        reason = re.sub("`|(, got| - at).*", "", str(error)).replace("Expected", "expected")
        if reason.startswith("Invalid enum"):
            reason = f"is none of {', '.join(get_args(plain_kind(kind)))}"
        raise InputError(f"{shown}: {value!r:.80}: {reason}") from None
    numbers = value if isinstance(value, (list, tuple)) else [value]
    if not all(math.isfinite(x) for x in numbers if isinstance(x, float)):
        raise InputError(f"{shown}: {value} is not a finite number")
    try:
        str(value).encode()
    except UnicodeEncodeError:
        raise InputError(f"{shown}: {value!r:.80}: not UTF-8, so it cannot be recorded") from None


def load_config(folder):
    """The DocREConfig of a run folder. Raises InputError unless a model can have all of it."""
    path = Path(folder) / "config.json"
    saved = read_json(path)
    try:
        if not isinstance(saved, dict) or saved.get("model_type") != DocREConfig.model_type:
            raise InputError(f"model_type: not {DocREConfig.model_type}, so no model of train.py")
        if not isinstance(saved.get("encoder"), dict):  # a name would load another model
            raise InputError("encoder: not an object")
        relation_ids(path)
        config = DocREConfig.from_dict(saved)
        for name, value in saved_with(config).items():
            check_value(name, value, SAVED_WITH_MODEL[name])
        if type(config.fusion_threshold) not in (float, int, NoneType):
            raise InputError("fusion_threshold: not a number")
    except InputError as error:
        raise InputError(str(error) if str(path) in str(error) else f"{path}: {error}") from None
    except Exception as error:  # transformers raises all kinds
        raise InputError(f"{path}: not a model's configuration: {reason_of(error)}") from None
    return config


def parse_runs(argv=None):
    """The settings of every run that the command line asks for: one, or one for each of --seeds,
    each with a folder of its own. All are checked before any starts."""
    parser = build_parser()
    args = parser.parse_args(argv)
    source = args.load_path or args.init_path
    config = Path(source) / "config.json"
    if source and os.path.isfile(config):
        saved, recipe = saved_with(load_config(source)), recipe_of(source)
        if args.init_path:
            recipe = {"model_name_or_path": recipe.get("model_name_or_path", source)}
        parser.set_defaults(rel2id=config, **recipe | saved)
    elif args.load_path:  # which loss a foreign checkpoint was trained with is not in it
        parser.set_defaults(loss_type=BACKBONES[args.backbone].own_loss)
    given = vars(parser.parse_args(argv))
    seeds = given.pop("seeds")
    args = Options(**given)
    if seeds is None:
        runs = [args]
    elif args.load_path:
        raise InputError("--seeds: not with --load_path, which trains nothing")
    elif len(set(seeds)) < len(seeds):
        raise InputError("--seeds: a seed is given twice")
    else:
        runs = [of_seed(args, seed) for seed in seeds]
    for run in runs:
        check_args(run)
    return runs


def saved_with(config):
    """The flags that a model's configuration keeps, flag -> value; the default of a flag that is
    younger than the model."""
    return {
        name: getattr(config, attribute, FLAGS[name].default)
        for name, attribute in SAVED_WITH_MODEL.items()
    }


def recipe_of(folder):
    """What the run in a folder was trained with, flag -> value, as far as its results say."""
    path = Path(folder) / "results.json"
    results = read_json(path) if path.is_file() else {}
    args = results.get("args") if isinstance(results, dict) else None
    return {name: args[name] for name in RECIPE if name in args} if isinstance(args, dict) else {}


def of_seed(args, seed):
    """A copy of the settings for one of several seeds."""
    args = dataclasses.replace(args, seed=seed)
    if args.output_dir:
        args.output_dir = str(Path(args.output_dir) / f"seed{seed}")
    if args.run_name:
        args.run_name = f"{args.run_name}-seed{seed}"
    return args


def check_args(args):
    """Raises InputError for values that no run can have; fills in those that follow from others."""
    for name in FLAGS:
        check_value(name, getattr(args, name), f"--{name}")
    if args.emb_size % 64:
        raise InputError(f"--emb_size: {args.emb_size} is not a multiple of 64")
    num_class = len(relation_ids(args.rel2id))
    if args.num_class not in (None, num_class):
        raise InputError(
            f"--num_class: {args.num_class}, but {args.rel2id} has {num_class} classes"
        )
    args.num_class = num_class
    count = distributed.world_size()
    if args.train_batch_size % count and not args.load_path:
        raise InputError(
            f"--train_batch_size: {args.train_batch_size} documents cannot be divided among "
            f"{count} processes"
        )
    if args.load_path:
        path = Path(args.load_path)
        if not os.path.exists(path):  # False, not an error, of a name with a NUL
            raise InputError(f"--load_path {path}: no such file or folder")
        if path.is_dir() and not (path / "config.json").is_file():
            raise InputError(f"--load_path {path}: not a run folder, it has no config.json")
        if args.output_dir and os.path.isfile(Path(args.output_dir) / "metrics.jsonl"):
            raise InputError(
                f"--output_dir {args.output_dir}: holds a run that was trained; an evaluation "
                "(--load_path) goes to a folder of its own"
            )
        if args.output_dir and os.path.realpath(args.output_dir) == os.path.realpath(path):
            raise InputError(f"--output_dir {args.output_dir}: the folder that is evaluated")
    if args.init_path and args.load_path:
        raise InputError("--init_path: not with --load_path, which trains nothing")
    if args.init_path and not os.path.exists(args.init_path):
        raise InputError(f"--init_path {args.init_path}: no such file or folder")
    may_fp16 = args.cpu_kernels == "off"
    args.device, args.precision = pick_device(args.device, args.precision, may_fp16)
    if not args.run_name:
        path = Path(args.model_name_or_path)
        encoder = path.parent.name if path.name in ("model", "encoder") else path.name
        args.run_name = f"{encoder}-{args.backbone}-{args.loss_type}-seed{args.seed}"
    if not args.output_dir and not args.load_path:
        args.output_dir = str(Path("runs") / args.run_name)
    if args.resume and (args.load_path or args.overwrite):
        raise InputError("--resume: neither with --load_path nor with --overwrite")
    check_output_dir(args)


def check_output_dir(args):
    """Raises InputError where a run lies that nobody said to replace or to go on with."""
    if args.output_dir and not args.overwrite and not args.resume:
        folder = Path(args.output_dir)
        if (folder / "results.json").exists():
            raise InputError(f"--output_dir {folder}: holds a finished run; add --overwrite")
        if any(folder.glob("state-*.pt")):
            raise InputError(
                f"--output_dir {folder}: holds an interrupted run; add --resume to go on with it, "
                "or --overwrite"
            )
