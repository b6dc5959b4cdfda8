"""The seven losses of the paper's Table 3, and the decoding rule.

Every loss takes `logits` [pairs, classes] and multi-hot `labels` [pairs, classes] and returns the
mean over pairs, a scalar. Class 0 is the threshold class TH; `labels[:, 0]` is 1 where no relation
holds. P are the positive, N the negative relations (class 0 is in neither), and

    d_r = s_r - s_TH  for r in P,    s_TH - s_r  for r in N                              (Eq. 8)

is how far relation r lies on the right side of the threshold. Whatever the precision of the
logits, a loss is computed in float32 (float64 stays), with logsigmoid and logsumexp: no exponential
that could overflow. softplus(-d) = -log(sigmoid(d)) is taken from `logsigmoid`, which is exact;
`softplus` turns linear above 20.
"""

from functools import partial

import torch
import torch.nn.functional as F


def _split(logits, labels):
    """Logits in float32 or float64, and the masks of P and N (class 0 in neither)."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    positive = labels > 0
    negative = ~positive
    relation = torch.arange(logits.shape[1], device=logits.device) > 0
    return logits, positive & relation, negative & relation


def _distance(logits, positive):
    """d_r of Eq. 8, [pairs, classes]; class 0 holds zeros."""
    difference = logits - logits[:, :1]
    return torch.where(positive, difference, -difference)


def _threshold_nll(logits, negative):
    """-log softmax over N + {TH} of s_TH (Eq. 4), [pairs]."""
    others = logits.masked_fill(~negative, -torch.inf)
    others = torch.cat([logits[:, :1], others[:, 1:]], dim=1)
    return others.logsumexp(1) - logits[:, 0]


def atl_loss(logits, labels):
    """Adaptive Thresholding Loss (Zhou et al., 2021), Eq. 3 to 5."""
    logits, positive, negative = _split(logits, labels)
    rivals = torch.cat([logits[:, :1], logits.masked_fill(~positive, -torch.inf)[:, 1:]], dim=1)
    nll = rivals.logsumexp(1, keepdim=True) - logits
    return (nll.masked_fill(~positive, 0).sum(1) + _threshold_nll(logits, negative)).mean()


def balanced_softmax_loss(logits, labels):
    """Balanced softmax (Zhang et al., 2021): log(1 + sum_P e^-s) + log(1 + sum_N e^s).

    The threshold is fixed at 0 and class 0 is an ordinary class: positive where nothing holds.
    """
    logits = _split(logits, labels)[0]
    positive = labels > 0
    zero = torch.zeros_like(logits[:, :1])
    pull = torch.cat([zero, (-logits).masked_fill(~positive, -torch.inf)], dim=1).logsumexp(1)
    push = torch.cat([zero, logits.masked_fill(positive, -torch.inf)], dim=1).logsumexp(1)
    return (pull + push).mean()


def hinge_weight(distance, margin=5.0):
    """w_r = max(0, m - d_r), Eq. 9 and Figure 3: how hard a relation still is."""
    return F.relu(margin - distance)


def hinge_penalty(distance, margin=5.0):
    """w_r softplus(-d_r), Eq. 17: a relation's part in HingeABL before w is normalised."""
    return -hinge_weight(distance, margin) * F.logsigmoid(distance)


def aml_loss(logits, labels, margin=1.0):
    """Adaptive Margin Loss (Wei and Li, 2022), Eq. 12: sum_R max(0, m - d_r)."""
    logits, positive, _ = _split(logits, labels)
    return F.relu(margin - _distance(logits, positive)[:, 1:]).sum(1).mean()


def afl_loss(logits, labels, gamma=1.0):
    """Adaptive Focal Loss (Tan et al., 2022a): -sum_P (1 + p_TH^gamma) log p_r, and Eq. 4.

    The probabilities p_r and p_TH are those of the two classes {r, TH}.
    """
    logits, positive, negative = _split(logits, labels)
    difference = logits - logits[:, :1]
    # p_TH^gamma as exp(gamma log p_TH): its gradient stays finite where p_TH underflows.
    weight = 1 + torch.exp(gamma * F.logsigmoid(-difference))
    focal = (-weight * F.logsigmoid(difference)).masked_fill(~positive, 0)
    return (focal.sum(1) + _threshold_nll(logits, negative)).mean()


def sat_loss(logits, labels):
    """Separate Adaptive Thresholding, Eq. 7: sum_R softplus(-d_r)."""
    logits, positive, _ = _split(logits, labels)
    return -F.logsigmoid(_distance(logits, positive)[:, 1:]).sum(1).mean()


