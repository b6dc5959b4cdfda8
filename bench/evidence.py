"""What DREEAM costs: a training step of it, and of it with its evidence loss, against one of
ATLOP, in one process, in turn.

    python bench/evidence.py [--width 384 --layers 6] [--entities 20] [--tokens 300] [--repeats 7]

Made-up documents (bench/step.py), float32 on a CPU. Printed are the medians and the median of
the ratios of steps that followed each other.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).parent.parent), str(Path(__file__).parent)]

from step import make_features

import backbones  # noqa: F401
from encoders.loading import build_encoder
from engine.training import make_optimizer, make_schedule, train_step
from losses import get_loss
from model import new_model
from utils import autocast, collate, set_seed


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--entities", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=300)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    config = {
        "model_type": "bert",
        "hidden_size": args.width,
        "num_hidden_layers": args.layers,
        "num_attention_heads": 12,
        "intermediate_size": 4 * args.width,
    }
    features = make_features(args)
    ways = {"ATLOP": ("atlop", 0.0), "DREEAM": ("dreeam", 0.0), "with evidence": ("dreeam", 0.1)}
    steps = {}
    for name, (backbone, weight) in ways.items():
        teaches = weight > 0
        batch = collate(features, ([2], [3], 0), sentences=teaches, evidence=teaches)
        set_seed(0)
        encoder = build_encoder("", config, weights=False)
        model = new_model(encoder, backbone=backbone, emb_size=args.width).train()
        optimizer = make_optimizer(model, 5e-5, 1e-4)
        schedule = make_schedule(optimizer, 1000, 0.06)
        scaler = torch.amp.GradScaler("cpu", enabled=False)
        parts = get_loss("ATL"), optimizer, schedule, scaler, autocast("cpu", "fp32"), 1.0

        def step(model=model, batch=batch, parts=parts, weight=weight):
            started = time.perf_counter()
            train_step(model, [batch], *parts, evidence_weight=weight)
            return time.perf_counter() - started

        steps[name] = step
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
