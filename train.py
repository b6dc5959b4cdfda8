"""One run: train, select the best epoch on dev, test it, leave a run folder.

    python train.py --data_dir dataset/redocred --model_name_or_path bert-base-cased

Several GPUs: torchrun --nproc_per_node=N train.py ... (see engine/distributed.py).
With --load_path (a run folder, or a .pt of a released code) it only evaluates.
With --seeds it makes several runs, one after the other; with --resume an interrupted run goes on.
The recipe is the paper's Appendix B; every number of it is a flag.
"""

import gc
import hashlib
import json
import os
import platform
import subprocess
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
import transformers

import evaluation
from encoders.loading import (
    build_encoder,
    check_precision,
    load_tokenizer,
    transformer_type,
    window_size,
)
from engine import distributed, resume
from engine.card import write_card
from engine.checkpoint import (
    load_model,
    load_state,
    load_weights,
    save_config,
    save_weights,
    sizes_of,
    weights_of,
)
from engine.data import Data
from engine.fusion import facts_of, fuse_documents, fused_predictions
from engine.margins import write_margins
from engine.options import (
    COMPARED,
    FREE_TO_CHANGE,
    SAVED_WITH_MODEL,
    check_output_dir,
    load_config,
    parse_runs,
)
from engine.prediction import logits_of_each, predict_logits, to_official
from engine.run_folder import locked
from engine.thresholds import best_evidence_threshold, best_fusion_threshold, best_shift
from engine.training import Training
from inputs.files import (
    InputError,
    relation_ids,
    run_main,
    sha256_of,
    write_atomically,
    write_json,
)
from losses import decode, margins, threshold_of
from model import new_model
from prepro import docred_features, pairs_of
from reporting.runs import read_results
from utils import (
    autocast,
    collate,
    make_deterministic,
    save_arrays,
    set_seed,
    special_tokens,
    to_device,
)


def tokenizer_name(args):
    """The run folder's, or a folder or hub name."""
    source = args.load_path or args.init_path
    if source and Path(source).is_dir():
        return source
    return args.tokenizer_name or args.model_name_or_path


def build_model(args, rel2id):
    """The model of a run: new, from a run folder or from a released .pt."""
    path = Path(args.load_path)
    if args.load_path and path.is_dir():
        model = load_model(path)
        if model.config.label2id != rel2id:
            raise InputError(f"--rel2id: {args.rel2id} has other relations than the run in {path}")
        return model
    source = args.config_name
    if args.init_path:
        path = Path(args.init_path)
        if path.is_dir():
            config = load_config(path)
            if config.label2id != rel2id:
                raise InputError(f"--rel2id: {args.rel2id} has other relations than {path}")
            path, source = weights_of(path), config.encoder.to_dict()
    state = load_state(path) if args.load_path or args.init_path else None
    encoder = build_encoder(args.model_name_or_path, source, state is None, args.attention_dropout)
    settings = {own: getattr(args, name) for name, own in SAVED_WITH_MODEL.items()}
    sizes = sizes_of(state, args.backbone) if state is not None else {}
    try:
        model = new_model(encoder, rel2id, **settings | sizes)
    except ValueError as error:
        raise InputError(f"--backbone {args.backbone}: {error}") from None
    if state is not None:
        load_weights(model, path, state)
    for name in sizes.keys() & vars(args).keys():  # the sizes of given weights count
        setattr(args, name, sizes[name])
    return model


