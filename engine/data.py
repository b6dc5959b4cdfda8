"""The data of a run: the documents of dev and test, and the features of all files."""

from collections import Counter
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

from engine import distributed
from evaluation import count_relations, frequent_relations, gold_facts, named_facts
from inputs.documents import iter_documents, read_documents
from inputs.files import InputError, sha256_of
from prepro import docred_features, pairs_of

CHUNK = 1000  # documents whose distinct words are tokenized together


@dataclass
class Data:
    """rel2id: property -> class id. documents: split -> list, for dev and, if there is a test file,
    test. features: split -> list (`prepro.docred_features`); with train, and unlabelled if there is
    such a file, unless the run only evaluates.

    train_facts: the facts of the training file by name (`evaluation.named_facts`) that dev or test
    have, too; the Ign scores need no others. frequent: the properties of the freq scores. files:
    split -> name and SHA-256 of the file, numbers of documents and distinct facts. class_priors:
    see below; {} if the run only evaluates.
    """

    rel2id: dict
    documents: dict
    features: dict
    train_facts: set
    frequent: frozenset
    files: dict
    class_priors: dict
    teachers: object = None  # engine.teacher.Teachers, kept for the run of another seed

    def training_features(self):
        """The features of all documents that are trained on, those without labels last."""
        return self.features["train"] + self.features.get("unlabelled", [])


def read_data(args, rel2id, tokenizer):
    """Reads and validates the train, dev and test files. Raises InputError at the first error."""
    if not args.train_file or not args.dev_file:
        raise InputError("--train_file and --dev_file: both are needed")
    names = {"train": args.train_file, "dev": args.dev_file, "test": args.test_file}
    if not args.load_path:
        names["unlabelled"] = args.unlabelled_file
    paths = {split: Path(args.data_dir) / name for split, name in names.items() if name}
    documents = {x: read_documents(paths[x], rel2id) for x in ("dev", "test") if x in paths}
    make_features = partial(
        docred_features, tokenizer=tokenizer, max_seq_length=args.max_seq_length, rel2id=rel2id
    )
    features = {split: make_features(of_split) for split, of_split in documents.items()}
    files = {
        split: {
            "file": path.name,
            "sha256": sha256_of(path),
            "documents": len(documents.get(split, [])),
            "triples": len(gold_facts(documents.get(split, []))),
        }
        for split, path in paths.items()
    }
    # The training file may be large, so its documents are not kept.
    wanted = set().union(*map(named_facts, documents.values()))
    facts, relations, made = set(), Counter(), []
    for chunk in chunks(paths["train"], rel2id):
        facts |= named_facts(chunk) & wanted
        relations.update(count_relations(chunk))
        files["train"]["documents"] += len(chunk)
        if not args.load_path:
            made += make_features(chunk)
    files["train"]["triples"] = relations.total()
    priors = {}
    if not args.load_path:
        features["train"] = made
        if args.evidence_weight and not any(feature["evidence"] for feature in made):
            raise InputError(f"--evidence_weight: {paths['train']} names no evidence")
        priors = class_priors(made, rel2id)
    if "unlabelled" in paths:
        features["unlabelled"] = []
        for chunk in chunks(paths["unlabelled"], rel2id, labelled=False):
            features["unlabelled"] += make_features(chunk)
        files["unlabelled"]["documents"] = len(features["unlabelled"])
        if len({"pairs" in x for x in made + features["unlabelled"]}) > 1:
            raise InputError(
                f"--unlabelled_file: of {paths['unlabelled']} and {paths['train']}, only some "
                "documents have candidates"
            )
    count = len(made) + len(features.get("unlabelled", []))
    group = args.train_batch_size * args.gradient_accumulation_steps
    if count < group and not args.load_path:
        raise InputError(
            f"{paths['train']}: {count} documents do not fill one step of {group} "
            "(train_batch_size x gradient_accumulation_steps)"
        )
    frequent = frequent_relations(relations, rel2id)
    return Data(rel2id, documents, features, facts, frequent, files, priors)


def training_documents(args, rel2id):
    """Yields the documents that are trained on as lists, the unlabelled ones last."""
    yield from chunks(Path(args.data_dir) / args.train_file, rel2id)
    if args.unlabelled_file:
        yield from chunks(Path(args.data_dir) / args.unlabelled_file, rel2id, labelled=False)


def chunks(path, rel2id, labelled=True):
    """Yields the documents of a training file as lists of at most CHUNK, because a large file takes
    too much memory."""
    stream = iter_documents(path, rel2id, unique_titles=False, labelled=labelled)
    hidden = distributed.hides_bars()
    with tqdm(stream, path.name, unit="doc", leave=False, disable=hidden) as stream:
        stream = iter(stream)
        while chunk := list(islice(stream, CHUNK)):
            yield chunk


def class_priors(features, rel2id):
    """Property -> the share of all pairs for which it holds, in the order of the class ids."""
    counts = np.bincount(np.concatenate([x["triples"][:, 2] for x in features]), None, len(rel2id))
    num_pairs = max(sum(len(pairs_of(x)) for x in features), 1)
    names = sorted(rel2id, key=rel2id.get)[1:]
    return {name: int(counts[rel2id[name]]) / num_pairs for name in names}
