"""The seven losses of the paper's Table 3, four others, and the decoding rule.

Every loss takes `logits` [pairs, classes] and multi-hot `labels` [pairs, classes] and returns the
mean over pairs, a scalar (SSR_PU: a sum of means over pairs). Class 0 is the threshold class TH;
`labels[:, 0]` is 1 where no relation holds. P are a pair's positive relations, N its negative ones
(class 0 is in neither), s the logits:

    d_r = s_r - s_TH  for r in P,    s_TH - s_r  for r in N                              (Eq. 8)

is positive where relation r is on the right side of the threshold. A loss is computed in float32
(float64 stays), also for logits in half precision, and with logsigmoid and logsumexp, so that no
exponential overflows. softplus(-d) is computed as -logsigmoid(d), because torch's softplus
approximates above 20.
"""

import inspect
from contextlib import suppress
from functools import partial
from typing import Annotated, Literal, get_origin

import msgspec
import torch
import torch.nn.functional as F

NotNegative = Annotated[float, msgspec.Meta(ge=0)]
Positive = Annotated[float, msgspec.Meta(gt=0)]


def _split(logits, labels):
    """Logits in float32 or float64, and the masks of P and N (class 0 in neither)."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    positive = labels > 0
    negative = ~positive
    relation = torch.arange(logits.shape[1], device=logits.device) > 0
    return logits, positive & relation, negative & relation


def _distance(logits, positive):
    """d_r of Eq. 8, [pairs, classes]; class 0 holds zeros."""
    sign = torch.where(positive, 1.0, -1.0)
    return sign * (logits - logits[:, :1])


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

    The threshold is fixed at 0, and class 0 is an ordinary class, in P where no relation holds.
    """
    logits = _split(logits, labels)[0]
    positive = labels > 0
    zero = torch.zeros_like(logits[:, :1])
    pull = torch.cat([zero, (-logits).masked_fill(~positive, -torch.inf)], dim=1).logsumexp(1)
    push = torch.cat([zero, logits.masked_fill(positive, -torch.inf)], dim=1).logsumexp(1)
    return (pull + push).mean()


def hinge_weight(distance, margin=5.0):
    """w_r = max(0, m - d_r), Eq. 9 and Figure 3: 0 for a relation beyond the margin."""
    return F.relu(margin - distance)


def hinge_penalty(distance, margin=5.0):
    """w_r softplus(-d_r), Eq. 17: a relation's term in HingeABL before w is normalised."""
    return -hinge_weight(distance, margin) * F.logsigmoid(distance)


def aml_loss(logits, labels, margin: float = 1.0):
    """Adaptive Margin Loss (Wei and Li, 2022), Eq. 12: sum_R max(0, m - d_r)."""
    logits, positive, _ = _split(logits, labels)
    return hinge_weight(_distance(logits, positive)[:, 1:], margin).sum(1).mean()


def afl_loss(logits, labels, gamma: float = 1.0):
    """Adaptive Focal Loss (Tan et al., 2022a): -sum_P (1 + p_TH^gamma) log p_r, and Eq. 4.

    The probabilities p_r and p_TH are those of the two classes {r, TH}.
    """
    logits, positive, negative = _split(logits, labels)
    difference = logits - logits[:, :1]
    # p_TH^gamma is computed from log p_TH, so that its gradient is finite where p_TH underflows.
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


def hinge_abl_loss(
    logits,
    labels,
    margin: float = 5.0,
    hinge_norm: Literal["separate", "joint"] = "separate",
):
    """Adaptive Hinge Balance Loss, Eq. 9 and 10: sum_R w_r softplus(-d_r), w_r = max(0, m - d_r).

    `hinge_norm="joint"` divides w by its sum over P and N (Eq. 10 as printed); `"separate"` divides
    by the sum over P for P and by the sum over N for N (the authors' released code). Gradients flow
    through w. A pair with all its relations beyond the margin has zero loss and gradient.
    """
    logits, positive, negative = _split(logits, labels)
    distance = _distance(logits, positive)
    weight = hinge_weight(distance, margin)
    penalty = -weight * F.logsigmoid(distance)  # `hinge_penalty`

    def normalised(part):
        # The minimum only prevents 0 / 0: m - d_r is either 0 or at least a rounding step of m.
        return (penalty * part).sum(1) / (weight * part).sum(1).clamp(min=1e-30)

    if hinge_norm == "joint":
        return normalised(positive | negative).mean()
    return (normalised(positive) + normalised(negative)).mean()


