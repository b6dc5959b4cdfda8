"""How a training step's time and memory grow with document length, entities and batch: a figure.

    python bench/growth.py --figure docs/growth.png [--device cuda]

ATLOP of MiniLM's size (or --width, --layers) on made-up documents, every point in a process of its
own (bench/step.py). Dashed: the growth of the work itself, the operations of the matrix
products the step needs, from the left-most point.
"""

import argparse
import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import matplotlib
import torch

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import LogLocator

sys.path[:0] = [str(Path(__file__).parent.parent), str(Path(__file__).parent)]

from run import forward_flops

USUAL = {"tokens": 256, "entities": 20, "batch": 4}
SERIES = {
    "tokens": [128, 256, 512, 1024, 2048, 4096],
    "entities": [10, 20, 42, 70, 100],
    "batch": [1, 2, 4, 8, 16],
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--figure", type=Path, default=Path("growth.png"))
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    args = parser.parse_args()
    points = {}
    print(f"{'':14} {'s / step':>9} {'x':>6} {'MiB':>7} {'x':>6} {'work x':>7}")
    for name, values in SERIES.items():
        points[name] = [measure(USUAL | {name: value}, args) for value in values]
        first = points[name][0]
        for value, point in zip(values, points[name], strict=True):
            growth = {key: point[key] / first[key] for key in point}
            print(
                f"{name:8} {value:5} {point['seconds']:9.3f} {growth['seconds']:6.2f} "
                f"{point['peak_mib']:7.0f} {growth['peak_mib']:6.2f} {growth['work']:7.2f}",
                flush=True,
            )
    if args.json:
        args.json.write_text(json.dumps(points, indent=1) + "\n", encoding="utf-8")
    draw(points, args.figure)


def measure(sizes, args):
    """{"seconds", "peak_mib", "work"} of a step."""
    flags = {**sizes, "width": args.width, "layers": args.layers, "repeats": args.repeats}
    command = [sys.executable, Path(__file__).with_name("step.py"), "--backbone", "atlop"]
    command += [x for name, value in flags.items() for x in (f"--{name}", str(value))]
    command += ["--device", args.device]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    feature = {"input_ids": range(sizes["tokens"]), "entity_pos": range(sizes["entities"])}
    config = Namespace(
        hidden_size=args.width,
        intermediate_size=4 * args.width,
        num_hidden_layers=args.layers,
        num_attention_heads=12,
    )
    work = sizes["batch"] * forward_flops(feature, config)
    return json.loads(result.stdout.splitlines()[-1]) | {"work": work}


def draw(points, path):
    figure, axes = plt.subplots(2, 3, figsize=(10, 5.6), sharex="col", layout="constrained")
    labels = {"tokens": "tokens of a document", "entities": "entities", "batch": "documents"}
    for column, (name, values) in enumerate(SERIES.items()):
        for row, (key, unit) in enumerate({"seconds": "seconds a step", "peak_mib": "MiB"}.items()):
            ax, series = axes[row][column], points[name]
            ax.loglog(values, [x[key] for x in series], "o-", color="black", label="measured")
            if key == "seconds":
                scale = series[0][key] / series[0]["work"]
                work = [x["work"] * scale for x in series]
                ax.loglog(values, work, "--", color="tab:blue", label="growth of the work")
            ax.set_xticks(values, [str(x) for x in values])
            ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            ax.yaxis.set_major_formatter("{x:g}")
            ax.minorticks_off()
            ax.grid(alpha=0.3)
            if column == 0:
                ax.set_ylabel(unit)
                ax.legend()
        axes[1][column].set_xlabel(labels[name])
    usual = "{tokens} tokens a document, {entities} entities, {batch} documents".format(**USUAL)
    figure.suptitle(f"One training step (where not varied: {usual})")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
