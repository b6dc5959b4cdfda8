"""The flags of train.py. ATLOP's keep their names; the defaults are the paper's recipe for BERT.

A flag is declared once: as a field of `Own` below, as a parameter of a loss (losses.py), or in a
backbone's class (DocREModel.sizes and learning_rates). The parser, the checks, the saved
configuration and the groups of a report follow from that.
"""

import dataclasses
import math
import re
from pathlib import Path
from types import NoneType
from typing import Annotated, Literal, get_args, get_origin

import msgspec

from backbones import BACKBONES
from inputs.files import REL2ID_FILE, InputError, OneLineParser
from losses import LOSSES, Positive, all_options


def flag(default, help=None, *, saved=None, free=False, row=False):
    """A field of the flags.

    saved    the flag's name in DocREConfig, True: the same. --load_path and --init_path take the
             flag from there
    free     nothing depends on it, so --resume may change it, and a report ignores it
    row      the report names it in a row or elsewhere. Runs that differ in a flag that is neither
             free nor row are never averaged
    """
    facts = {"help": help, "saved": saved, "free": free, "row": row}
    return dataclasses.field(default=default, metadata=facts)


def at_least(number, number_type=int):
    return Annotated[number_type, msgspec.Meta(ge=number)]


Fraction = Annotated[float, msgspec.Meta(ge=0, le=1)]


@dataclasses.dataclass
class Own:
    data_dir: str = flag("dataset/redocred", "folder of the three files", free=True)
    train_file: str = flag("train_revised.json", row=True)
    dev_file: str = flag("dev_revised.json", row=True)
    test_file: str = flag("test_revised.json", '"" for none', row=True)
    rel2id: Path = flag(REL2ID_FILE, "property -> class id", free=True)
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
        0.2, "a sentence with more of a pair's attention is its evidence", saved=True
    )
    teacher: tuple[str, ...] | None = flag(
        None, "run folders; their mean logits and attention are taught"
    )
    teacher_weight: at_least(0, float) = flag(1.0, "of the error of the teacher's logits")
    teacher_evidence: at_least(0, float) = flag(0.0, "of the KL to the teacher's attention")
    teacher_memory: at_least(0, float) = flag(
        8.0, "GB for what teachers gave; if it takes more, they run in every step", free=True
    )
    unlabelled_file: str = flag("", "documents that only the teacher teaches")
    label_weight: at_least(0, float) = flag(1.0, "of the loss of the labels; 0: they are not used")
    num_labels: int = flag(4, "most relations a pair; -1: no limit", saved="labels_per_pair")
    num_class: int | None = flag(None, "follows from --rel2id; given, it is only checked")
    emb_size: Annotated[int, msgspec.Meta(ge=64, multiple_of=64)] = flag(
        768, "width of head and tail representations", saved=True
    )
    # At least [CLS], a word and [SEP].
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
    max_steps: at_least(1) | None = flag(None, "end after so many steps, not num_train_epochs")
    group_by_length: bool = flag(False, "train on batches of documents of like length")
    evaluation_steps: int = flag(-1, "also evaluate every so many steps")
    seed: Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)] = flag(66, row=True)
    precision: Literal["auto", "fp32", "fp16", "bf16"] = flag(
        "auto", "auto: the fastest of this device"
    )
    device: str = flag(
        "auto", "auto, cpu, cuda or cuda:N; with torchrun, cuda: one each", free=True
    )
    cpu_kernels: Literal["auto", "off"] = flag("auto", "off: compute on a CPU as on a GPU")
    deterministic: bool = flag(False, "same bits on a GPU too, slower; a CPU always")
    wandb: Literal["disabled", "offline", "online"] = flag("disabled", free=True)
    proj_name: str = flag("HingeABL", "wandb project", free=True)
    run_name: str = flag("", "default: <encoder>-<backbone>-<loss>-seed<seed>", free=True)


def loss_flags():
    """A field for every option of a loss; None is the loss's own default."""
    for name, parameters in all_options().items():
        defaults = [(loss, x.default) for loss, x in parameters.items()]
        shown = [f"{x} (default {_shown(default)})" for x, default in defaults]
        value_type = next(iter(parameters.values())).annotation | None
        yield name, value_type, flag(None, f"of {' and '.join(shown)}", saved=True, row=True)


