"""A training step against plain torch: what is averaged, scaled, clipped and written."""

import random
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from conftest import faster_on_cpu, make_document, read, small_model
from test_train import flags, without_times
from torch.utils._python_dispatch import TorchDispatchMode

import train
from backbones import BACKBONES
from engine import distributed, fit, inference, resume, run_folder
from engine.fit import CastOnce, make_optimizer, make_schedule, train_step
from engine.scoring import stack
from inputs.files import InputError
from losses import get_loss
from prepro import docred_features
from utils import collate, set_seed, special_tokens


@pytest.fixture(scope="module")
def features(tokenizer):
    rng = random.Random(3)
    sizes = 7, 2, 5, 1, 3, 4, 6, 2
    return docred_features([make_document(rng, n, title=str(n)) for n in sizes], tokenizer)


@pytest.fixture(scope="module")
def batch(tokenizer):
    tokens = *special_tokens(tokenizer, "bert"), tokenizer.pad_token_id
    return lambda features: collate(features, tokens)


with_transformers_5 = pytest.mark.skipif(
    transformers.__version__ < "5", reason="transformers 4 looks into the mask"
)


class Step:
    """A model and all that a step of it takes, on the way that a GPU goes."""

    def __init__(self, precision="fp32", scale=2.0**10, max_grad_norm=1.0, rate=1e-3, **more):
        self.model = small_model(vocab_size=200, **more).train()
        self.model.cpu_kernels = False
        self.optimizer = make_optimizer(self.model, rate, rate)
        self.schedule = make_schedule(self.optimizer, 10, 0.0)
        self.scaler = torch.amp.GradScaler("cpu", scale, enabled=precision == "fp16")
        dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(precision)
        self.autocast = partial(torch.autocast, "cpu", dtype=dtype, enabled=dtype is not None)
        self.max_grad_norm = max_grad_norm
        self.forward = CastOnce(self.model)

    def __call__(self, batches, loss="ATL", counts=None):
        return train_step(self.forward, batches, **self.parts(loss), counts=counts).item()

    def parts(self, loss):
        names = "optimizer", "schedule", "scaler", "autocast", "max_grad_norm"
        return {name: getattr(self, name) for name in names} | {"loss_function": get_loss(loss)}

    def weights(self):
        return torch.cat([x.detach().flatten() for x in self.model.parameters()])


def by_hand(step, batch, loss="ATL"):
    """The gradients of the mean over a batch's pairs, clipped: computed apart from train_step."""
    inputs = {name: x for name, x in batch.items() if name != "labels"}
    value = get_loss(loss)(step.model(**inputs), batch["labels"])
    names, parameters = zip(*step.model.named_parameters(), strict=True)
    grads = torch.autograd.grad(value, parameters)
    norm = torch.cat([x.flatten() for x in grads]).norm()
    factor = min(1.0, step.max_grad_norm / (norm.item() + 1e-6))
    return value.item(), norm.item(), {n: x * factor for n, x in zip(names, grads, strict=True)}


def taken(step):
    """A list to which each step of the optimizer adds the gradients it takes, name -> tensor."""
    steps = []

    def keep(optimizer, *_):
        steps.append({name: x.grad.clone() for name, x in step.model.named_parameters()})

    step.optimizer.register_step_pre_hook(keep)
    return steps


@pytest.mark.parametrize("max_grad_norm", [1e3, 0.1])
def test_a_step_takes_the_clipped_gradient_of_the_mean(features, batch, max_grad_norm):
    step = Step(max_grad_norm=max_grad_norm)
    whole = batch(features[:3])
    loss, norm, expected = by_hand(step, whole)
    assert 0.1 < norm < 1e3  # so the one is clipped, the other is not
    grads, before = taken(step), step.weights()
    assert step([whole]) == pytest.approx(loss, rel=1e-6)
    for name, grad in expected.items():
        torch.testing.assert_close(grads[0][name], grad, rtol=1e-4, atol=1e-6)
    assert not torch.equal(step.weights(), before)
    assert all(x.grad is None for x in step.model.parameters())
    assert step.schedule.get_last_lr() == pytest.approx([0.9e-3, 0.9e-3])


def test_accumulated_batches_count_as_one(features, batch):
    """Documents of 7, 2, 5, 1, 3 and 4 entities, so 42 to 0 pairs each."""
    groups = [
        [features[:6]],
        [features[:1], features[1:4], features[4:6]],
        [[x] for x in features[:6]],
    ]
    results = []
    for group in groups:
        step = Step()
        grads = taken(step)
        loss = step([batch(part) for part in group])
        results.append((loss, grads[-1]))
    (expected_loss, expected), *others = results
    for loss, grads in others:
        assert loss == pytest.approx(expected_loss, rel=1e-5)
        for name, grad in expected.items():
            torch.testing.assert_close(grads[name], grad, rtol=1e-3, atol=1e-5)


