"""One run: train, select the best epoch on dev, test it, and write a run folder.

    python train.py --data_dir dataset/redocred --model_name_or_path bert-base-cased

Several GPUs: torchrun --nproc_per_node=N train.py ... (see engine/distributed.py).
--load_path (a run folder, or a .pt of a released code) only evaluates; --seeds makes several runs,
one after the other; --resume goes on with an interrupted run. The recipe is the paper's Appendix B;
every number of it is a flag.
"""

import dataclasses
import gc
from contextlib import contextmanager
from functools import partial
from inspect import signature
from pathlib import Path

import torch
import transformers

from encoders.loading import load_tokenizer
from engine import distributed, fit, resume, run_folder, scoring
from engine.checkpoint import load_weights
from engine.command_line import check_output_dir, parse_runs
from engine.data import read_data
from engine.inference import Predictor, check_vocabulary
from engine.models import build_model, tokenizer_name
from engine.teacher import load_teachers
from engine.tracking import start_wandb, test_scores
from evaluation import format_scores
from inputs.files import InputError, relation_ids, run_main, write_json
from losses import all_options, get_loss, options_of, takes_priors
from prepro import pairs_of, related_pairs
from utils import make_deterministic, set_seed, to_device


def main(argv=None):
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    with distributed.processes():
        data = None
        for args in parse_runs(argv):
            with run_folder.locked(args.output_dir), out_of_memory_as_one_line(args.device):
                check_output_dir(args)  # again, now that no other run can finish in it
                if not distributed.broadcast(partial(resume.is_finished, args)):
                    data = train_and_evaluate(args, data)
            gc.collect()  # frees the model, which is in reference cycles, for the next seed


def train_and_evaluate(args, data=None):
    """Trains unless --load_path is given, evaluates, and writes the run folder. data: that of the
    run of another seed, so that it is read once. Returns the data."""
    folder = Path(args.output_dir) if args.output_dir else None
    commit = run_folder.commit_of(Path(__file__).parent)  # before files are changed meanwhile
    rel2id = relation_ids(args.rel2id)
    tokenizer = load_tokenizer(tokenizer_name(args))
    data = data or read_data(args, rel2id, tokenizer)
    if args.device == "cpu" or args.deterministic:
        make_deterministic()
    if args.teacher and not args.load_path:
        data.teachers = data.teachers or load_teachers(args, data)
    set_seed(args.seed)
    model = build_model(args, rel2id).to(args.device)
    for features in data.features.values():
        check_vocabulary(features, model.model.config)
    predictor = Predictor(
        model,
        tokenizer,
        max_seq_length=args.max_seq_length,
        batch_size=args.test_batch_size,
        precision=args.precision,
    )
    if distributed.is_first():
        print(f"device: {args.device}, precision: {args.precision}")
    log, best = start_wandb(args), None
    if not args.load_path:
        best = train(args, data, predictor, folder, log)
    elif folder and distributed.is_first() and (folder / run_folder.RESULTS).exists():
        run_folder.clear(folder)  # what the evaluation before this one left
    outputs = {split: predict(predictor, data, split) for split in data.documents}
    if distributed.is_first():
        results = run_folder.describe(args, data, commit)
        if best:
            results["best"] = {"epoch": best["epoch"], "step": best["step"]}
        results |= evaluate(args, data, outputs, predictor, folder)
        log(test_scores(results), None)
        finish(args, results, predictor, folder)
    return data