def pmtem_loss(logits, labels, entropy_weight: tuple[NotNegative, NotNegative] = (1.0, 1.0)):
    """Pairwise Moving-threshold loss with Entropy Minimization (PEMSCL; Guo et al., EACL 2023):
    sum_R softplus(-d_r) + l1 mean_P H(sigmoid(d_r)) + l2 mean_N H(sigmoid(d_r)), H the binary
    entropy. entropy_weight: (l1, l2).

    As in the released code, mean_P is a pair's sum over P times the mean of 1 / max(1, |P|) over
    all pairs, not divided by its own |P|; mean_N likewise.
    """
    logits, positive, negative = _split(logits, labels)
    distance = _distance(logits, positive)
    yes, no = F.logsigmoid(distance), F.logsigmoid(-distance)
    entropy = -yes.exp() * yes - no.exp() * no
    loss = -yes[:, 1:].sum(1)
    for weight, part in zip(entropy_weight, (positive, negative), strict=True):
        scale = part.sum(1).clamp(min=1).to(loss.dtype).reciprocal().mean()
        loss = loss + weight * scale * (entropy * part).sum(1)
    return loss.mean()


def ncrl_loss(logits, labels, ncrl_shift: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.0):
    """None Class Ranking Loss (Zhou and Lee, IJCAI 2022): -sum_P log sigmoid(d_r)
    - sum_N log min(1, sigmoid(d_r) + shift), plus the same term for the none class, whose d is
    m = s_TH - mean_R s_r where no relation holds (then it is in P), else -m (then it is in N)."""
    logits, positive, negative = _split(logits, labels)
    distance = _distance(logits, positive)

    def shifted(log_p):  # log min(1, p + shift)
        if ncrl_shift == 0:
            return log_p
        return torch.logaddexp(log_p, torch.full_like(log_p, ncrl_shift).log()).clamp(max=0)

    log_p = F.logsigmoid(distance)
    loss = -(log_p * positive + shifted(log_p) * negative).sum(1)
    margin = logits[:, 0] - logits[:, 1:].mean(1)
    none = F.logsigmoid(margin).where(~positive.any(1), shifted(F.logsigmoid(-margin)))
    return (loss - none).mean()


def atgl_loss(logits, labels, positive_weight: Positive = 16.5):
    """Adaptive Threshold Global Loss (ACL 2026): -log p_TH - w sum_P log p_r, p the softmax over
    all classes."""
    logits, positive, _ = _split(logits, labels)
    nll = -logits.log_softmax(1)
    return (nll[:, 0] + positive_weight * (nll * positive).sum(1)).mean()


def ssr_pu_loss(
    logits, labels, prior_factor: Positive = 3.0, margin: float = 0.25, *, class_priors
):
    """SSR-PU for incomplete labels (Wang et al., EMNLP 2022): the sum over relations of r1 + r2, or
    of -r1 alone where r1 < 0. A pair without a label may still have the relation, so

        r1 = (1 - p) E_U l(f, -1) - (pi - p) E_P l(f, -1)
        r2 = sqrt(pi (1 - pi)) E_P l(f, +1)

    with f = s_r - s_TH, l(f, y) = (y f - margin)^2 / 4, p the share of the training pairs that are
    labelled with r, pi = prior_factor p the share that is assumed to have it (1: as labelled, which
    is their PN), E_U and E_P the means over the given pairs without and with the label, 0 where
    there are none. class_priors [classes - 1]: p. A relation with p = 0 adds nothing.
    """
    logits, positive, negative = _split(logits, labels)
    score = logits - logits[:, :1]

    def risk(part, y):
        mean = ((y * score - margin).square() / 4 * part).sum(0) / part.sum(0).clamp(min=1)
        return mean[1:]

    p = class_priors.to(score)
    pi = prior_factor * p
    r1 = (1 - p) * risk(negative, -1) - (pi - p) * risk(positive, -1)
    r2 = (pi * (1 - pi)).sqrt() * risk(positive, 1)
    return torch.where(r1 < 0, -r1, r1 + r2).masked_fill(p == 0, 0).sum()


