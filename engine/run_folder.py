"""The folder of a run: who may write into it."""

import fcntl
import os
from contextlib import contextmanager
from pathlib import Path

from engine import distributed
from inputs.files import InputError, remove_unfinished

LOCK = ".lock"


@contextmanager
def locked(folder):
    """The run folder is this run's alone, until it ends or its process dies. What a killed run was
    just writing is removed. Raises InputError while another run has it, or if it is not writable.

    folder: made where it is missing; "" for an evaluation that writes nothing.
    """
    if not folder or not distributed.is_first():
        yield
        return
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(0, "not writable")
        lock = open(Path(folder) / LOCK, "w")
    except (OSError, ValueError) as error:  # ValueError: no name of a folder
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"--output_dir {folder}: {reason}") from None
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
        yield
