"""Every file of a run folder: its name, how it is written and how it is read.

config.json, model.safetensors, the tokenizer's files   the model, as transformers has it
results.json            scores, and what they were made from
metrics.jsonl           one evaluation on dev per line
predictions.json        the submission for test; with --tune_threshold {dev,test}_tuned.json, with
                        --fusion {dev,test}_fused.json
patterns.json           how many pairs of every document have each pattern
{dev,test}_margins.xz   the highest margins (engine/margins.py)
{dev,test}_logits.npz   with --save_logits
README.md               the model card
rel2id.json             of a run that only evaluates a run folder: property -> class id
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
import numpy as np
import torch
import transformers
from huggingface_hub import EvalResult, ModelCardData, snapshot_download

from encoders.loading import check_encoder
from engine import distributed
from engine.checkpoint import PACKED, WEIGHTS, load_weights, weights_of, write_state
from engine.margins import write_margins
from engine.options import SAVED_WITH_MODEL, Options, check_value, saved_with
from engine.scoring import patterns_of_documents, stack
from evaluation import ranked_right
from inputs.files import (
    InputError,
    read_json,
    reason_of,
    relation_ids,
    remove_unfinished,
    write_atomically,
    write_json,
)
from losses import threshold_of
from model import DocREConfig, DocREModel

CONFIG = "config.json"
RESULTS = "results.json"
METRICS = "metrics.jsonl"
PREDICTIONS = "predictions.json"
PATTERN_COUNTS = "patterns.json"
CARD = "README.md"
RELATIONS = "rel2id.json"
LOCK = ".lock"
SPLITS = "dev", "test"
VERSION = 1  # of results.json; one that has none is of version 1, too
LARGEST = 2**53  # beyond, a float cannot count
FAULTS = (OSError, ValueError, RecursionError, msgspec.MsgspecError)  # of reading such a file
NAMES = {float: "number", str: "text", dict: "object"}  # of kinds of fields


def submission_file(split, kind):
    """The name of the file of a submission. kind: "tuned" or "fusion", as in results.json."""
    return f"{split}_{'fused' if kind == 'fusion' else kind}.json"


def logits_file(split):
    return f"{split}_logits.npz"


def margins_file(split):
    return f"{split}_margins.xz"


def state_file(step):
    return f"state-{step:08d}.pt"


def state_files(folder):
    """The saved states of a run folder, the newest first."""
    return sorted(folder.glob("state-*.pt"), reverse=True)


def remove_states(folder):
    for path in state_files(folder):
        path.unlink()


# --- Who may write into it --------------------------------------------------------------------


@contextmanager
def locked(folder):
    """Locks the run folder for this run until it ends or its process dies, and removes what a
    killed run was writing. Raises InputError while another run has it, or if it is not writable.

    folder: created if it is missing; "" for an evaluation that writes nothing.
    """
    if not folder or not distributed.is_first():
        yield
        return
    path, is_new = Path(folder) / LOCK, not os.path.isdir(folder)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = open(path, "w")
    except OSError as error:
        raise InputError(f"--output_dir {folder}: {reason_of(error)}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"--output_dir {folder}: another run is at work in it; give this one a folder of "
                "its own"
            ) from None
        except OSError:
            pass  # a file system without locks
        remove_unfinished(folder)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            if is_new:
                with suppress(OSError):
                    path.parent.rmdir()  # only if it is empty: a bad flag leaves nothing


def clear(folder):
    """Removes what an earlier run found from its folder."""
    # Weights first: with --resume, weights alone are taken for a model from elsewhere.
    names = [WEIGHTS, PACKED, RESULTS, METRICS, PREDICTIONS, PATTERN_COUNTS, CONFIG]
    for split in SPLITS:
        names += [logits_file(split), margins_file(split)]
        names += [submission_file(split, kind) for kind in ("tuned", "fusion")]
    for name in names:
        (folder / name).unlink(missing_ok=True)
    remove_states(folder)


# --- The model --------------------------------------------------------------------------------

# The files that are downloaded from a model of the hub.
OF_MODEL = [CONFIG, WEIGHTS, PACKED, "*token*", "vocab*", "merges.txt", "*.model"]


def fetch(name):
    """The path of the run folder called `name`: a folder, or a model of the hub, downloaded or from
    its cache. Raises InputError."""
    folder = Path(name)
    if not os.path.isdir(folder):  # False, not an error, for a name that no file can have
        try:
            folder = Path(snapshot_download(str(name), allow_patterns=OF_MODEL))
        except Exception as error:  # the hub raises many types
            raise InputError(
                f"model {name}: no run folder, nor to be had: {reason_of(error)}"
            ) from None
    if not (folder / CONFIG).is_file():
        raise InputError(f"model {name}: not a run folder, it has no {CONFIG}")
    return folder


def save_config(model, folder):
    """Writes config.json as transformers does, but atomically and with its defaults."""
    text = model.config.to_json_string(use_diff=False)
    write_atomically(folder / CONFIG, lambda path: path.write_text(text, "utf-8"))


def save_weights(model, folder):
    """Writes model.safetensors, with the parameter names of the released code."""
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    write_state(folder / WEIGHTS, state)


def save_model_files(model, tokenizer, folder):
    """Writes config.json and the tokenizer's files. Raises InputError if the disk is full."""
    save_config(model, folder)
    try:
        tokenizer.save_pretrained(folder)
    except Exception as error:  # tokenizers raises Exception itself
        raise InputError(f"{folder}: no tokenizer can be written: {reason_of(error)}") from None