def train(args, data, predictor, folder, log):
    """Trains to the end, with --resume from the saved state. Returns the record of the best
    evaluation on dev and leaves its weights in the model."""
    model, features = predictor.model, data.training_features()
    loss_function = loss_of(args, data, model.config)
    if distributed.world_size() > 1:
        model.check_processes(args.device, max(len(x["entity_pos"]) for x in features))
    if distributed.is_first() and not (args.resume and run_folder.state_files(folder)):
        run_folder.clear(folder)
        run_folder.save_model_files(model, predictor.tokenizer, folder)
    replica = distributed.replicate(model)
    forward = fit.CastOnce(model) if replica is model else replica
    steps_per_epoch = len(features) // (args.train_batch_size * args.gradient_accumulation_steps)
    num_steps = args.max_steps or steps_per_epoch * args.num_train_epochs
    optimizer = fit.make_optimizer(
        model,
        learning_rate=args.learning_rate,
        classifier_lr=args.classifier_lr,
        adam_epsilon=args.adam_epsilon,
        own_rates={
            module: getattr(args, name)
            for name, (_, _, modules) in model.learning_rates.items()
            for module in modules
        },
    )
    schedule = fit.make_schedule(optimizer, num_steps, args.warmup_ratio)
    scaler = torch.amp.GradScaler(args.device.split(":")[0], enabled=args.precision == "fp16")
    num_labelled, teachers = len(data.features["train"]), data.teachers
    learns_evidence = args.evidence_weight > 0
    weights = {
        "labels": args.label_weight,
        "evidence": args.label_weight * args.evidence_weight,
        "teacher_logits": args.teacher_weight,
        "teacher_attention": args.teacher_evidence,
    }

    def epochs():
        generator = torch.Generator().manual_seed(args.seed)
        lengths, by_length = [len(x["input_ids"]) for x in features], args.group_by_length
        sizes = args.train_batch_size, args.gradient_accumulation_steps
        while True:
            yield fit.epoch_groups(lengths, *sizes, generator, by_length)

    def make_batch(numbers):
        own = numbers[distributed.rank() :: distributed.world_size()]
        own = sorted(own, key=lambda i: i >= num_labelled)  # labelled documents first
        num_pairs = sum(len(pairs_of(features[i])) for i in own if i < num_labelled)
        batch = predictor.collate(
            [features[i] for i in own],
            sentences=learns_evidence or args.teacher_evidence > 0,
            evidence=learns_evidence,
        )
        for name in batch.keys() & {"labels", "evidence"}:
            batch[name] = batch[name][:num_pairs]
        batch = to_device(batch, args.device)
        return teachers.add(batch, own) if teachers else batch

    def step(group):
        documents = [features[i] for batch in group for i in batch]
        labelled = [features[i] for batch in group for i in batch if i < num_labelled]
        num_pairs = sum(len(pairs_of(x)) for x in documents)
        counts = {  # each term is a mean over so many pairs
            "labels": sum(len(pairs_of(x)) for x in labelled),
            "evidence": sum(len(related_pairs(x)) for x in labelled),
            "teacher_logits": num_pairs,
            "teacher_attention": num_pairs,
        }
        return fit.train_step(
            forward,
            [make_batch(batch) for batch in group],
            loss_function=loss_function,
            optimizer=optimizer,
            schedule=schedule,
            scaler=scaler,
            autocast=predictor.autocast,
            max_grad_norm=args.max_grad_norm,
            weights=weights,
            counts=counts,
        )

    def evaluate_dev():
        outputs = predict(predictor, data, "dev")
        replica.train()
        return distributed.broadcast(
            lambda: scoring.score(outputs, data, "dev", **decoding(args))[0]
        )

    def keep(records, is_best):
        run_folder.write_metrics(folder, records)
        log({f"dev/{name}": x for name, x in records[-1]["dev"].items()}, records[-1]["step"])
        if is_best:
            run_folder.save_weights(model, folder)

    def log_loss(values, step):
        log(values | {"learning_rate": schedule.get_last_lr()[0]}, step)

    parts = {"model": model, "optimizer": optimizer, "schedule": schedule, "scaler": scaler}
    settings = resume.settings_of(args, data)
    if distributed.rank():  # every process draws its own dropout
        torch.manual_seed(args.seed + distributed.rank())
    progress = resume.restore(folder, parts, settings, args.device) if args.resume else {}
    if teachers:
        teachers.keep(memory=1e9 * args.teacher_memory)  # takes long, so after all checks
    replica.train()
    best = fit.fit(
        fit.Progress(**progress),
        epochs=epochs(),
        num_steps=num_steps,
        steps_per_epoch=steps_per_epoch,
        step=step,
        evaluate=evaluate_dev,
        keep=keep,
        save=lambda progress: resume.save_state(
            folder, parts, settings, dataclasses.asdict(progress), args.device
        ),
        log=log_loss,
        evaluation_steps=args.evaluation_steps,
        save_steps=args.save_steps,
    )
    if distributed.is_first():
        load_weights(model, folder / run_folder.WEIGHTS)
    distributed.broadcast_weights(model)
    return best


