"""The runs that a command line of train.py asks for: their settings, completed and checked."""

import dataclasses
import os
from pathlib import Path

from backbones import BACKBONES
from engine import distributed
from engine.checkpoint import PACKED, WEIGHTS
from engine.device import pick_device
from engine.options import FLAGS, RECIPE, Options, build_parser, check_value, saved_with
from engine.run_folder import CONFIG, METRICS, RESULTS, load_config, read_results, state_files
from inputs.files import InputError, relation_ids
from losses import ZERO_THRESHOLD, all_options


def parse_runs(argv=None):
    """The settings (Options) of every run that the command line asks for: one, or one for each of
    --seeds, each with a folder of its own. All are checked before any starts. Raises InputError."""
    parser = build_parser()
    args = parser.parse_args(argv)
    source = args.load_path or args.init_path
    # os.path: False, not an error, for a name that no file can have
    if source and os.path.isfile(Path(source) / CONFIG):
        saved = saved_with(load_config(source))
        recipe = {"model_name_or_path": source} | recipe_of(source)
        if args.init_path:
            recipe = {"model_name_or_path": recipe["model_name_or_path"]}
        parser.set_defaults(rel2id=Path(source) / CONFIG, **recipe | saved)
        if parser.parse_args(argv).loss_type != saved["loss_type"]:  # its margin is no other loss's
            parser.set_defaults(**{name: FLAGS[name].default for name in all_options()})
    elif args.load_path:  # a released checkpoint does not say which loss it was trained with
        parser.set_defaults(loss_type=BACKBONES[args.backbone].own_loss)
    given = vars(parser.parse_args(argv))
    seeds = given.pop("seeds")
    runs = [Options(**given)]
    if seeds:
        if args.load_path:
            raise InputError("--seeds: not with --load_path, which trains nothing")
        if len(set(seeds)) < len(seeds):
            raise InputError("--seeds: a seed is given twice")
        runs = [with_seed(runs[0], seed) for seed in seeds]
    for run in runs:
        check_args(run)
    return runs


def recipe_of(folder):
    """The flags that the run in a folder was trained with, name -> value; {} where its results are
    missing or cannot be read, for an evaluation needs the model alone."""
    try:
        args = read_results(folder)["args"]
    except InputError:
        return {}
    return {name: args[name] for name in RECIPE}


def with_seed(args, seed):
    """A copy of the settings for one of several seeds."""
    args = dataclasses.replace(args, seed=seed)
    if args.output_dir:
        args.output_dir = str(Path(args.output_dir) / f"seed{seed}")
    if args.run_name:
        args.run_name = f"{args.run_name}-seed{seed}"
    return args


def check_args(args):
    """Sets the flags that follow from others. Raises InputError for settings that no run can
    have."""
    for name in FLAGS:
        check_value(name, getattr(args, name), f"--{name}")
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
    if args.init_path and args.load_path:
        raise InputError("--init_path: not with --load_path, which trains nothing")
    for name in ("load_path", "init_path"):
        path = getattr(args, name)
        if path and not os.path.exists(path):
            raise InputError(f"--{name} {path}: no such file or folder")
    if args.load_path:
        check_evaluation(args)
    args.device, args.precision = pick_device(
        args.device, args.precision, cpu_has_fp16=args.cpu_kernels == "off"
    )
    if not args.run_name:
        path = Path(args.model_name_or_path)
        encoder = path.parent.name if path.name in ("model", "encoder") else path.name
        args.run_name = f"{encoder}-{args.backbone}-{args.loss_type}-seed{args.seed}"
    if not args.output_dir and not args.load_path:
        args.output_dir = str(Path("runs") / args.run_name)
    if not args.load_path:
        check_teachers(args)
    if args.resume and (args.load_path or args.overwrite):
        raise InputError("--resume: neither with --load_path nor with --overwrite")
    own = [Path(args.output_dir) / name for name in ("", WEIGHTS, PACKED)]
    if args.init_path and os.path.realpath(args.init_path) in map(os.path.realpath, own):
        raise InputError(f"--output_dir {args.output_dir}: holds the weights of --init_path")
    check_output_dir(args)


def is_output_dir(folder, args):
    return os.path.realpath(folder) == os.path.realpath(args.output_dir)


def check_teachers(args):
    """Raises InputError for teachers that are no run folders or whose classes mean something else,
    and for flags that mean nothing without or beside them."""
    if not args.teacher:
        for name in "teacher_weight", "teacher_evidence", "unlabelled_file":
            if getattr(args, name) != FLAGS[name].default:
                raise InputError(f"--{name}: only with --teacher")
        if args.label_weight == 0:
            raise InputError("--label_weight 0: only with --teacher, for else nothing is learned")
        return
    if args.teacher_weight == args.teacher_evidence == 0:
        raise InputError("--teacher: --teacher_weight and --teacher_evidence are both 0")
    if args.label_weight == 0 < args.evidence_weight:
        raise InputError("--evidence_weight: not with --label_weight 0, evidence is in the labels")
    for folder in args.teacher:
        if not os.path.isfile(Path(folder) / CONFIG):
            raise InputError(f"--teacher {folder}: not a run folder, it has no {CONFIG}")
        if is_output_dir(folder, args):
            raise InputError(f"--output_dir {args.output_dir}: the folder of the teacher")
        config = load_config(folder)
        if config.label2id != relation_ids(args.rel2id):
            raise InputError(f"--teacher {folder}: has other relations than {args.rel2id}")
        is_fixed = [x in ZERO_THRESHOLD for x in (config.loss_type, args.loss_type)]
        if args.teacher_weight and is_fixed[0] != is_fixed[1]:
            raise InputError(
                f"--teacher {folder}: trained with {config.loss_type}, whose class 0 is not that "
                f"of {args.loss_type}"
            )


def check_evaluation(args):
    """Raises InputError unless --load_path is a file or a run folder, and --output_dir no folder of
    a training run."""
    path = Path(args.load_path)
    if path.is_dir() and not (path / CONFIG).is_file():
        raise InputError(f"--load_path {path}: not a run folder, it has no {CONFIG}")
    if args.output_dir and os.path.isfile(Path(args.output_dir) / METRICS):
        raise InputError(
            f"--output_dir {args.output_dir}: holds a run that was trained; an evaluation "
            "(--load_path) goes to a folder of its own"
        )
    if args.output_dir and is_output_dir(path, args):
        raise InputError(f"--output_dir {args.output_dir}: the folder that is evaluated")


def check_output_dir(args):
    """Raises InputError for a folder that holds a run or a model, unless --overwrite is given, or
    --resume and it holds a run."""
    if not args.output_dir or args.overwrite:
        return
    folder = Path(args.output_dir)
    is_run = (folder / RESULTS).exists() or state_files(folder)
    has_weights = any((folder / name).exists() for name in (WEIGHTS, PACKED))
    if args.resume:
        if has_weights and not is_run:
            raise InputError(
                f"--output_dir {folder}: holds a model, but no run that could go on; --init_path "
                "trains on from its weights, in another folder"
            )
        return
    if (folder / RESULTS).exists():
        raise InputError(f"--output_dir {folder}: holds a finished run; add --overwrite")
    if state_files(folder):
        raise InputError(
            f"--output_dir {folder}: holds an interrupted run; add --resume to go on with it, "
            "or --overwrite"
        )
    if has_weights or (folder / CONFIG).exists():
        raise InputError(
            f"--output_dir {folder}: holds a model, or the beginning of a run; add --overwrite"
        )
