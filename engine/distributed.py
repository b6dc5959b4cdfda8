"""One run in several processes, one for each GPU, on one machine or more:

    torchrun --nproc_per_node=4 train.py --train_batch_size 8 ...

Every batch is divided among the processes, DistributedDataParallel averages the gradients, and all
processes hold the same weights at every step. Only the first process writes and prints. Without
torchrun there is one process, and the functions here return what it has.
"""

import os
import re
import signal
import sys
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from encoders.mention_attention import computes_attention
from inputs.files import InputError


def world_size():
    """The number of processes; torchrun's variables give it before they are connected."""
    return int(os.environ.get("WORLD_SIZE") or 1) if "RANK" in os.environ else 1


def rank():
    return int(os.environ["RANK"]) if world_size() > 1 else 0


def is_first():
    return rank() == 0


def hides_bars():
    """tqdm's `disable`: None, "shown on a terminal", in the first process, True in the others."""
    return None if is_first() else True


def gpu():
    """This process's GPU, "cuda:N", which becomes torch's current device. Raises InputError if the
    machine has too few."""
    number, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if number >= count:
        raise InputError(
            f"--device cuda: process {number} of this machine has no GPU, there are {count}; "
            "--nproc_per_node of torchrun says how many processes there are"
        )
    torch.cuda.set_device(number)
    return f"cuda:{number}"


@contextmanager
def processes():
    """Connects the processes of the run and disconnects them at the end. An error is reported by
    the first process that meets it; the others exit silently. A process that dies without a message
    is noticed by those that wait for it. Raises InputError for this and for a failed connection."""
    if world_size() == 1:
        yield
        return
    backend = "gloo"  # for Python objects; nccl for gradients on GPUs
    if torch.cuda.is_available():
        backend = "cpu:gloo,cuda:nccl"
    try:
        store, number, count = next(dist.rendezvous("env://"))
        # The limit is for a process that hangs; a dead one closes its connection. Reading the
        # largest training file, during which others wait, takes minutes.
        wait = timedelta(hours=1)
        dist.init_process_group(backend, timeout=wait, store=store, rank=number, world_size=count)
    except (RuntimeError, ValueError) as error:
        reason = str(error).split("\n")[0]
        raise InputError(f"process {rank()}: no connection to the others: {reason}") from None
    try:
        yield
        dist.destroy_process_group()
    except (InputError, KeyboardInterrupt) as error:
        if is_reported(store):
            sys.exit(2 if isinstance(error, InputError) else 130)
        raise
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        if not isinstance(error, dist.DistError) and not re.search("(?i)gloo|nccl", reason):
            raise
        # torchrun now ends all processes, but this one reports the error first.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if is_reported(store):
            sys.exit(2)
        if re.search("(?i)connection (closed|reset)|broken pipe", reason):
            reason = (
                "another process of this run ended; the same command with --resume goes on from "
                "the last saved step"
            )
        print(file=sys.stderr)  # below the unfinished bar of a first process that died
        raise InputError(f"process {rank()} of {world_size()}: {reason}") from None


def is_reported(store):
    """Whether another process has already reported why the run ends."""
    try:
        return store.add("ends", 1) > 1
    except RuntimeError:  # the process that kept the store is gone
        return False


def broadcast(make):
    """The result of make() in the first process, returned in all; the others do not call it."""
    if world_size() == 1:
        return make()
    result = [make() if is_first() else None]
    dist.broadcast_object_list(result)
    return result[0]


def gather_first(value):
    """The values of all processes in the first, None in the others."""
    if world_size() == 1:
        return [value]
    values = [None] * world_size() if is_first() else None
    dist.gather_object(value, values)
    return values


def mean(tensor):
    """The mean over the processes."""
    if world_size() > 1:
        dist.all_reduce(tensor)
        tensor /= world_size()
    return tensor


def any_process(flag):
    """Whether the flag is set in any process."""
    if world_size() == 1:
        return flag
    flag = torch.tensor(int(flag))
    dist.all_reduce(flag, dist.ReduceOp.MAX)
    return bool(flag)


def own_part(items):
    """The consecutive items of a list that this process works on. Processes differ by one item at
    most."""
    bounds = [len(items) * i // world_size() for i in (rank(), rank() + 1)]
    return items[slice(*bounds)]


def replicate(model):
    """The model to train: gradients are averaged over the processes, and DocuNet's batch
    normalisation, changed in the model itself, goes over the documents of all."""
    if world_size() == 1:
        return model
    torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return DistributedDataParallel(
        model,
        gradient_as_bucket_view=True,
        # Encoders like LUKE have parameters that the loss does not depend on.
        find_unused_parameters=not computes_attention(model.model.config),
    )


def broadcast_weights(model):
    """Gives all processes the weights of the first."""
    if world_size() > 1:
        for tensor in model.state_dict().values():
            dist.broadcast(tensor, 0)
