"""The flags of train.py. ATLOP's keep their names; the defaults are the paper's recipe for BERT."""

import argparse
import os
from pathlib import Path

import torch

from backbones import BACKBONES
from engine import distributed
from engine.resume import state_files
from inputs.files import META_DIR, InputError, OneLineParser, field, read_json, reason_of
from losses import LOSSES

# What a saved run was made with, and is evaluated with unless the command line says otherwise.
SAVED_WITH_MODEL = ("backbone", "loss_type", "num_labels", "num_class", "max_seq_length")

# Flags that a run may go on with as others than it began with.
FREE_TO_CHANGE = frozenset(
    "data_dir rel2id output_dir overwrite resume save_steps save_logits tune_threshold "
    "test_batch_size device wandb proj_name run_name".split()
)

LEAST = {  # what a flag must be at least
    "train_batch_size": 1,
    "test_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "max_seq_length": 3,  # [CLS], a word, [SEP]
    "num_class": 2,
    "emb_size": 64,
    "max_height": 4,  # halved twice
    "unet_in_dim": 1,
    "unet_out_dim": 1,
    "down_dim": 2,
}


def config_of(load_path):
    return Path(load_path) / "config.json"


def saved_settings(config):
    """Those of SAVED_WITH_MODEL that a run folder's config.json has, {} if none. Raises InputError
    for values that none of them can have."""
    saved = read_json(config)
    run = saved.get("run") if isinstance(saved, dict) else None
    if run is None:
        return {}
    known = {"backbone": BACKBONES, "loss_type": LOSSES}
    try:
        if not isinstance(run, dict):
            raise InputError(f"run: expected an object, found {type(run).__name__}")
        found = {
            name: field(run, name, str if name in known else int, "run")
            for name in SAVED_WITH_MODEL
            if name in run
        }
        for name, value in found.items():
            if value not in known.get(name, [value]) or value < LEAST.get(name, value):
                raise InputError(f"run.{name}: {value!r:.80} is none that a run can have")
    except InputError as error:
        raise InputError(f"{config}: {error}") from None
    return found


def build_parser():
    parser = OneLineParser(description="Train, select on dev, test; or only evaluate.")
    add = parser.add_argument
    add("--data_dir", default="dataset/redocred", help="folder of the three files")
    add("--train_file", default="train_revised.json")
    add("--dev_file", default="dev_revised.json")
    add("--test_file", default="test_revised.json", help='"" for none')
    add("--rel2id", type=Path, default=META_DIR / "rel2id.json", help="property -> class id")
    add("--transformer_type", choices=["bert", "roberta"], help="default: read from the encoder")
    add("--model_name_or_path", default="bert-base-cased", help="encoder: hub name or folder")
    add("--config_name", default="", help="default: model_name_or_path")
    add("--tokenizer_name", default="", help="default: model_name_or_path")
    add("--load_path", default="", help="run folder or released .pt: only evaluate")
    add("--init_path", default="", help="run folder or released .pt: train on from its weights")
    add("--output_dir", default="", help="run folder; default: runs/<run_name>")
    add("--overwrite", action="store_true", help="replace the run in output_dir")
    add("--resume", action="store_true", help="go on with the interrupted run in output_dir")
    add("--save_steps", type=int, default=-1, help="between saved states; default: an epoch")
    add("--save_logits", action="store_true", help="keep dev_logits.npz and test_logits.npz")
    add(
        "--tune_threshold",
        action="store_true",
        help="also score with the threshold shifted to the best dev F1",
    )

    add("--backbone", default="atlop", choices=list(BACKBONES))
    add("--max_height", type=int, default=42, help="of DocuNet's images of entity pairs")
    add("--unet_in_dim", type=int, default=3, help="channels of DocuNet's images")
    add("--unet_out_dim", type=int, default=256, help="width of a pair's context in DocuNet")
    add("--down_dim", type=int, default=256, help="channels of DocuNet's first layer")
    add("--loss_type", default="HingeABL", choices=list(LOSSES))
    add("--margin", type=float, help="of AML (default 1) and HingeABL (default 5)")
    add("--gamma", type=float, default=1.0, help="of AFL")
    add("--hinge_norm", default="separate", choices=["separate", "joint"], help="of HingeABL")
    add("--num_labels", type=int, default=4, help="most relations a pair; -1: no limit")
    add("--num_class", type=int, default=97)
    add("--emb_size", type=int, default=768, help="width of the head and tail representations")
    add("--max_seq_length", type=int, default=1024, help="tokens; longer documents are cut")

    add("--attention_dropout", type=float, help="default: the encoder's own; 0 is faster on a CPU")
    add("--train_batch_size", type=int, default=4, help="documents, of all processes together")
    add("--test_batch_size", type=int, default=8, help="documents")
    add("--gradient_accumulation_steps", type=int, default=1)
    add("--learning_rate", type=float, default=5e-5, help="of the encoder")
    add("--classifier_lr", type=float, default=1e-4, help="of the new layers")
    add("--unet_lr", type=float, default=4e-4, help="of DocuNet's U-Net")
    add("--adam_epsilon", type=float, default=1e-6)
    add("--max_grad_norm", type=float, default=1.0)
    add("--warmup_ratio", type=float, default=0.06)
    add("--num_train_epochs", type=int, default=30)
    add(
        "--group_by_length",
        action="store_true",
        help="train on batches of documents of like length",
    )
    add("--evaluation_steps", type=int, default=-1, help="also evaluate every so many steps")
    add("--seed", type=int, default=66)
    add("--seeds", type=int, nargs="+", help="several runs, one a seed, instead of --seed")
    add("--precision", default="auto", choices=["auto", "fp32", "fp16", "bf16"])
    add(
        "--device",
        default="auto",
        help="auto, cpu, cuda or cuda:N; with torchrun, cuda is one each",
    )
    add(
        "--cpu_kernels",
        default="auto",
        choices=["auto", "off"],
        help="off: the encoder's way on a GPU, on a CPU too",
    )
    add("--deterministic", action="store_true", help="same bits on a GPU too, slower; a CPU always")
    add("--wandb", default="disabled", choices=["disabled", "offline", "online"])
    add("--proj_name", default="HingeABL", help="wandb project")
    add("--run_name", default="", help="default: <encoder>-<backbone>-<loss>-seed<seed>")
    return parser


