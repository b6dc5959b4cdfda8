"""Seeds, precision and batches."""

import os
import random
from functools import partial

import numpy as np
import torch

from prepro import pairs_of


def set_seed(seed):
    """Seeds Python, NumPy and torch on all devices."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def make_deterministic():
    """Makes runs with the same seed equal to the last bit. torch warns where an operation has no
    deterministic version on the device."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = (
        False  # costs time; we read no such memory
    )
    torch.backends.cudnn.benchmark = False  # it would choose algorithms by measured times
    torch.backends.cuda.enable_mem_efficient_sdp(False)  # its gradient is not deterministic
    # cuBLAS reads this when it starts: each stream gets a workspace of its own.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def autocast(device, precision):
    """A function that returns a context manager, torch.autocast in this precision."""
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(precision)
    kind = torch.device(device).type
    return partial(torch.autocast, kind, dtype=dtype, enabled=dtype is not None)


def to_device(batch, device):
    """A batch of `collate` on the device."""
    if torch.device(device).type == "cpu":
        return batch
    # Copies from pinned memory overlap with the GPU's work on the step before.
    return {
        name: tensor.pin_memory().to(device, non_blocking=True) for name, tensor in batch.items()
    }


def special_tokens(tokenizer, transformer_type):
    """(opening, closing) token ids of a long document's windows; as in the released code, a window
    of RoBERTa's ends with two separators."""
    closing = 2 if transformer_type == "roberta" else 1
    return [tokenizer.cls_token_id], [tokenizer.sep_token_id] * closing


