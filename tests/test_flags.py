"""The flags of a run reach what they are for: model, loss, optimizer, data and scores."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import REL2ID, flags, read
from safetensors.torch import load_file

import losses
import train
from engine import fit
from engine.command_line import parse_runs
from engine.fit import epoch_groups
from engine.models import build_model
from engine.options import Options
from evaluation import count_patterns
from inputs.files import InputError


@pytest.fixture
def optimizers(monkeypatch):
    """Those that train.py makes."""
    made, original = [], fit.make_optimizer
    monkeypatch.setattr(
        fit, "make_optimizer", lambda *x, **y: made.append(original(*x, **y)) or made[-1]
    )
    return made


def test_flags_reach_what_they_are_for(demo, tmp_path, monkeypatch, optimizers):
    steps, by_length, train_step = [], [], fit.train_step
    monkeypatch.setattr(
        fit, "epoch_groups", lambda *x: by_length.append(x[4]) or epoch_groups(*x)
    )  # fmt: skip

    def watch(forward, batches, **parts):
        with parts["autocast"]():
            kind = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
        rates = parts["schedule"].get_last_lr()
        longest = max(batch["attention_mask"].sum(1).max().item() for batch in batches)
        steps.append((forward.model, parts["max_grad_norm"], kind, max(rates), longest))
        return train_step(forward, batches, **parts)

    monkeypatch.setattr(fit, "train_step", watch)
    more = "--learning_rate 3e-3 --classifier_lr 2e-3 --adam_epsilon 1e-7 --warmup_ratio 0.5 "
    more += "--max_grad_norm 3 --num_labels 1 --max_seq_length 40 --attention_dropout 0.3 "
    more += "--cpu_kernels off --precision bf16 --max_steps 2 --group_by_length"
    train.main(flags(demo, tmp_path, *more.split()))
    (model, norm, kind, rate, longest), (*_, second, _) = steps
    rates = {id(x): y["initial_lr"] for y in optimizers[0].param_groups for x in y["params"]}
    assert {rates[id(x)] for x in model.model.parameters()} == {3e-3}
    assert {rates[id(x)] for x in model.head_extractor.parameters()} == {2e-3}
    assert {x["eps"] for x in optimizers[0].param_groups} == {1e-7}
    assert rate == 0 and second == pytest.approx(3e-3)  # one step of two warms up
    assert (norm, kind, longest, by_length) == (3, torch.bfloat16, 40, [True])
    assert not model.cpu_kernels and model.model.config.attention_probs_dropout_prob == 0.3
    pairs = [(x["title"], x["h_idx"], x["t_idx"]) for x in read(tmp_path / "predictions.json")]
    assert pairs and len(pairs) == len(set(pairs))


def test_a_run_of_docunet(demo, tmp_path, optimizers):
    """Its U-Net has a learning rate of its own, its loss a threshold of 0."""
    more = "--backbone", "docunet", "--loss_type", "balance_softmax", "--unet_lr", "0.5"
    more += "--down_dim", "8", "--unet_out_dim", "16", "--max_steps", "1", "--save_logits"
    train.main(flags(demo, tmp_path, *more))
    rates = [group["initial_lr"] for group in optimizers[0].param_groups]
    assert sorted(set(rates)) == [1e-3, 0.5] and rates.count(0.5) == 2
    arrays, results = np.load(tmp_path / "test_logits.npz"), read(tmp_path / "results.json")
    patterns = count_patterns(**arrays)
    assert not arrays["threshold"].any()
    assert {k: results["test"][k] for k in patterns} == pytest.approx(patterns)


def test_training_begins_with_the_encoders_weights_and_pytorchs_new_layers(demo, tmp_path):
    (args,) = parse_runs(flags(demo, tmp_path))
    model = build_model(args, REL2ID)
    own = model.model.state_dict()
    known = load_file(demo / "encoder/model.safetensors")
    assert own.keys() <= known.keys()
    assert all(torch.equal(own[name], known[name]) for name in own)
    for layer in model.head_extractor, model.bilinear:
        bound = layer.in_features**-0.5  # nn.Linear draws evenly from within it
        assert 0.99 * bound < layer.weight.abs().max() <= bound
        assert 0.8 * bound < layer.bias.abs().max() <= bound


def test_class_priors_are_counted_and_saved(demo, tmp_path):
    """And a relation that would have more pairs than there are is named."""
    more = "--loss_type", "SSR_PU", "--num_labels", "-1", "--num_train_epochs", "1"
    more += "--precision", "bf16", "--group_by_length", "--max_seq_length", "40"
    train.main(flags(demo, tmp_path / "run", *more))
    documents = read(demo / "train_revised.json")
    sizes = [len(x["vertexSet"]) for x in documents]
    facts = {(i, x["h"], x["t"], x["r"]) for i, y in enumerate(documents) for x in y["labels"]}
    counts = dict.fromkeys(REL2ID, 0)
    for fact in facts:
        counts[fact[3]] += 1
    shares = {r: count / sum(n * (n - 1) for n in sizes) for r, count in counts.items()}
    del shares["Na"]
    assert read(tmp_path / "run/config.json")["class_priors"] == pytest.approx(shares)
    largest = max(shares, key=shares.get)
    more = *more, "--prior_factor", str(1.01 / shares[largest])
    with pytest.raises(InputError, match=f"--prior_factor: .* pairs that have {largest} in train_"):
        train.main(flags(demo, tmp_path / "other", *more))


@pytest.mark.parametrize("loss_type,options", [
    ("HingeABL", {"hinge_norm": "joint"}), ("HingeABL", {"margin": 3.0}), ("AFL", {"gamma": 2.0}),
])  # fmt: skip
def test_a_run_has_the_loss_of_its_flags(loss_type, options):
    args = dataclasses.replace(Options(), loss_type=loss_type, **options)
    logits, labels = torch.randn(20, 9), torch.rand(20, 9) < 0.3
    found = train.loss_of(args, None, None)(logits, labels)
    assert found == losses.get_loss(loss_type, **options)(logits, labels)
    assert found != losses.get_loss(loss_type)(logits, labels)


def test_another_loss_may_take_priors(monkeypatch):
    def mine(logits, labels, *, class_priors):
        return (logits[:, 1:] * class_priors).sum()

    monkeypatch.setitem(losses.LOSSES, "Mine", mine)
    args = dataclasses.replace(Options(), loss_type="Mine", device="cpu")
    data = SimpleNamespace(class_priors={"P17": 0.5, "P27": 0.25})
    loss_function = train.loss_of(args, data, SimpleNamespace())
    assert loss_function(torch.tensor([[9.0, 2.0, 4.0]]), None) == 2
