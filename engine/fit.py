"""Training: the optimizer, one step, and the loop, which can be stopped and resumed."""

import dataclasses
import math
import sys
import time
from contextlib import nullcontext
from itertools import chain, islice
from statistics import fmean

import torch
import transformers
from torch import nn
from tqdm import tqdm

from encoders.mention_attention import autocast_dtype
from engine import distributed
from engine.resume import stop_requests
from inputs.files import InputError
from losses import attention_loss, evidence_loss, logits_loss


def make_optimizer(model, learning_rate, classifier_lr, adam_epsilon=1e-6, own_rates=None):
    """AdamW without weight decay, as in the released codes. learning_rate: of the encoder;
    classifier_lr: of the new layers; own_rates: module of the model -> its learning rate, where
    that is another."""
    rates = {"model": learning_rate, "new": classifier_lr, **(own_rates or {})}
    groups = {}
    for name, parameter in model.named_parameters():
        module = name.split(".")[0]
        groups.setdefault(module if module in rates else "new", []).append(parameter)
    groups = [{"params": parameters, "lr": rates[x]} for x, parameters in groups.items()]
    return torch.optim.AdamW(
        groups, lr=learning_rate, eps=adam_epsilon, weight_decay=0.0, fused=True
    )


def make_schedule(optimizer, num_steps, warmup_ratio):
    """Linear warm-up over the first warmup_ratio of the steps, then linear to 0."""
    warmup = int(num_steps * warmup_ratio)
    return transformers.get_linear_schedule_with_warmup(optimizer, warmup, num_steps)


class CastOnce:
    """Calls a model (DocREModel) under autocast with the weights of its linear layers and
    convolutions cast before, all in one call. Autocast would take a kernel for each weight, and
    another for each gradient. The numbers are the same."""

    def __init__(self, model):
        self.model = model
        self.places = [  # (parameters of a module, name, parameter)
            (module._parameters, name, parameter)
            for prefix, module in model.named_modules()
            if isinstance(module, nn.Linear | nn.Conv2d)
            for name, parameter in module.named_parameters(recurse=False)
            if f"{prefix}.{name}" not in model.float32
        ]

    def __call__(self, **inputs):
        dtype = autocast_dtype(self.model.device, None)
        if dtype is None:
            return self.model(**inputs)
        cast = CastTogether.apply(dtype, *(parameter for *_, parameter in self.places))
        try:
            for (parameters, name, _), weight in zip(self.places, cast, strict=True):
                parameters[name] = weight
            return self.model(**inputs)
        finally:
            for parameters, name, parameter in self.places:
                parameters[name] = parameter


class CastTogether(torch.autograd.Function):
    """Tensors of one dtype to another, and their gradients back, in one call each."""

    @staticmethod
    def forward(ctx, dtype, *tensors):
        ctx.dtype = tensors[0].dtype
        ctx.set_materialize_grads(False)
        return tuple(cast_together(tensors, dtype))

    @staticmethod
    def backward(ctx, *grads):
        cast = iter(cast_together([x for x in grads if x is not None], ctx.dtype))
        return None, *(None if x is None else next(cast) for x in grads)


def cast_together(tensors, dtype):
    cast = [torch.empty_like(x, dtype=dtype) for x in tensors]
    torch._foreach_copy_(cast, tensors)
    return cast


# The terms of the loss, named as what the batches have for them (see `batch_loss`).
TERMS = "labels", "evidence", "teacher_logits", "teacher_attention"