class Run:
    """What training and evaluation of one run share: the model, the data and the settings.

    like: a run with other seed; what it has read is taken over.
    """

    def __init__(self, args, like=None):
        self.args = args
        self.commit = commit_of(Path(__file__).parent)  # now: another may lie there when it ends
        self.rel2id = relation_ids(args.rel2id)
        self.tokenizer = load_tokenizer(tokenizer_name(args))
        trains = not args.load_path
        self.data = like.data if like else Data(args, self.rel2id, self.tokenizer, trains)
        group = args.train_batch_size * args.gradient_accumulation_steps
        if trains and len(self.data.features["train"]) < group:
            raise InputError(
                f"{self.data.paths['train']}: {len(self.data.features['train'])} documents do not "
                f"fill one step of {group} (train_batch_size x gradient_accumulation_steps)"
            )
        if trains and args.evidence_weight and not self.data.features["train"].num_evidence.any():
            raise InputError(f"--evidence_weight: {self.data.paths['train']} names no evidence")
        if trains and args.backbone == "docunet" and distributed.world_size() > 1:
            self.check_docunet()
        self.folder = Path(args.output_dir) if args.output_dir else None
        if args.device == "cpu" or args.deterministic:
            make_deterministic()
        set_seed(args.seed)
        self.model = build_model(args, self.rel2id).to(args.device)
        self.model.cpu_kernels = args.cpu_kernels == "auto"
        config = self.model.model.config
        kind = transformer_type(config)
        if args.transformer_type not in (None, kind):
            raise InputError(
                f"--transformer_type {args.transformer_type}: the encoder is of type {kind}"
            )
        if self.data.largest >= config.vocab_size:
            raise InputError(
                f"tokenizer: id {self.data.largest} is none of the encoder's {config.vocab_size}"
            )
        check_precision(config, args.precision)
        tokens = *special_tokens(self.tokenizer, kind), self.tokenizer.pad_token_id
        self.collate = partial(
            collate, tokens=tokens, num_class=args.num_class, size=window_size(config)
        )
        teaches = args.evidence_weight > 0
        self.collate_training = partial(self.collate, sentences=teaches, evidence=teaches)
        self.amp = autocast(args.device, args.precision)

    def check_docunet(self):
        """Raises InputError unless its batch normalisation can go over all processes."""
        if self.args.device == "cpu":
            raise InputError("--backbone docunet: trains in several processes on GPUs only")
        most = self.data.features["train"].num_entities.max()
        if most > self.args.max_height:
            raise InputError(
                f"--max_height: {self.args.max_height} is less than the {most} entities of a "
                "document; training in several processes needs images of one size"
            )

    def batch(self, features):
        """The batch of these documents to train on, on the run's device."""
        return to_device(self.collate_training(features), self.args.device)

    def predict(self, split):
        """What `predict_logits` says of a split; None but in the first of several processes."""
        features = distributed.part_of(self.data.features[split])
        args, title = self.args, f"evaluate {split}"
        make = partial(self.collate, sentences=True)
        options = make, args.device, args.test_batch_size, self.amp, title
        part = predict_logits(self.model, features, *options) if features else None
        parts = distributed.gather_first(part)
        if distributed.is_first():
            logits, labels, shares = zip(*filter(None, parts), strict=True)
            return torch.cat(logits), torch.cat(labels), sum(shares, [])

    def score(self, split, logits, labels, shares, shift=0.0, evidence_threshold=None):
        """Scores and submission of a split, with the threshold shifted."""
        loss_type = self.args.loss_type
        if evidence_threshold is None:
            evidence_threshold = self.args.evidence_threshold
        predicted = decode(logits, loss_type, self.args.num_labels, shift)
        scores, submission = self.score_predictions(split, predicted, shares, evidence_threshold)
        threshold = threshold_of(logits, loss_type).numpy()
        patterns = evaluation.count_patterns(logits.numpy(), labels.numpy(), threshold, shift)
        # Where the threshold lies: how many relations score above it, in pairs that have one.
        above = (logits[:, 1:].numpy() - threshold > shift).sum(1)[labels[:, 1:].any(1).numpy()]
        place = {"above_threshold": float(above.mean()) if len(above) else 0.0}
        return scores | patterns | place, submission

    def patterns(self, split, logits, labels):
        """How many pairs of each document of a split have each of evaluation.PATTERNS."""
        threshold = threshold_of(logits, self.args.loss_type).numpy()
        found = evaluation.prediction_patterns(logits.numpy(), labels.numpy(), threshold)
        ends = np.cumsum([len(pairs_of(feature)) for feature in self.data.features[split]])
        parts = np.split(found, ends[:-1])
        return [np.bincount(part, minlength=len(evaluation.PATTERNS)).tolist() for part in parts]

    def score_predictions(self, split, predicted, shares, evidence_threshold):
        """The official scores of multi-hot predictions of all pairs, and their submission."""
        data, options = self.data, (self.rel2id, shares, evidence_threshold)
        submission = to_official(predicted, data.features[split], *options)
        scores = evaluation.evaluate(
            submission, data.documents[split], data.train_facts, frequent=data.frequent
        )
        return scores, submission

    def tune(self, outputs):
        """The shift of the threshold with the best dev F1, with it the threshold of evidence with
        the best dev evidence F1; the scores of every split with both, and the submissions.

        outputs: split -> what `predict_logits` says of it.
        """
        logits, labels, shares = outputs["dev"]
        above = margins(logits, self.args.loss_type, self.args.num_labels).numpy()
        gold = evaluation.gold_facts(self.data.documents["dev"])
        shift = best_shift(above, labels.numpy(), len(gold))
        predicted = decode(logits, self.args.loss_type, self.args.num_labels, shift)
        features = self.data.features["dev"]
        threshold = best_evidence_threshold(predicted, features, self.rel2id, shares, gold)
        results, submissions = {"shift": shift, "evidence_threshold": threshold}, {}
        for split, given in outputs.items():
            results[split], submissions[split] = self.score(split, *given, shift, threshold)
        return results, submissions

    def fuse(self, outputs):
        """The scores of every split together with pseudo documents, the threshold from dev (which
        the model's configuration keeps), and the submissions. See engine/fusion.py.

        outputs: split -> what `predict_logits` says of it.
        """
        args, results, submissions, config = self.args, {}, {}, self.model.config
        for split, (logits, _, shares) in outputs.items():
            started, documents = time.perf_counter(), self.data.documents[split]
            options = args.loss_type, args.evidence_threshold, self.logits_of
            fused, count = fuse_documents(documents, logits, shares, *options)
            if split == "dev":
                gold = [facts_of(document, self.rel2id) for document in documents]
                config.fusion_threshold = best_fusion_threshold(fused, gold)
                results["threshold"] = config.fusion_threshold
            predicted = fused_predictions(
                fused, documents, config.num_labels, config.fusion_threshold
            )
            results[split], submissions[split] = self.score_predictions(
                split, predicted, shares, args.evidence_threshold
            )
            results[split] |= {
                "pseudo_documents": count,
                "seconds": round(time.perf_counter() - started, 1),
            }
        return results, submissions

    def logits_of(self, documents):
        """Logits of each of any documents, a list."""
        args = self.args
        features = docred_features(documents, self.tokenizer, args.max_seq_length, self.rel2id)
        options = self.collate, args.device, args.test_batch_size, self.amp, "pseudo documents"
        return logits_of_each(self.model, features, *options)

    def settings(self):
        """What a run that goes on must have in common with its beginning: name -> value."""
        given = {name: x for name, x in vars(self.args).items() if name not in FREE_TO_CHANGE}
        data = {f"{split} data": x["sha256"] for split, x in self.data.description.items()}
        relations = hashlib.sha256(json.dumps(self.rel2id, sort_keys=True).encode()).hexdigest()
        return given | data | {"relations": relations}

    def describe(self):
        """What the run was made from, for results.json: settings, data and software."""
        args = self.args
        on_gpu = args.device.startswith("cuda")
        return {
            "args": vars(args) | {"rel2id": os.path.relpath(args.rel2id)},
            "data": self.data.description,
            "commit": self.commit,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "device": torch.cuda.get_device_name(args.device) if on_gpu else platform.machine(),
            "threads": torch.get_num_threads(),
            "processes": distributed.world_size(),
        }


