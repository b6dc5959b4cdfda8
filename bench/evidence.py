"""What DREEAM costs: a training step of it, and of it with its evidence loss, against one of
ATLOP, in one process, in turn.

    python bench/evidence.py [--width 384 --layers 6] [--entities 20] [--tokens 300] [--repeats 7]

Made-up documents (bench/step.py), float32 on a CPU. Printed are the medians and the median of
the ratios of steps that followed each other.
"""

import argparse
import statistics
import sys
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).parent.parent), str(Path(__file__).parent)]

from step import bert_sizes, make_features, make_step


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--entities", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=300)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    features = make_features(args)
    ways = {"ATLOP": ("atlop", 0.0), "DREEAM": ("dreeam", 0.0), "with evidence": ("dreeam", 0.1)}
    steps = {
        name: make_step(
            bert_sizes(args),
            features,
            evidence_weight=weight,
            backbone=backbone,
            emb_size=args.width,
        )
        for name, (backbone, weight) in ways.items()
    }
    seconds = {name: [] for name in steps}
    for _ in range(args.repeats + 1):
        for name, step in steps.items():
            seconds[name].append(step())
    base = seconds["ATLOP"][1:]
    print(f"{args.batch} documents, {args.entities} entities, {args.tokens} tokens each; encoder")
    print(f"{args.layers} x {args.width}; {torch.get_num_threads()} threads, float32")
    for name, times in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(times[1:], base, strict=True))
        print(f"{name:14} {statistics.median(times[1:]):7.3f} s a step   {ratio:5.2f} x ATLOP")


if __name__ == "__main__":
    main()
