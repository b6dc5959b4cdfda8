"""Interrupted runs: their state on disk, their page at wandb, and signals that ask them to stop.

A state is all that the rest of a run depends on: weights, optimizer, schedule, scaler, random
numbers and the place in the data. It is written atomically, and the one before is kept: a run that
is killed at any moment goes on from the newest state that can be read, to the same end.
"""

import signal
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import torch

from engine import distributed
from inputs.files import InputError, printable, reason_of, write_atomically


def save_state(folder, step, content):
    """Writes state-<step>.pt, content being a dict of tensors, numbers, strings and the like, and
    removes all states but this and the one before. Raises InputError if it cannot be written."""
    path = folder / f"state-{step:08d}.pt"
    write_atomically(path, lambda temporary: torch.save(content, temporary), RuntimeError)
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


def start_wandb(args):
    """A function (record, step) that logs to wandb, or to nowhere; needs no account by default. A
    run that goes on, goes on there, too: its folder keeps wandb's name of it."""
    if args.wandb == "disabled" or not distributed.is_first():
        return lambda record, step: None
    import wandb

    if wandb.run:
        wandb.finish()  # the run of the seed before
    settings = {"project": args.proj_name, "name": args.run_name, "mode": args.wandb}
    if args.output_dir:
        path = Path(args.output_dir) / "wandb.txt"
        if args.resume and path.exists():
            settings |= {"id": path.read_text(), "resume": "allow"}
        settings["dir"] = args.output_dir
    run = wandb.init(config=vars(args), **settings)
    if args.output_dir:
        path.write_text(run.id)
    return wandb.log


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
