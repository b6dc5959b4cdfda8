"""Every file of a run folder: its name, how it is written and how it is read.

config.json, model.safetensors, the tokenizer's files   the model, as transformers has it
results.json            scores, and what they were made from
metrics.jsonl           an evaluation on dev a line
predictions.json        the submission for test; with --tune_threshold {dev,test}_tuned.json, with
                        --fusion {dev,test}_fused.json
patterns.json           of every document the pairs of each pattern
{dev,test}_margins.xz   the highest margins (engine/margins.py)
{dev,test}_logits.npz   with --save_logits
README.md               the model card
state-*.pt              of a run that is not finished (engine/resume.py)
"""

import fcntl
import json
import os
import platform
import subprocess
from contextlib import contextmanager, suppress
from functools import partial, reduce
from operator import getitem
from pathlib import Path

import msgspec
import torch
import transformers
from huggingface_hub import EvalResult, ModelCardData, snapshot_download

from encoders.loading import check_encoder
from engine import distributed
from engine.checkpoint import INDEX, WEIGHTS, check_fit, load_state, weights_of, write_state
from engine.margins import write_margins
from engine.options import Options, load_config
from engine.scoring import patterns_of_documents, stack
from evaluation import ranked_right
from inputs.files import (
    InputError,
    reason_of,
    remove_unfinished,
    write_atomically,
    write_json,
)
from losses import threshold_of
from model import DocREModel
from utils import save_arrays

CONFIG = "config.json"
RESULTS = "results.json"
METRICS = "metrics.jsonl"
PREDICTIONS = "predictions.json"
PATTERNS = "patterns.json"
CARD = "README.md"
LOCK = ".lock"
SPLITS = "dev", "test"
VERSION = 1  # of results.json; one that has none is of version 1, too
LARGEST = 2**53  # beyond, a float cannot count
FAULTS = (OSError, ValueError, RecursionError, msgspec.MsgspecError)  # of reading such a file
NAMES = {float: "number", str: "text", dict: "object"}  # of kinds of fields


def submission_file(split, kind):
    """kind: "tuned" or "fusion", as in results.json."""
    return f"{split}_{'fused' if kind == 'fusion' else kind}.json"


def logits_file(split):
    return f"{split}_logits.npz"


def margins_file(split):
    return f"{split}_margins.xz"


# Of what the hub has of a run, the model and its tokenizer.
OF_MODEL = [CONFIG, "model*.safetensors", INDEX, "*token*", "vocab*", "merges.txt", "*.model"]


# --- Who may write into it --------------------------------------------------------------------


@contextmanager
def locked(folder):
    """The run folder is this run's alone, until it ends or its process dies. What a killed run was
    just writing is removed. Raises InputError while another run has it, or if it is not writable.

    folder: made where it is missing; "" for an evaluation that writes nothing.
    """
    if not folder or not distributed.is_first():
        yield
        return
    path, is_new = Path(folder) / LOCK, not os.path.isdir(folder)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(0, "not writable")
        lock = _lock(path)
    except BlockingIOError:
        raise InputError(
            f"--output_dir {folder}: another run is at work in it; give this one a folder of its "
            "own"
        ) from None
    except (OSError, ValueError) as error:  # ValueError: no name of a folder
        raise InputError(f"--output_dir {folder}: {reason_of(error)}") from None
    with lock:
        remove_unfinished(folder)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            if is_new:
                with suppress(OSError):
                    path.parent.rmdir()  # nothing was written, so a bad flag leaves nothing


