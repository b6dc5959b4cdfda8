"""How many documents a second predict.RelationExtractor reads on a CPU, way by way: lists and one
document at a time, fp32 and bf16, and the model as a graph in onnxruntime.

    python bench/serving.py [--data dataset/redocred/dev_revised.json] [--documents 20]

ATLOP over encoders of MiniLM's and BERT-base's size with random weights, its threshold such that
one pair of twenty has a relation. Every way makes the same records, features and decoding included;
the ways run in turns in one process. Printed are the medians and the median of the ratios to the
first way in the same turn.
"""

import argparse
import platform
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

import onnxruntime
import torch
import transformers

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts"), str(Path(__file__).parent)]

from export_onnx import INPUTS, export
from run import SIZES, processor
from step import bert_sizes

from encoders.loading import build_encoder, load_tokenizer
from inputs.documents import read_documents
from model import new_model
from predict import RelationExtractor
from prepro import docred_features
from utils import set_seed

FIRST = "list, fp32"


class Graph:
    """The graph in the place of an extractor's model: the same call, for one document."""

    def __init__(self, model, path):
        self.model = model.model  # whose configuration the extractor reads
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self.session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])

    def __call__(self, **batch):
        given = {name: batch[name].numpy() for name in INPUTS}
        return [torch.from_numpy(x) for x in self.session.run(None, given)]


def make_documents(count, num_entities=20, num_sentences=8, length=25):
    """Made-up documents in DocRED format, with 1.4 mentions an entity."""
    draw, words = random.Random(0), (ROOT / "LICENSE").read_text(encoding="utf-8").split()
    documents = []
    for i in range(count):
        entities = []
        for e in range(num_entities):
            places = [
                (draw.randrange(num_sentences), draw.randrange(length))
                for _ in range(1 + (e % 5 < 2))
            ]
            entities.append(
                [{"name": str(e), "sent_id": s, "pos": [w, w + 1], "type": ""} for s, w in places]
            )
        sents = [draw.choices(words, k=length) for _ in range(num_sentences)]
        documents.append({"title": str(i), "sents": sents, "vertexSet": entities})
    return documents


def make_model(config, tokenizer, documents):
    set_seed(0)
    encoder = build_encoder("", config | {"vocab_size": len(tokenizer)}, weights=False)
    model = new_model(encoder, emb_size=encoder.config.hidden_size).eval()
    extractor = RelationExtractor(model, tokenizer, "cpu", "fp32")
    batch = extractor.collate(docred_features(documents[:4], tokenizer))
    del batch["labels"]
    with torch.no_grad():
        logits, _ = model(**batch)
        best = logits[:, 1:].amax(1) - logits[:, 0]
        model.bilinear.bias[0] += best.quantile(0.95)
    return model


def make_ways(model, tokenizer, graph):
    """name -> a function from documents to their records; graph: the model's ONNX file."""
    ways = {}
    for precision in ("fp32", "bf16"):
        extractor = RelationExtractor(model, tokenizer, "cpu", precision)
        ways[f"list, {precision}"] = extractor
        ways[f"one by one, {precision}"] = one_by_one(extractor)
    extractor = RelationExtractor(model, tokenizer, "cpu", "fp32")
    extractor.model = Graph(model, graph)
    return ways | {"one by one, onnxruntime": one_by_one(extractor)}


def one_by_one(extractor):
    return lambda documents: [extractor(document) for document in documents]


def in_turns(ways, documents, repeats):
    """Seconds of every way, turn by turn, and how many relations it found."""
    seconds, found = {name: [] for name in ways}, {}
    for way in ways.values():
        way(documents[:1])  # warm up
    for _ in range(repeats):
        for name, way in ways.items():
            started = time.perf_counter()
            records = way(documents)
            seconds[name].append(time.perf_counter() - started)
            found[name] = sum(len(record["relations"]) for record in records)
    return seconds, found


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="documents in DocRED format; default: made-up ones")
    parser.add_argument("--documents", type=int, default=20)
    parser.add_argument("--tokenizer", default="bert-base-cased")
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args(argv)
    tokenizer = load_tokenizer(args.tokenizer)
    if args.data:
        documents = read_documents(args.data)[: args.documents]
        documents = [{k: x for k, x in d.items() if k != "labels"} for d in documents]
    else:
        documents = make_documents(args.documents)
    print(f"{processor()}, threads: {torch.get_num_threads()}; Python {platform.python_version()},")
    print(f"torch {torch.__version__}, transformers {transformers.__version__},", end=" ")
    print(f"onnxruntime {onnxruntime.__version__}; {len(documents)} documents\n")
    print("| encoder | way | documents / s | ratio | relations |\n| --- | --- | --- | --- | --- |")
    for size in args.sizes:
        layers, width = SIZES[size]
        config = bert_sizes(argparse.Namespace(layers=layers, width=width))
        with tempfile.TemporaryDirectory() as folder:
            model = make_model(config, tokenizer, documents)
            graph = Path(folder) / "model.onnx"
            export(model, graph)
            ways = make_ways(model, tokenizer, graph)
            seconds, found = in_turns(ways, documents, args.repeats)
        for name, times in seconds.items():
            rate = len(documents) / statistics.median(times)
            ratio = statistics.median(a / b for a, b in zip(seconds[FIRST], times, strict=True))
            print(f"| {size} | {name} | {rate:.2f} | {ratio:.2f} | {found[name]} |", flush=True)


if __name__ == "__main__":
    main()