def backbone_flags():
    """A field for every size and learning rate that only some backbone has."""
    for backbone in BACKBONES.values():
        for name, (value_type, default, help) in backbone.sizes.items():
            yield name, value_type, flag(default, help, saved=True, row=True)
        for name, (default, help, _) in backbone.learning_rates.items():
            yield name, Positive, flag(default, help, row=True)


def _shown(value):
    return " ".join(map(str, value)) if isinstance(value, tuple) else value


ADDED = [*loss_flags(), *backbone_flags()]
Options = dataclasses.make_dataclass("Options", ADDED, bases=(Own,))
FLAGS = {field.name: field for field in dataclasses.fields(Options)}
# Flag -> the name under which the model's configuration has it.
SAVED_WITH_MODEL = {
    name: name if x.metadata["saved"] is True else x.metadata["saved"]
    for name, x in FLAGS.items()
    if x.metadata["saved"]
}
FREE_TO_CHANGE = frozenset(name for name, x in FLAGS.items() if x.metadata["free"])
# The flags by which report.py groups runs.
SETTINGS = [name for name, x in FLAGS.items() if not (x.metadata["free"] or x.metadata["row"])]
MACHINE = {"precision", "cpu_kernels", "deterministic"}  # may differ from machine to machine
# The flags that must be equal for --resume to take a finished run for the one that is asked for.
SAME_TO_RESUME = FLAGS.keys() - FREE_TO_CHANGE - MACHINE
# How weights were trained; an evaluation (--load_path) takes these flags from their run.
RECIPE = {*SETTINGS, "seed"} - {"init_path", "num_class", *MACHINE}


def plain_type(declared):
    """The type of a flag's value without None and limits: int, Literal[...], tuple[...], ..."""
    if NoneType in get_args(declared):
        declared = next(x for x in get_args(declared) if x is not NoneType)
    return get_args(declared)[0] if get_origin(declared) is Annotated else declared


def build_parser():
    """The parser of train.py's command line, with one flag for each of FLAGS, and --seeds."""
    about = "Train, select on dev, test; or only evaluate."
    parser = OneLineParser(description=about, allow_abbrev=False)  # scripts look for whole names
    for name, field in FLAGS.items():
        value_type = plain_type(field.type)
        if value_type is bool:
            more = {"action": "store_true"}
        elif get_origin(value_type) is Literal:
            more = {"choices": get_args(value_type)}
        elif get_origin(value_type) is tuple:
            items = get_args(value_type)
            count = "+" if items[-1] is ... else len(items)
            more = {"type": plain_type(items[0]), "nargs": count}
        else:
            more = {"type": value_type}
        help, default = field.metadata["help"] or "", field.default
        if default not in (None, "", False, FLAGS["rel2id"].default) and "default" not in help:
            help = f"{help} (default {default})".strip()
        parser.add_argument(f"--{name}", default=default, help=help, **more)
    parser.add_argument("--seeds", type=int, nargs="+", help="several runs, one each, not --seed")
    return parser


def check_value(name, value, shown):
    """Raises InputError, which calls the flag `shown`, unless the flag can have that value."""
    declared = FLAGS[name].type
    try:
        if not isinstance(value, Path):
            msgspec.convert(value, declared, strict=True)
    except msgspec.ValidationError as error:
        reason = re.sub("`|(, got| - at).*", "", str(error)).replace("Expected", "expected")
        if reason.startswith("Invalid enum"):
            reason = f"is none of {', '.join(get_args(plain_type(declared)))}"
        raise InputError(f"{shown}: {value!r:.80}: {reason}") from None
    numbers = value if isinstance(value, (list, tuple)) else [value]
    if not all(math.isfinite(x) for x in numbers if isinstance(x, float)):
        raise InputError(f"{shown}: {value} is not a finite number")


def saved_with(config):
    """The flags that a model's configuration (DocREConfig) keeps, name -> value. A flag that is
    newer than the model has its default."""
    return {
        name: getattr(config, attribute, FLAGS[name].default)
        for name, attribute in SAVED_WITH_MODEL.items()
    }
