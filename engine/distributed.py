"""One run in several processes, one for each GPU, on one machine or more:

    torchrun --nproc_per_node=4 train.py --train_batch_size 8 ...

Every batch is divided among the processes, the gradients are averaged by torch's
DistributedDataParallel, and all processes hold the same weights at every step. What is written and
printed comes from the first. Started without torchrun there is one process, and all of this does
nothing.
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
    """The number of processes; known from torchrun's variables before they are connected."""
    return int(os.environ.get("WORLD_SIZE") or 1) if "RANK" in os.environ else 1


def rank():
    return int(os.environ["RANK"]) if world_size() > 1 else 0


def is_first():
    return rank() == 0


def hides_bars():
    """tqdm's `disable`: the first process shows its bars, where somebody watches (None)."""
    return None if is_first() else True


def gpu():
    """This process's GPU, "cuda:N", which becomes torch's current one. Raises InputError if nobody
    has said which it is, or the machine has too few."""
    if "LOCAL_RANK" not in os.environ:
        raise InputError("LOCAL_RANK is not set: start several processes with torchrun")
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
    """Connects the processes of the run and parts them at the end. Whatever ends a run is said by
    one of them, the first that meets it; the others exit silently. A process that dies without a
    word is noticed by those that wait for it: InputError."""
    if world_size() == 1:
        yield
        return
    backend = "gloo"  # for what processes tell each other; nccl for gradients on GPUs
    if torch.cuda.is_available():
        backend = "cpu:gloo,cuda:nccl"
    try:
        store, number, count = next(dist.rendezvous("env://"))
        # A dead process is noticed by its closed connection. One that hangs is given up when it has
        # been waited for longer than any training file takes to be read (101,873 documents: 5
        # minutes).
        wait = timedelta(hours=1)
        dist.init_process_group(backend, timeout=wait, store=store, rank=number, world_size=count)
    except (RuntimeError, ValueError) as error:
        reason = str(error).split("\n")[0]
        raise InputError(f"process {rank()}: no connection to the others: {reason}") from None
    try:
        yield
        dist.destroy_process_group()
    except InputError:
        if is_told(store):
            sys.exit(2)
        raise
    except KeyboardInterrupt:
        if is_told(store):
            sys.exit(130)
        raise
    except RuntimeError as error:
        if not is_of_connection(error):
            raise
        signal.signal(
            signal.SIGTERM, signal.SIG_IGN
        )  # torchrun ends all processes; first this one says why
        if is_told(store):
            sys.exit(2)
        reason = " ".join(str(error).split())
        if re.search("(?i)connection (closed|reset)|broken pipe", reason):
            reason = (
                "another process of this run ended; the same command with --resume goes on from "
                "the last saved step"
            )
        print(file=sys.stderr)  # below the unfinished bar of a first process that died
        raise InputError(f"process {rank()} of {world_size()}: {reason}") from None


def is_told(store):
    """Whether another process has said already why the run ends."""
    try:
        return store.add("ends", 1) > 1
    except RuntimeError:  # the process that kept the store is gone
        return False


def is_of_connection(error):
    words = str(error).lower()
    return isinstance(error, dist.DistError) or "gloo" in words or "nccl" in words


def broadcast(make):
    """What make() returns in the first process, in all processes; the others do not call it."""
    if world_size() == 1:
        return make()
    box = [make() if is_first() else None]
    dist.broadcast_object_list(box)
    return box[0]


def gather(part):
    """The parts of all processes, in their order, in all processes."""
    if world_size() == 1:
        return [part]
    parts = [None] * world_size()
    dist.all_gather_object(parts, part)
    return parts


def gather_first(part):
    """The parts of all processes in the first, None in the others."""
    if world_size() == 1:
        return [part]
    parts = [None] * world_size() if is_first() else None
    dist.gather_object(part, parts)
    return parts


def mean(tensor):
    """The mean over the processes."""
    if world_size() > 1:
        dist.all_reduce(tensor)
        tensor /= world_size()
    return tensor


def anywhere(flag):
    """Whether the flag is set in any process."""
    if world_size() == 1:
        return flag
    flag = torch.tensor(int(flag))
    dist.all_reduce(flag, dist.ReduceOp.MAX)
    return bool(flag)


def own_part(items):
    """This process's part of a list: consecutive items, as many as the others have, or one more."""
    bounds = [len(items) * i // world_size() for i in (rank(), rank() + 1)]
    return items[slice(*bounds)]


def replicate(model):
    """The model as it is trained: its gradients are averaged over the processes. DocuNet's batch
    normalisation then is over all processes' documents, in the model itself."""
    if world_size() == 1:
        return model
    torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return DistributedDataParallel(
        model,
        gradient_as_bucket_view=True,
        # LUKE has parameters for entities that take no part; the usual encoders have none such.
        find_unused_parameters=not computes_attention(model.model.config),
    )


def broadcast_weights(model):
    """Gives all processes the first one's weights."""
    if world_size() > 1:
        for tensor in model.state_dict().values():
            dist.broadcast(tensor, 0)