def train_step(
    model,
    batches,
    *,
    loss_function,
    optimizer,
    schedule,
    scaler,
    autocast,
    max_grad_norm,
    weights=None,
    counts=None,
):
    """One step of the optimizer over the batches of one accumulation group, as if they were one
    batch (except PMTEM and SSR_PU, which take means within a batch). Returns the loss, a scalar
    tensor: the weighted sum of the TERMS that the batches have, each a mean over pairs.

    weights: term -> its weight, None: the labels alone. counts: term -> how many pairs its mean is
    over, those of the group in all processes; None: of the labels alone, those in `batches`.
    """
    weights = weights or {"labels": 1.0}
    counts = counts or {"labels": sum(len(batch["labels"]) for batch in batches)}
    # Gradients are averaged over the processes, so each has to count as many times its own.
    processes = distributed.world_size()
    of_pair = {term: x * processes / max(counts[term], 1) for term, x in weights.items()}
    total = 0.0
    for i, batch in enumerate(batches):
        inputs = {name: tensor for name, tensor in batch.items() if name not in TERMS}
        is_last = i == len(batches) - 1  # processes exchange gradients once a step
        with nullcontext() if is_last else getattr(model, "no_sync", nullcontext)():
            with autocast():
                output = model(**inputs)
            loss = batch_loss(output, batch, loss_function, of_pair)
            scaler.scale(loss).backward()
        total += loss.detach()
    total = distributed.mean(total)
    scaler.unscale_(optimizer)
    parameters = [x for group in optimizer.param_groups for x in group["params"]]
    nn.utils.clip_grad_norm_(parameters, max_grad_norm)
    scaler.step(optimizer)
    scaler.update()
    schedule.step()
    optimizer.zero_grad()
    return total


def batch_loss(output, batch, loss_function, weights):
    """A batch's part of the loss of a step, a scalar: the sum of its terms. output: the model's;
    weights: term -> weight of a pair.

    labels             the loss of the labels [K, classes]: those of the first K pairs, which are
                       the pairs of labelled documents
    evidence           DREEAM's, from labels that name sentences, [K, S]
    teacher_logits     the squared error against [P, classes]
    teacher_attention  KL against [P, bins]

    A model's attention has the bins first, and the S sentences last (`teacher.with_bins`).
    """
    logits, attention = output if isinstance(output, tuple) else (output, None)
    known = logits[: len(batch["labels"])]
    # Without any pair (documents of one entity) the loss and the gradients are 0.
    loss = loss_function(known, batch["labels"]) if len(known) else known.sum()
    loss = loss * (len(known) * weights["labels"])
    if "evidence" in batch:
        on_sentences = attention[: len(known), -batch["evidence"].shape[1] :]
        loss = loss + weights["evidence"] * evidence_loss(on_sentences, batch["evidence"])
    if "teacher_logits" in batch:
        error = logits_loss(logits, batch["teacher_logits"])
        loss = loss + weights["teacher_logits"] * error
    if "teacher_attention" in batch:
        compared = attention[:, : batch["teacher_attention"].shape[1]]
        error = attention_loss(compared, batch["teacher_attention"])
        loss = loss + weights["teacher_attention"] * error
    return loss


