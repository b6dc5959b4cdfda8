"""The folder of a run: who may write into it."""

import fcntl
import os
from contextlib import contextmanager, suppress
from pathlib import Path

from engine import distributed
from inputs.files import InputError, reason_of, remove_unfinished

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
