"""What check_gpu.py checks. Each check returns its result (ok, FAILED or skipped), the number in
words, and all numbers, name -> value. A device is "cpu", "cuda" or "cuda:N"."""

import copy
import json
import math
import subprocess
import sys
import time
from argparse import Namespace
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts"), str(ROOT / "bench")]

import torch
import transformers
from engine.prediction import predict_logits
from make_demo import make_corpus, make_encoder, make_vocabulary
from run import forward_flops, matrix_rate
from step import make_features

from backbones import BACKBONES
from encoders.loading import build_encoder
from engine.fit import make_optimizer, make_schedule, train_step
from losses import LOSSES, evidence_loss, get_loss
from model import new_model
from utils import autocast, collate, set_seed, to_device

PRECISIONS = ["fp32", "bf16", "fp16"]
# Most relative error, |ours - theirs| / |theirs|, against float32 on a CPU: several times what a
# CPU has in these precisions (bf16 numbers have 8 bits, fp16 numbers 11).
LOGITS_ERROR = {"fp32": 1e-4, "bf16": 5e-2, "fp16": 1e-2}
GRADIENT_ERROR = {"fp32": 1e-3, "bf16": 2e-1, "fp16": 4e-2}
LOSS_ERROR = 1e-4  # a loss is computed in float32, whatever the precision

