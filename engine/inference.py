"""Documents -> logits and sentence attention with a model: the one way, for train.py, predict.py,
spaCy and fusion."""

from functools import partial
from typing import NamedTuple

import torch
from tqdm import tqdm

from encoders.loading import check_precision, transformer_type, window_size
from engine import distributed
from inputs.files import InputError
from prepro import docred_features
from utils import autocast, collate, special_tokens, to_device

LARGEST = 2**27  # tokens x entities^2 of a batch (4 bytes each); beyond, it holds fewer documents


class Output(NamedTuple):
    """What a model says of one document, on the CPU. P pairs, S sentences."""

    logits: torch.Tensor  # [P, classes] float32
    labels: torch.Tensor  # [P, classes] bool, class 0 where no relation holds
    sentence_attention: torch.Tensor  # [P, S] of each pair's attention, the part on each sentence


class Predictor:
    """A model and its tokenizer, ready for documents.

    max_seq_length: tokens, longer documents are cut; batch_size: documents at once; precision: of
    `engine.device.pick_device`. The model stays on its device. Raises InputError for a precision
    that the encoder cannot compute in.
    """

    def __init__(self, model, tokenizer, *, max_seq_length, batch_size, precision):
        check_precision(model.model.config, precision)
        self.model, self.tokenizer = model, tokenizer
        self.max_seq_length, self.batch_size = max_seq_length, batch_size
        self.collate = collate_for(model, tokenizer)
        self.autocast = autocast(model.device, precision)

    def features(self, documents):
        """`prepro.docred_features` of validated documents. Raises InputError for a tokenizer that
        is not the encoder's."""
        rel2id = self.model.config.label2id
        features = docred_features(documents, self.tokenizer, self.max_seq_length, rel2id)
        check_vocabulary(features, self.model.model.config)
        return features

    def __call__(self, features, title=None):
        """The Output of each document, in their order. title: of a progress bar."""
        outputs = [None] * len(features)
        hidden = distributed.hides_bars() or title is None
        with tqdm(total=len(features), desc=title, unit="doc", leave=False, disable=hidden) as bar:
            for numbers, batch in self.batches(features):
                for number, output in zip(numbers, batch, strict=True):
                    outputs[number] = output
                bar.update(len(numbers))
        return outputs

    def logits(self, documents):
        """The logits of each of any documents, a list of [pairs, classes]."""
        features, logits = self.features(documents), {}
        for numbers, batch in self.batches(features, sentences=False):
            logits |= zip(numbers, (output.logits for output in batch), strict=True)
        return [logits[i] for i in range(len(features))]

    @torch.no_grad()
    def batches(self, features, sentences=True):
        """Yields (numbers of the documents, their Outputs) batch by batch, the longest documents
        first. sentences False: sentence_attention has no columns."""
        self.model.eval()
        for numbers in batches(features, self.batch_size):
            batch = self.collate([features[i] for i in numbers], sentences=sentences)
            # What is counted or kept on the CPU does not go to the GPU: the host would wait for it.
            labels = batch.pop("labels")
            counts = torch.bincount(batch["pairs"][:, 0], minlength=len(numbers)).tolist()
            with self.autocast():
                output = self.model(**to_device(batch, self.model.device))
            logits, attention = output if sentences else (output, labels[:, :0])
            parts = zip(*(x.cpu().split(counts) for x in (logits, labels, attention)), strict=True)
            yield numbers, [Output(*part) for part in parts]


def collate_for(model, tokenizer):
    """`utils.collate` with what this model and tokenizer need."""
    config = model.model.config
    opening, closing = special_tokens(tokenizer, transformer_type(config))
    return partial(
        collate,
        tokens=(opening, closing, tokenizer.pad_token_id),
        num_class=model.config.num_labels,
        size=window_size(config),
    )


def check_vocabulary(features, config):
    """Raises InputError for a token that the encoder does not have. config: the encoder's."""
    largest = max((max(feature["input_ids"]) for feature in features), default=0)
    if largest >= config.vocab_size:
        raise InputError(f"tokenizer: id {largest} is none of the encoder's {config.vocab_size}")


def batches(features, batch_size):
    """Lists of indices into `features`, the longest documents first: batch_size of them, fewer of
    documents with so many entities that their pairs would fill the memory."""
    lengths = [len(feature["input_ids"]) for feature in features]
    chosen, most = [], 0
    for i in sorted(range(len(features)), key=lambda i: -lengths[i]):
        num_entities = len(features[i]["entity_pos"])
        most = max(most, num_entities)
        size = (len(chosen) + 1) * lengths[(chosen or [i])[0]] * most**2
        if chosen and (len(chosen) == batch_size or size > LARGEST):
            yield chosen
            chosen, most = [], num_entities
        chosen.append(i)
    if chosen:
        yield chosen