def parse_runs(argv=None):
    """The settings of every run that the command line asks for: one, or one for each of --seeds,
    each with a folder of its own. All are checked before any starts."""
    parser = build_parser()
    args = parser.parse_args(argv)
    config = config_of(args.load_path)
    if args.load_path and os.path.isfile(config):
        parser.set_defaults(rel2id=config.with_name("rel2id.json"), **saved_settings(config))
        args = parser.parse_args(argv)
    seeds = vars(args).pop("seeds")
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


def of_seed(args, seed):
    """A copy of the settings for one of several seeds."""
    args = argparse.Namespace(**vars(args) | {"seed": seed})
    if args.output_dir:
        args.output_dir = str(Path(args.output_dir) / f"seed{seed}")
    if args.run_name:
        args.run_name = f"{args.run_name}-seed{seed}"
    return args


def check_args(args):
    """Raises InputError for values that no run can have."""
    for name, least in LEAST.items():
        if getattr(args, name) < least:
            raise InputError(f"--{name}: {getattr(args, name)} is less than {least}")
    for name in "learning_rate classifier_lr num_train_epochs max_grad_norm adam_epsilon".split():
        if not getattr(args, name) > 0:
            raise InputError(f"--{name}: {getattr(args, name)} is not above 0")
    if args.attention_dropout is not None and not 0 <= args.attention_dropout < 1:
        raise InputError(f"--attention_dropout: {args.attention_dropout} is not in [0, 1)")
    if not 0 <= args.warmup_ratio <= 1:
        raise InputError(f"--warmup_ratio: {args.warmup_ratio} is not between 0 and 1")
    count = distributed.world_size()
    if args.train_batch_size % count and not args.load_path:
        raise InputError(
            f"--train_batch_size: {args.train_batch_size} documents cannot be divided among "
            f"{count} processes"
        )
    if args.emb_size % 64:
        raise InputError(f"--emb_size: {args.emb_size} is not a multiple of 64")
    if not -(2**63) <= args.seed < 2**63:
        raise InputError(f"--seed: {args.seed} has more than 64 bits")
    if args.load_path:
        path = Path(args.load_path)
        if not os.path.exists(path):  # False of a path that no file can have
            raise InputError(f"--load_path {path}: no such file or folder")
        if path.is_dir() and not config_of(path).is_file():
            raise InputError(f"--load_path {path}: not a run folder, it has no config.json")
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
    "fp32", "fp16" or "bf16" (on a CPU slow, but right: cpu_has_fp16 lets it through, to try what a
    GPU does). Raises InputError for what it does not have."""
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
    on_gpu = kind == "cuda"
    if precision == "auto":
        # Older cards emulate bf16, slowly.
        has_bf16 = on_gpu and torch.cuda.get_device_capability(device)[0] >= 8
        precision = ("bf16" if has_bf16 else "fp16") if on_gpu else "fp32"
    if precision == "fp16" and not on_gpu and not cpu_has_fp16:
        raise InputError(
            "--precision fp16: needs a GPU; on a CPU take fp32 or bf16, or --cpu_kernels off to "
            "try what a GPU does"
        )
    return device, precision
