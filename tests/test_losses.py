"""Every loss against a slow, independent version, and the properties the paper claims."""

import math

import pytest
import torch

from engine import options
from losses import (
    LOSSES,
    all_options,
    decode,
    get_loss,
    hinge_penalty,
    loss_label,
    read_label,
    sat_loss,
)

PRIORS = torch.linspace(0, 0.3, 96, dtype=torch.float64)  # for SSR_PU; the first relation has none
CASES = [(name, "separate") for name in LOSSES] + [("HingeABL", "joint")]


def loss_of(name, num_class=97, **options):
    return get_loss(name, PRIORS[: num_class - 1], **options)


def slow_ssr_pu(logits, labels, prior_factor=3.0, margin=0.25):
    """A loop over relations; of each the pairs without and with the label."""
    total = 0.0
    for r, p in enumerate(PRIORS.tolist()[: logits.shape[1] - 1], 1):
        f = [s[r] - s[0] for s in logits.tolist()]
        with_label = [x for x, y in zip(f, labels.tolist(), strict=True) if y[r]]
        without = [x for x, y in zip(f, labels.tolist(), strict=True) if not y[r]]

        def mean_of(part, y):
            return sum((y * x - margin) ** 2 / 4 for x in part) / max(1, len(part))

        pi = prior_factor * p
        if p > 0:
            unlabelled = (1 - p) * mean_of(without, -1) - (pi - p) * mean_of(with_label, -1)
            labelled = pi * math.sqrt((1 - pi) / pi) * mean_of(with_label, +1)
            total += -unlabelled if unlabelled < 0 else unlabelled + labelled
    return total


def slow_loss(logits, labels, name, norm="separate", margin=None, gamma=1.0, **more):
    """Double loops over pairs and relations, straight from the formulas."""
    if name == "SSR_PU":
        return slow_ssr_pu(logits, labels, more.get("prior_factor", 3.0), margin or 0.25)
    entropy_weight, shift = more.get("entropy_weight", (1, 1)), more.get("ncrl_shift", 0.0)
    w_pos = more.get("positive_weight", 16.5)
    total = 0.0
    for s, y in zip(logits.tolist(), labels.tolist(), strict=True):
        relations = range(1, len(s))
        pos = [r for r in relations if y[r]]
        neg = [r for r in relations if not y[r]]
        th = s[0]
        d = {r: s[r] - th if y[r] else th - s[r] for r in relations}

        def penalty(r, d=d):
            return math.log(1 + math.exp(-d[r]))

        if name == "balance_softmax":
            total += math.log(1 + sum(math.exp(-s[r]) for r in range(len(s)) if y[r]))
            total += math.log(1 + sum(math.exp(s[r]) for r in range(len(s)) if not y[r]))
        elif name in ("ATL", "AFL"):
            total -= math.log(math.exp(th) / (math.exp(th) + sum(math.exp(s[r]) for r in neg)))
            for r in pos:
                if name == "ATL":
                    rivals = math.exp(th) + sum(math.exp(s[q]) for q in pos)
                    total -= math.log(math.exp(s[r]) / rivals)
                else:
                    p = math.exp(s[r]) / (math.exp(s[r]) + math.exp(th))
                    total -= (1 + (1 - p) ** gamma) * math.log(p)
        elif name == "PMTEM":
            total += sum(penalty(r) for r in relations)
            counts = [int(sum(row[1:])) for row in labels.tolist()]
            counts = counts, [len(s) - 1 - count for count in counts]
            for weight, part, sizes in zip(entropy_weight, (pos, neg), counts, strict=True):
                weight *= sum(1 / max(1, size) for size in sizes) / len(sizes)
                for r in part:
                    p = 1 / (1 + math.exp(-d[r]))
                    total -= weight * (p * math.log(p) + (1 - p) * math.log(1 - p))
        elif name == "NCRL":
            none = th - sum(s[r] for r in relations) / len(relations)
            terms = [(d[r], r in pos) for r in relations] + [(none if not pos else -none, not pos)]
            for margin_of, holds in terms:
                p = 1 / (1 + math.exp(-margin_of))
                total -= math.log(p if holds else min(1.0, p + shift))
        elif name == "ATGL":
            whole = sum(math.exp(x) for x in s)
            total -= math.log(math.exp(th) / whole)
            total -= sum(w_pos * math.log(math.exp(s[r]) / whole) for r in pos)
        elif name == "AML":
            total += sum(max(0.0, (margin or 1.0) - d[r]) for r in relations)
        elif name == "SAT":
            total += sum(penalty(r) for r in relations)
        elif name == "MeanSAT":
            total += sum(sum(penalty(r) for r in part) / len(part) for part in (pos, neg) if part)
        else:
            w = {r: max(0.0, (margin or 5.0) - d[r]) for r in relations}
            for part in (pos, neg) if norm == "separate" else (pos + neg,):
                whole = sum(w[r] for r in part)
                total += sum(w[r] / whole * penalty(r) for r in part) if whole else 0.0
    return total / len(logits)