def load_config(folder):
    """The DocREConfig of a run folder. Raises InputError unless a model can have all of it."""
    path = Path(folder) / CONFIG
    saved = read_json(path)
    try:
        if saved.get("model_type") != DocREConfig.model_type:
            raise InputError(f"model_type: not {DocREConfig.model_type}, so no model of train.py")
        if not isinstance(saved.get("encoder"), dict):  # a name would load another model
            raise InputError("encoder: not an object")
        config = DocREConfig.from_dict(saved)
        for name, value in saved_with(config).items():
            check_value(name, value, SAVED_WITH_MODEL[name])
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except Exception as error:  # transformers raises many types
        raise InputError(f"{path}: not a model's configuration: {reason_of(error)}") from None
    relation_ids(path)
    return config


def load_model(folder):
    """The model of a run folder, in evaluation mode. Raises InputError, where from_pretrained of
    transformers raises many types of errors, or only warns."""
    folder = Path(folder)
    config = load_config(folder)
    try:
        check_encoder(config.encoder)
        model = DocREModel(config).eval()
        load_weights(model, weights_of(folder))
    except InputError:
        raise
    except Exception as error:  # a wrong configuration makes models raise many types
        raise InputError(f"{folder}/{CONFIG}: not a model's configuration: {error!r}") from None
    return model


# --- Evaluations and results ------------------------------------------------------------------


def write_metrics(folder, records):
    """Writes metrics.jsonl. records: a dict for every evaluation so far."""
    lines = "".join(json.dumps(x) + "\n" for x in records)
    write_atomically(folder / METRICS, lambda path: path.write_text(lines, "utf-8"))


def write_submissions(folder, submissions, kind):
    """Writes submissions, split -> submission. kind: see `submission_file`."""
    for split, submission in submissions.items():
        write_json(folder / submission_file(split, kind), submission, indent=0)


def write_outputs(folder, outputs, loss_type, keep_logits=False):
    """Writes the patterns and the highest margins of the outputs, split -> one
    engine.inference.Output per document; with keep_logits all logits, too."""
    patterns = {x: patterns_of_documents(of_split, loss_type) for x, of_split in outputs.items()}
    write_json(folder / PATTERN_COUNTS, patterns, indent=0)
    for split, of_split in outputs.items():
        logits, labels = stack(of_split)
        threshold = threshold_of(logits, loss_type)
        arrays = {"logits": logits, "labels": labels, "threshold": threshold}
        arrays = {name: tensor.numpy() for name, tensor in arrays.items()}
        right = ranked_right(arrays["logits"], arrays["labels"])
        above = (logits - threshold).numpy()
        write_margins(folder / margins_file(split), above, arrays["labels"], right)
        if keep_logits:
            write_atomically(folder / logits_file(split), partial(np.savez_compressed, **arrays))


def describe(args, data, commit):
    """The settings, data and software of a run, for results.json."""
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
    """The git commit of a folder, with a + if files were changed; None outside a repository."""
    how = "describe --always --abbrev=40 --exclude=* --dirty=+"
    command = ["git", "-C", folder, *how.split()]
    try:
        result = subprocess.run(command, capture_output=True, text=True)
    except OSError:  # git is not installed
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


# --- The model card, from which the hub takes scores ------------------------------------------

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
    """Writes README.md. config: DocREConfig; results: the content of results.json."""
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
