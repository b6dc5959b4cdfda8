"""Training: the optimizer, a step, the order of the documents, and the loop, which can be stopped
and go on."""

import json
import sys
import time
from contextlib import nullcontext
from statistics import fmean

import torch
import transformers
from tqdm import tqdm

from engine import distributed, resume
from engine.checkpoint import save_weights
from inputs.files import InputError, write_atomically
from losses import OPTIONS, evidence_loss, get_loss


def make_optimizer(model, learning_rate, classifier_lr, adam_epsilon=1e-6, unet_lr=4e-4):
    """AdamW without weight decay, as the released codes have it. The new layers learn faster than
    the encoder, and DocuNet's U-Net (with its projection) faster still."""
    groups = {"encoder": [], "new": [], "unet": []}
    for name, parameter in model.named_parameters():
        kinds = {"model": "encoder", "liner": "unet", "segmentation_net": "unet"}
        groups[kinds.get(name.split(".")[0], "new")].append(parameter)
    rates = {"encoder": learning_rate, "new": classifier_lr, "unet": unet_lr}
    groups = [{"params": groups[kind], "lr": rates[kind]} for kind in groups if groups[kind]]
    return torch.optim.AdamW(
        groups, lr=learning_rate, eps=adam_epsilon, weight_decay=0.0, fused=True
    )


def make_schedule(optimizer, num_steps, warmup_ratio):
    """Linear warm-up over the first warmup_ratio of the steps, then linear to 0."""
    warmup = int(num_steps * warmup_ratio)
    return transformers.get_linear_schedule_with_warmup(optimizer, warmup, num_steps)


def train_step(
    model,
    batches,
    loss_function,
    optimizer,
    schedule,
    scaler,
    amp,
    max_grad_norm,
    num_pairs=None,
    num_related=None,
    evidence_weight=0.0,
):
    """One step of the optimizer over one accumulation group of batches, as if they were one batch
    (but for PMTEM, whose entropy is weighted by the batch); returns the loss: its mean over all
    pairs, plus evidence_weight times the mean evidence loss of the pairs with a relation, for which
    the batches have sentences and evidence.

    num_pairs, num_related: pairs of the group, and those with a relation. None: those of `batches`;
    several processes (`distributed`) have a part of each batch each, and say how many there are in
    all.
    """
    if num_pairs is None:
        num_pairs = sum(len(batch["pairs"]) for batch in batches)
    if num_related is None and evidence_weight:
        num_related = sum(int((~batch["labels"][:, 0]).sum()) for batch in batches)
    # The processes' gradients are averaged, so each counts that many times what it has.
    share = distributed.world_size() / max(num_pairs, 1)
    evidence_share = evidence_weight * distributed.world_size() / max(num_related or 0, 1)
    total = 0.0
    for i, batch in enumerate(batches):
        inputs = {k: tensor for k, tensor in batch.items() if k not in ("labels", "evidence")}
        # Several processes add up their gradients once a step.
        is_last = i == len(batches) - 1
        with nullcontext() if is_last else getattr(model, "no_sync", nullcontext)():
            with amp():
                output = model(**inputs)
            logits = output[0] if evidence_weight else output
            # A batch without any pair (documents of one entity) has no loss, and zero gradients.
            loss = loss_function(logits, batch["labels"]) if len(logits) else logits.sum()
            loss = loss * (len(logits) * share)
            if evidence_weight:
                loss = loss + evidence_share * evidence_loss(output[1], batch["evidence"])
            scaler.scale(loss).backward()
        total += loss.detach()
    total = distributed.mean(total)
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
    scaler.step(optimizer)
    scaler.update()
    schedule.step()
    optimizer.zero_grad()
    return total