def mean_sat_loss(logits, labels):
    """MeanSAT, Eq. 11: the mean of softplus(-d_r) over P plus the mean over N."""
    logits, positive, negative = _split(logits, labels)
    penalty = -F.logsigmoid(_distance(logits, positive))

    def mean_over(part):
        return (penalty * part).sum(1) / part.sum(1).clamp(min=1)

    return (mean_over(positive) + mean_over(negative)).mean()


def hinge_abl_loss(logits, labels, margin=5.0, hinge_norm="separate"):
    """Adaptive Hinge Balance Loss, Eq. 9 and 10: sum_R w_r softplus(-d_r), w_r = max(0, m - d_r).

    `hinge_norm="joint"` normalises w by its sum over all relations (Eq. 10 as printed);
    `"separate"` by its sum over P and, apart, over N (the authors' released code). Gradients flow
    through w. A pair all of whose relations are beyond the margin has zero loss and gradient.
    """
    logits, positive, negative = _split(logits, labels)
    distance = _distance(logits, positive)
    weight, penalty = hinge_weight(distance, margin), hinge_penalty(distance, margin)

    def normalised(part):
        # The floor only guards 0 / 0: a weight is 0 or at least one rounding step of the margin.
        return (penalty * part).sum(1) / (weight * part).sum(1).clamp(min=1e-30)

    if hinge_norm == "joint":
        return normalised(positive | negative).mean()
    return (normalised(positive) + normalised(negative)).mean()


# name -> (function, default margin; None: the loss has no margin)
LOSSES = {
    "ATL": (atl_loss, None),
    "balance_softmax": (balanced_softmax_loss, None),
    "AML": (aml_loss, 1.0),
    "AFL": (afl_loss, None),
    "SAT": (sat_loss, None),
    "MeanSAT": (mean_sat_loss, None),
    "HingeABL": (hinge_abl_loss, 5.0),
}


def get_loss(loss_type, margin=None, gamma=1.0, hinge_norm="separate"):
    """The loss named `loss_type` as a function (logits, labels) -> scalar.

    `margin` None takes the loss's own default: 1 for AML, 5 for HingeABL. Raises ValueError for an
    unknown `loss_type` or `hinge_norm`.
    """
    if loss_type not in LOSSES:
        raise ValueError(f"loss_type: unknown loss {loss_type!r}, one of {', '.join(LOSSES)}")
    if hinge_norm not in ("separate", "joint"):
        raise ValueError(f"hinge_norm: {hinge_norm!r} is neither 'separate' nor 'joint'")
    function, default_margin = LOSSES[loss_type]
    options = {}
    if default_margin is not None:
        options["margin"] = default_margin if margin is None else margin
    if loss_type == "AFL":
        options["gamma"] = gamma
    if loss_type == "HingeABL":
        options["hinge_norm"] = hinge_norm
    return partial(function, **options)


def threshold_of(logits, loss_type):
    """The score a relation has to exceed, [pairs, 1]: s_TH, or 0 for balance_softmax."""
    return torch.zeros_like(logits[:, :1]) if loss_type == "balance_softmax" else logits[:, :1]


def margins(logits, loss_type="ATL", num_labels=4):
    """s_r - s_TH, by how much every relation exceeds the threshold, [pairs, classes]; -inf for
    what is never predicted: class 0, and what lies below a pair's `num_labels` highest.

    Ties at the last place stay; -1 for no limit. Where the threshold is fixed at 0, class 0 is an
    ordinary class and takes one of the places, as in the released code. (Where class 0 is the
    threshold it may: what lies below it is not predicted anyway.)
    """
    above = logits - threshold_of(logits, loss_type)
    if 0 < num_labels < logits.shape[1]:
        rivals = logits if loss_type == "balance_softmax" else logits[:, 1:]
        lowest = rivals.topk(num_labels, dim=1).values[:, -1:]
        above = above.masked_fill(logits < lowest, -torch.inf)
    above[:, 0] = -torch.inf
    return above


def decode(logits, loss_type="ATL", num_labels=4, shift=0.0):
    """Multi-hot predictions [pairs, classes] of the same dtype: relations with s_r > s_TH + shift,
    at most the `num_labels` highest of a pair (see `margins`). Class 0 is set where nothing is.

    A shift above 0 raises the threshold: fewer relations are predicted.
    """
    predicted = margins(logits, loss_type, num_labels) > shift
    predicted[:, 0] = ~predicted.any(1)
    return predicted.to(logits.dtype)