def commit_of(folder):
    """The commit that a folder is at, with a + if its files were changed; None if it has none."""
    how = "describe --always --abbrev=40 --exclude=* --dirty=+"
    command = ["git", "-C", folder, *how.split()]
    try:
        result = subprocess.run(command, capture_output=True, text=True)
    except OSError:  # no git here
        return None
    return result.stdout.strip() or None


def clear_folder(folder):
    """Removes what an earlier run left in its folder."""
    resume.remove_states(folder)
    names = "results.json metrics.jsonl predictions.json patterns.json model.safetensors README.md "
    names += "config.json rel2id.json dev_logits.npz test_logits.npz dev_tuned.json "
    names += "test_tuned.json dev_fused.json test_fused.json dev_margins.xz test_margins.xz"
    for name in names.split():
        (folder / name).unlink(missing_ok=True)


def save_model_files(run):
    """What a run folder has of a model beside its weights."""
    save_config(run.model, run.folder)
    try:
        run.tokenizer.save_pretrained(run.folder)
    except Exception as error:  # tokenizers raises Exception itself
        raise InputError(f"{run.folder}: no tokenizer can be written: {error}") from None


def complete(run):
    """Trains where that is asked for, evaluates, and writes what is left of the run folder."""
    args, folder, best = run.args, run.folder, None
    log = resume.start_wandb(args)
    if not args.load_path:
        if distributed.is_first() and not (args.resume and resume.state_files(folder)):
            clear_folder(folder)
            save_model_files(run)
        best = Training(run, log)()
        if distributed.is_first():
            load_weights(run.model, folder / "model.safetensors")
        distributed.spread(run.model)
    elif folder and distributed.is_first() and (folder / "results.json").exists():
        clear_folder(folder)  # of the evaluation before
    outputs = {x: run.predict(x) for x in ("dev", "test") if x in run.data.documents}
    if distributed.is_first():
        results = report(run, best, outputs)
        test = {"test": results, "test_tuned": results.get("tuned", {})}
        test["test_fused"] = results.get("fusion", {})
        scores = {name: x.get("test", {}) for name, x in test.items()}
        log({f"{name}/{k}": x for name, part in scores.items() for k, x in part.items()}, None)