def evidence_loss(sentence_attention, counts):
    """Evidence loss of DREEAM (Ma et al., EACL 2023, Eq. 6): the sum over pairs of KL(v || p).

    sentence_attention [P, S] is p; counts [P, S]: how many of a pair's relations name a sentence as
    evidence, and v = counts / (sum over sentences). A pair without evidence adds 0. p is at least
    1e-30 (a sentence that was cut off has p = 0).
    """
    v = counts / counts.sum(1, keepdim=True).clamp(min=1)
    return attention_loss(sentence_attention, v)


def attention_loss(attention, target):
    """The sum over pairs of KL(target || attention), both [P, bins]; DREEAM's self-training (Eq. 8)
    takes tokens as bins. Attention is at least 1e-30."""
    target, log_p = target.float(), attention.float().clamp(min=1e-30).log()
    return (torch.special.xlogy(target, target) - target * log_p).sum()


def logits_loss(logits, target):
    """The sum over pairs of the mean over classes of (s - s_target)^2, all classes alike (KD-DocRE;
    Tan et al., Findings of ACL 2022)."""
    return (logits - target.to(logits.dtype)).square().mean(1).sum()


# The first seven are the paper's Table 3. A function's further parameters are the options of its
# loss: each is a flag of train.py, is saved with the model and is named in reports. A keyword-only
# class_priors is none: train.py counts it in the training file.
LOSSES = {
    "ATL": atl_loss,
    "balance_softmax": balanced_softmax_loss,
    "AML": aml_loss,
    "AFL": afl_loss,
    "SAT": sat_loss,
    "MeanSAT": mean_sat_loss,
    "HingeABL": hinge_abl_loss,
    "PMTEM": pmtem_loss,
    "NCRL": ncrl_loss,
    "ATGL": atgl_loss,
    "SSR_PU": ssr_pu_loss,
}
ZERO_THRESHOLD = {"balance_softmax"}  # predict where s_r > 0; all others where s_r > s_TH


def options_of(loss_type):
    """The options of a loss, name -> inspect.Parameter (its type and default)."""
    parameters = inspect.signature(LOSSES[loss_type]).parameters
    return {name: x for name, x in list(parameters.items())[2:] if name != "class_priors"}


def takes_priors(loss_type):
    """Whether a loss depends on how often the training file has each relation (class_priors)."""
    return "class_priors" in inspect.signature(LOSSES[loss_type]).parameters


def all_options():
    """The options of all losses: name -> {loss: inspect.Parameter}."""
    found = {}
    for loss_type in LOSSES:
        for name, parameter in options_of(loss_type).items():
            found.setdefault(name, {})[loss_type] = parameter
    return found