def example(num_pairs=40, num_class=97, scale=4.0, seed=0):
    """Logits and labels: pairs with none, one and several relations, one with all."""
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(num_pairs, num_class, generator=generator, dtype=torch.float64)
    labels = torch.zeros(num_pairs, num_class)
    for i in range(num_pairs):
        count = (0, 0, 1, 2, 5)[i % 5]
        labels[i, 1 + torch.randperm(num_class - 1, generator=generator)[:count]] = 1
    labels[-1, 1:] = 1
    labels[:, 0] = labels[:, 1:].sum(1) == 0
    return logits, labels


@pytest.mark.parametrize("name,norm", CASES)
@pytest.mark.parametrize("scale", [0.5, 4.0])
def test_against_slow_version(name, norm, scale):
    logits, labels = example(scale=scale)
    loss = loss_of(name, hinge_norm=norm)(logits, labels)
    assert loss.item() == pytest.approx(slow_loss(logits, labels, name, norm), rel=1e-12)
    assert loss_of(name, hinge_norm=norm)(logits, labels.bool()).item() == loss.item()


@pytest.mark.parametrize("name,options", [
    ("AML", {"margin": 2.5}),
    ("HingeABL", {"margin": 1.0}),
    ("HingeABL", {"margin": 10.0}),
    ("AFL", {"gamma": 2.0}),
])  # fmt: skip
def test_options_of_losses(name, options):
    """Those of the later losses are in the golden files."""
    logits, labels = example(seed=1)
    expected = slow_loss(logits, labels, name, **options)
    assert loss_of(name, **options)(logits, labels).item() == pytest.approx(expected, rel=1e-12)
    assert loss_of(name)(logits, labels).item() != pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("name,norm", CASES)
def test_gradcheck(name, norm):
    logits, labels = example(num_pairs=6, num_class=9, scale=2.0)
    function = loss_of(name, 9, hinge_norm=norm)
    assert torch.autograd.gradcheck(lambda x: function(x, labels), logits.requires_grad_())


@pytest.mark.parametrize("name,norm", CASES)
def test_finite_at_extreme_logits(name, norm):
    _, labels = example()
    signs = torch.where(torch.rand(labels.shape, generator=torch.manual_seed(0)) < 0.5, -1, 1)
    for values in (200.0 * signs, 200.0 * (1 - 2 * labels), -200.0 * (1 - 2 * labels)):
        scores = values.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.float16):
            logits = scores @ torch.eye(97)
            assert logits.dtype == torch.float16 and logits.abs().max() == 200
            loss = loss_of(name, hinge_norm=norm, gamma=0.5)(logits, labels)
        loss.backward()
        assert loss.dtype == torch.float32
        assert loss.isfinite() and scores.grad.isfinite().all()