def test_a_process_counts_as_much_as_it_has(features, batch, monkeypatch):
    """The mean of what two processes compute is what one does."""
    whole = Step()
    everything = batch(features[:4])
    loss, _, expected = by_hand(whole, everything)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "mean", lambda tensor: tensor)
    losses, grads = [], []
    for part in (features[:1], features[1:4]):
        step = Step(max_grad_norm=1e6)
        seen = taken(step)
        losses.append(step([batch(part)], counts={"labels": len(everything["pairs"])}))
        grads.append(seen[-1])
    assert sum(losses) / 2 == pytest.approx(loss, rel=1e-5)
    mean = {name: (grads[0][name] + grads[1][name]) / 2 for name in expected}
    factor = min(1.0, 1 / torch.cat([x.flatten() for x in mean.values()]).norm().item())
    for name, grad in expected.items():
        torch.testing.assert_close(mean[name] * factor, grad, rtol=1e-3, atol=1e-5)


def test_a_batch_without_pairs_changes_nothing(features, batch):
    step = Step()
    before = step.weights()
    assert step([batch([features[3]])]) == 0.0
    assert torch.equal(step.weights(), before)


@pytest.mark.parametrize("ratio,expected", [(1.3, "bf16"), (1.1, "fp32")])
def test_auto_takes_what_multiplies_faster(monkeypatch, ratio, expected):
    """A clock of ours: products in fp32 take ratio seconds, those in bf16 one."""
    spent = [x for seconds in (ratio, 1.0) for x in [0.0, seconds] * 6]
    monkeypatch.setattr("time.thread_time", iter(spent).__next__)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert faster_on_cpu.__wrapped__() == expected
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(
    "backbone,precision,max_grad_norm",
    [*((x, "fp16", 0.1) for x in BACKBONES), ("atlop", "bf16", 0.1), ("atlop", "fp16", 1e6)],
)
def test_half_precision_takes_nearly_the_same_step(
    features, batch, backbone, precision, max_grad_norm
):
    """The gradients are unscaled before they are clipped, and where they are not clipped."""
    grads, losses = [], []
    for chosen in ("fp32", precision):
        step = Step(chosen, max_grad_norm=max_grad_norm, backbone=backbone)
        seen = taken(step)
        losses.append(step([batch(features[:2]), batch(features[2:4])], "HingeABL"))
        grads.append(torch.cat([x.flatten() for x in seen[-1].values()]))
    assert losses[1] == pytest.approx(losses[0], rel=0.03) and losses[1] != losses[0]
    assert (grads[0] - grads[1]).norm() / grads[0].norm() < 0.3
    assert grads[0].norm() == pytest.approx(0.1, rel=1e-3) or max_grad_norm > 1


def test_the_scale_falls_where_fp16_overflows_and_grows_where_not(features, batch):
    step = Step("fp16", scale=2.0**60)
    before = step.weights()
    step([batch(features[:2])])
    assert torch.equal(step.weights(), before)  # the step was left out
    assert step.scaler.get_scale() == 2.0**59
    step = Step("fp16", scale=2.0**8)
    step.scaler.set_growth_interval(1)
    step([batch(features[:2])])
    assert step.scaler.get_scale() == 2.0**9


@pytest.mark.parametrize("backbone", BACKBONES)
def test_weights_cast_at_once_give_the_bits_of_autocast(features, batch, backbone):
    """After three steps of two batches each, with dropout."""
    weights = []
    for cast_once in (True, False):
        step = Step("bf16", backbone=backbone, dropout=0.1)
        if not cast_once:
            step.forward = step.model
        for first in range(3):
            set_seed(first)
            step([batch(features[first : first + 2]), batch(features[5:])], "HingeABL")
        weights.append(step.weights())
        assert all(isinstance(x, torch.nn.Parameter) for x in step.model.parameters())
    assert torch.equal(*weights)


class Kernels(TorchDispatchMode):
    """Counts the kernels of a GPU: calls of ATen but for views and allocations."""

    NONE = "detach empty empty_like empty_strided new_empty new_empty_strided "
    NONE += "scalar_tensor promote_types _record_function_enter_new _record_function_exit"

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name = operation.overloadpacket.__name__
        self.count += not operation.is_view and name not in self.NONE.split()
        return operation(*args, **(kwargs or {}))