def loss_of(args, data, config):
    """The loss of the flags. For one that takes class priors the model's configuration gets those
    of the training file. Raises InputError for a relation that SSR_PU would expect in all pairs."""
    options = {name: getattr(args, name) for name in all_options()}
    if not takes_priors(args.loss_type):
        return get_loss(args.loss_type, **options)
    priors = torch.tensor([*data.class_priors.values()], device=args.device)
    loss_function = get_loss(args.loss_type, priors, **options)
    config.class_priors = data.class_priors
    if "prior_factor" not in options_of(args.loss_type):
        return loss_function
    factor = signature(loss_function).parameters["prior_factor"].default  # as given, or the loss's
    for name, prior in data.class_priors.items():
        if factor * prior >= 1:
            raise InputError(
                f"--prior_factor: {factor:g} times the {100 * prior:.1f} % of pairs that have "
                f"{name} in {args.train_file} is all of them or more"
            )
    return loss_function


def predict(predictor, data, split):
    """The Output of each document of a split, a list; None but in the first process."""
    features = distributed.own_part(data.features[split])
    parts = distributed.gather_first(predictor(features, title=f"evaluate {split}"))
    return sum(parts, []) if distributed.is_first() else None


def decoding(args):
    """The settings that turn logits into predictions, as engine/scoring.py takes them."""
    names = "loss_type", "num_labels", "evidence_threshold"
    return {name: getattr(args, name) for name in names}


def evaluate(args, data, outputs, predictor, folder):
    """Scores the outputs, split -> one Output per document; prints the scores and writes
    submissions, patterns and margins. Returns the scores for results.json."""
    results, submissions = {}, {}
    for split, of_split in outputs.items():
        results[split], submissions[split] = scoring.score(of_split, data, split, **decoding(args))
        print(f"{split}\n{format_scores(results[split])}")
    if folder and "test" in submissions:
        write_json(folder / run_folder.PREDICTIONS, submissions["test"], indent=0)

    def show_and_keep(kind, title, submissions):
        for split in outputs:
            print(f"{split}, {title.format_map(results[kind][split])}")
            print(format_scores(results[kind][split]))
        if folder:
            run_folder.write_submissions(folder, submissions, kind)

    if args.tune_threshold:
        results["tuned"], found = scoring.tune(outputs, data, **decoding(args))
        shift = results["tuned"]["shift"]
        show_and_keep("tuned", f"threshold shifted by {shift:+.4f}", found)
    if args.fusion:
        results["fusion"], found = scoring.fuse(
            outputs, data, predictor.logits, args.loss_type, args.evidence_threshold
        )
        title = "with {pseudo_documents} pseudo documents, {seconds:.0f} s"
        show_and_keep("fusion", title, found)
    if folder:
        run_folder.write_outputs(folder, outputs, args.loss_type, args.save_logits)
    return results


def finish(args, results, predictor, folder):
    """Writes the model's files where they are not written yet, the model card, and at last
    results.json, which marks the run as finished."""
    model, source = predictor.model, Path(args.load_path)
    if args.fusion:
        model.config.fusion_threshold = results["fusion"]["threshold"]
    if folder:
        if not args.load_path:
            run_folder.write_card(folder, model.config, results)
            run_folder.save_config(model, folder)
        elif source.is_file():  # of a released checkpoint this makes a run folder
            run_folder.save_weights(model, folder)
            run_folder.save_model_files(model, predictor.tokenizer, folder)
        else:
            write_json(folder / run_folder.RELATIONS, model.config.label2id)
        write_json(folder / run_folder.RESULTS, results)
        run_folder.remove_states(folder)
        print(f"run folder: {folder}")
    if args.fusion and args.load_path and source.is_dir():
        own = model.config.loss_type, model.config.evidence_threshold
        if own == (args.loss_type, args.evidence_threshold):
            run_folder.save_config(model, source)  # predict.py --fusion needs the threshold
        else:
            print("the threshold of fusion is not kept: the flags are not the model's own")


@contextmanager
def out_of_memory_as_one_line(device):
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)):
            raise
        raise InputError(
            f"{device}: out of memory; take a smaller --train_batch_size and so much larger "
            "--gradient_accumulation_steps (the same batch in all), a smaller --test_batch_size, "
            "or --max_seq_length"
        ) from None


if __name__ == "__main__":
    run_main(main)