def epoch_groups(lengths, batch_size, accumulation, generator, by_length=False):
    """The shuffled indices of the documents of an epoch: a list of groups of batches, without the
    incomplete last group. by_length: sorted by length within every 16 groups, and then the groups
    shuffled again."""

    def cut(items, size):
        return [items[i : i + size] for i in range(0, len(items), size)]

    order = torch.randperm(len(lengths), generator=generator).tolist()
    size = batch_size * accumulation
    order = order[: len(order) // size * size]
    if by_length:
        parts = cut(order, 16 * size)
        order = [i for part in parts for i in sorted(part, key=lambda i: lengths[i])]
    groups = [cut(group, batch_size) for group in cut(order, size)]
    if by_length:
        groups = [groups[i] for i in torch.randperm(len(groups), generator=generator).tolist()]
    return groups


@dataclasses.dataclass
class Progress:
    """How far training is, as a saved state keeps it."""

    step: int = 0
    evaluation_is_due: bool = False  # before the next step
    seconds: float = 0.0
    losses: list = dataclasses.field(default_factory=list)  # since the last evaluation
    records: list = dataclasses.field(default_factory=list)  # of the evaluations


def fit(
    progress,
    *,
    epochs,
    num_steps,
    steps_per_epoch,
    step,
    evaluate,
    keep,
    save,
    log,
    evaluation_steps=-1,
    save_steps=-1,
):
    """Trains from `progress` to the end; returns the record of the best evaluation on dev.

    epochs            yields the groups of an epoch (see `epoch_groups`), epoch after epoch
    step(group)       trains on a group and returns its loss, a tensor
    evaluate()        returns the scores on dev, a dict
    keep(records, is_best)  writes the evaluations so far and, if the last is the best, the weights
    save(progress)    writes the state
    log(values, step) logs the loss every 10 steps

    The state is saved at the end of every epoch, every save_steps and before the first evaluation;
    dev is evaluated at the end of every epoch and every evaluation_steps. Raises InputError for a
    loss that is not finite, and KeyboardInterrupt when stopped (after a first Ctrl-C or SIGTERM the
    state is saved).
    """
    started = time.perf_counter() - progress.seconds
    pending = []  # losses still on the device

    def is_due(every):
        return every > 0 and progress.step % every == 0

    def save_now():
        progress.seconds = time.perf_counter() - started
        save(progress)

    def evaluate_now():
        record = {
            "epoch": -(-progress.step // steps_per_epoch),
            "step": progress.step,
            "loss": fmean(progress.losses),
            "seconds": round(time.perf_counter() - started, 1),
            "dev": evaluate(),
        }
        progress.records.append(record)
        progress.losses, progress.evaluation_is_due = [], False
        is_best = best_of(progress.records) is record
        if distributed.is_first():
            tqdm.write(_line(record, is_best))
            keep(progress.records, is_best)
        return is_best

    pause = 0.1 if sys.stderr.isatty() else 60  # seconds between lines; 60 for a log file
    hidden = not distributed.is_first()
    bar = tqdm(None, "train", num_steps, mininterval=pause, disable=hidden, initial=progress.step)
    with bar, stop_requests() as requests:
        if progress.step and distributed.is_first():
            tqdm.write(f"going on after step {progress.step} of {num_steps}")
        if progress.evaluation_is_due:
            evaluate_now()
        for group in islice(chain.from_iterable(epochs), progress.step, num_steps):
            pending.append(step(group))
            progress.step += 1
            bar.update()
            # --max_steps may end within an epoch.
            ends_epoch = progress.step % steps_per_epoch == 0 or progress.step == num_steps
            progress.evaluation_is_due = ends_epoch or is_due(evaluation_steps)
            # Before the first evaluation, too: weights never lie in a folder without a state.
            evaluates_first = progress.evaluation_is_due and not progress.records
            saves = ends_epoch or is_due(save_steps) or evaluates_first
            stops = distributed.any_process(bool(requests))
            if progress.evaluation_is_due or saves or stops or is_due(10):
                progress.losses += fetch_losses(pending, progress.step)
                log({"loss": progress.losses[-1]}, progress.step)
                bar.set_postfix(loss=f"{progress.losses[-1]:.3f}", refresh=False)
            if saves or stops:  # before the evaluation, so that a kill during it loses no step
                save_now()
            if stops:
                raise KeyboardInterrupt(
                    f"stopped after step {progress.step} of {num_steps}; the same command with "
                    "--resume, without --overwrite, goes on"
                )
            # A state follows new best weights, so that a resumed run compares with them.
            if progress.evaluation_is_due and evaluate_now() and not saves:
                save_now()
        if distributed.any_process(bool(requests)):
            raise KeyboardInterrupt("stopped after the last step; with --resume it is tested")
    return best_of(progress.records)


def fetch_losses(pending, step):
    """The losses of the last steps up to `step`, tensors -> numbers; waits for the device. Raises
    InputError if one is not finite."""
    values = torch.stack(pending).tolist()
    pending.clear()
    for number, value in enumerate(values, step - len(values) + 1):
        if not math.isfinite(value):
            raise InputError(
                f"the loss is {value} at step {number}: try a smaller --learning_rate or "
                "--precision fp32; the best weights so far are kept"
            )
    return values


def best_of(records):
    """The record with the best dev F1, the first of equals."""
    return max(records, key=lambda record: record["dev"]["f1"])


def _line(record, is_best):
    f1, precision, recall = (100 * record["dev"][x] for x in ("f1", "precision", "recall"))
    return (
        f"epoch {record['epoch']:3d}  step {record['step']:5d}  loss {record['loss']:8.4f}  dev F1 "
        f"{f1:5.2f}  precision {precision:5.2f}  recall {recall:5.2f}  {record['seconds']:6.0f} s"
        f"{'  *' if is_best else ''}"
    )