@with_transformers_5
@pytest.mark.parametrize("num_layers,emb_size,most", [(6, 384, 600), (12, 768, 920)])
def test_a_step_takes_few_kernels(features, batch, num_layers, emb_size, most, monkeypatch):
    """MiniLM's and BERT-base's layers. Dropout and fused attention are a kernel each way on a GPU,
    on a CPU they are not with dropout."""

    def dropout(x, p=0.5, training=True, inplace=False):
        return torch.native_dropout(x, p, True)[0] if training and p else x

    attention = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "dropout", dropout)
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda *x, dropout_p=0, **more: attention(*x, **more)
    )
    more = {"dropout": 0.1, "num_hidden_layers": num_layers, "settings": {"emb_size": emb_size}}
    step = Step("bf16", **more)
    for _ in range(2):  # the optimizer's first step makes its state
        with Kernels() as kernels:
            step([batch(features[:4])], "HingeABL")
    assert most - 30 < kernels.count <= most


class Waits(TorchDispatchMode):
    """Records the operations for whose result the host would have to wait."""

    NAMES = "_local_scalar_dense item is_nonzero nonzero masked_select equal unique".split()

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name = operation.name().split("::")[1].split(".")[0]
        is_mask = name == "index" and any(x is not None and x.dtype == torch.bool for x in args[1])
        is_number = name == "index_put_" and args[2].dim() == 0  # of the host, copied first
        if name in self.NAMES or is_mask or is_number:
            self.seen.append(name)
        return operation(*args, **(kwargs or {}))


@with_transformers_5
@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_step_waits_for_nothing(features, batch, backbone):
    """On a GPU the host would wait for all the work before. (fp16's scaler has to.)"""
    step, whole = Step("bf16", backbone=backbone), batch(features[:3])
    step([whole])  # the optimizer's first step makes its state
    with Waits() as waits:
        train_step(step.forward, [whole, batch(features[3:5])], **step.parts("HingeABL"))
    assert waits.seen == []


def test_labels_and_counts_of_an_evaluation_stay_on_the_cpu(
    features, tokenizer, monkeypatch, batch
):
    sent = []
    monkeypatch.setattr(inference, "to_device", lambda x, device: sent.append(sorted(x)) or x)
    model = small_model(vocab_size=200)
    how = {"max_seq_length": 512, "batch_size": 4, "precision": "fp32"}
    logits, labels = stack(inference.Predictor(model, tokenizer, **how)(features, "try"))
    assert sent and all("labels" not in names for names in sent)
    whole = batch(features)
    assert torch.equal(labels, whole["labels"])
    expected = model(**{name: x for name, x in whole.items() if name != "labels"})
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_groups_of_learning_rates():
    rates = {"encoder": 1.0, "new": 2.0, "unet": 3.0}
    model = small_model(backbone="docunet")
    optimizer = make_optimizer(
        model, 1.0, 2.0, own_rates=dict.fromkeys(("liner", "segmentation_net"), 3.0)
    )
    rate_of = {id(x): group["lr"] for group in optimizer.param_groups for x in group["params"]}
    kinds = {"model": "encoder", "liner": "unet", "segmentation_net": "unet"}
    kinds |= dict.fromkeys(("head_extractor", "tail_extractor", "bilinear"), "new")
    for name, parameter in model.named_parameters():
        assert rate_of[id(parameter)] == rates[kinds[name.split(".")[0]]], name
    assert len(rate_of) == len(list(model.parameters()))


def test_losses_are_fetched_once(monkeypatch):
    """Every ten steps, and each only once: not all since the last evaluation anew."""
    fetched, original = [], fit.fetch_losses

    def watch(pending, step):
        fetched.append(len(pending))
        return original(pending, step)

    monkeypatch.setattr(fit, "fetch_losses", watch)
    scores = dict.fromkeys(("f1", "precision", "recall"), 0.0)
    nothing = dict.fromkeys(("keep", "save", "log"), lambda *_: None)
    steps = {"epochs": [range(16)] * 2, "num_steps": 32, "steps_per_epoch": 16}
    work = {"step": lambda group: torch.tensor(1.0), "evaluate": lambda: scores}
    fit.fit(fit.Progress(), **steps, **work, **nothing)
    assert fetched == [10, 6, 4, 10, 2]


