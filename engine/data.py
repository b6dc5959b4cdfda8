"""The documents of a run: dev and test as lists, the training file of any size in passing."""

from collections import Counter
from functools import cached_property, partial
from itertools import islice
from pathlib import Path

from tqdm import tqdm

from engine import distributed
from evaluation import count_relations, frequent_relations, gold_facts, named_facts
from inputs.documents import iter_documents, read_documents
from inputs.files import InputError, sha256_of
from prepro import Features, docred_features

CHUNK = 1000  # documents whose features are made together: each distinct word once


class Data:
    """The documents of the train, dev and test files (`test_file` may be empty), all validated.

    documents: split -> list, of dev and test. features: split -> what Training and Run.predict
    take: a list (`prepro.docred_features`), of train `prepro.Features`; train only if `trains`.
    train_facts: the facts by name (`evaluation.named_facts`) of the training file, as far as dev or
    test have them too, which is all that the Ign scores ask for. frequent: the properties that the
    freq scores are of. Both are known to the first process, which scores. largest: token id.

    Raises InputError at the first fault of a file.
    """

    def __init__(self, args, rel2id, tokenizer, trains=True):
        files = {"train": args.train_file, "dev": args.dev_file, "test": args.test_file}
        if not args.train_file or not args.dev_file:
            raise InputError("--train_file and --dev_file: both are needed")
        self.paths = {k: Path(args.data_dir) / name for k, name in files.items() if name}
        self.rel2id = rel2id
        self.documents = {
            split: read_documents(path, rel2id)
            for split, path in self.paths.items()
            if split != "train"
        }
        make = partial(
            docred_features,
            tokenizer=tokenizer,
            max_seq_length=args.max_seq_length,
            rel2id=rel2id,
        )
        self.features = {split: make(documents) for split, documents in self.documents.items()}
        self.largest = max(max(x["input_ids"]) for part in self.features.values() for x in part)
        self.train_facts, self.train_size, self.train_relations = set(), 0, Counter()
        if trains:
            self.features["train"] = Features(self.train_features(make))
            self.largest = max(self.largest, self.features["train"].largest.max())
        elif distributed.is_first():
            for _ in self.pass_train():
                pass
        self.frequent = frequent_relations(self.train_relations, rel2id)

    def pass_train(self):
        """The training documents, one at a time, as they are read, validated and counted."""
        wanted = set().union(*map(named_facts, self.documents.values()))
        documents = iter_documents(self.paths["train"], self.rel2id, unique_titles=False)
        hidden = distributed.hides_bars()
        for x in tqdm(documents, desc="train file", unit="doc", leave=False, disable=hidden):
            self.train_facts |= named_facts([x]) & wanted
            self.train_size += 1
            self.train_relations.update(count_relations([x]))
            yield x

    def train_features(self, make):
        """Made in passing, of CHUNK documents at a time."""
        documents = self.pass_train()
        while chunk := list(islice(documents, CHUNK)):
            yield from make(chunk)

    @cached_property
    def description(self):
        """Split -> its file's name and SHA-256, numbers of documents and distinct facts. Read once:
        every saved state of every seed has it in its settings."""
        counts = {
            split: {"documents": len(documents), "triples": len(gold_facts(documents))}
            for split, documents in self.documents.items()
        }
        triples = self.train_relations.total()
        counts["train"] = {"documents": self.train_size, "triples": triples}
        return {
            split: {"file": path.name, "sha256": sha256_of(path)} | counts[split]
            for split, path in self.paths.items()
        }