def get_loss(loss_type, class_priors=None, **options):
    """The loss named `loss_type` as a function (logits, labels) -> scalar.

    class_priors: a tensor, for a loss that takes them. options: those of other losses are ignored,
    and None means the default of this loss (margin: 1 for AML, 5 for HingeABL). Raises ValueError
    for an unknown loss or value, TypeError for an option that no loss has.
    """
    if loss_type not in LOSSES:
        raise ValueError(f"loss_type: unknown loss {loss_type!r}, one of {', '.join(LOSSES)}")
    if unknown := options.keys() - all_options():
        raise TypeError(f"no loss has the option {min(unknown)}")
    own, given = options_of(loss_type), {}
    if takes_priors(loss_type):
        given["class_priors"] = class_priors
    for name, value in options.items():
        if name in own and value is not None:
            try:
                given[name] = msgspec.convert(value, own[name].annotation)
            except msgspec.ValidationError as error:
                raise ValueError(f"{name}: {value!r}: {error}") from None
    return partial(LOSSES[loss_type], **given)


def threshold_of(logits, loss_type):
    """The threshold that a predicted relation exceeds, [pairs, 1]: s_TH, or 0 (ZERO_THRESHOLD)."""
    return torch.zeros_like(logits[:, :1]) if loss_type in ZERO_THRESHOLD else logits[:, :1]


def margins(logits, loss_type="ATL", num_labels=4):
    """s_r - s_TH of every relation, [pairs, classes]; -inf for class 0 and for relations below the
    `num_labels` highest of a pair (-1: no limit; ties at the last rank stay).

    As in the released code, class 0 counts among the `num_labels` where the threshold is fixed at
    0, because there it is an ordinary class.
    """
    above = logits - threshold_of(logits, loss_type)
    if 0 < num_labels < logits.shape[1]:
        rivals = logits if loss_type in ZERO_THRESHOLD else logits[:, 1:]
        lowest = rivals.topk(num_labels, dim=1).values[:, -1:]
        above = above.masked_fill(logits < lowest, -torch.inf)
    above[:, 0] = -torch.inf
    return above


def decode(logits, loss_type="ATL", num_labels=4, shift=0.0):
    """Multi-hot predictions [pairs, classes] in the logits' dtype: relations with s_r > s_TH +
    shift, at most the `num_labels` highest of a pair (see `margins`). Class 0 is 1 where no
    relation is predicted."""
    predicted = margins(logits, loss_type, num_labels) > shift
    predicted[:, 0] = ~predicted.any(1)
    return predicted.to(logits.dtype)


def loss_label(loss_type, options):
    """The notation of scripts and reports: a loss and those of its options that are not at their
    defaults, such as HingeABL:joint:m3. options: as in `get_loss`.

    A choice (joint) is written as it is, a number after the first letter of the last word of its
    option's name: m for margin, g for gamma, s for ncrl_shift, w for positive_weight.
    """
    label = loss_type
    for name, parameter in reversed(options_of(loss_type).items()):
        value = options.get(name)
        if isinstance(value, list):  # as JSON has it
            value = tuple(value)
        if value not in (None, parameter.default):
            label += f":{_letter(name, parameter)}{_shown(value)}"
    return label


def read_label(label):
    """Reads a `loss_label`: (loss, {option: value}). Raises ValueError if it is none."""
    loss_type, *parts = label.split(":")
    if loss_type not in LOSSES:
        raise ValueError(f"{label} is unknown, it is none of {', '.join(LOSSES)}")
    options = {}
    for part in parts:
        for name, parameter in options_of(loss_type).items():
            kind, letter = parameter.annotation, _letter(name, parameter)
            value = part.removeprefix(letter)
            value = value.split(",") if get_origin(kind) is tuple else value
            with suppress(msgspec.ValidationError):
                if part.startswith(letter):
                    options[name] = msgspec.convert(value, kind, strict=False)
                    break
        else:
            known = [f":{_letter(*x)}{_shown(x[1].default)}" for x in options_of(loss_type).items()]
            raise ValueError(
                f"{label}: :{part} is unknown; {loss_type} has {', '.join(known) or 'no option'}"
            )
    return loss_type, options


def _letter(name, parameter):
    return "" if get_origin(parameter.annotation) is Literal else name.split("_")[-1][0]


def _shown(value):
    if isinstance(value, tuple):
        return ",".join(map(_shown, value))
    return value if isinstance(value, str) else f"{value:g}"
