"""Time and peak memory of one training step, for every backbone.

    python bench/step.py [--entities 42] [--batch 4] [--tokens 512] [--device cuda]

--entities takes several numbers, too, one a document.

Every backbone runs in a process of its own: a batch of made-up documents, an encoder of BERT-base's
size (or --width, --layers) with random weights, float32 on a CPU, bfloat16 on a GPU (or
--precision). The time is the median of --repeats steps after one to warm up. Peak memory: on a GPU
what was allocated; on a CPU the process's largest size less what it was before the first step. On a
GPU one more step is traced: how many kernels it has, and for how long the card computes.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch.autograd import DeviceType

sys.path.insert(0, str(Path(__file__).parent.parent))

from backbones import BACKBONES
from encoders.loading import build_encoder
from engine.fit import CastOnce, make_optimizer, make_schedule, train_step
from losses import get_loss
from model import new_model
from utils import autocast, collate, set_seed


def make_features(args):
    """Documents with the wanted number of entities, 1.4 mentions each, 6 % of the pairs related,
    each with one sentence as its evidence."""
    set_seed(0)
    features, counts = [], np.ravel(args.entities)
    for i in range(args.batch):
        count = int(counts[i % len(counts)])
        places = torch.randint(args.tokens - 3, (count, 2)).tolist()
        entity_pos = [
            [(x, x + 1) for x in spans[: 1 + (e % 5 < 2)]] for e, spans in enumerate(places)
        ]
        pairs = torch.randint(count, (count**2 // 16, 2))
        pairs = pairs[pairs[:, 0] != pairs[:, 1]].unique(dim=0)
        triples = torch.cat([pairs, torch.randint(1, 97, (len(pairs), 1))], dim=1).numpy()
        ids = [2, *torch.randint(5, 1000, (args.tokens - 2,)).tolist(), 3]
        bounds = [*range(0, args.tokens - 2, 30), args.tokens - 2]
        sentences = torch.randint(len(bounds) - 1, (len(pairs), 1))
        features.append(
            {
                "title": str(i),
                "input_ids": ids,
                "entity_pos": entity_pos,
                "triples": triples,
                "evidence": torch.cat([pairs, sentences], dim=1).tolist(),
                "sentence_bounds": bounds,
            }
        )
    return features


def measure(backbone, args):
    """{"seconds": median of the steps, "peak_mib": peak memory}, on a GPU also "kernels" and
    "busy", the seconds that these take."""
    on_gpu = args.device.startswith("cuda")
    batch = collate(make_features(args), ([2], [3], 0), multiple=16 if on_gpu else 1)
    batch = {name: tensor.to(args.device) for name, tensor in batch.items()}
    sizes = {"hidden_size": args.width, "intermediate_size": 4 * args.width}
    sizes |= {"num_hidden_layers": args.layers, "num_attention_heads": 12}
    set_seed(0)
    encoder = build_encoder("", {"model_type": "bert", **sizes}, weights=False)
    model = new_model(encoder, backbone=backbone, emb_size=args.width).to(args.device).train()
    optimizer = make_optimizer(model, 5e-5, 1e-4)
    parts = {
        "loss_function": get_loss("HingeABL"),
        "optimizer": optimizer,
        "schedule": make_schedule(optimizer, 1000, 0.06),
        "scaler": torch.amp.GradScaler("cuda" if on_gpu else "cpu", enabled=False),
        "autocast": autocast(args.device, args.precision or ("bf16" if on_gpu else "fp32")),
        "max_grad_norm": 1.0,
    }
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds, forward = [], CastOnce(model)

    def step():
        train_step(forward, [batch], **parts)
        if on_gpu:
            torch.cuda.synchronize()

    for _ in range(args.repeats + 1):
        started = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - started)
    found = {"seconds": statistics.median(seconds[1:])}
    if not on_gpu:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        return found | {"peak_mib": peak / 1024}
    found["peak_mib"] = torch.cuda.max_memory_allocated() / 2**20
    with torch.profiler.profile() as profile:
        step()
    kernels = [
        x for x in profile.events() if x.device_type == DeviceType.CUDA and not x.is_user_annotation
    ]
    busy = sum(x.time_range.elapsed_us() for x in kernels) / 1e6
    return found | {"kernels": len(kernels), "busy": busy}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--entities", type=int, nargs="+", default=[42])
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--precision", choices=("fp32", "bf16"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--backbone", choices=list(BACKBONES), help="only this one, in this process"
    )
    args = parser.parse_args()
    if args.backbone:
        print(json.dumps(measure(args.backbone, args)))
        return
    name = torch.cuda.get_device_name() if args.device.startswith("cuda") else "CPU"
    entities = " ".join(map(str, args.entities))
    print(f"{args.batch} documents, {entities} entities, {args.tokens} tokens each;", end=" ")
    print(f"encoder {args.layers} x {args.width}; {name}, {torch.get_num_threads()} threads")
    print(f"{'backbone':10} {'ms / step':>9} {'peak MiB':>9} {'kernels':>9} {'busy ms':>9}")
    for backbone in BACKBONES:
        command = [sys.executable, __file__, *sys.argv[1:], "--backbone", backbone]
        result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        row = json.loads(result.stdout.splitlines()[-1])
        print(f"{backbone:10} {1000 * row['seconds']:9.1f} {row['peak_mib']:9.0f}", end=" ")
        print(f"{row['kernels']:9} {1000 * row['busy']:9.1f}" if "busy" in row else "", flush=True)


if __name__ == "__main__":
    main()
