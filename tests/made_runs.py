"""Run folders as train.py leaves them, made of random scores by slow, separate code."""

import json
import subprocess

import numpy as np
import torch
from conftest import REL2ID, read
from test_evaluation import slow_pattern

from engine.margins import write_margins
from engine.options import Options
from engine.scoring import predicted_facts
from evaluation import PATTERNS, count_patterns, evaluate, ranked_right
from losses import decode, threshold_of
from prepro import entity_pairs


def labels_of(documents):
    """Multi-hot labels of all pairs, [pairs, 97]."""
    rows = []
    for document in documents:
        for pair in entity_pairs(len(document["vertexSet"])).tolist():
            row = np.zeros(97, dtype=bool)
            for x in document["labels"]:
                row[REL2ID[x["r"]]] |= [x["h"], x["t"]] == pair
            row[0] = not row.any()
            rows.append(row)
    return np.stack(rows)


def patterns_of_documents(scores, labels, threshold, documents):
    """patterns.json of a split, pair by pair."""
    found, rows = [], zip(scores.tolist(), labels, threshold, strict=True)
    for document in documents:
        size = len(document["vertexSet"])
        pairs = [next(rows) for _ in range(size * (size - 1))]
        names = [slow_pattern([t[0], *s[1:]], y) for s, y, t in pairs]
        found.append([names.count(name) for name in PATTERNS])
    return found


def write_run(
    folder, data, loss="ATL", seed=1, logits=True, tuned=False, fused=False, margins=False, **args
):
    """A run folder as train.py leaves it, of random scores that lean to what is right. Fused are
    other predictions here, those of a lower threshold."""
    folder.mkdir(parents=True)
    args = vars(Options()) | args
    args |= {"loss_type": loss, "seed": seed, "data_dir": str(data), "precision": "fp32"}
    args |= {"output_dir": str(folder), "rel2id": "meta/rel2id.json"}
    splits = {x: read(data / f"{x}_revised.json") for x in ("train", "dev", "test")}
    rng = np.random.default_rng([seed, *folder.name.encode()])
    results, kept = {"args": args, "data": {}, "device": args["device"]}, {}
    for split, documents in splits.items():
        file = data / f"{split}_revised.json"
        sha256 = subprocess.run(["sha256sum", file], capture_output=True, text=True).stdout[:64]
        record = {"file": file.name, "sha256": sha256, "documents": len(documents)}
        results["data"][split] = record | {"triples": sum(len(d["labels"]) for d in documents)}
    for split in ("dev", "test"):
        truth, labels = splits[split], labels_of(splits[split])
        scores = rng.normal(size=labels.shape) + labels * rng.choice([1, 4], size=labels.shape)
        scores[:, 0] += rng.choice([1.5, 3.5], size=len(labels))
        scores = torch.from_numpy(scores.astype(np.float32))
        features = [{"title": d["title"], "entity_pos": d["vertexSet"]} for d in truth]
        for shift, kind in ((0.0, ""), (0.25, "tuned" * tuned), (-0.25, "fusion" * fused)):
            predicted = decode(scores, loss, 4, shift)
            submission = [fact for *_, fact in predicted_facts(predicted, features, REL2ID)]
            threshold = threshold_of(scores, loss).numpy()
            found = evaluate(submission, truth, splits["train"])
            found |= count_patterns(scores.numpy(), labels, threshold + shift)
            if kind:
                found |= {"pseudo_documents": 3}
                results.setdefault(kind, {"shift": shift})[split] = found
                name = f"{split}_{'fused' if kind == 'fusion' else kind}.json"
                (folder / name).write_text(json.dumps(submission))
            elif not shift:
                results[split] = found
                kept[split] = patterns_of_documents(scores, labels, threshold, truth)
                (folder / "predictions.json").write_text(json.dumps(submission))
        if logits:
            arrays = {"logits": scores.numpy(), "labels": labels, "threshold": threshold}
            np.savez_compressed(folder / f"{split}_logits.npz", **arrays)
        if margins:
            above, right = scores.numpy() - threshold, ranked_right(scores.numpy(), labels)
            write_margins(folder / f"{split}_margins.xz", above, labels, right)
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "patterns.json").write_text(json.dumps(kept))
    records = [{"epoch": i, "step": 7 * i, "loss": 1 / i, "dev": results["dev"]} for i in (1, 2)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in records))
    return folder


def row_of(rows, loss, backbone="atlop", **more):
    """The row of a loss, in a table or a list."""
    rows = rows["rows"] if isinstance(rows, dict) else rows
    wanted = {"loss": loss, "backbone": backbone} | more
    (row,) = (x for x in rows if wanted.items() <= x.items())
    return row
