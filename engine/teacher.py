"""Teachers: models of run folders whose logits and attention a student learns (--teacher).

What they give for the training documents is computed once and kept in half precision; where that
takes too much memory, or there are several processes, it is computed anew for each batch.
"""

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from encoders.loading import load_tokenizer
from engine import distributed
from engine.data import training_documents
from engine.inference import Predictor, batches
from engine.run_folder import load_model
from prepro import pairs_of
from utils import to_device


def load_teachers(args, data):
    """The Teachers of the flags for the training documents of the data, the unlabelled ones last.
    Raises InputError."""
    predictors = []
    for folder in args.teacher:
        model = load_model(folder).to(args.device)  # in evaluation mode
        model.cpu_kernels = args.cpu_kernels == "auto"
        how = {"batch_size": args.test_batch_size, "precision": args.precision}
        length = model.config.max_seq_length
        predictors.append(Predictor(model, load_tokenizer(folder), max_seq_length=length, **how))
    own, features = data.training_features(), [[] for _ in predictors]
    for documents in training_documents(args, data.rel2id):
        for predictor, made in zip(predictors, features, strict=True):
            for feature in predictor.features(documents):
                mine = own[len(made)]  # held once where it is the same
                made.append(mine if feature["input_ids"] == mine["input_ids"] else feature)
    return Teachers(
        predictors,
        features,
        same_ids=all(x is y for made in features for x, y in zip(made, own, strict=True)),
        logits=args.teacher_weight > 0,
        attention=args.teacher_evidence > 0,
    )


class Teachers:
    """What several teachers (Predictors) give in the mean. features: for each of them those of all
    documents; logits, attention: whether these are taught. same_ids: teachers and student see the
    same tokens, so their attention is compared token by token, else by sentences."""

    def __init__(self, predictors, features, *, same_ids, logits, attention):
        self.predictors, self.features, self.same_ids = predictors, features, same_ids
        self.logits, self.attention = logits, attention
        self.kept = []  # of each document what `compute` gives, attention once for {head, tail}

    def add(self, batch, numbers):
        """Adds what is taught to a student's batch of these documents, on its device:
        teacher_logits [P, classes] and teacher_attention [P, bins]. Of "sentences" it makes what
        `with_bins` gives."""
        device = batch["pairs"].device
        batch |= to_device(self.recall(numbers), device) if self.kept else self.compute(numbers)
        if self.attention:
            batch["sentences"] = with_bins(batch["sentences"], self.same_ids)
        return batch

    @torch.no_grad()
    def compute(self, numbers):
        """teacher_logits [P, classes] and teacher_attention [P, bins] of documents."""
        outputs = []
        for predictor, features in zip(self.predictors, self.features, strict=True):
            model, documents = predictor.model, [features[i] for i in numbers]
            batch = predictor.collate(documents, sentences=self.attention)
            del batch["labels"]
            batch = to_device(batch, model.device)
            if self.attention:
                batch["sentences"] = with_bins(batch["sentences"], self.same_ids)
            with predictor.autocast():
                output = model(**batch)
            logits, attention = output if self.attention else (output, None)
            taught = {"teacher_logits": logits} if self.logits else {}
            if self.attention:  # teachers may pad to other lengths, or have other windows
                taught["teacher_attention"] = attention[:, : self.num_bins(documents)]
            outputs.append(taught)
        return {name: sum(x[name] for x in outputs) / len(outputs) for name in outputs[0]}

    def keep(self, memory):
        """Computes all that will be taught, once, and lets go of the teachers, unless it takes more
        bytes than memory, or is for several processes."""
        if self.kept:  # for the run of another seed
            return
        once = distributed.world_size() == 1 and self.num_bytes() <= memory
        if distributed.is_first():
            when = "once" if once else "in every step"
            print(f"teachers: {self.num_bytes() / 1e9:.1f} GB, computed {when}")
            if self.attention:
                print(f"teachers: attention by {'tokens' if self.same_ids else 'sentences'}")
        if not once:
            return
        features, self.kept = self.features[0], [None] * len(self.features[0])
        hidden = distributed.hides_bars()
        bar = tqdm(total=len(features), desc="teachers", unit="doc", leave=False, disable=hidden)
        with bar:
            for numbers in batches(features, self.predictors[0].batch_size):
                documents = [features[i] for i in numbers]
                counts = [len(pairs_of(x)) for x in documents]
                taught = {x: tensor.half().cpu() for x, tensor in self.compute(numbers).items()}
                taught = {x: tensor.split(counts) for x, tensor in taught.items()}
                for k, i in enumerate(numbers):
                    own = {x: tensors[k].clone() for x, tensors in taught.items()}
                    if self.attention:
                        first, _ = unordered(documents[k])
                        width = self.num_bins([documents[k]])
                        own["teacher_attention"] = own["teacher_attention"][first, :width]
                    self.kept[i] = own
                bar.update(len(numbers))
        self.predictors = []

    def recall(self, numbers):
        """What `compute` gives, from what was kept."""
        taught = {}
        if self.logits:
            taught["teacher_logits"] = torch.cat([self.kept[i]["teacher_logits"] for i in numbers])
        if self.attention:
            documents = [self.features[0][i] for i in numbers]
            width = self.num_bins(documents)
            parts = [
                self.kept[i]["teacher_attention"][unordered(document)[1]]
                for i, document in zip(numbers, documents, strict=True)
            ]
            parts = [F.pad(part, (0, width - part.shape[1])) for part in parts]
            taught["teacher_attention"] = torch.cat(parts)
        return taught

    def num_bins(self, documents):
        """The most bins of any of these documents: its tokens, or its sentences and one more."""
        name = "input_ids" if self.same_ids else "sentence_bounds"
        return max(len(feature[name]) for feature in documents)

    def num_bytes(self):
        """What `keep` will keep."""
        num_class, values = self.predictors[0].model.config.num_labels, 0
        for feature in self.features[0]:
            values += self.logits * len(pairs_of(feature)) * num_class
            values += self.attention * len(unordered(feature)[0]) * self.num_bins([feature])
        return 2 * values


def with_bins(sentences, same_ids):
    """The bins over which attention is compared come first, the S sentences last. same_ids: every
    token is a bin, [B, L, L + S]. Else what lies on no sentence is the first bin, and the sentences
    are the others, [B, L, 1 + S]."""
    if same_ids:
        length = sentences.shape[1]
        tokens = torch.eye(length, device=sentences.device).expand(len(sentences), -1, -1)
        return torch.cat([tokens, sentences], dim=2)
    return torch.cat([1 - sentences.sum(2, keepdim=True), sentences], dim=2)


def unordered(feature):
    """Head and tail in either order have the same attention. Returns the indices of one pair of
    each {head, tail}, and for every pair which of these it is."""
    pairs = pairs_of(feature)
    key = pairs.min(1) * len(feature["entity_pos"]) + pairs.max(1) if len(pairs) else pairs[:, 0]
    _, first, place = np.unique(key, return_index=True, return_inverse=True)
    return first, place
