"""Documents -> logits and sentence attention of a model, for train.py, predict.py, spaCy and
fusion."""

from functools import partial
from typing import NamedTuple

import torch
from tqdm import tqdm

from encoders.loading import check_precision, transformer_type, window_size
from engine import distributed
from inputs.files import InputError
from prepro import docred_features
from utils import autocast, collate, special_tokens, to_device

LARGEST = 2**27  # tokens x entities^2 of a batch, 4 bytes each; larger batches are made smaller


class Output(NamedTuple):
    """The output of a model for one document, on the CPU. P pairs, S sentences."""

    logits: torch.Tensor  # [P, classes] float32
    labels: torch.Tensor  # [P, classes] bool, class 0 where no relation holds
    sentence_attention: torch.Tensor  # [P, S] the part of each pair's attention on each sentence


class Predictor:
    """Applies a model, on the device it is on, to documents.

    max_seq_length: in tokens, longer documents are cut; batch_size: in documents; precision: from
    `engine.device.pick_device`. Raises InputError for a precision that the encoder does not have.
    """

    def __init__(self, model, tokenizer, *, max_seq_length, batch_size, precision):
        config = model.model.config
        check_precision(config, precision)
        self.model, self.tokenizer = model, tokenizer
        self.max_seq_length, self.batch_size = max_seq_length, batch_size
        opening, closing = special_tokens(tokenizer, transformer_type(config))
        self.collate = partial(
            collate,
            tokens=(opening, closing, tokenizer.pad_token_id),
            num_class=model.config.num_labels,
            size=window_size(config),
            # Fused attention on a GPU copies masks of other lengths in every layer.
            multiple=1 if model.on_cpu else 16,
        )
        self.autocast = autocast(model.device, precision)

    def features(self, documents):
        """`prepro.docred_features` of validated documents. Raises InputError for a tokenizer of
        another encoder."""
        rel2id = self.model.config.label2id
        features = docred_features(documents, self.tokenizer, self.max_seq_length, rel2id)
        check_vocabulary(features, self.model.model.config)
        return features

    def __call__(self, features, title=None, sentences=True):
        """The Output of each document, a list. title: of a progress bar; sentences: see
        `predict_batches`."""
        outputs = [None] * len(features)
        hidden = True if title is None else distributed.hides_bars()
        with tqdm(total=len(features), desc=title, unit="doc", leave=False, disable=hidden) as bar:
            for numbers, batch in self.predict_batches(features, sentences):
                for number, output in zip(numbers, batch, strict=True):
                    outputs[number] = output
                bar.update(len(numbers))
        return outputs

    def logits(self, documents):
        """The logits of each document, a list of [pairs, classes]."""
        return [output.logits for output in self(self.features(documents), sentences=False)]

    @torch.no_grad()
    def predict_batches(self, features, sentences=True):
        """Yields (indices of the documents, their Outputs) batch by batch, the longest documents
        first. sentences False: sentence_attention is [P, 0]."""
        self.model.eval()
        for numbers in batches(features, self.batch_size):
            batch = self.collate([features[i] for i in numbers], sentences=sentences)
            # Labels and counts stay on the CPU: fetching them from a GPU would wait for it.
            labels = batch.pop("labels")
            counts = torch.bincount(batch["pairs"][:, 0], minlength=len(numbers)).tolist()
            with self.autocast():
                output = self.model(**to_device(batch, self.model.device))
            logits, attention = output if sentences else (output, labels[:, :0])
            parts = zip(*(x.cpu().split(counts) for x in (logits, labels, attention)), strict=True)
            yield numbers, [Output(*part) for part in parts]


def check_vocabulary(features, config):
    """Raises InputError for a token id that the encoder does not have. config: the encoder's."""
    largest = max((max(feature["input_ids"]) for feature in features), default=0)
    if largest >= config.vocab_size:
        raise InputError(f"tokenizer: id {largest} is none of the encoder's {config.vocab_size}")


def batches(features, batch_size):
    """Yields lists of indices into `features`, the longest documents first: batch_size of them, or
    fewer where tokens x entities^2 would exceed LARGEST."""
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