def epoch_groups(lengths, batch_size, accumulation, generator, by_length=False):
    """The document numbers of an epoch, shuffled: groups of batches, the last incomplete group
    dropped. by_length: sorted by length within every 16 groups, then the groups shuffled again."""

    def cut(items, size):
        return [items[i : i + size] for i in range(0, len(items), size)]

    order = torch.randperm(len(lengths), generator=generator).tolist()
    size = batch_size * accumulation
    order = order[: len(order) // size * size]
    if by_length:
        parts = [order[i : i + 16 * size] for i in range(0, len(order), 16 * size)]
        order = [i for part in parts for i in sorted(part, key=lambda i: lengths[i])]
    groups = [cut(group, batch_size) for group in cut(order, size)]
    if by_length:
        groups = [groups[i] for i in torch.randperm(len(groups), generator=generator).tolist()]
    return groups


class Training:
    """A run while it trains. All that its future depends on is saved once an epoch, so that a run
    that was killed goes on to the same end.

    run: a train.Run; log(record, step) is called after each evaluation. With --resume it takes up
    the newest state in the run's folder, if there is one.
    """

    def __init__(self, run, log):
        self.run, self.args, self.log = run, run.args, log
        args, self.features = run.args, run.data.features["train"]
        self.lengths = self.features.lengths.tolist()
        self.group_size = args.train_batch_size * args.gradient_accumulation_steps
        self.num_steps = len(self.features) // self.group_size * args.num_train_epochs
        self.model = distributed.replicate(run.model)
        rates = args.learning_rate, args.classifier_lr, args.adam_epsilon, args.unet_lr
        self.optimizer = make_optimizer(run.model, *rates)
        self.schedule = make_schedule(self.optimizer, self.num_steps, args.warmup_ratio)
        kind = torch.device(args.device).type
        self.scaler = torch.amp.GradScaler(kind, enabled=args.precision == "fp16")
        options = {name: getattr(args, name) for name in OPTIONS}
        self.loss_function = get_loss(args.loss_type, **options)
        self.generator = torch.Generator().manual_seed(args.seed)
        self.order = self.generator.get_state()  # at the beginning of the epoch
        # group: how many of the epoch's are done; evaluates: whether an evaluation comes before the
        # next; records: of the evaluations
        self.progress = {"epoch": 1, "group": 0, "step": 0, "evaluates": False}
        self.progress |= {"seconds": 0.0, "records": []}
        self.losses = []  # since the last evaluation, numbers
        self.pending = []  # of the last steps, still on the device: fetching one waits for it
        if distributed.rank():  # dropout differs from process to process
            torch.manual_seed(args.seed + distributed.rank())
        if args.resume:
            self.restore()
        self.started = time.perf_counter() - self.progress["seconds"]

    def __call__(self):
        """Trains to the end; returns the record of the best evaluation, whose weights lie in the
        run's folder. Raises InputError for a loss that is no number, KeyboardInterrupt when stopped
        (after a first Ctrl-C or SIGTERM the state is saved)."""
        args, progress = self.args, self.progress
        pause = 0.1 if sys.stderr.isatty() else 60  # seconds; a log file needs no animation
        bar = tqdm(
            desc="train",
            unit="doc",
            initial=progress["step"] * self.group_size,
            total=self.num_steps * self.group_size,
            mininterval=pause,
            disable=not distributed.is_first(),
        )
        with bar, resume.stop_requests() as requests:
            while progress["epoch"] <= args.num_train_epochs:
                self.generator.set_state(self.order)
                sizes = args.train_batch_size, args.gradient_accumulation_steps
                groups = epoch_groups(self.lengths, *sizes, self.generator, args.group_by_length)
                is_saved = True  # a run that goes on with an evaluation was saved just before
                while progress["group"] < len(groups) or progress["evaluates"]:
                    if not progress["evaluates"]:
                        is_saved = self.step_and_save(groups, bar, requests)
                    if progress["evaluates"]:
                        is_best = self.evaluate()
                        progress["evaluates"] = False
                        # The best weights go with a state at or before the same evaluation.
                        if is_best and not is_saved:
                            self.save()
                self.order = self.generator.get_state()
                progress |= {"epoch": progress["epoch"] + 1, "group": 0}
            if distributed.anywhere(bool(requests)):
                raise KeyboardInterrupt("stopped after the last step; with --resume it is tested")
        return best_of(progress["records"])

    def step_and_save(self, groups, bar, requests):
        """The next of the epoch's steps, and the state where it is due; returns whether it was. An
        evaluation comes after the state, so that a kill in its course loses no step. Raises
        KeyboardInterrupt when asked to stop."""
        args, progress = self.args, self.progress
        self.step(groups[progress["group"]])
        bar.update(self.group_size)
        progress["group"] += 1
        is_last = progress["group"] == len(groups)
        progress["evaluates"] = is_last or self.is_due(args.evaluation_steps)
        saves = is_last or self.is_due(args.save_steps)
        stops = distributed.anywhere(bool(requests))
        if progress["evaluates"] or saves or stops or self.is_due(10):
            self.fetch_losses()
            loss = self.losses[-1]
            bar.set_postfix(epoch=progress["epoch"], loss=f"{loss:.3f}", refresh=False)
        if saves or stops:
            self.save()
        if stops:
            raise KeyboardInterrupt(
                f"stopped after step {progress['step']} of {self.num_steps}; the same command "
                "with --resume goes on"
            )
        return saves

    def is_due(self, every):
        return every > 0 and self.progress["step"] % every == 0

    def step(self, group):
        """A step over one accumulation group, lists of document numbers, of which this process
        takes its part."""
        self.model.train()
        mine = [batch[distributed.rank() :: distributed.world_size()] for batch in group]
        weight, numbers = self.args.evidence_weight, [i for batch in group for i in batch]
        batches = [self.run.batch([self.features[i] for i in batch]) for batch in mine]
        counts = self.features.num_pairs, self.features.num_related
        counts = [int(count[numbers].sum()) for count in counts]
        parts = self.loss_function, self.optimizer, self.schedule, self.scaler, self.run.amp
        loss = train_step(self.model, batches, *parts, self.args.max_grad_norm, *counts, weight)
        self.pending.append(loss)
        self.progress["step"] += 1

    def fetch_losses(self):
        """Waits for the last steps. Raises InputError if a loss is no number."""
        values = torch.stack(self.pending).tolist()
        self.pending.clear()
        self.losses += values
        for i, value in enumerate(values):
            if value - value != 0:  # infinite or not a number
                step = self.progress["step"] - len(values) + 1 + i
                raise InputError(
                    f"the loss is {value} at step {step}: try a smaller --learning_rate or "
                    "--precision fp32; the best weights so far are kept"
                )

    def evaluate(self):
        """Scores dev, adds a line to metrics.jsonl, and keeps the weights if they are the best;
        returns whether they are."""
        progress, records = self.progress, self.progress["records"]
        outputs = self.run.predict("dev")
        scores = distributed.share(lambda: self.run.score("dev", *outputs)[0])
        record = {
            "epoch": progress["epoch"],
            "step": progress["step"],
            "loss": fmean(self.losses),
            "seconds": round(time.perf_counter() - self.started, 1),
            "dev": scores,
        }
        self.losses.clear()
        records.append(record)
        is_best = best_of(records) is record
        if not distributed.is_first():
            return is_best
        tqdm.write(
            f"epoch {record['epoch']:3d}  step {record['step']:5d}  loss {record['loss']:8.4f}  "
            f"dev F1 {100 * scores['f1']:5.2f}  precision {100 * scores['precision']:5.2f}  "
            f"recall {100 * scores['recall']:5.2f}  {record['seconds']:6.0f} s"
            f"{'  *' if is_best else ''}"
        )
        folder = self.run.folder
        lines = "".join(json.dumps(x) + "\n" for x in records)
        write_atomically(folder / "metrics.jsonl", lambda path: path.write_text(lines, "utf-8"))
        dev = {f"dev/{name}": x for name, x in scores.items()}
        rates = {"loss": record["loss"], "learning_rate": self.schedule.get_last_lr()[0]}
        self.log(rates | dev, record["step"])
        if is_best:
            save_weights(self.run.model, folder)
        return is_best

    def save(self):
        """Writes the state of training into the run's folder (resume.save_state)."""
        self.progress["seconds"] = time.perf_counter() - self.started
        state = {name: part.state_dict() for name, part in self.parts().items()}
        state |= {"progress": self.progress, "losses": self.losses}
        state |= {"order": self.order}
        state["random"] = distributed.gather(resume.random_states(self.args.device))
        if distributed.is_first():
            state["settings"] = self.run.settings()
            resume.save_state(self.run.folder, self.progress["step"], state)

    def restore(self):
        state = self.saved_state() if distributed.is_first() else None
        step = distributed.share(lambda: state and state["progress"]["step"])
        if step is None:
            return
        if not distributed.is_first():
            state = resume.load_shared(self.run.folder, step)
        for name, part in self.parts().items():
            part.load_state_dict(state[name])
        self.order, self.progress = state["order"], state["progress"]
        self.losses = state["losses"]
        if len(state["random"]) == distributed.world_size():  # else dropout is drawn anew
            resume.set_random_states(state["random"][distributed.rank()], self.args.device)
        if distributed.is_first():
            tqdm.write(f"going on after step {self.progress['step']} of {self.num_steps}")

    def saved_state(self):
        """The newest state in the run's folder; None where there is none."""
        state = resume.load_state(self.run.folder)
        if state is not None:
            resume.check_settings(state["settings"], self.run.settings(), self.run.folder)
        return state

    def parts(self):
        names = "optimizer", "schedule", "scaler"
        return {"model": self.run.model} | {name: getattr(self, name) for name in names}


def best_of(records):
    """The evaluation of the best dev F1, the first of equals."""
    return max(records, key=lambda record: record["dev"]["f1"])
