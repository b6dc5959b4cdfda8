"""The device that a run computes on, and the precision."""

import time
from functools import lru_cache

import torch

from engine import distributed
from inputs.files import InputError, reason_of


def pick_device(device, precision, cpu_has_fp16=False):
    """--device and --precision without "auto": "cpu", "cuda" or "cuda:N", and "fp32", "fp16" or
    "bf16". cpu_has_fp16: fp16, which is slow on a CPU, is allowed there. Raises InputError for what
    the machine does not have."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and distributed.world_size() > 1:
        if device != "cuda":
            raise InputError(f"--device {device}: several processes take one each: --device cuda")
        device = distributed.gpu()
    try:
        device_type = torch.empty(0, device=device).device.type
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {device}: {reason_of(error)}") from None
    if device_type not in ("cpu", "cuda"):
        raise InputError(f"--device {device}: neither cpu nor cuda")
    on_gpu = device_type == "cuda"
    device = device if on_gpu else "cpu"  # cpu:0 is the same
    if precision == "auto":
        # Before compute capability 8 bf16 is computed in software, slowly.
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
    """ "bf16" if this processor multiplies matrices clearly faster in it, else "fp32". It is timed,
    because some processors have bf16 instructions and are slower with them; in one thread by CPU
    time, so that a busy machine gives the same result."""
    seconds, threads = {}, torch.get_num_threads()
    torch.set_num_threads(1)
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        matrix, times = torch.ones(512, 512, dtype=dtype), []
        for _ in range(6):
            started = time.thread_time()
            matrix @ matrix
            times.append(time.thread_time() - started)
        seconds[name] = min(times)  # other work of the processor only adds time
    torch.set_num_threads(threads)
    return "bf16" if 1.2 * seconds["bf16"] < seconds["fp32"] else "fp32"