SMALL = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 1000}
SMALL |= {"intermediate_size": 256, "max_position_embeddings": 72}
SMALL_DOCUNET = {"unet_out_dim": 16, "down_dim": 8, "max_height": 12}
SMALL_WINDOW = 64  # tokens, so that documents of 100 have two
ROBERTA_LARGE = {"model_type": "roberta", "vocab_size": 50265, "hidden_size": 1024}
ROBERTA_LARGE |= {"num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
ROBERTA_LARGE |= {"max_position_embeddings": 514, "type_vocab_size": 1, "pad_token_id": 1}
# name -> (configuration, the script of a whole run); BertConfig's defaults are BERT-base
SIZES = {
    "BERT-base": ({"model_type": "bert"}, "run_bert.sh"),
    "RoBERTa-large": (ROBERTA_LARGE, "run_roberta.sh"),
    "small": ({"model_type": "bert", **SMALL, "max_position_embeddings": 512}, None),
}
# Re-DocRED: documents to train on, of dev (after each of 30 epochs) and of test (once)
NUM_TRAIN, NUM_DEV, NUM_TEST, EPOCHS = 3053, 500, 500, 30
LIMIT = 120  # seconds for a run of train.py


def on_gpu(device):
    return device.startswith("cuda")


def lacks(device, precision="fp32"):
    """Why the device cannot be tried in that precision, "" if it can."""
    if precision == "bf16" and on_gpu(device) and torch.cuda.get_device_capability(device)[0] < 8:
        return "this card has no bf16"
    return ""


def verdict(is_right, said, **numbers):
    """What a check returns: (its result, the number in words, all numbers)."""
    return "ok" if is_right else "FAILED", said, numbers


def skip(said):
    return "skipped", said, {}


def small_model(backbone, kind="bert", dropout=0.0):
    rates = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    set_seed(0)
    encoder = build_encoder("", {"model_type": kind, **SMALL, **rates}, weights=False)
    return new_model(encoder, backbone=backbone, emb_size=64, **SMALL_DOCUNET)


def documents(sizes):
    """Features of made-up documents, sizes: (entities, tokens) of each."""
    made = [Namespace(batch=1, entities=e, tokens=t) for e, t in sizes]
    return [make_features(x)[0] | {"title": str(i)} for i, x in enumerate(made)]


def small_batch():
    """A batch with sentences and evidence; one document has two windows."""
    features = documents([(9, 60), (6, 40), (12, 100), (8, 51)])
    tokens = [2], [3], 0
    return collate(features, tokens, size=SMALL_WINDOW, sentences=True, evidence=True)


def error_of(ours, theirs):
    ours, theirs = ours.detach().double().cpu(), theirs.detach().double().cpu()
    return ((ours - theirs).norm() / theirs.norm()).item()


def outcome(model, batch, device, precision):
    """Logits, shares of the sentences, and the gradients of the loss, ATL and evidence."""
    scale = 1024 if precision == "fp16" else 1  # else small gradients are lost
    batch = to_device(dict(batch), device)
    labels, evidence = batch.pop("labels"), batch.pop("evidence")
    with autocast(device, precision)():
        logits, shares = model(**batch)
    loss = get_loss("ATL")(logits, labels) + evidence_loss(shares, evidence) / len(shares)
    (loss * scale).backward()
    gradients = [x.grad.flatten() / scale for x in model.parameters() if x.grad is not None]
    return logits, shares, torch.cat(gradients)


def check_logits(device, backbone, kind, precision):
    """Logits, sentence shares and gradients of the device against those of a CPU in float32. (A CPU
    is compared with itself: the way of a GPU with its own.)"""
    if reason := lacks(device, precision):
        return skip(reason)
    model, batch = small_model(backbone, kind), small_batch()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(std=0.1)  # so that logits differ
    other = copy.deepcopy(model).to(device)
    other.cpu_kernels = False
    tf32, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    try:
        ours, theirs = (
            outcome(other, batch, device, precision),
            outcome(model, batch, "cpu", "fp32"),
        )
    finally:
        torch.backends.cudnn.allow_tf32 = tf32
    logits, shares, gradient = map(error_of, ours, theirs)
    most, most_gradient = LOGITS_ERROR[precision], GRADIENT_ERROR[precision]
    return verdict(
        logits <= most and shares <= most and gradient <= most_gradient,
        f"error of logits {logits:.1e}, shares {shares:.1e} (at most {most:g}), gradient "
        f"{gradient:.1e} (at most {most_gradient:g})",
        logits=logits,
        shares=shares,
        gradient=gradient,
    )


def check_loss(device, name):
    """Value and gradient against float64 on a CPU; some logits are large."""
    generator = torch.Generator().manual_seed(0)
    logits = 8 * torch.randn(200, 97, generator=generator, dtype=torch.float64)
    labels = torch.rand(200, 97, generator=generator) < 0.02
    labels[:, 0] = ~labels[:, 1:].any(1)
    results = []
    for place, dtype in (device, torch.float32), ("cpu", torch.float64):
        scores = logits.to(place, dtype).requires_grad_()
        value = get_loss(name)(scores, labels.to(place))
        results.append((value, *torch.autograd.grad(value, scores)))
    value, gradient = map(error_of, *results)
    return verdict(
        value <= LOSS_ERROR and gradient <= LOSS_ERROR,
        f"error of value {value:.1e}, gradient {gradient:.1e} (at most {LOSS_ERROR:g})",
        value=value,
        gradient=gradient,
    )


def make_step(model, device, precision, scale=2.0**16, evidence_weight=0.0, rate=1e-3):
    """A function that takes a training step on a batch of `collate` as train.py does, and its
    scaler."""
    model.to(device).train()
    optimizer = make_optimizer(model, rate, rate, unet_lr=rate)
    schedule = make_schedule(optimizer, 1000, 0.0)
    kind = torch.device(device).type
    scaler = torch.amp.GradScaler(kind, scale, enabled=precision == "fp16")
    parts = get_loss("HingeABL"), optimizer, schedule, scaler, autocast(device, precision), 1.0

    def step(batch):
        # counted on the CPU: the host would wait for a count on the device
        counts = len(batch["labels"]), int((~batch["labels"][:, 0]).sum())
        if not evidence_weight:
            batch = {k: x for k, x in batch.items() if k not in ("sentences", "evidence")}
        return train_step(model, [to_device(batch, device)], *parts, *counts, evidence_weight)

    return step, scaler


def small_step(backbone, device, precision, **more):
    weight = 0.1 if backbone == "dreeam" else 0.0
    model = small_model(backbone, dropout=0.1)
    model.cpu_kernels = False  # a CPU goes a GPU's way
    return model, *make_step(model, device, precision, evidence_weight=weight, **more)


def check_steps(device, backbone, precision):
    """The loss of one batch over training steps; in fp16 scaled."""
    if reason := lacks(device, precision):
        return skip(reason)
    _, step, scaler = small_step(backbone, device, precision)
    count, batch = 50 if on_gpu(device) else 6, small_batch()
    losses = torch.stack([step(batch) for _ in range(count)]).tolist()
    first, last = sum(losses[:3]) / 3, sum(losses[-3:]) / 3
    scale = scaler.get_scale()  # 1 where the scaler is not in use
    is_scaled = (scale > 1) == (precision == "fp16")
    said = f"loss {first:.3f} -> {last:.3f} in {count} steps, scale of the gradients {scale:g}"
    is_right = all(map(math.isfinite, losses)) and last < 0.9 * first and is_scaled
    return verdict(is_right, said, losses=losses, scale=scale)


def check_overflow(device):
    """A scale that overflows fp16: the scaler leaves the step out and halves it."""
    model, step, scaler = small_step("atlop", device, "fp16", scale=2.0**60)
    before = copy.deepcopy(model.state_dict())
    step(small_batch())
    is_same = all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    fell = math.log2(scaler.get_scale()) - 60
    said = f"weights {'kept' if is_same else 'changed'}, scale 2^60 -> 2^{60 + fell:g}"
    return verdict(is_same and fell == -1, said)


def check_waits(device, backbone, precision):
    """After warm-up, no step has the host wait for the device: torch raises where it would."""
    if not on_gpu(device):
        return skip("needs CUDA (tests/test_training.py looks for it on a CPU)")
    if int(transformers.__version__.split(".")[0]) < 5:
        return skip("transformers 4 looks into the mask in every step")
    if reason := lacks(device, precision):
        return skip(reason)
    _, step, _ = small_step(backbone, device, precision)
    batch = small_batch()
    for _ in range(3):
        step(batch)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        try:
            torch.ones(1, device=device).item()
            return verdict(False, "torch raised nothing where the host does wait")
        except RuntimeError:
            pass
        for _ in range(3):
            step(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return verdict(True, "the host waits nowhere in a step")


def demo_run(folder, device, *more, launcher=()):
    """The command of a short run of train.py on the demo's corpus, cut down and made where it is
    missing; more: flags, the first its output folder."""
    data, output = folder / "demo", str(folder / more[0])
    if not data.exists():
        many = on_gpu(device)
        corpus = make_corpus({"train": 64 if many else 16, "dev": 8, "test": 8}, 66)
        make_encoder(make_vocabulary(corpus["train"]), data / "encoder", 66)
        for split, content in corpus.items():
            (data / f"{split}_revised.json").write_text(json.dumps(content), encoding="utf-8")
    flags = ["--data_dir", data, "--model_name_or_path", data / "encoder", "--output_dir", output]
    flags += ["--device", device, "--emb_size", "64", "--num_train_epochs", "3", *more[1:]]
    flags += ["--learning_rate", "1e-3", "--classifier_lr", "1e-3"]
    return [sys.executable, *launcher, str(ROOT / "train.py"), *map(str, flags)]


def finish(command, output):
    """Runs train.py to its end: (its output, its records); RuntimeError, with its last line."""
    kinds = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    result = subprocess.run(command, timeout=LIMIT, **kinds)
    if result.returncode or not (output / "results.json").exists():
        lines = [x for x in result.stdout.splitlines() if x.strip()] or ["nothing"]
        said = next((x for x in lines if x.startswith("error:")), lines[-1])
        raise RuntimeError(f"train.py ended with {result.returncode}: {said}")
    lines = (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return result.stdout, [json.loads(line) for line in lines]


def check_resume(device, folder):
    """train.py, killed once it has a state, goes on to the end; in fp16, whose scaler is state."""
    precision, output = "fp16" if on_gpu(device) else "fp32", folder / "resumed"
    command = demo_run(folder, device, "resumed", "--precision", precision, "--save_steps", "1")
    started = time.monotonic()
    with open(folder / "log", "w", encoding="utf-8") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            while process.poll() is None and not list(output.glob("state-*.pt")):
                if time.monotonic() - started > LIMIT:
                    return verdict(False, f"no state within {LIMIT} s")
                time.sleep(0.02)
        finally:
            process.kill()
            process.wait()
    states = sorted(output.glob("state-*.pt"))
    if not states or (output / "results.json").exists():
        lines = (folder / "log").read_text(encoding="utf-8").split("\n")
        return verdict(False, f"ended before it was killed: {' '.join(lines[-3:])[:200]}")
    said, records = finish([*command, "--resume"], output)
    went_on = next((x for x in said.splitlines() if x.startswith("going on after")), "began anew")
    is_right = went_on != "began anew" and len(records) == 3
    return verdict(is_right, f"killed; {went_on}; {len(records)} epochs", records=records)


def check_processes(device, folder, backbone):
    """A process for each card trains as one process does (float32, the encoder has no dropout)."""
    count = torch.cuda.device_count() if on_gpu(device) else 0
    if count < 2:
        return skip(f"needs two CUDA cards or more, here {'is' if count == 1 else 'are'} {count}")
    launcher = "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"
    losses = []
    for name, more in ("one", ()), ("all", launcher):
        flags = "--backbone", backbone, "--train_batch_size", str(count * -(-4 // count))
        name = f"{backbone}-{name}"
        command = demo_run(folder, "cuda", name, *flags, "--precision", "fp32", launcher=more)
        losses.append([record["loss"] for record in finish(command, folder / name)[1]])
    error = max(abs(a / b - 1) for a, b in zip(*losses, strict=True))
    said = f"{count} processes: loss differs from that of one by {error:.1e} (at most 0.01)"
    return verdict(error <= 0.01, said, error=error, losses=losses)


def train_for(step, batches, wait, limit=30):
    """Trains on the batches, those after `limit` seconds left out: (seconds, what was trained on,
    losses)."""
    wait()
    started, done, losses = time.perf_counter(), [], []
    for i, (features, make_batch) in enumerate(batches):
        losses.append(step(make_batch(features)))
        done += features
        if i % 4 == 3:  # seldom, so that the queue stays full
            wait()
            if time.perf_counter() - started > limit:
                break
    wait()
    return time.perf_counter() - started, done, torch.stack(losses)


def check_speed(device, size):
    """Documents a second at the paper's batch, the share of a matrix product's rate, peak memory,
    and what a whole run would take."""
    config, script = SIZES[size]
    count = 204 if on_gpu(device) else 16
    precision = ("fp16" if lacks(device, "bf16") else "bf16") if on_gpu(device) else "fp32"
    rate = matrix_rate(Namespace(device=device, precision=precision))
    set_seed(0)
    encoder = build_encoder("", config, weights=False)
    model = new_model(encoder, emb_size=768 if script else 64)
    step, _ = make_step(model, device, precision, rate=1e-5)
    # No two of them are of one length: what a GPU plans anew for each shape must show.
    features = documents([(20, 300 + 53 * i % 213) for i in range(count)])
    make_batch = partial(collate, tokens=([2], [3], encoder.config.pad_token_id))
    batches = [(features[i : i + 4], make_batch) for i in range(0, count, 4)]
    wait = torch.cuda.synchronize if on_gpu(device) else lambda: None
    train_for(step, batches[:3], wait)  # warm-up
    if on_gpu(device):
        torch.cuda.reset_peak_memory_stats(device)
    seconds, done, losses = train_for(step, batches[3:], wait)
    peak = torch.cuda.max_memory_allocated(device) / 2**30 if on_gpu(device) else None
    options = make_batch, device, 8, autocast(device, precision), "evaluate"
    predict_logits(model, features[:8], *options)
    started = time.perf_counter()
    predict_logits(model, features, *options)
    numbers = {
        "precision": precision,
        "train_documents_per_second": len(done) / seconds,
        "evaluate_documents_per_second": count / (time.perf_counter() - started),
        "peak_gib": peak,
        "reserved_gib": torch.cuda.max_memory_reserved(device) / 2**30 if on_gpu(device) else None,
        "matrix_tflops": rate / 1e12,
        "share_of_matrix_rate": 3 * sum(forward_flops(x, encoder.config) for x in done),
    }
    numbers["share_of_matrix_rate"] /= seconds * rate
    said = (
        "{precision}, {train_documents_per_second:.1f} documents/s (evaluation "
        "{evaluate_documents_per_second:.1f}), {share_of_matrix_rate:.0%} of {matrix_tflops:.2g} "
        "TFLOPS".format(**numbers)
    )
    said += f", peak {peak:.1f} GiB" if peak else "; memory and the projection need CUDA"
    if script:
        train = NUM_TRAIN * EPOCHS / numbers["train_documents_per_second"] / 3600
        evaluate = NUM_DEV * EPOCHS + NUM_TEST
        evaluate /= 3600 * numbers["evaluate_documents_per_second"]
        numbers |= {"train_hours": train, "evaluate_hours": evaluate}
        said += f"; {script}: {train:.2g} h + {evaluate:.2g} h evaluation"
    return verdict(bool(losses.isfinite().all()), said, **numbers)


def all_checks(device, folder):
    """(group, name, check, its arguments), in the order in which they are done."""
    for backbone, kind in [*((name, "bert") for name in BACKBONES), ("atlop", "roberta")]:
        for precision in PRECISIONS:
            name = f"{backbone} {kind} {precision}"
            yield "logits", name, check_logits, (device, backbone, kind, precision)
    for name in LOSSES:
        yield "losses", name, check_loss, (device, name)
    for backbone in BACKBONES if on_gpu(device) else ["atlop"]:
        for precision in ("bf16", "fp16"):
            yield "steps", f"{backbone} {precision}", check_steps, (device, backbone, precision)
    yield "steps", "overflow fp16", check_overflow, (device,)
    for backbone in BACKBONES:
        for precision in ("bf16", "fp16"):
            yield "waits", f"{backbone} {precision}", check_waits, (device, backbone, precision)
    yield "resume", "after SIGKILL", check_resume, (device, folder)
    for backbone in ("atlop", "docunet"):
        yield "processes", f"torchrun {backbone}", check_processes, (device, folder, backbone)
    for size in ("BERT-base", "RoBERTa-large") if on_gpu(device) else ["small"]:
        yield "speed", size, check_speed, (device, size)
