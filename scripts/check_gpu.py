"""Check that training works on this machine's GPU, and measure how fast.

    python scripts/check_gpu.py [--device cpu] [--only logits speed] [--output check_gpu.json]

Needs no hub and no data set: documents are made up and encoders have random weights. A line for
each check, ok or FAILED with its number; one that fails does not stop the rest. At the end a
table; the file has every measurement, the versions and the card. Exit code 1 if anything FAILED, 2
without a GPU. --device cpu tries what a CPU can, with small sizes and few steps.
"""

import gc
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # nothing here needs the hub
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

import torch
import transformers
from gpu_checks import all_checks, check_speed, on_gpu
from tabulate import tabulate

from engine.device import pick_device
from inputs.files import InputError, OneLineParser, reason_of, run_main, write_json

GROUPS = ["logits", "losses", "steps", "waits", "resume", "processes", "speed"]


def attempt(check, options):
    """(result, in words, numbers) of a check; what it raises is its result."""
    try:
        return check(*options)
    except torch.OutOfMemoryError as error:
        result = "skipped" if check is check_speed else "FAILED"
        return result, f"out of memory: {reason_of(error)}", {}
    except Exception as error:
        calls = traceback.extract_tb(error.__traceback__)
        inner = [x for x in calls if str(ROOT) in x.filename and "site-packages" not in x.filename]
        place = f"{Path(inner[-1].filename).name}:{inner[-1].lineno}" if inner else "?"
        said = f"{type(error).__name__}: {reason_of(error)} ({place})"
        return "FAILED", said, {"traceback": traceback.format_exc()}


def describe(device):
    """What the numbers were measured on and with, name -> value."""
    said = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "commit": output_of("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"),
        "device": device,
    }
    if on_gpu(device):
        card = torch.cuda.get_device_properties(device)
        query = "--query-gpu=driver_version", "--format=csv,noheader"
        said |= {
            "card": card.name,
            "memory_gib": card.total_memory / 2**30,
            "capability": f"{card.major}.{card.minor}",
            "cards": torch.cuda.device_count(),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "driver": output_of("nvidia-smi", *query).split("\n")[0],
        }
    return said


def output_of(*command):
    """What a program prints, "unknown" if it cannot."""
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return result.stdout.strip()


def in_json(x):
    """The same with words for numbers that JSON lacks: nan, inf."""
    if isinstance(x, dict):
        return {key: in_json(value) for key, value in x.items()}
    if isinstance(x, list):
        return [in_json(value) for value in x]
    return str(x) if isinstance(x, float) and not math.isfinite(x) else x


def print_tables(rows, machine):
    """The machine, the groups and the speed, in Markdown."""
    print("\n" + ", ".join(f"{name} {value}" for name, value in machine.items()) + "\n")
    table = []
    for group in dict.fromkeys(row["group"] for row in rows):
        mine = [row for row in rows if row["group"] == group]
        counts = {x: sum(row["result"] == x for row in mine) for x in ("ok", "FAILED", "skipped")}
        table.append({"check": group} | counts | {"seconds": sum(row["seconds"] for row in mine)})
    print(tabulate(table, "keys", "github", floatfmt=".1f"))
    names = {
        "train_documents_per_second": "training, documents/s",
        "evaluate_documents_per_second": "evaluation, documents/s",
        "peak_gib": "peak GiB",
        "share_of_matrix_rate": "of matrix rate",
        "train_hours": "whole run: training h",
        "evaluate_hours": "evaluation h",
    }
    sizes = [row for row in rows if "train_hours" in row]
    speed = [{"size": row["name"]} | {x: row[name] for name, x in names.items()} for row in sizes]
    if speed:
        print("\n" + tabulate(speed, "keys", "github", floatfmt=".3g"))
    if failed := [row for row in rows if row["result"] == "FAILED"]:
        print("\nFAILED: " + ", ".join(f"{row['group']} {row['name']}" for row in failed))
        if any("CUDA error" in row["said"] for row in failed):
            print("(after a CUDA error all that follows may fail; --only tries a check alone)")


def parse_args(argv):
    parser = OneLineParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu")
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=GROUPS, help="these checks")
    parser.add_argument("--output", type=Path, default=Path("check_gpu.json"))
    args = parser.parse_args(argv)
    if args.device == "cpu":
        return args
    if not torch.cuda.is_available():
        build = f"is built for CUDA {torch.version.cuda}" if torch.version.cuda else "has no CUDA"
        raise InputError(
            f"no CUDA card can be used: torch {torch.__version__} {build}, the driver is "
            f"{output_of('nvidia-smi', '--query-gpu=driver_version', '--format=csv,noheader')}; "
            "--device cpu checks what a CPU can"
        )
    args.device, _ = pick_device(args.device, "auto")
    if ":" in args.device:
        torch.cuda.set_device(args.device)
    return args


def main(argv=None):
    args, rows = parse_args(argv), []
    transformers.logging.set_verbosity_error()
    machine = describe(args.device)
    with tempfile.TemporaryDirectory() as folder:
        for group, name, check, options in all_checks(args.device, Path(folder)):
            if group not in args.only:
                continue
            started = time.perf_counter()
            result, said, numbers = attempt(check, options)
            seconds = time.perf_counter() - started
            print(f"{result:8}{group:10}{name:20} {said}", flush=True)
            row = {"group": group, "name": name, "result": result, "said": said}
            rows.append(row | {"seconds": seconds} | numbers)
            # after each: what ends the process leaves those before
            write_json(args.output, in_json({"machine": machine, "checks": rows}))
            gc.collect()
            if on_gpu(args.device):
                torch.cuda.empty_cache()
    print_tables(rows, machine)
    print(f"\nall numbers: {args.output}")
    if any(row["result"] == "FAILED" for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    run_main(main)