def _lock(path):
    """The file at this path, open and locked. Raises BlockingIOError if another process has it."""
    while True:
        lock = open(path, "w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise
        except OSError:
            return lock  # a file system without locks
        with suppress(FileNotFoundError):  # its last owner removed it between open and lock
            if os.path.samestat(os.fstat(lock.fileno()), os.stat(path)):
                return lock
        lock.close()


def clear(folder):
    """Removes what an earlier run left in its folder."""
    names = [RESULTS, METRICS, PREDICTIONS, PATTERNS, CARD, CONFIG, WEIGHTS, "rel2id.json"]
    for split in SPLITS:
        names += [logits_file(split), margins_file(split)]
        names += [submission_file(split, kind) for kind in ("tuned", "fusion")]
    for name in names:
        (folder / name).unlink(missing_ok=True)
    for path in folder.glob("state-*.pt"):
        path.unlink()


# --- The model --------------------------------------------------------------------------------


def fetch(name, **options):
    """The run folder that `name` means: a folder, or a model of the hub, downloaded or from its
    cache; options go to snapshot_download. Raises InputError."""
    folder = Path(name)
    if not os.path.isdir(folder):  # False, not an error, of a name with a NUL
        try:
            folder = Path(snapshot_download(str(name), allow_patterns=OF_MODEL, **options))
        except Exception as error:  # no network, no such model, no name of a model, ...
            raise InputError(
                f"model {name}: no run folder, nor to be had: {reason_of(error)}"
            ) from None
    if not (folder / CONFIG).is_file():
        raise InputError(f"model {name}: not a run folder, it has no {CONFIG}")
    return folder


def save_config(model, folder):
    """Writes config.json, as transformers does, but whole or not at all."""
    text = model.config.to_json_string(use_diff=False)  # also what transformers has as default
    write_atomically(Path(folder) / CONFIG, lambda path: path.write_text(text, "utf-8"))


def save_weights(model, folder):
    """Writes model.safetensors, under the released code's parameter names."""
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    write_state(Path(folder) / WEIGHTS, state)


def save_model_files(model, tokenizer, folder):
    """What a run folder has of a model beside its weights. Raises InputError."""
    save_config(model, folder)
    try:
        tokenizer.save_pretrained(folder)
    except Exception as error:  # tokenizers raises Exception itself
        raise InputError(f"{folder}: no tokenizer can be written: {error}") from None


def load_model(folder):
    """The model of a run folder. Raises InputError, where transformers' from_pretrained raises all
    kinds of errors, or only warns."""
    folder = Path(folder)
    config, weights = load_config(folder), weights_of(folder)
    state = load_state(weights)
    try:
        for name, value in config.encoder.to_dict().items():
            if "layers" in name and type(value) is int and value > len(state):
                raise InputError(f"encoder.{name}: {value} is more than {weights} has parameters")
        check_encoder(config.encoder)
        # Without memory at first: a wrong number in config.json can ask for more than there is.
        with torch.device("meta"):
            check_fit(DocREModel(config), weights, state)
        model = DocREModel(config)
        model.load_state_dict(state)  # it fits, as was just seen
        _check_runs(model)
    except InputError as error:
        raise InputError(f"{folder}: {error}" if str(folder) not in str(error) else error) from None
    except Exception as error:  # models raise all kinds on a wrong configuration
        raise InputError(f"{folder}/config.json: not a model's configuration: {error!r}") from None
    return model


@torch.no_grad()
def _check_runs(model):
    """Raises whatever the model does, given eight tokens and two entities: of a configuration, not
    everything is looked at before."""
    ids = torch.zeros(1, 8, dtype=torch.long)
    mentions, pairs = torch.tensor([[1, 4]]), torch.tensor([[0, 0, 1], [0, 1, 0]])
    belongs = torch.eye(2, dtype=torch.bool)[None]
    was_training = model.training
    logits = model.eval()(ids, torch.ones_like(ids), mentions, belongs, torch.tensor([2]), pairs)
    model.train(was_training)
    if not logits.isfinite().all():
        raise ValueError("the scores of a first try are not numbers")


# --- Evaluations and results ------------------------------------------------------------------


def write_metrics(folder, records):
    """records: of every evaluation so far, a dict."""
    lines = "".join(json.dumps(x) + "\n" for x in records)
    write_atomically(folder / METRICS, lambda path: path.write_text(lines, "utf-8"))


def write_submissions(folder, submissions, kind):
    """submissions: split -> submission; kind: see `submission_file`."""
    for split, submission in submissions.items():
        write_json(folder / submission_file(split, kind), submission, indent=0)


def write_outputs(folder, outputs, loss_type, keep_logits=False):
    """What is kept of the outputs (split -> engine.inference.Output of each document): patterns and
    the highest margins, with keep_logits all logits."""
    patterns = {x: patterns_of_documents(of_split, loss_type) for x, of_split in outputs.items()}
    write_json(folder / PATTERNS, patterns, indent=0)
    for split, of_split in outputs.items():
        logits, labels = stack(of_split)
        threshold = threshold_of(logits, loss_type)
        arrays = {"logits": logits, "labels": labels, "threshold": threshold}
        arrays = {name: tensor.numpy() for name, tensor in arrays.items()}
        right = ranked_right(arrays["logits"], arrays["labels"])
        above = (logits - threshold).numpy()
        write_margins(folder / margins_file(split), above, arrays["labels"], right)
        if keep_logits:
            write_atomically(folder / logits_file(split), partial(save_arrays, arrays=arrays))


def describe(args, data, commit):
    """What a run was made from, for results.json: settings, data and software."""
    on_gpu = args.device.startswith("cuda")
    return {
        "version": VERSION,
        "args": vars(args) | {"rel2id": os.path.relpath(args.rel2id)},
        "data": data.files,
        "commit": commit,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": torch.cuda.get_device_name(args.device) if on_gpu else platform.machine(),
        "threads": torch.get_num_threads(),
        "processes": distributed.world_size(),
    }


def commit_of(folder):
    """The commit that a folder is at, with a + if its files were changed; None if it has none."""
    how = "describe --always --abbrev=40 --exclude=* --dirty=+"
    command = ["git", "-C", folder, *how.split()]
    try:
        result = subprocess.run(command, capture_output=True, text=True)
    except OSError:  # no git here
        return None
    return result.stdout.strip() or None


def check_fields(content, *names, kind=float, needed=True):
    """Raises InputError unless what was read from JSON has all fields of these names, e.g.
    "dev.f1", and they are of this kind: float for any number, str, dict. needed=False: a field may
    be missing."""
    for name in names:
        try:
            value = reduce(getitem, name.split("."), content)
        except (LookupError, TypeError):  # TypeError: its parent is no object
            if needed:
                raise InputError(f"{name} is missing") from None
            continue
        is_number = type(value) in (int, float) and abs(value) < LARGEST
        if not (is_number if kind is float else isinstance(value, kind)):
            raise InputError(f"{name}: {value!r:.80} is no {NAMES[kind]}")


def read_results(folder):
    """The results of a finished run, a dict; flags that it is older than have their defaults.
    Raises InputError, which names what is missing or wrong."""
    path = Path(folder) / RESULTS
    try:
        results = msgspec.json.decode(path.read_bytes())
        check_fields(results, "args.seed")
        check_fields(results, "args.loss_type", "args.model_name_or_path", kind=str)
        check_fields(results, "data", kind=dict)
        check_fields(results, "version", needed=False)
        if results.get("version", 1) > VERSION:
            raise InputError(f"version {results['version']}, this code knows up to {VERSION}")
    except FAULTS as error:
        raise InputError(f"{path} is not a finished run's: {error}") from None
    return results | {"args": vars(Options()) | results["args"]}


# --- The model card, where the hub looks for scores -------------------------------------------

METRICS_OF_CARD = {"f1": "F1", "ign_f1": "Ign F1", "macro_f1": "macro F1"}

TEXT = """---
{metadata}
---
# {name}

Document-level relation extraction: {backbone} over {encoder}, trained with the loss {loss}. What it
was trained and tested on, and every setting, is in results.json.

    from predict import RelationExtractor

    RelationExtractor.from_pretrained("this folder, or its name on the hub")(document)
"""


def write_card(folder, config, results):
    """config: DocREConfig; results: of results.json."""
    name, data = results["args"]["run_name"], results["data"]
    scores = [
        EvalResult(
            task_type="relation-extraction",
            dataset_type=data[split]["file"],
            dataset_name=f"{data[split]['file']} ({data[split]['documents']} documents)",
            dataset_split=split,
            metric_type=metric,
            metric_name=shown,
            metric_value=round(100 * results[split][metric], 2),
        )
        for split in SPLITS
        if split in results
        for metric, shown in METRICS_OF_CARD.items()
    ]
    card = ModelCardData(
        model_name=name,
        library_name="transformers",
        tags=["document-level-relation-extraction", config.backbone, config.loss_type],
        eval_results=scores,
    )
    text = TEXT.format(
        metadata=card.to_yaml(),
        name=name,
        backbone=config.backbone,
        encoder=config.encoder.model_type,
        loss=config.loss_type,
    )
    write_atomically(folder / CARD, lambda path: path.write_text(text, "utf-8"))