def test_hinge_joint_by_hand():
    # one pair, P = {1}, N = {2, 3}, m = 5: d = (1, 2, 7), w = (4, 3, 0) / 7 by Eq. 10
    logits = torch.tensor([[0.0, 1.0, -2.0, -7.0]], dtype=torch.float64)
    labels = torch.tensor([[0, 1, 0, 0]])
    softplus = [math.log1p(math.exp(-d)) for d in (1, 2)]
    joint = get_loss("HingeABL", hinge_norm="joint")(logits, labels)
    assert joint.item() == pytest.approx((4 * softplus[0] + 3 * softplus[1]) / 7, rel=1e-12)
    separate = get_loss("HingeABL", hinge_norm="separate")(logits, labels)
    assert separate.item() == pytest.approx(softplus[0] + softplus[1], rel=1e-12)


@pytest.mark.parametrize("norm", ["separate", "joint"])
def test_hinge_lets_go_beyond_the_margin(norm):
    """Appendix E: zero loss and zero gradient for d_r >= m."""
    logits = torch.zeros(1, 97, dtype=torch.float64)
    labels = torch.zeros(1, 97)
    logits[0, 1:], logits[0, 3], labels[0, 3] = -5.0, 5.0, 1
    logits.requires_grad_()
    loss = get_loss("HingeABL", hinge_norm=norm)(logits, labels)
    loss.backward()
    assert loss.item() == 0 and logits.grad.abs().max() == 0
    # one negative inside the margin: it alone has a gradient (besides TH)
    moved = logits.detach().clone()
    moved[0, 7] = -1.0
    moved.requires_grad_()
    get_loss("HingeABL", hinge_norm=norm)(moved, labels).backward()
    assert set(moved.grad[0].nonzero().flatten().tolist()) == {0, 7}


def test_a_relation_just_within_the_margin_has_its_whole_penalty():
    """Its weight is divided by itself, however small."""
    near = torch.tensor(5.0).nextafter(torch.tensor(0.0))
    logits = torch.stack([torch.zeros(()), near])[None]
    loss = get_loss("HingeABL")(logits, torch.tensor([[0, 1]]))
    assert loss.item() == pytest.approx(math.log1p(math.exp(-5)), rel=1e-6)


def test_aml_is_linear_and_hinge_strictly_convex_below_the_margin():
    """Appendix E: second differences of the penalty of one relation against d_r."""
    below = torch.linspace(-6, 0.9, 50, dtype=torch.float64)
    logits = torch.stack([torch.zeros_like(below), below], dim=1)
    aml = torch.stack([get_loss("AML")(row[None], torch.tensor([[0, 1]])) for row in logits])
    assert aml.diff().diff().abs().max() < 1e-12
    assert aml.diff() == pytest.approx(-below.diff())
    hinge = hinge_penalty(torch.linspace(-6, 4.9, 80, dtype=torch.float64))
    assert (hinge.diff() < 0).all() and (hinge.diff().diff() > 1e-6).all()


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="unknown loss 'atl', one of ATL"):
        get_loss("atl")
    with pytest.raises(ValueError, match="hinge_norm"):
        get_loss("HingeABL", hinge_norm="both")
    with pytest.raises(TypeError, match="no loss has the option gama"):
        get_loss("AFL", gama=2.0)


@pytest.mark.parametrize("shift", [0.05, 0.9])
def test_ncrl_with_a_shift(shift):
    """Gradients, finite values at the extremes, and where a negative is let go."""
    logits, labels = example(num_pairs=6, num_class=9, scale=2.0)
    function = get_loss("NCRL", ncrl_shift=shift)
    assert torch.autograd.gradcheck(lambda x: function(x, labels), logits.requires_grad_())
    far = 200.0 * (2 * torch.rand(48, 9, generator=torch.manual_seed(0)) - 1)
    far = far.half().requires_grad_()
    function(far, torch.rand(48, 9, generator=torch.manual_seed(1)) < 0.3).backward()
    assert far.grad.isfinite().all()
    one = torch.tensor([[0.0, -1.0]], dtype=torch.float64, requires_grad=True)
    get_loss("NCRL", ncrl_shift=shift)(one, torch.tensor([[1, 0]])).backward()
    beyond = 1 / (1 + math.exp(-1)) + shift >= 1  # of the negative; "none" keeps pulling
    assert (one.grad[0, 1] == pytest.approx(1 / (1 + math.e))) == beyond


