"""The flags of train.py. ATLOP's keep their names; the defaults are the paper's recipe for BERT.

A flag is declared once, as a field of `Options`: its default, help and limits; whether it is saved
with the model; whether a run may go on (--resume) with another value; whether runs that differ in
it are averaged by report.py. The parser, the checks and the rest follow from that.
"""

import dataclasses
import math
import os
import time
from functools import lru_cache
from pathlib import Path
from types import UnionType
from typing import get_args

import torch

from backbones import BACKBONES
from engine import distributed
from engine.resume import state_files
from inputs.files import (
    META_DIR,
    InputError,
    OneLineParser,
    is_text,
    read_json,
    reason_of,
    relation_ids,
)
from losses import LOSSES
from model import DocREConfig


def flag(default, help=None, **facts):
    """A field of `Options`. facts, each optional:

    least, most    the value must be at least, at most that
    above, below   the value must be more, less than that
    choices        the values there are
    length         of a list
    saved          the name under which DocREConfig has it, True: the flag's own; what evaluates a
                   run folder (--load_path) or goes on from it (--init_path) takes it from there
    free           True: nothing that is trained depends on it, so a run may go on with another, and
                   it is of no account in a report (unless scored: evidence and fusion depend on it)
    row            True: the report names it in a row, or elsewhere. Runs that differ in a flag that
                   is neither free nor row are never averaged
    """
    return dataclasses.field(default=default, metadata={"help": help, **facts})


