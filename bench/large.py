"""Large inputs through the real commands: peak memory and time.

    python bench/large.py --data_dir dataset/redocred --tokenizer pretrained/redocred-minilm

1. A training file of many documents (those of dev, over and over, with titles of their own), with a
   tiny encoder: train.py until its first saved state, five steps after the file is read.
2. A document of many entities, an encoder of BERT-base's size (or --width, --layers) with random
   weights: train.py, one epoch of one step, and predict.py, for each backbone.

Every command runs in a process of its own; its peak memory is the largest size it ever had.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path

from transformers import AutoConfig, AutoModel

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from backbones import BACKBONES
from encoders.loading import load_tokenizer
from inputs.documents import read_documents
from inputs.files import write_json


def run(command, until=None):
    """Runs a script; returns its seconds and its peak memory in MiB. until: stops it with SIGTERM
    once this is true."""
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, str(ROOT / command[0]), *map(str, command[1:])],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    while until and not until() and process.poll() is None:
        time.sleep(0.1)
    seconds = time.perf_counter() - started
    if until:
        process.send_signal(signal.SIGTERM)
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in ((0, 130) if until else (0,)):
        sys.exit(f"{command[0]} failed: {errors[-2000:]}")
    return (seconds if until else time.perf_counter() - started), usage.ru_maxrss / 1024


def write_encoder(folder, tokenizer, width, layers):
    config = AutoConfig.for_model(
        "bert",
        vocab_size=len(tokenizer),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // 64),
        intermediate_size=4 * width,
    )
    AutoModel.from_config(config, trust_remote_code=False).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def large_document(entities, words=900):
    """Every entity has two mentions of one word; every tenth has a relation."""
    rng = random.Random(0)
    sents = [[f"word{rng.randrange(500)}" for _ in range(30)] for _ in range(words // 30)]
    places = rng.sample([(s, w) for s in range(words // 30) for w in range(30)], 2 * entities)
    mentions = [{"name": sents[s][w], "sent_id": s, "pos": [w, w + 1]} for s, w in places]
    labels = [{"h": e, "t": e + 1, "r": "P17"} for e in range(0, entities - 1, 10)]
    vertices = [mentions[i : i + 2] for i in range(0, 2 * entities, 2)]
    return {
        "title": f"{entities} entities",
        "sents": sents,
        "vertexSet": vertices,
        "labels": labels,
    }


def many_documents(folder, documents, count):
    """Writes the files of a run whose training file has so many documents; returns its size."""
    for split in ("dev", "test"):
        write_json(folder / f"{split}_revised.json", documents[:4])
    with open(folder / "train_revised.json", "w", encoding="utf-8") as file:
        for i, document in enumerate(islice(cycle(documents), count)):
            file.write("[" if i == 0 else ", ")
            json.dump(document | {"title": f"{document['title']} {i}"}, file)
        file.write("]")
    return (folder / "train_revised.json").stat().st_size


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", required=True, help="folder of dev_revised.json")
    parser.add_argument("--tokenizer", required=True, help="folder or hub name")
    parser.add_argument("--documents", type=int, nargs="*", default=[10_000, 101_873])
    parser.add_argument("--entities", type=int, default=200)
    parser.add_argument("--backbones", nargs="*", default=list(BACKBONES))
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--layers", type=int, default=12)
    args = parser.parse_args()
    tokenizer = load_tokenizer(args.tokenizer)
    documents = read_documents(Path(args.data_dir) / "dev_revised.json")
    print(f"{'':44} {'seconds':>8} {'peak MiB':>9}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_encoder(folder / "tiny", tokenizer, 64, 1)
        shared = ["--data_dir", folder, "--emb_size", 64, "--device", "cpu"]
        for count in args.documents:
            size = many_documents(folder, documents, count)
            output = folder / f"run-{count}"
            row = run(
                ["train.py", *shared, "--model_name_or_path", folder / "tiny"]
                + ["--save_steps", 5, "--output_dir", output],
                until=lambda output=output: list(output.glob("state-*")),
            )
            show(f"train.py, {count:,} documents ({size / 1e6:,.0f} MB)", row)
        write_encoder(folder / "base", tokenizer, args.width, args.layers)
        for split in ("train", "dev", "test"):
            write_json(folder / f"{split}_revised.json", [large_document(args.entities)])
        for backbone in args.backbones:
            output, pairs = folder / backbone, args.entities * (args.entities - 1)
            row = run(
                ["train.py", *shared, "--model_name_or_path", folder / "base"]
                + ["--backbone", backbone, "--emb_size", args.width, "--num_train_epochs", 1]
                + ["--train_batch_size", 1, "--output_dir", output]
            )
            show(f"train.py, {backbone}, {pairs:,} pairs", row)
            row = run(
                ["predict.py", "--model", output, "--input", folder / "test_revised.json"]
                + ["--output", folder / "out.json", "--device", "cpu"]
            )
            show(f"predict.py, {backbone}, {pairs:,} pairs", row)


def show(what, row):
    print(f"{what:44} {row[0]:8.0f} {row[1]:9.0f}", flush=True)


if __name__ == "__main__":
    main()
