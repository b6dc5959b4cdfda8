"""Our code against the textbook ATLOP of bench/baseline.py, task by task, in one table.

    python bench/run.py --data_dir dataset/redocred [--device cuda] [--only read score]

Both have the same weights, batches and precision (except with --precision auto), and run in turn in
one process. A task is split into parts, each done by both in alternating order; the ratio is the
median over the parts. Encoders have random weights. Peak memory is measured in a process for each:
on a GPU what was allocated; on a CPU the growth of the process's largest size.
"""

import argparse
import json
import platform
import random
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).parent.parent), str(Path(__file__).parent)]

import baseline
from step import make_features

import evaluation
from encoders.loading import build_encoder, load_tokenizer
from engine.device import pick_device
from engine.fit import CastOnce, epoch_groups, make_optimizer, make_schedule, train_step
from engine.inference import Predictor
from inputs.documents import read_documents
from inputs.files import relation_ids, run_main
from losses import get_loss
from model import new_model
from prepro import entity_pairs, read_docred
from utils import (
    autocast,
    make_deterministic,
    set_seed,
    special_tokens,
    to_device,
    window_starts,
)

WAYS = ("baseline", "ours")
SIZES = {"BERT-base": (12, 768), "MiniLM": (6, 384)}


def main():
    args = parse_args()
    rows = []
    machine = describe(args)
    print(machine)
    print(f"{'work':52} {'baseline':>9} {'ours':>9} {'ratio':>6}")
    for name, work in WORKS.items():
        if args.only and name not in args.only:
            continue
        for row in work(args):
            rows.append(row)
            cells = [f"{row[way]:.4g} {row['unit']}" for way in WAYS]
            cells.append(f"{row['ratio']:.2f}")
            print(f"{row['work']:52} {cells[0]:>9} {cells[1]:>9} {cells[2]:>6}", end="")
            print(f"  {row['note']}" if row.get("note") else "", flush=True)
    if args.json:
        content = {"machine": machine, "torch": torch.__version__, "rows": rows}
        Path(args.json).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data_dir", type=Path, default=Path("dataset/redocred"), help="has dev_revised.json")
    add("--tokenizer", default="bert-base-cased")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add(
        "--precision",
        choices=["auto", "fp32", "bf16", "fp16"],
        help="auto: ours as train.py picks it, on a CPU the baseline's fp32; default: bf16 on a "
        "GPU, else fp32, both ways",
    )
    add("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES), help="of the encoder")
    add("--documents", type=int, default=200, help="to train on")
    add("--eval_documents", type=int, default=500)
    add("--parts", type=int, default=5, help="of the documents: each is done both ways")
    add("--repeats", type=int, default=5, help="of the work that is not done in parts")
    add("--only", nargs="+", choices=list(WORKS), help="default: all works")
    add("--json", help="also write the table here")
    add("--memory_of", choices=WAYS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    on_gpu = args.device.startswith("cuda")
    picks = args.precision == "auto"
    args.precision = args.precision or ("bf16" if on_gpu else "fp32")
    args.precision = pick_device(args.device, args.precision)[1]
    args.baseline_precision = "fp32" if picks and not on_gpu else args.precision
    if args.memory_of:
        print(memory_of_step(args))
        sys.exit()
    return args


def describe(args):
    if args.device.startswith("cuda"):
        return f"{torch.cuda.get_device_name(args.device)}, {args.precision}"
    precision = args.precision
    if args.baseline_precision != precision:
        precision = f"ours {precision}, the baseline {args.baseline_precision}"
    return f"{processor()}, {torch.get_num_threads()} threads, {precision}"


def processor():
    path = Path("/proc/cpuinfo")  # of Linux
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    names = [line for line in lines if line.startswith("model name")]
    return names[0].split(":")[1].strip() if names else platform.machine()


def waiter(device):
    """A function that waits until the device has finished."""
    return torch.cuda.synchronize if device.startswith("cuda") else lambda: None


def compare(work, baseline_way, our_way, parts, wait=lambda: None, note="", between=None):
    """A row of the table: every part is done by both, in alternating order. between: a function
    that is called after each part."""
    seconds = {way: [] for way in WAYS}
    ways = dict(zip(WAYS, (baseline_way, our_way), strict=True))
    for i, part in enumerate(parts):
        for way in sorted(ways, reverse=i % 2 == 1):
            wait()
            started = time.perf_counter()
            ways[way](part)
            wait()
            seconds[way].append(time.perf_counter() - started)
        if between:
            between()
    ratios = [b / o for b, o in zip(seconds["baseline"], seconds["ours"], strict=True)]
    total = {way: sum(x) for way, x in seconds.items()}
    return {
        "work": work,
        "unit": "s",
        **total,
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "seconds": seconds,
        "note": note,
    }


def read(args):
    tokenizer, rel2id = load_tokenizer(args.tokenizer), relation_ids()
    path = args.data_dir / "dev_revised.json"
    yield compare(
        "read_docred, the dev documents",
        lambda part: baseline.read_docred(path, tokenizer, rel2id),
        lambda part: read_docred(path, tokenizer),
        range(args.repeats),
    )


def score(args):
    """20,000 triples of the dev documents, half of them gold, half random."""
    path = args.data_dir / "dev_revised.json"
    documents = read_documents(path)
    draw, relations = random.Random(0), list(relation_ids())[1:]
    gold = [(d["title"], x["h"], x["t"], x["r"]) for d in documents for x in d["labels"]]
    chosen = set(draw.sample(gold, min(10_000, len(gold))))
    while len(chosen) < 20_000:
        d = draw.choice(documents)
        ends = draw.sample(range(len(d["vertexSet"])), 2) if len(d["vertexSet"]) > 1 else (0, 0)
        chosen.add((d["title"], *ends, draw.choice(relations)))
    names = "title", "h_idx", "t_idx", "r"
    submission = [dict(zip(names, x, strict=True)) for x in sorted(chosen)]
    draw.shuffle(submission)
    facts = evaluation.named_facts(documents[::2])
    yield compare(
        "scoring 20,000 triples, as once an epoch",
        lambda part: baseline.official_scores(list(submission), path, path),
        lambda part: evaluation.evaluate(submission, documents, facts),
        range(args.repeats),
        note="baseline: two scores; ours: all scores",
    )


class Pair:
    """Our model and the baseline with equal weights, and the rest of their training steps."""

    def __init__(self, args, size):
        layers, width = SIZES[size]
        self.args = args
        self.tokenizer = load_tokenizer(args.tokenizer)
        if args.device == "cpu":
            make_deterministic()
        set_seed(0)
        config = {"model_type": "bert", "vocab_size": len(self.tokenizer)}
        config |= {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": 12}
        encoder = build_encoder("", config | {"intermediate_size": 4 * width}, weights=False)
        self.config = encoder.config
        self.ours = new_model(encoder, emb_size=width).to(args.device).train()
        opening, closing = special_tokens(self.tokenizer, "bert")
        self.baseline = baseline.Baseline(self.ours, opening, closing)
        how = {"max_seq_length": 1024, "batch_size": 8, "precision": args.precision}
        self.predictor = Predictor(self.ours, self.tokenizer, **how)
        self.forward = CastOnce(self.ours)
        kind = torch.device(args.device).type
        self.amp = autocast(args.device, args.precision)
        self.baseline_amp = autocast(args.device, args.baseline_precision)
        self.wait = waiter(args.device)
        parameters = self.baseline.parameters()
        settings = {"lr": 5e-5, "eps": 1e-6, "weight_decay": 0, "foreach": False}
        parts = {
            "ours": (make_optimizer(self.ours, 5e-5, 1e-4), self.amp),
            "baseline": (torch.optim.AdamW(parameters, **settings), self.baseline_amp),
        }
        self.rest = {
            way: {
                "loss_function": get_loss("HingeABL"),
                "optimizer": optimizer,
                "schedule": make_schedule(optimizer, 10_000, 0.06),
                "scaler": torch.amp.GradScaler(kind, enabled=args.precision == "fp16"),
                "autocast": amp,
                "max_grad_norm": 1.0,
            }
            for way, (optimizer, amp) in parts.items()
        }

    def baseline_batch(self, features):
        batch = baseline.collate(features, self.tokenizer.pad_token_id)
        return {k: x.to(self.args.device) if torch.is_tensor(x) else x for k, x in batch.items()}

    def train_ours(self, features):
        batch = to_device(self.predictor.collate(features), self.args.device)
        return train_step(self.forward, [batch], **self.rest["ours"])

    def train_baseline(self, features):
        batch = self.baseline_batch(features)
        return baseline.train_step(self.baseline, batch, **self.rest["baseline"])

    @torch.no_grad()
    def evaluate_baseline(self, features, size=8):
        self.baseline.eval()
        for start in range(0, len(features), size):
            batch = self.baseline_batch(features[start : start + size])
            batch.pop("labels")
            with self.baseline_amp():
                self.baseline(**batch).float().cpu()


def dev_features(args, pair):
    path = args.data_dir / "dev_revised.json"
    ours = read_docred(path, pair.tokenizer)
    return baseline.read_docred(path, pair.tokenizer, relation_ids()), ours


def training(args):
    for size in args.sizes:
        pair = Pair(args, size)
        theirs, ours = dev_features(args, pair)
        lengths = [len(feature["input_ids"]) for feature in ours[: args.documents]]
        for by_length in (True, False):
            generator = torch.Generator().manual_seed(0)
            groups = epoch_groups(lengths, 4, 1, generator, by_length)
            batches = [batch for group in groups for batch in group]
            pair.train_baseline([theirs[i] for i in batches[0]])  # to warm up
            pair.train_ours([ours[i] for i in batches[0]])
            parts = [batches[i :: args.parts] for i in range(args.parts)]
            rates = []  # measured between the parts, because the machine's speed drifts
            done = [ours[i] for batch in batches for i in batch]
            order = "like length" if by_length else "shuffled"
            row = compare(
                f"train, {size}, {len(done)} documents, {order}",
                lambda part, pair=pair, x=theirs: [
                    pair.train_baseline([x[i] for i in batch]) for batch in part
                ],
                lambda part, pair=pair, x=ours: [
                    pair.train_ours([x[i] for i in batch]) for batch in part
                ],
                parts,
                pair.wait,
                between=lambda rates=rates: rates.append(matrix_rate(args)),
            )
            needed = 3 * sum(forward_flops(f, pair.config) for f in done)
            row["rate"] = needed / row["ours"] / statistics.mean(rates)
            row["note"] = f"ours at {100 * row['rate']:.0f} % of a matrix product's rate"
            yield row


def forward_flops(feature, config, num_class=97, block=64):
    """Operations in a document's matrix products, forward only; a training step has three times as
    many."""
    length, entities = len(feature["input_ids"]), len(feature["entity_pos"])
    windows = len(window_starts(length, 512, 2))
    tokens = min(length, 512) * windows
    width, inner = config.hidden_size, config.intermediate_size
    pairs = entities * (entities - 1)
    layer = 2 * tokens * (4 * width**2 + 2 * width * inner) + 4 * tokens**2 / windows * width
    context = pairs * length * (width + config.num_attention_heads)
    extract = 4 * (entities + pairs / 2) * width**2
    bilinear = 2 * pairs * width * block * num_class
    return config.num_hidden_layers * layer + context + extract + bilinear


def matrix_rate(args):
    """Operations a second of a plain matrix product."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[args.precision]
    size = 1024 if args.device == "cpu" else 8192
    a, b = torch.randn(2, size, size, device=args.device).to(dtype)
    wait = waiter(args.device)
    times = []
    for _ in range(20):
        wait()
        started = time.perf_counter()
        a @ b
        wait()
        times.append(time.perf_counter() - started)
    return 2 * size**3 / statistics.median(times)


def evaluating(args):
    # Ours sorts by length, so each part gets documents of all lengths.
    for size in args.sizes:
        pair = Pair(args, size)
        theirs, ours = dev_features(args, pair)
        count = min(args.eval_documents, len(ours))
        parts = [range(count)[i :: args.parts] for i in range(args.parts)]
        yield compare(
            f"evaluate, {size}, {count} documents",
            lambda part, pair=pair, x=theirs: pair.evaluate_baseline([x[i] for i in part]),
            lambda part, pair=pair, x=ours: pair.predictor([x[i] for i in part]),
            parts,
            pair.wait,
        )


def memory(args):
    mib = {}
    for way in WAYS:
        command = [sys.executable, __file__, *sys.argv[1:], "--memory_of", way]
        result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        mib[way] = float(result.stdout.split()[-1])
    yield {
        "work": "peak memory of a step, 4 x 42 entities x 512 tokens",
        "unit": "MiB",
        **mib,
        "ratio": mib["ours"] / mib["baseline"],
    }


def memory_of_step(args):
    """Peak memory of two training steps in MiB, of ours or of the baseline."""
    sizes = argparse.Namespace(batch=4, entities=42, tokens=512)
    features = make_features(sizes)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    pair = Pair(args, "BERT-base")
    if args.memory_of == "ours":
        pair.baseline = None
        pair.rest.pop("baseline")
    else:
        features = [textbook(feature) for feature in features]
        pair.ours = pair.predictor = pair.forward = None
        pair.rest.pop("ours")
    if args.device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
    for _ in range(2):
        getattr(pair, f"train_{args.memory_of}")(features)
    if args.device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before


def textbook(feature):
    """Our feature as a feature of baseline.py: lists of pairs and of their multi-hot labels."""
    pairs = entity_pairs(len(feature["entity_pos"])).tolist()
    labels = [[0] * 97 for _ in pairs]
    for head, tail, relation in feature["triples"].tolist():
        labels[pairs.index([head, tail])][relation] = 1
    for multi_hot in labels:
        multi_hot[0] = int(not any(multi_hot))
    return feature | {"pairs": pairs, "labels": labels}


WORKS = {
    "memory": memory,  # first, because a new process counts the memory of its parent
    "read": read,
    "score": score,
    "train": training,
    "evaluate": evaluating,
}

if __name__ == "__main__":
    run_main(main)
