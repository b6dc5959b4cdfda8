"""What only a GPU can show: pytest -m gpu tests/test_cuda.py. How fast it is: bench/run.py."""

import copy
import json
import math
import shutil
import subprocess
import sys
import time
from argparse import Namespace

import pytest
import torch
import transformers
from conftest import ROOT, SMALL, flags, read, small_encoder, with_dropout
from step import make_features

import train
from backbones import BACKBONES
from engine.fit import CastOnce, make_optimizer, make_schedule, train_step
from losses import LOSSES, evidence_loss, get_loss
from model import new_model
from utils import autocast, collate, set_seed, to_device

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card"),
]

DEVICE = "cuda"
# Largest relative error, |ours - theirs| / |theirs|, against float32 on a CPU: several times what a
# CPU has in these precisions (bf16 numbers have 8 bits, fp16 numbers 11).
LOGITS_ERROR = {"fp32": 1e-4, "bf16": 5e-2, "fp16": 1e-2}
GRADIENT_ERROR = {"fp32": 1e-3, "bf16": 2e-1, "fp16": 4e-2}
LOSS_ERROR = 1e-4  # a loss is computed in float32, whatever the precision


@pytest.fixture
def precision(request):
    if request.param == "bf16" and torch.cuda.get_device_capability()[0] < 8:
        pytest.skip("this card has no bf16")
    return request.param


def each_precision(*names):
    return pytest.mark.parametrize("precision", names, indirect=True)


def tiny_model(backbone, kind="bert", dropout=0.0):
    set_seed(0)
    sizes = {"hidden_size": 64, "num_hidden_layers": 3, "intermediate_size": 256}
    encoder = small_encoder(kind, 1000, dropout, max_position_embeddings=72, **sizes)
    return new_model(encoder, backbone=backbone, emb_size=64, **SMALL.get(backbone, {}))


def tiny_batch():
    """Four documents with sentences and evidence; one has two windows of 64 tokens."""
    sizes = (9, 60), (6, 40), (12, 100), (8, 51)
    made = [Namespace(batch=1, entities=entities, tokens=tokens) for entities, tokens in sizes]
    features = [make_features(x)[0] for x in made]
    return collate(features, ([2], [3], 0), size=64, sentences=True, evidence=True)


def error_of(ours, theirs):
    ours, theirs = ours.detach().double().cpu(), theirs.detach().double().cpu()
    return ((ours - theirs).norm() / theirs.norm()).item()


def outcome(model, batch, device, precision):
    """Logits, sentence attention, and the gradient of ATL plus the evidence loss."""
    scale = 1024 if precision == "fp16" else 1  # else small gradients are lost
    batch = to_device(dict(batch), device)
    labels, evidence = batch.pop("labels"), batch.pop("evidence")
    with autocast(device, precision)():
        logits, attention = model(**batch)
    loss = get_loss("ATL")(logits, labels) + evidence_loss(attention, evidence) / len(attention)
    (loss * scale).backward()
    gradients = [x.grad.flatten() / scale for x in model.parameters() if x.grad is not None]
    return logits, attention, torch.cat(gradients)


