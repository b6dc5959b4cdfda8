"""Interrupted runs: their saved states, and the signals that ask them to stop.

A state is all that the rest of a run depends on: weights, optimizer, schedule, scaler, the states
of the random number generators, and how far training is. It is written atomically, and the state
before it is kept. So a run that is killed at any moment goes on from the newest readable state, and
ends as if it had not been killed.
"""

import hashlib
import json
import signal
import sys
from contextlib import contextmanager
from pathlib import Path

import torch

from backbones import BACKBONES
from engine import distributed
from engine.options import FREE_TO_CHANGE, SAME_TO_RESUME
from engine.run_folder import CONFIG, RESULTS, read_results, remove_states, state_file, state_files
from inputs.files import (
    InputError,
    printable,
    reason_of,
    relation_ids,
    sha256_of,
    write_atomically,
)
from losses import all_options, loss_label


def save_state(folder, parts, settings, progress, device):
    """Writes state-<step>.pt, with the random states of all processes, and removes all states but
    the newest two. Raises InputError if it cannot be written.

    parts: name -> model, optimizer, ...; settings: see `settings_of`; progress: a dict with "step".
    """
    random = {"cpu": torch.get_rng_state()}
    if device.startswith("cuda"):
        random["cuda"] = torch.cuda.get_rng_state(device)
    random = distributed.gather_first(random)
    if not distributed.is_first():
        return
    state = {name: part.state_dict() for name, part in parts.items()}
    state |= {"settings": settings, "progress": progress, "random": random}
    path = folder / state_file(progress["step"])
    write_atomically(path, lambda temporary: torch.save(state, temporary), RuntimeError)
    for path in state_files(folder)[2:]:
        path.unlink()


def newest_state(folder):
    """The newest readable state, None if there is no state; no code in it is run. Newer states that
    cannot be read are removed. Raises InputError if there are states, but none is readable."""
    broken = []
    for path in state_files(folder):
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            if not isinstance(state, dict) or not state.keys() >= {"progress", "settings"}:
                raise ValueError("it has no progress or no settings")
        except OSError as error:  # a fault of the disk, so the file is kept
            raise InputError(f"{path}: cannot be read: {reason_of(error)}") from None
        except Exception as error:  # torch raises many types on a truncated or foreign file
            reason = printable(reason_of(error), 100)
            print(f"{path}: not a state ({reason}); trying the one before", file=sys.stderr)
            broken.append(path)
            continue
        for newer in broken:
            newer.unlink()
        return state
    if broken:
        raise InputError(f"{folder}: no state in it can be read; --overwrite starts anew")
    return None


def restore(folder, parts, settings, device):
    """Loads the newest state of the folder into the parts (name -> model, optimizer, ...) and the
    random number generators. Returns its progress, a dict, {} if there is no state. Raises
    InputError for a state that was saved with other settings."""
    state = None
    if distributed.is_first():
        state = newest_state(folder)
        if state is not None:
            check_settings(state["settings"], settings, folder)
    step = distributed.broadcast(lambda: state and state["progress"]["step"])
    if step is None:
        return {}
    if not distributed.is_first():
        path = folder / state_file(step)
        try:  # mmap: the processes of a machine have the tensors in memory once
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except OSError as error:
            raise InputError(
                f"{path}: cannot be read by all processes: {reason_of(error)}; the run folder must "
                "be on a disk that they all have"
            ) from None
    for name, part in parts.items():
        part.load_state_dict(state[name])
    # With another number of processes dropout is drawn anew.
    if len(state["random"]) == distributed.world_size():
        random = state["random"][distributed.rank()]
        torch.set_rng_state(random["cpu"])
        if "cuda" in random and device.startswith("cuda"):
            torch.cuda.set_rng_state(random["cuda"], device)
    return state["progress"]


def is_finished(args):
    """Whether --resume has nothing left to do. Raises InputError if the finished run in the folder
    is another one."""
    folder = Path(args.output_dir)
    if not args.resume or not (folder / RESULTS).exists():
        return False
    results = read_results(folder)
    names = SAME_TO_RESUME
    if Path(args.init_path).is_file():  # the sizes are the checkpoint's, not the flags'
        names = names - {"emb_size", *BACKBONES[args.backbone].sizes}
    names = names - all_options().keys()  # None and the default are the same: labels are compared
    saved, now = (
        {name: given[name] for name in names} | {"loss": loss_label(given["loss_type"], given)}
        for given in (results["args"], vars(args))
    )
    for split, of_run in results["data"].items():
        path = Path(args.data_dir) / now[f"{split}_file"]
        if of_run and path.is_file():
            saved[f"{split} data"], now[f"{split} data"] = of_run["sha256"], sha256_of(path)
    check_settings(saved, now, folder)
    if relation_ids(args.rel2id) != relation_ids(folder / CONFIG):
        raise InputError(f"--rel2id: {args.rel2id} has other relations than the run in {folder}")
    remove_states(folder)  # the run was killed before it removed them
    print(f"finished before: {folder}")
    for flag, part in ("tune_threshold", "tuned"), ("fusion", "fusion"):
        if getattr(args, flag) and part not in results:
            print(f"without --{flag}; for that: train.py --load_path {folder} --{flag} ...")
    return True


def settings_of(args, data):
    """What --resume must leave unchanged, name -> value: flags, data and relations."""
    given = {name: x for name, x in vars(args).items() if name not in FREE_TO_CHANGE}
    files = {f"{split} data": x["sha256"] for split, x in data.files.items()}
    relations = hashlib.sha256(json.dumps(data.rel2id, sort_keys=True).encode()).hexdigest()
    return given | files | {"relations": relations}


def check_settings(saved, settings, folder):
    """Raises InputError, naming the first difference, unless the settings (name -> value) equal
    those of the run in the folder."""
    for name in sorted({*saved, *settings}):
        if saved.get(name) != settings.get(name):
            raise InputError(
                f"--resume: the run in {folder} was started with {name} {saved.get(name)!r}, not "
                f"{settings.get(name)!r}"
            )


@contextmanager
def stop_requests():
    """A list of the signals, SIGINT (Ctrl-C) or SIGTERM, that asked to stop. The second one raises
    KeyboardInterrupt."""
    requests = []

    def handle(number, frame):
        if requests:
            raise KeyboardInterrupt
        requests.append(number)
        if distributed.is_first():
            print("\nstopping after this step; once more: at once", file=sys.stderr, flush=True)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield requests
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