@dataclasses.dataclass
class Options:
    data_dir: str = flag("dataset/redocred", "folder of the three files", free=True)
    train_file: str = flag("train_revised.json", row=True)
    dev_file: str = flag("dev_revised.json", row=True)
    test_file: str = flag("test_revised.json", '"" for none', row=True)
    rel2id: Path = flag(META_DIR / "rel2id.json", "property -> class id", free=True)
    transformer_type: str | None = flag(
        None, "default: read from the encoder", choices=["bert", "roberta"], row=True
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

    backbone: str = flag("atlop", choices=list(BACKBONES), saved=True, row=True)
    max_height: int = flag(42, "of DocuNet's images of entity pairs", least=4, saved=True, row=True)
    unet_in_dim: int = flag(3, "channels of DocuNet's images", least=1, saved=True, row=True)
    unet_out_dim: int = flag(
        256, "width of a pair's context in DocuNet", least=1, saved=True, row=True
    )
    down_dim: int = flag(256, "channels of DocuNet's first layer", least=2, saved=True, row=True)
    loss_type: str = flag("HingeABL", choices=list(LOSSES), saved=True, row=True)
    margin: float | None = flag(
        None, "of AML (default 1) and HingeABL (default 5)", saved=True, row=True
    )
    gamma: float = flag(1.0, "of AFL", saved=True, row=True)
    hinge_norm: str = flag(
        "separate", "of HingeABL", choices=["separate", "joint"], saved=True, row=True
    )
    entropy_weight: list[float] | None = flag(
        None,
        "of PMTEM: of positive, of negative relations (default 1 1)",
        length=2,
        least=0,
        saved=True,
        row=True,
    )
    ncrl_shift: float | None = flag(
        None, "of NCRL (default 0)", least=0, below=1, saved=True, row=True
    )
    positive_weight: float | None = flag(
        None, "of ATGL (default 16.5)", above=0, saved=True, row=True
    )
    evidence_weight: float = flag(
        0.0, "of the evidence loss (DREEAM: 0.1 BERT, 0.05 RoBERTa)", least=0, saved=True, row=True
    )
    evidence_threshold: float = flag(
        0.2,
        "share of attention above which a sentence is evidence",
        least=0,
        most=1,
        saved=True,
        free=True,
        scored=True,
    )
    num_labels: int = flag(4, "most relations a pair; -1: no limit", saved="labels_per_pair")
    num_class: int | None = flag(None, "follows from --rel2id; given, it is only checked")
    emb_size: int = flag(768, "width of head and tail representations", least=64, saved=True)
    # [CLS], a word, [SEP]
    max_seq_length: int = flag(1024, "tokens; longer documents are cut", least=3, saved=True)

    attention_dropout: float | None = flag(
        None, "default: the encoder's own; 0 is faster on a CPU", least=0, below=1
    )
    train_batch_size: int = flag(4, "documents, of all processes together", least=1)
    test_batch_size: int = flag(8, "documents", least=1, free=True)
    gradient_accumulation_steps: int = flag(1, least=1)
    learning_rate: float = flag(5e-5, "of the encoder", above=0)
    classifier_lr: float = flag(1e-4, "of the new layers", above=0)
    unet_lr: float = flag(4e-4, "of DocuNet's U-Net", above=0, row=True)
    adam_epsilon: float = flag(1e-6, above=0)
    max_grad_norm: float = flag(1.0, above=0)
    warmup_ratio: float = flag(0.06, "of all steps", least=0, most=1)
    num_train_epochs: int = flag(30, above=0)
    group_by_length: bool = flag(False, "train on batches of documents of like length")
    evaluation_steps: int = flag(-1, "also evaluate every so many steps")
    seed: int = flag(66, row=True, least=-(2**63), below=2**63)
    precision: str = flag(
        "auto", "auto: the fastest of this device", choices=["auto", "fp32", "fp16", "bf16"]
    )
    device: str = flag(
        "auto", "auto, cpu, cuda or cuda:N; with torchrun, cuda: one each", free=True
    )
    cpu_kernels: str = flag(
        "auto", "off: the encoder's way on a GPU, on a CPU too", choices=["auto", "off"]
    )
    deterministic: bool = flag(False, "same bits on a GPU too, slower; a CPU always")
    wandb: str = flag("disabled", choices=["disabled", "offline", "online"], free=True)
    proj_name: str = flag("HingeABL", "wandb project", free=True)
    run_name: str = flag("", "default: <encoder>-<backbone>-<loss>-seed<seed>", free=True)


FLAGS = {field.name: field for field in dataclasses.fields(Options)}
# Flag -> the name under which the model's configuration has it.
SAVED_WITH_MODEL = {
    name: name if x.metadata["saved"] is True else x.metadata["saved"]
    for name, x in FLAGS.items()
    if x.metadata.get("saved")
}
FREE_TO_CHANGE = frozenset(name for name, x in FLAGS.items() if x.metadata.get("free"))
# What report.py groups runs by.
SETTINGS = [
    name
    for name, x in FLAGS.items()
    if x.metadata.get("scored") or not (x.metadata.get("free") or x.metadata.get("row"))
]
MACHINE = {"precision", "cpu_kernels", "deterministic"}  # what may differ from machine to machine
# What a finished run must have in common with one that is asked for.
COMPARED = FLAGS.keys() - FREE_TO_CHANGE - MACHINE
# How weights were trained: an evaluation (--load_path) takes it from their run.
RECIPE = {*SETTINGS, "seed"} - {"init_path", "num_class", *MACHINE}


def kind_of(field):
    """The type of a flag's value; whether it may also be None."""
    kinds = get_args(field.type) if isinstance(field.type, UnionType) else [field.type]
    return kinds[0], type(None) in kinds


def build_parser():
    parser = OneLineParser(description="Train, select on dev, test; or only evaluate.")
    for name, field in FLAGS.items():
        kind, facts = kind_of(field)[0], field.metadata
        more = {"action": "store_true"} if kind is bool else {"type": kind}
        if "length" in facts:
            more = {"type": get_args(kind)[0], "nargs": facts["length"]}
        if "choices" in facts:
            more["choices"] = facts["choices"]
        said, default = facts["help"] or "", field.default
        if default not in (None, "", False, FLAGS["rel2id"].default) and "default" not in said:
            said = f"{said} (default {default})".strip()
        parser.add_argument(f"--{name}", default=default, help=said, **more)
    parser.add_argument("--seeds", type=int, nargs="+", help="several runs, one each, not --seed")
    return parser


def check_value(name, value, shown):
    """Raises InputError, with the name `shown`, unless the flag can have that value."""
    kind, may_be_none = kind_of(FLAGS[name])
    facts = FLAGS[name].metadata
    if value is None and may_be_none:
        return
    if "length" in facts:
        if not isinstance(value, list) or len(value) != facts["length"]:
            raise InputError(f"{shown}: expected a list of {facts['length']}, found {value!r:.80}")
        kind = get_args(kind)[0]
    for one in value if "length" in facts else [value]:
        check_single(one, kind, facts, shown)


def check_single(value, kind, facts, shown):
    fits = isinstance(value, (int, float) if kind is float else kind)
    if not fits or (isinstance(value, bool) and kind is not bool):
        raise InputError(f"{shown}: expected {kind.__name__}, found {type(value).__name__}")
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{shown}: {value} is not a number")
    if value not in facts.get("choices", [value]):
        raise InputError(f"{shown}: {value!r:.80} is none of {', '.join(facts['choices'])}")
    if "least" in facts and not value >= facts["least"]:
        raise InputError(f"{shown}: {value} is less than {facts['least']}")
    if "most" in facts and not value <= facts["most"]:
        raise InputError(f"{shown}: {value} is more than {facts['most']}")
    if "above" in facts and not value > facts["above"]:
        raise InputError(f"{shown}: {value} is not above {facts['above']}")
    if "below" in facts and not value < facts["below"]:
        raise InputError(f"{shown}: {value} is not below {facts['below']}")


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
        if type(config.fusion_threshold) not in (float, int, type(None)):
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
        if not is_text(str(getattr(args, name))):  # no results.json could hold it
            raise InputError(f"--{name}: {getattr(args, name)} is not UTF-8")
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
        if state_files(folder):
            raise InputError(
                f"--output_dir {folder}: holds an interrupted run; add --resume to go on with it, "
                "or --overwrite"
            )


def pick_device(device, precision, cpu_has_fp16=False):
    """What --device and --precision stand for on this machine: "cpu", "cuda" or "cuda:N", and
    "fp32", "fp16" or "bf16" (fp16 on a CPU is slow, but right: cpu_has_fp16 lets it through, to try
    what a GPU does). Raises InputError for what it does not have."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and distributed.world_size() > 1:
        if device != "cuda":
            raise InputError(f"--device {device}: several processes take one each: --device cuda")
        device = distributed.gpu()
    try:
        kind = torch.empty(0, device=device).device.type
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {device}: {reason_of(error)}") from None
    if kind not in ("cpu", "cuda"):
        raise InputError(f"--device {device}: neither cpu nor cuda")
    device = "cpu" if kind == "cpu" else device  # cpu:0 is the same
    on_gpu = kind == "cuda"
    if precision == "auto":
        # Older cards compute bf16 in software, slowly.
        has_bf16 = on_gpu and torch.cuda.get_device_capability(device)[0] >= 8
        precision = "bf16" if has_bf16 else "fp16"
        if not on_gpu:
            precision = distributed.share(faster_on_cpu)
    if precision == "fp16" and not on_gpu and not cpu_has_fp16:
        raise InputError(
            "--precision fp16: needs a GPU; on a CPU take fp32 or bf16, or --cpu_kernels off to "
            "try what a GPU does"
        )
    return device, precision


@lru_cache
def faster_on_cpu():
    """bf16 or fp32, whichever this processor multiplies faster: about twice as fast is bf16 with
    instructions of its own. It is timed, because some have them and are slower with them; in one
    thread by the processor's time, so that it is the same on a busy machine."""
    seconds, threads = {}, torch.get_num_threads()
    torch.set_num_threads(1)
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        matrix, times = torch.ones(512, 512, dtype=dtype), []
        for _ in range(6):
            started = time.thread_time()
            matrix @ matrix
            times.append(time.thread_time() - started)
        seconds[name] = min(times)  # what else the processor did at the time only adds to it
    torch.set_num_threads(threads)
    return "bf16" if 1.2 * seconds["bf16"] < seconds["fp32"] else "fp32"