@each_precision("fp32", "bf16", "fp16")
@pytest.mark.parametrize(
    "backbone,kind", [*((name, "bert") for name in BACKBONES), ("atlop", "roberta")]
)
def test_logits_and_gradients_equal_a_cpus(backbone, kind, precision, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    model, batch = tiny_model(backbone, kind), tiny_batch()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(std=0.1)  # so that logits differ
    ours = outcome(copy.deepcopy(model).to(DEVICE), batch, DEVICE, precision)
    theirs = outcome(model, batch, "cpu", "fp32")
    logits, attention, gradient = map(error_of, ours, theirs)
    assert max(logits, attention) <= LOGITS_ERROR[precision]
    assert gradient <= GRADIENT_ERROR[precision]


@pytest.mark.parametrize("name", LOSSES)
def test_losses_equal_those_in_float64(name):
    """Value and gradient; some logits are large."""
    generator = torch.Generator().manual_seed(0)
    logits = 8 * torch.randn(200, 97, generator=generator, dtype=torch.float64)
    labels = torch.rand(200, 97, generator=generator) < 0.02
    labels[:, 0] = ~labels[:, 1:].any(1)
    priors, results = torch.linspace(0, 0.3, 96, dtype=torch.float64), []
    for place, dtype in (DEVICE, torch.float32), ("cpu", torch.float64):
        scores = logits.to(place, dtype).requires_grad_()
        value = get_loss(name, priors.to(place))(scores, labels.to(place))
        results.append((value, *torch.autograd.grad(value, scores)))
    assert max(map(error_of, *results)) <= LOSS_ERROR


def make_step(backbone, precision, scale=2.0**16):
    """A model, a function that trains it for a step on a batch of `collate` and returns the loss,
    and its scaler. DREEAM learns evidence, too."""
    model = tiny_model(backbone, dropout=0.1).to(DEVICE).train()
    forward = CastOnce(model)
    learns_evidence = backbone == "dreeam"
    optimizer = make_optimizer(model, 1e-3, 1e-3)
    scaler = torch.amp.GradScaler(DEVICE, scale, enabled=precision == "fp16")
    parts = {
        "loss_function": get_loss("HingeABL"),
        "optimizer": optimizer,
        "schedule": make_schedule(optimizer, 1000, 0.0),
        "scaler": scaler,
        "autocast": autocast(DEVICE, precision),
        "max_grad_norm": 1.0,
        "weights": {"labels": 1.0, "evidence": 0.1} if learns_evidence else {"labels": 1.0},
    }

    def step(batch):
        # counted on the CPU: the host would wait for a count on the device
        labels = batch["labels"]
        counts = {"labels": len(labels), "evidence": (~labels[:, 0]).sum().item()}
        if not learns_evidence:
            batch = {k: x for k, x in batch.items() if k not in ("sentences", "evidence")}
        return train_step(forward, [to_device(batch, DEVICE)], counts=counts, **parts)

    return model, step, scaler


@each_precision("bf16", "fp16")
@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_loss_falls(backbone, precision):
    """Within 50 steps; gradients are scaled in fp16 alone."""
    _, step, scaler = make_step(backbone, precision)
    batch = tiny_batch()
    losses = torch.stack([step(batch) for _ in range(50)])
    assert losses.isfinite().all() and losses[-3:].mean() < 0.9 * losses[:3].mean()
    assert (scaler.get_scale() > 1) == (precision == "fp16")


def test_a_step_that_overflows_fp16_is_left_out():
    model, step, scaler = make_step("atlop", "fp16", scale=2.0**60)
    before = copy.deepcopy(model.state_dict())
    step(tiny_batch())
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert math.log2(scaler.get_scale()) == 59


@pytest.mark.skipif(transformers.__version__ < "5", reason="transformers 4 looks into the mask")
@each_precision("bf16", "fp16")
@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_host_waits_nowhere_in_a_step(backbone, precision):
    """After warm-up; torch raises where it would."""
    _, step, _ = make_step(backbone, precision)
    batch = tiny_batch()
    for _ in range(3):
        step(batch)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with pytest.raises(RuntimeError):  # where the host does wait
            torch.ones(1, device=DEVICE).item()
        for _ in range(3):
            step(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_run(demo, tmp_path):
    train.main(flags(demo, tmp_path / "a", "--device", DEVICE, "--precision", "auto"))
    results = read(tmp_path / "a/results.json")
    assert results["device"] == torch.cuda.get_device_name() and len(results["test"]) > 1
    assert results["args"]["precision"] in ("bf16", "fp16")


def test_a_deterministic_run_has_the_same_bits_twice(demo, tmp_path):
    for name in "ab":
        train.main(flags(demo, tmp_path / name, "--device", DEVICE, "--deterministic"))
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in "ab")
    assert first == second


def records_of(folder):
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_a_killed_run_goes_on(demo, tmp_path, capsys):
    """In fp16, whose scaler is a part of the state."""
    output = tmp_path / "a"
    more = "--device", DEVICE, "--precision", "fp16", "--num_train_epochs", "20"
    arguments = flags(demo, output, *more, "--save_steps", "1")
    process = subprocess.Popen([sys.executable, str(ROOT / "train.py"), *arguments])
    try:
        while not list(output.glob("state-*.pt")):
            assert process.poll() is None
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait()
    assert not (output / "results.json").exists()
    train.main([*arguments, "--resume"])
    assert "going on after step" in capsys.readouterr().out
    assert len(records_of(output)) == 20


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA cards")
@pytest.mark.parametrize("backbone", ["atlop", "docunet"])
def test_a_process_for_each_card_trains_as_one_process_does(demo, tmp_path, backbone):
    """In float32, without dropout."""
    demo = with_dropout(shutil.copytree(demo, tmp_path / "demo"), 0.0)
    count, losses = torch.cuda.device_count(), []
    launcher = "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"
    batch_size = str(count * -(-4 // count))  # 4, or more, where these cannot be divided
    for name, more in ("one", ()), ("all", launcher):
        arguments = "--device", DEVICE, "--backbone", backbone, "--train_batch_size", batch_size
        arguments = flags(demo, tmp_path / name, *arguments)
        subprocess.run([sys.executable, *more, str(ROOT / "train.py"), *arguments], check=True)
        losses.append([record["loss"] for record in records_of(tmp_path / name)])
    assert losses[0] == pytest.approx(losses[1], rel=0.01)
