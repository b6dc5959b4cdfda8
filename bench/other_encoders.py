"""Encoders other than BERT: a training step with attention rows at the mentions alone against one
whose encoder returns all its attention, in turn, in one process; peak memory of each way in a
process of its own.

    python bench/other_encoders.py [--entities 20] [--tokens 300] [--repeats 5] [--device cuda]

ATLOP on made-up documents (bench/step.py), encoders of MiniLM's size with random weights, float32
on a CPU, bfloat16 on a GPU. Printed are the medians and the median of the ratios of steps that
followed each other.
"""

import argparse
import itertools
import json
import statistics
import subprocess
import sys
from contextlib import contextmanager, nullcontext
from pathlib import Path
from unittest import mock

import torch

sys.path[:0] = [str(Path(__file__).parent.parent), str(Path(__file__).parent)]

from step import make_features, make_step, run_and_peak

KINDS = {
    "bert": {},  # for comparison
    "distilbert": {"hidden_dim": 1536},
    "deberta-v2": {  # version 3's
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_buckets": 256,
        "share_att_key": True,
        "norm_rel_ebd": "layer_norm",
        "position_biased_input": False,
        "type_vocab_size": 0,
    },
    "mpnet": {"pad_token_id": 1, "max_position_embeddings": 514},
    "modernbert": {"intermediate_size": 1024},  # as many weights a layer as the others
}


@contextmanager
def returned_attention():
    """The way of an encoder that nothing is known about."""
    with mock.patch("encoders.loading.computes_attention", lambda config: False):
        with mock.patch("encoders.mention_attention.computes_attention", lambda config: False):
            yield


def step_of(kind, features, device):
    sizes = {
        "model_type": kind,
        "vocab_size": 30522,
        "hidden_size": 384,
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
        "intermediate_size": 1536,
        "pad_token_id": 0,
    }
    return make_step(sizes | KINDS[kind], features, device, emb_size=384)


def in_turn(kind, features, device, repeats):
    """Seconds of the steps of either way."""
    new = step_of(kind, features, device)
    with returned_attention():
        old = step_of(kind, features, device)
    seconds = []
    for _ in range(repeats + 1):
        first = new()
        with returned_attention():
            seconds.append((first, old()))
    return list(zip(*seconds[1:], strict=True))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--entities", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=300)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--memory", choices=["new", "old"], help="only this, in this process")
    args = parser.parse_args()
    features = make_features(args)
    if args.memory:
        with nullcontext() if args.memory == "new" else returned_attention():
            step = step_of(args.kinds[0], features, args.device)
            print(json.dumps(run_and_peak(step, 2, args.device)[1]))
        return
    name = torch.cuda.get_device_name() if args.device.startswith("cuda") else "CPU"
    print(f"{args.batch} documents, {args.entities} entities, {args.tokens} tokens each;", end=" ")
    print(f"encoders 6 x 384; {name}, {torch.get_num_threads()} threads")
    print(f"{'encoder':10}   s: rows   all  speed   MiB: rows    all  share")
    peaks = {}  # first of all: a process's largest size starts with its parent's
    for kind, way in itertools.product(args.kinds, ("new", "old")):
        command = [sys.executable, *sys.argv, "--kinds", kind, "--memory", way]
        result = subprocess.run(command, check=True, capture_output=True, text=True)
        peaks[kind, way] = json.loads(result.stdout.splitlines()[-1])
    for kind in args.kinds:
        new, old = in_turn(kind, features, args.device, args.repeats)
        speed = statistics.median(b / a for a, b in zip(new, old, strict=True))
        times = f"{statistics.median(new):9.2f} {statistics.median(old):5.2f} {speed:5.2f}x"
        own, whole = peaks[kind, "new"], peaks[kind, "old"]
        print(f"{kind:10} {times} {own:12.0f} {whole:6.0f} {own / whole:6.2f}", flush=True)


if __name__ == "__main__":
    main()
