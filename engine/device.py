"""Which device a run computes on, and in which precision."""

import time
from functools import lru_cache

import torch

from engine import distributed
from inputs.files import InputError, reason_of


def pick_device(device, precision, cpu_has_fp16=False):
    """What --device and --precision stand for on this machine: "cpu", "cuda" or "cuda:N", and
    "fp32", "fp16" or "bf16" (fp16 on a CPU is slow, but right: cpu_has_fp16 lets it through, to try
    what a GPU does). Raises InputError for what it does not have."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and distributed.world_size() > 1:
        if device != "cuda":
            raise InputError(f"--device {device}: several processes take one each: --device cuda")
        device = distributed.gpu()
    try:
        kind = torch.empty(0, device=device).device.type
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {device}: {reason_of(error)}") from None
    if kind not in ("cpu", "cuda"):
        raise InputError(f"--device {device}: neither cpu nor cuda")
    device = "cpu" if kind == "cpu" else device  # cpu:0 is the same
    on_gpu = kind == "cuda"
    if precision == "auto":
        # Older cards compute bf16 in software, slowly.
        has_bf16 = on_gpu and torch.cuda.get_device_capability(device)[0] >= 8
        precision = "bf16" if has_bf16 else "fp16"
        if not on_gpu:
            precision = distributed.broadcast(faster_on_cpu)
    if precision == "fp16" and not on_gpu and not cpu_has_fp16:
        raise InputError(
            "--precision fp16: needs a GPU; on a CPU take fp32 or bf16, or --cpu_kernels off to "
            "try what a GPU does"
        )
    return device, precision


@lru_cache
def faster_on_cpu():
    """bf16 or fp32, whichever this processor multiplies faster: about twice as fast is bf16 with
    instructions of its own. It is timed, because some have them and are slower with them; in one
    thread by the processor's time, so that it is the same on a busy machine."""
    seconds, threads = {}, torch.get_num_threads()
    torch.set_num_threads(1)
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        matrix, times = torch.ones(512, 512, dtype=dtype), []
        for _ in range(6):
            started = time.thread_time()
            matrix @ matrix
            times.append(time.thread_time() - started)
        seconds[name] = min(times)  # what else the processor did at the time only adds to it
    torch.set_num_threads(threads)
    return "bf16" if 1.2 * seconds["bf16"] < seconds["fp32"] else "fp32"
