"""All golden files (made by the authors' released code) against this project.

Another directory of the same layout is checked with GOLDEN_DIR=<dir>. Nothing in it is optional.
The committed files, tests/golden, have no models.
"""

from functools import partial

import numpy as np
import pytest
import torch
from conftest import read, shared

import backbones  # noqa: F401
from encoders.loading import build_encoder, transformer_type
from engine.checkpoint import load_weights
from engine.fit import make_optimizer, make_schedule, train_step
from evaluation import count_patterns, evaluate
from losses import LOSSES, decode, evidence_loss, get_loss
from model import new_model
from prepro import entity_pairs
from utils import collate, special_tokens

LOSS_NAMES = "ATL balance_softmax AML AFL SAT MeanSAT HingeABL_separate".split()


def golden_loss(name):
    return get_loss(name.removesuffix("_separate"), hinge_norm="separate")


def build(golden_models, folder, dropout=None):
    """The model of a golden folder, in eval mode, and the folder's configuration."""
    config = read(golden_models / folder / "config.json")
    sizes = {"model_type": config["transformer_type"], **config["encoder"]}
    if dropout is not None:
        sizes |= {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    encoder = build_encoder("", sizes, weights=False)
    names = "emb_size block_size unet_in_dim unet_out_dim down_dim max_height".split()
    sizes = {name: config[name] for name in names if name in config}
    model = new_model(encoder, backbone=folder.rsplit("_", 1)[0], **sizes)
    load_weights(model, golden_models / folder / "state_dict.safetensors")
    return model.eval(), config


def batch_of(features, tokenizer, encoder, **more):
    tokens = special_tokens(tokenizer, transformer_type(encoder.config))
    return collate(features, (*tokens, tokenizer.pad_token_id), **more)


def test_committed_files_are_those_of_the_whole_set(committed_golden):
    """Of the two only one is read by the other tests."""
    whole = shared("golden")
    files = [x.relative_to(committed_golden) for x in committed_golden.rglob("*.*") if x.is_file()]
    names = [x for x in files if x.suffix != ".md"]
    assert len(names) == 12
    for name in names:
        assert (committed_golden / name).read_bytes() == (whole / name).read_bytes(), name


def test_features(golden_dir, golden_features):
    expected = read(golden_dir / "features.json")
    assert expected
    for golden in expected:
        feature = golden_features[golden["title"]]
        assert feature["input_ids"] == golden["input_ids"]
        spans = [[list(span) for span in entity] for entity in feature["entity_pos"]]
        assert spans == golden["entity_pos"]
        positives = {}
        for head, tail, relation in feature["triples"].tolist():
            positives.setdefault(f"{head},{tail}", []).append(relation)
        assert positives == golden["positives"]
        assert len(entity_pairs(len(spans))) == golden["num_pairs"]


@pytest.mark.parametrize("name", LOSS_NAMES)
def test_loss_and_gradient(golden_dir, name):
    golden = np.load(golden_dir / "losses.npz")
    logits = torch.tensor(golden["logits"], dtype=torch.float64, requires_grad=True)
    loss = golden_loss(name)(logits, torch.tensor(golden["labels"]))
    loss.backward()
    assert abs(loss.item() - golden[f"{name}_loss"]) < 1e-9
    assert np.abs(logits.grad.numpy() - golden[f"{name}_grad"]).max() < 1e-8


@pytest.mark.parametrize("name,loss,options", [
    ("PMTEM", "PMTEM", {}),
    ("PMTEM_0.1_0.5", "PMTEM", {"entropy_weight": (0.1, 0.5)}),
    ("NCRL", "NCRL", {}),
    ("NCRL_shift0.05", "NCRL", {"ncrl_shift": 0.05}),
    ("ATGL", "ATGL", {}),
    ("ATGL_w4", "ATGL", {"positive_weight": 4.0}),
])  # fmt: skip
def test_losses_that_the_paper_does_not_have(golden_dir, name, loss, options):
    golden = np.load(golden_dir / "losses_more.npz")
    logits = torch.tensor(golden["logits"], dtype=torch.float64, requires_grad=True)
    value = LOSSES[loss](logits, torch.tensor(golden["labels"]), **options)
    value.backward()
    expected, gradient = golden[f"{name}_loss"], golden[f"{name}_grad"]
    # The released NCRL computes in float32.
    relative = 1e-5 if loss == "NCRL" else 1e-8
    assert value.item() == pytest.approx(float(expected), rel=relative, abs=0)
    error = np.abs(logits.grad.numpy() - gradient).max()
    assert error < relative * (np.abs(gradient).max() if loss == "NCRL" else 1)


@pytest.mark.parametrize("name,options", [
    ("SPU_e3", {}),
    ("SPU_e1", {"prior_factor": 1.0}),
    ("SPU_e12", {"prior_factor": 12.0}),
    ("SPU_e3_m1", {"margin": 1.0}),
    ("PN_e1", {"prior_factor": 1.0}),  # as if all labels were there
    ("low_SPU_e3", {}),
])  # fmt: skip
def test_ssr_pu(golden_dir, name, options):
    golden = np.load(golden_dir / "ssr_pu.npz")
    logits = golden["low_logits" if name.startswith("low") else "logits"]
    logits = torch.tensor(logits, requires_grad=True)
    priors = torch.tensor(golden["priors_l"])
    value = get_loss("SSR_PU", priors, **options)(logits, torch.tensor(golden["labels"]))
    value.backward()
    # The released code adds up in float32.
    assert value.item() == pytest.approx(float(golden[f"{name}_loss"]), rel=1e-6, abs=0)
    assert np.abs(logits.grad.numpy() - golden[f"{name}_grad"]).max() < 1e-12


@pytest.mark.parametrize("name", ["ATL", "balance_softmax"])
def test_decoding(golden_dir, name):
    golden = np.load(golden_dir / "losses.npz")
    logits = torch.tensor(golden["logits"])
    assert np.array_equal(decode(logits, name, 4).numpy(), golden[f"pred_{name}"])
    no_limit = decode(logits, name, -1).numpy()
    assert np.array_equal(no_limit[:, 1:], golden[f"prednocap_{name}"][:, 1:])


@pytest.mark.parametrize("folder", ["atlop_bert", "atlop_roberta", "docunet_bert", "kd_docre_bert"])
def test_logits(golden_models, golden_features, golden_tokenizer, folder):
    model, config = build(golden_models, folder)
    features = [golden_features[title] for title in config["titles"]]
    golden = np.load(golden_models / folder / "logits.npz")
    batch = batch_of(features, golden_tokenizer, model.model)
    batch.pop("labels")
    with torch.no_grad():
        logits = model(**batch).numpy()
    doc, head, tail = batch["pairs"].numpy().T
    for i in range(len(features)):
        expected = golden[f"doc{i}"][head[doc == i], tail[doc == i]]
        assert np.abs(logits[doc == i] - expected).max() < 1e-4


@pytest.mark.parametrize("name", ["HingeABL_separate", "ATL"])
def test_training_trajectory(golden_models, golden_features, golden_tokenizer, name):
    golden = read(golden_models / "trajectory.json")
    folder = golden["weights"].split("/")[0]
    model, _ = build(golden_models, folder, dropout=golden["dropout"])
    optimizer = make_optimizer(
        model.train(), golden["learning_rate"], golden["classifier_lr"], golden["adam_epsilon"]
    )
    schedule = make_schedule(optimizer, golden["steps"], golden["warmup_ratio"])
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    amp = partial(torch.autocast, "cpu", enabled=False)
    loss_function = golden_loss(name)
    assert len(golden["batches"]) == golden["steps"] == len(golden["loss"][name])
    for step, titles in enumerate(golden["batches"]):
        rates = [group["lr"] for group in optimizer.param_groups]
        assert rates == pytest.approx(golden["lr"][step], rel=1e-9)
        batch = batch_of([golden_features[x] for x in titles], golden_tokenizer, model.model)
        loss = train_step(
            model,
            [batch],
            loss_function=loss_function,
            optimizer=optimizer,
            schedule=schedule,
            scaler=scaler,
            autocast=amp,
            max_grad_norm=golden["max_grad_norm"],
        )
        assert abs(loss.item() - golden["loss"][name][step]) < 1e-3


def test_evaluator(golden_dir):
    golden = read(golden_dir / "evaluator.json")
    truth = read(golden_dir / "evaluator_truth.json")
    train = read(golden_dir / "evaluator_train.json")
    scores = evaluate(golden["predictions"], truth, train, distant=[])
    assert golden["scores"]
    for name, expected in golden["scores"].items():
        assert abs(scores[name] - expected) < 1e-9, name


def test_patterns(golden_dir):
    arrays = np.load(golden_dir / "patterns.npz")
    counts = count_patterns(arrays["logits"], arrays["labels"])
    for name, expected in read(golden_dir / "patterns.json").items():
        assert counts[name] == expected, name


def test_dreeam(golden_models, golden_features, golden_tokenizer):
    """Logits, every pair's share of every sentence, and the losses, alone and as a batch."""
    folder = golden_models / "dreeam_bert"
    model, config = build(golden_models, "dreeam_bert")
    expected, truth = np.load(folder / "logits.npz"), np.load(folder / "evidence.npz")
    losses = read(folder / "evidence.json")
    features = [golden_features[title] for title in config["titles"]]
    relation_loss = get_loss("ATL")

    def run(chosen):
        batch = batch_of(chosen, golden_tokenizer, model.model, sentences=True, evidence=True)
        labels, counts = batch.pop("labels"), batch.pop("evidence")
        with torch.no_grad():
            logits, shares = model(**batch)
        related = int((~labels[:, 0]).sum())
        values = relation_loss(logits, labels), evidence_loss(shares, counts) / related
        return logits, shares, counts, batch["pairs"], related, [x.item() for x in values]

    for i, (feature, x) in enumerate(zip(features, losses["documents"], strict=True)):
        logits, shares, counts, pairs, related, values = run([feature])
        _, head, tail = pairs.T
        assert np.abs(logits.numpy() - expected[f"doc{i}"][head, tail]).max() < 1e-4
        sentences = truth[f"doc{i}_sentences"][head, tail]
        assert np.abs(shares.numpy() - sentences).max() < 1e-4
        assert np.array_equal(counts.numpy(), truth[f"doc{i}_evidence"][head, tail])
        bounds = feature["sentence_bounds"]
        assert [list(pair) for pair in zip(bounds, bounds[1:], strict=False)] == x["sent_pos"]
        assert related == x["pairs_with_relation"]
        assert values == pytest.approx([x["rel_loss"], x["evidence_loss"]], rel=1e-4)
    *_, values = run(features)
    names = "batch_rel_loss", "batch_evidence_loss"
    assert values == pytest.approx([losses[name] for name in names], rel=1e-4)