@pytest.mark.parametrize("loss_type", ["ATL", "balance_softmax"])
def test_decode_against_slow_version(loss_type):
    logits, _ = example(num_pairs=200, num_class=12)
    logits[0].abs_()  # all classes above 0
    logits[1, 0] = logits[1, 3] = 0.0  # a relation at either threshold, not above it
    for limit in (-1, 2, 4, 11, 12, 50):
        for s, predicted in zip(logits.tolist(), decode(logits, loss_type, limit), strict=True):
            threshold = 0.0 if loss_type == "balance_softmax" else s[0]
            ranked = sorted(range(12), key=lambda r: -s[r])[: limit if limit > 0 else 12]
            kept = [r for r in ranked if s[r] > threshold and r > 0]
            expected = torch.zeros(12, dtype=torch.float64)
            expected[kept or [0]] = 1
            assert torch.equal(predicted, expected) and predicted.dtype == torch.float64


LABELS = {
    "HingeABL": ("HingeABL", {"margin": 5.0, "hinge_norm": "separate"}),  # its defaults
    "HingeABL:joint:m3": ("HingeABL", {"margin": 3.0, "hinge_norm": "joint"}),
    "AML:m2": ("AML", {"margin": 2.0}),
    "AFL:g0.5": ("AFL", {"gamma": 0.5}),
    "PMTEM:w0.1,0.5": ("PMTEM", {"entropy_weight": (0.1, 0.5)}),
    "NCRL:s0.05": ("NCRL", {"ncrl_shift": 0.05}),
    "ATGL:w4": ("ATGL", {"positive_weight": 4.0}),
    "SSR_PU:m1:f2.2": ("SSR_PU", {"prior_factor": 2.2, "margin": 1.0}),
}


@pytest.mark.parametrize("label", LABELS)
def test_labels_name_what_is_not_the_default(label):
    loss_type, options = LABELS[label]
    assert loss_label(loss_type, dict.fromkeys(all_options()) | options) == label
    read, found = read_label(label)
    assert read == loss_type and loss_label(read, found) == label
    assert found == options or label == "HingeABL"


@pytest.mark.parametrize("label", ["ATL:m3", "Mine", "NCRL:s2", "HingeABL:x3", "PMTEM:w1"])
def test_labels_that_name_nothing_are_refused(label):
    with pytest.raises(ValueError, match=f"{label}.* is unknown|{label}: :"):
        read_label(label)


def test_a_loss_of_ones_own_is_a_function_and_a_line(monkeypatch):
    """Its flag, its default and its label follow."""

    def mine(logits, labels, alpha: float = 2.0):
        return alpha * sat_loss(logits, labels)

    monkeypatch.setitem(LOSSES, "Mine", mine)
    (field,) = [field for name, _, field in options.loss_flags() if name == "alpha"]
    assert field.default is None and field.metadata["help"] == "of Mine (default 2.0)"
    assert field.metadata["saved"]
    logits, labels = torch.randn(3, 5), torch.eye(5)[:3]
    expected = sat_loss(logits, labels)
    assert torch.allclose(get_loss("Mine")(logits, labels), 2 * expected)
    assert torch.allclose(get_loss("Mine", alpha=3, margin=7)(logits, labels), 3 * expected)
    assert read_label(loss_label("Mine", {"alpha": 3.0})) == ("Mine", {"alpha": 3.0})