def window_starts(length, size, num_special):
    """The tokens at which the windows of a document start. The first window starts at 0, the last
    one ends with the document.

    Up to 2 * size tokens there are two windows, as in the released code, so that scores are
    comparable. (Of nearly 2 * size tokens, up to num_special in the middle are in neither window.)
    Longer documents have as many windows as it takes to cover all tokens.
    """
    if length <= size:
        return [0]
    fresh = size - num_special  # most further tokens that a window covers
    count = 2 if length <= 2 * size else 1 + -(-(length - size) // fresh)
    return [i * (length - size) // (count - 1) for i in range(count)]


def collate(features, tokens, num_class=97, size=512, sentences=False, evidence=False, multiple=1):
    """Features -> one batch, a dict of dense tensors (B documents of at most L tokens, W windows of
    T tokens, R mentions, E entities, P pairs; padded with 0):

    input_ids, attention_mask [W, T]; W = B and T = L if no document is longer than `size`
    mention_pos      [B, R]     token of each mention's opening "*"
    entity_mentions  [B, E, R]  True where a mention belongs to an entity
    num_entities     [B]
    pairs            [P, 3]     the classified pairs (document, head, tail), sorted by document
    labels           [P, num_class] bool, class 0 where no relation holds
    if a document is longer than `size`:
    window_doc       [W]        the document of a window
    window_start     [W]        its first token in the document
    window_valid     [W, T]     True at the document's tokens, not at added special tokens
    doc_mask         [B, L]     True at the tokens of each document
    if asked for:
    sentences        [B, L, S]  float, 1 where a token (also a marker) belongs to a sentence
    evidence         [P, S]     float, how many relations of the pair name the sentence

    tokens: (opening ids, closing ids, padding id), see `special_tokens`. A mention whose marker was
    cut off is left out. (As in the released code, a marker right at the cut falls on [SEP].) T is
    padded to a multiple of `multiple`, but not beyond `size`.
    """
    batch = _windows(features, tokens, size, multiple)
    batch |= _mentions(features)
    batch |= _pairs(features, num_class)
    if sentences:
        length = batch.get("doc_mask", batch["input_ids"]).shape[1]
        batch["sentences"] = _sentences(features, length)
    if evidence:
        batch["evidence"] = _evidence(features)
    return {name: torch.from_numpy(array) for name, array in batch.items()}


def _windows(features, tokens, size, multiple):
    opening, closing, padding = tokens
    windows = []  # (document, start, ids, first and end of the tokens that are the document's)
    for i, feature in enumerate(features):
        ids = feature["input_ids"]
        starts = window_starts(len(ids), size, len(opening) + len(closing))
        for k, start in enumerate(starts):
            own = ids[start : start + size]
            head = opening if k > 0 else []
            tail = closing if k < len(starts) - 1 else []
            end = len(own) - len(tail)
            windows.append((i, start, head + own[len(head) : end] + tail, len(head), end))
    width = max(len(x[2]) for x in windows)
    width = min(-(-width // multiple) * multiple, size)
    input_ids = np.full((len(windows), width), padding, dtype=np.int64)
    mask = np.zeros((len(windows), width), dtype=np.int64)
    valid = np.zeros((len(windows), width), dtype=bool)
    for i, (_, _, ids, first, end) in enumerate(windows):
        input_ids[i, : len(ids)] = ids
        mask[i, : len(ids)] = 1
        valid[i, first:end] = True
    batch = {"input_ids": input_ids, "attention_mask": mask}
    if len(windows) > len(features):
        batch["window_doc"] = np.array([x[0] for x in windows])
        batch["window_start"] = np.array([x[1] for x in windows])
        batch["window_valid"] = valid
        lengths = np.array([len(feature["input_ids"]) for feature in features])
        batch["doc_mask"] = np.arange(lengths.max()) < lengths[:, None]
    return batch


def _mentions(features):
    kept = []  # of each document the (entity, token) of its mentions
    for feature in features:
        length = len(feature["input_ids"])
        kept.append(
            [
                (e, start + 1)  # + 1: [CLS] comes first
                for e, spans in enumerate(feature["entity_pos"])
                for start, _ in spans
                if start + 1 < length
            ]
        )
    num_mentions = max(1, *map(len, kept))
    num_entities = max(1, *(len(feature["entity_pos"]) for feature in features))
    position = np.zeros((len(features), num_mentions), dtype=np.int64)
    belongs = np.zeros((len(features), num_entities, num_mentions), dtype=bool)
    for i, mentions in enumerate(kept):
        for j, (entity, token) in enumerate(mentions):
            position[i, j] = token
            belongs[i, entity, j] = True
    counts = np.array([len(feature["entity_pos"]) for feature in features])
    return {"mention_pos": position, "entity_mentions": belongs, "num_entities": counts}


def _sentences(features, length):
    most = max(len(feature["sentence_bounds"]) - 1 for feature in features)
    belongs = np.zeros((len(features), length, max(most, 1)), dtype=np.float32)
    for i, feature in enumerate(features):
        # + 1: [CLS] comes first. No sentence reaches beyond the cut or contains [SEP].
        bounds = np.minimum(np.array(feature["sentence_bounds"]) + 1, len(feature["input_ids"]) - 1)
        for s in range(len(bounds) - 1):
            belongs[i, bounds[s] : bounds[s + 1], s] = 1
    return belongs


def _evidence(features):
    most = max(1, *(len(feature["sentence_bounds"]) - 1 for feature in features))
    counts = [np.zeros((len(pairs_of(feature)), most), dtype=np.float32) for feature in features]
    for feature, of_pair in zip(features, counts, strict=True):
        head, tail, sentence = np.array(feature["evidence"], dtype=np.int64).reshape(-1, 3).T
        np.add.at(of_pair, (_pair_index(feature, head, tail), sentence), 1)
    return np.concatenate(counts)


def _pair_index(feature, head, tail):
    """The indices of the pairs (head, tail) in `pairs_of` the feature."""
    if "pairs" not in feature:
        return head * (len(feature["entity_pos"]) - 1) + tail - (tail > head)
    index = {pair: k for k, pair in enumerate(map(tuple, feature["pairs"].tolist()))}
    found = [index[pair] for pair in zip(head.tolist(), tail.tolist(), strict=True)]
    return np.array(found, dtype=np.int64)


def _pairs(features, num_class):
    pairs, index, classes, total = [], [], [], 0
    for i, feature in enumerate(features):
        ends = pairs_of(feature)
        pairs.append(np.concatenate([np.full((len(ends), 1), i), ends], axis=1))
        head, tail, relation = feature["triples"].T
        index.append(total + _pair_index(feature, head, tail))
        classes.append(relation)
        total += len(ends)
    labels = np.zeros((total, num_class), dtype=bool)
    labels[np.concatenate(index), np.concatenate(classes)] = True
    labels[:, 0] = ~labels[:, 1:].any(1)
    return {"pairs": np.concatenate(pairs), "labels": labels}