def show(results, title):
    """Prints the scores of the splits; title: may name some of them in braces."""
    for split in sorted(results.keys() & {"dev", "test"}):
        print(f"{split}, {title.format_map(results[split])}")
        print(evaluation.format_scores(results[split]))


def write_submissions(folder, submissions, name):
    """split -> submission, in the run folder if there is one."""
    for split, submission in submissions.items() if folder else ():
        write_json(folder / f"{split}_{name}.json", submission, indent=0)


def report(run, best, outputs):
    """Scores the outputs (split -> what `predict_logits` says), prints and writes what is left;
    returns what results.json has.

    best: the record of the best evaluation while training, None: nothing was trained.
    """
    args, folder, results = run.args, run.folder, run.describe()
    if best:
        results["best"] = {"epoch": best["epoch"], "step": best["step"]}
    results["dev"] = run.score("dev", *outputs["dev"])[0]
    print(f"dev\n{evaluation.format_scores(results['dev'])}")
    if "test" in outputs:
        results["test"], submission = run.score("test", *outputs["test"])
        print(f"test\n{evaluation.format_scores(results['test'])}")
        if folder:
            write_json(folder / "predictions.json", submission, indent=0)
    if args.tune_threshold:
        results["tuned"], submissions = run.tune(outputs)
        show(results["tuned"], f"threshold shifted by {results['tuned']['shift']:+.4f}")
        write_submissions(folder, submissions, "tuned")
    if args.fusion:
        results["fusion"], submissions = run.fuse(outputs)
        show(results["fusion"], "with {pseudo_documents} pseudo documents, {seconds:.0f} s")
        write_submissions(folder, submissions, "fused")
    if folder:
        patterns = {split: run.patterns(split, *given[:2]) for split, given in outputs.items()}
        write_json(folder / "patterns.json", patterns, indent=0)
        for split, (logits, labels, _) in outputs.items():
            above = (logits - threshold_of(logits, args.loss_type)).numpy()
            right = evaluation.ranked_right(logits.numpy(), labels.numpy())
            write_margins(folder / f"{split}_margins.xz", above, labels.numpy(), right)
    if folder and args.save_logits:
        for split, (logits, labels, _) in outputs.items():
            threshold = threshold_of(logits, args.loss_type)
            arrays = {"logits": logits, "labels": labels, "threshold": threshold}
            arrays = {name: tensor.numpy() for name, tensor in arrays.items()}
            save = partial(save_arrays, arrays=arrays)
            write_atomically(folder / f"{split}_logits.npz", save)
    if folder:
        if best:
            write_card(folder, run.model.config, results)
            save_config(run.model, folder)
        elif Path(args.load_path).is_file():  # from now on a run folder like any other
            save_weights(run.model, folder)
            save_model_files(run)
        else:
            write_json(folder / "rel2id.json", run.rel2id)
        write_json(folder / "results.json", results)
        resume.remove_states(folder)
        print(f"run folder: {folder}")
    if args.fusion and not best and Path(args.load_path).is_dir():
        config = run.model.config
        own = config.loss_type, config.evidence_threshold
        if own == (args.loss_type, args.evidence_threshold):
            save_config(run.model, Path(args.load_path))  # the threshold, for predict.py --fusion
        else:
            print("the threshold of fusion is not kept: the flags are not the model's own")
    return results


