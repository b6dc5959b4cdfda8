"""Interrupted runs: their state on disk, and signals that ask them to stop.

A state is all that the rest of a run depends on: weights, optimizer, schedule, scaler, random
numbers and the place in the data. It is written atomically, and the one before is kept: a run that
is killed at any moment goes on from the newest state that can be read, to the same end.
"""

import hashlib
import json
import signal
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import torch

from backbones import BACKBONES
from engine import distributed
from engine.options import COMPARED, FREE_TO_CHANGE
from engine.run_folder import CONFIG, RESULTS, read_results
from inputs.files import (
    InputError,
    printable,
    reason_of,
    relation_ids,
    sha256_of,
    write_atomically,
)


def save_state(folder, parts, settings, progress, device):
    """Writes state-<step>.pt and removes all states but this and the one before; what the other
    processes have of random numbers is in it, too. Raises InputError if it cannot be written.

    parts: name -> model, optimizer, ...; settings: see `settings_of`; progress: a dict with "step".
    """
    random = distributed.gather(random_states(device))
    if not distributed.is_first():
        return
    state = {name: part.state_dict() for name, part in parts.items()}
    state |= {"settings": settings, "progress": progress, "random": random}
    path = folder / f"state-{progress['step']:08d}.pt"
    write_atomically(path, lambda temporary: torch.save(state, temporary), RuntimeError)
    for path in state_files(folder)[2:]:
        path.unlink()


def load_state(folder):
    """The newest state that can be read (no code in it is run); None where there is none. Newer
    ones that cannot be read are removed. Raises InputError if none can be read."""
    broken = []
    for path in state_files(folder):
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            if not isinstance(state, dict) or not state.keys() >= {"progress", "settings"}:
                raise ValueError("it has no progress or no settings")
        except OSError as error:  # the disk's fault, so keep the file
            raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
        except Exception as error:  # also whatever torch raises on a cut or foreign file
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


def load_shared(folder, step):
    """The state of that step, which another process has found to be readable; its tensors stay on
    disk until they are used, in memory once for all processes of a machine. Raises InputError."""
    path = folder / f"state-{step:08d}.pt"
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except OSError as error:
        reason = f"cannot be read by all processes: {reason_of(error)}"
        raise InputError(f"{path}: {reason}; the run folder must be one that they share") from None


def restore(folder, parts, settings, device):
    """Sets each of the parts (name -> model, optimizer, ...) and the random numbers to the newest
    state in the folder; returns the state's progress, a dict, {} where there is no state. Raises
    InputError for a state that was saved with other settings."""
    state = None
    if distributed.is_first():
        state = load_state(folder)
        if state is not None:
            check_settings(state["settings"], settings, folder)
    step = distributed.broadcast(lambda: state and state["progress"]["step"])
    if step is None:
        return {}
    if not distributed.is_first():
        state = load_shared(folder, step)
    for name, part in parts.items():
        part.load_state_dict(state[name])
    if len(state["random"]) == distributed.world_size():  # else dropout is drawn anew
        set_random_states(state["random"][distributed.rank()], device)
    return state["progress"]


def is_finished(args):
    """Whether there is nothing left to do for --resume. Raises InputError if what is finished is
    another run than this."""
    folder = Path(args.output_dir)
    if not args.resume or not (folder / RESULTS).exists():
        return False
    results = read_results(folder)
    names = COMPARED
    if Path(args.init_path).is_file():  # its sizes were taken, whatever the flags said
        names = names - {"emb_size", *BACKBONES[args.backbone].sizes}
    saved, now = ({name: given[name] for name in names} for given in (results["args"], vars(args)))
    for split, of_run in results["data"].items():
        path = Path(args.data_dir) / now[f"{split}_file"]
        if of_run and path.is_file():
            saved[f"{split} data"], now[f"{split} data"] = of_run["sha256"], sha256_of(path)
    check_settings(saved, now, folder)
    if relation_ids(args.rel2id) != relation_ids(folder / CONFIG):
        raise InputError(f"--rel2id: {args.rel2id} has other relations than the run in {folder}")
    remove_states(folder)  # killed before it removed them
    print(f"finished before: {folder}")
    return True


def settings_of(args, data):
    """What a run that goes on must have in common with its beginning: name -> value."""
    given = {name: x for name, x in vars(args).items() if name not in FREE_TO_CHANGE}
    files = {f"{split} data": x["sha256"] for split, x in data.files.items()}
    relations = hashlib.sha256(json.dumps(data.rel2id, sort_keys=True).encode()).hexdigest()
    return given | files | {"relations": relations}


def state_files(folder):
    """The states of a run folder, the newest first."""
    return sorted(folder.glob("state-*.pt"), reverse=True)


def remove_states(folder):
    for path in state_files(folder):
        path.unlink()


def random_states(device):
    """What all random numbers to come depend on (dropout's own generator is seeded by torch's)."""
    states = {"cpu": torch.get_rng_state()}
    return states | ({"cuda": torch.cuda.get_rng_state(device)} if device[:4] == "cuda" else {})


def set_random_states(states, device):
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and device[:4] == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)


def check_settings(saved, settings, folder):
    """Raises InputError, naming the first difference, unless the settings (flag -> value) are those
    that a state was saved with."""
    for name in sorted({*saved, *settings}):
        if saved.get(name) != settings.get(name):
            raise InputError(
                f"--resume: the run in {folder} was started with {name} {saved.get(name)!r}, not "
                f"{settings.get(name)!r}"
            )


@contextmanager
def stop_requests():
    """A list that is no longer empty once Ctrl-C or SIGTERM asked to stop. A second one is not
    waited for: KeyboardInterrupt."""
    requests = []

    def handle(number, frame):
        if requests:
            raise KeyboardInterrupt
        requests.append(number)
        if distributed.is_first():
            print("\nstopping after this step; once more: at once", file=sys.stderr, flush=True)

    if threading.current_thread() is not threading.main_thread():
        yield requests  # only the main thread may handle signals
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield requests
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