def test_what_a_run_records_and_saves(demo, tmp_path, monkeypatch):
    """An evaluation records the steps since the last; there is one state an epoch, and one of each
    best evaluation in between. A CPU is always deterministic. Dropout is on, also after an
    evaluation."""
    losses, original, saved, calls = [], fit.train_step, [], []

    def watch(forward, *args, **more):
        assert forward.model.training
        losses.append(original(forward, *args, **more))
        return losses[-1]

    monkeypatch.setattr(fit, "train_step", watch)
    monkeypatch.setattr(resume, "save_state", lambda *x: saved.append(x[3]["step"]))
    states, save_weights = [], run_folder.save_weights  # how many states there are before weights
    monkeypatch.setattr(
        run_folder, "save_weights", lambda *x: states.append(len(saved)) or save_weights(*x)
    )
    monkeypatch.setattr(train, "make_deterministic", lambda: calls.append(1))
    train.main(flags(demo, tmp_path / "a", "--evaluation_steps", "3"))
    assert calls == [1]
    records = without_times(tmp_path / "a")
    assert [(x["epoch"], x["step"]) for x in records] == [(1, 3), (1, 4), (2, 6), (2, 8)]
    for first, record in zip((0, 3, 4, 6), records, strict=True):
        steps = [x.item() for x in losses[first : record["step"]]]
        assert record["loss"] == pytest.approx(sum(steps) / len(steps))
    scores = [x["dev"]["f1"] for x in records]
    best = [x > max(scores[:i], default=-1) for i, x in enumerate(scores)]
    assert saved == [x["step"] for x, is_best in zip(records, best, strict=True)
                     if is_best or x["step"] in (4, 8)]  # fmt: skip
    assert states[0] == 1, "weights without a state"


def test_of_equal_evaluations_the_first_is_best():
    records = [{"dev": {"f1": x}} for x in (0.1, 0.3, 0.3)]
    assert fit.best_of(records) is records[1]


@pytest.mark.slow
def test_fp16_and_the_way_of_a_gpu_run_on_a_cpu(demo, tmp_path):
    more = "--precision", "fp16", "--cpu_kernels", "off", "--num_train_epochs", "1"
    train.main(flags(demo, tmp_path / "a", *more))
    args = read(tmp_path / "a/results.json")["args"]
    assert (args["precision"], args["cpu_kernels"]) == ("fp16", "off")


def test_a_process_without_a_gpu_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(InputError, match="process 1 of this machine has no GPU.* 1;"):
        distributed.gpu()


def test_each_process_has_its_gpu(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    for number in (0, 1):
        monkeypatch.setenv("LOCAL_RANK", str(number))
        assert distributed.gpu() == f"cuda:{number}"
    assert chosen == [0, 1]


def test_batches():
    rng = np.random.default_rng(0)
    sizes = rng.integers((3, 0), (500, 600), (100, 2)).tolist()
    features = [{"input_ids": [0] * x, "entity_pos": [[]] * y} for x, y in sizes]
    made = list(inference.batches(features, 8))
    assert sorted(i for batch in made for i in batch) == list(range(100))
    lengths = [len(features[i]["input_ids"]) for batch in made for i in batch]
    assert lengths == sorted(lengths, reverse=True)
    for batch in made:
        most = max(len(features[i]["entity_pos"]) for i in batch)
        longest = len(features[batch[0]]["input_ids"])
        assert len(batch) == 1 or len(batch) * longest * most**2 <= inference.LARGEST
    assert len(made) > 100 / 8 and max(map(len, made)) == 8
    small = [{"input_ids": [0] * 50, "entity_pos": [[]] * 9}] * 20
    assert list(map(len, inference.batches(small, 8))) == [8, 8, 4]


def test_batches_have_the_lengths_of_the_way_they_go(features, tokenizer):
    longest = max(len(x["input_ids"]) for x in features[:2])
    assert longest % 16
    for cpu_kernels, length in (True, longest), (False, -(-longest // 16) * 16):
        model = small_model(vocab_size=200)
        model.cpu_kernels = cpu_kernels
        how = {"max_seq_length": 1024, "batch_size": 2, "precision": "fp32"}
        predictor = inference.Predictor(model, tokenizer, **how)
        assert predictor.collate(features[:2])["input_ids"].shape[1] == length


def test_a_mention_whose_marker_is_cut_away_is_left_out(features, batch):
    """One right at the cut falls on [SEP], as in the released code."""
    (start, _), *_ = features[0]["entity_pos"][0]
    for length, is_there in (start + 2, True), (start + 1, False):  # [CLS] comes first
        cut = features[0] | {"input_ids": features[0]["input_ids"][:length]}
        made = batch([cut])
        owner = made["entity_mentions"][0, 0]
        assert (start + 1 in made["mention_pos"][0, owner].tolist()) == is_there