def is_finished(args):
    """Whether there is nothing left to do for --resume. Raises InputError if what is finished is
    another run than this."""
    folder = Path(args.output_dir)
    if not args.resume or not (folder / "results.json").exists():
        return False
    results = read_results(folder / "results.json")
    compared = COMPARED
    if Path(args.init_path).is_file():  # its sizes were taken, whatever the flags said
        compared = compared - {"emb_size", "unet_in_dim", "unet_out_dim", "down_dim"}
    saved, now = (
        {name: given[name] for name in compared} for given in (results["args"], vars(args))
    )
    for split, of_run in results["data"].items():
        path = Path(args.data_dir) / now[f"{split}_file"]
        if of_run and path.is_file():
            saved[f"{split} data"], now[f"{split} data"] = of_run["sha256"], sha256_of(path)
    resume.check_settings(saved, now, folder)
    if relation_ids(args.rel2id) != relation_ids(folder / "config.json"):
        raise InputError(f"--rel2id: {args.rel2id} has other relations than the run in {folder}")
    resume.remove_states(folder)  # killed before it removed them
    print(f"finished before: {folder}")
    return True


def main(argv=None):
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    with distributed.processes():
        make_runs(parse_runs(argv))


def make_runs(runs):
    run = None
    for args in runs:
        with locked(args.output_dir):
            check_output_dir(args)  # once more: another run may have ended here since the first
            if distributed.share(partial(is_finished, args)):
                continue
            run = Run(args, like=run)
            if distributed.is_first():
                print(f"device: {args.device}, precision: {args.precision}")
            try:
                complete(run)
            except RuntimeError as error:
                said = str(error)
                if not (isinstance(error, torch.OutOfMemoryError) or "allocate memory" in said):
                    raise
                raise InputError(
                    f"{args.device}: out of memory; take a smaller --train_batch_size and so much "
                    "larger --gradient_accumulation_steps (the same batch in all), a smaller "
                    "--test_batch_size, or --max_seq_length"
                ) from None
            run.model = None
            gc.collect()  # models lie in cycles; the next seed needs their memory


if __name__ == "__main__":
    run_main(main)
