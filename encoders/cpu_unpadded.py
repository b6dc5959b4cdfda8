"""A faster forward on CPUs for BERT, RoBERTa, ELECTRA, DistilBERT, MPNet and DeBERTa-v2: the real
tokens of all windows in one unpadded tensor, attention in blocks that fit into the cache, dropout
from 16 random bits a number, with masks that are not stored. The output is that of the forward of
transformers, except that dropout draws other random numbers.

Shapes: W windows of T tokens, N real tokens in all windows together; width d.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from encoders import relative

# Attention scores that are computed at a time: 1 MiB in float32, which fits into a core's cache.
BLOCK = 1 << 18


class Layout(NamedTuple):
    """Names of an encoder's layers and of a layer's modules; rates are the configuration's names of
    three dropouts: of the attention weights, after the attention, after the feed-forward part."""

    layers: str = "encoder.layer"
    attention: str = "attention.self"
    projections: tuple = ("query", "key", "value")  # of the attention
    attention_dense: str = "attention.output.dense"
    attention_norm: str = "attention.output.LayerNorm"
    widening: tuple = ("intermediate",)  # the modules before `dense`, in their order
    dense: str = "output.dense"
    norm: str = "output.LayerNorm"
    rates: tuple = ("attention_probs_dropout_prob", "hidden_dropout_prob", "hidden_dropout_prob")


LAYOUTS = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert", "electra"), Layout()),
    "distilbert": Layout(
        layers="transformer.layer",
        attention="attention",
        projections=("q_lin", "k_lin", "v_lin"),
        attention_dense="attention.out_lin",
        attention_norm="sa_layer_norm",
        widening=("ffn.lin1", "ffn.activation"),
        dense="ffn.lin2",
        norm="output_layer_norm",
        rates=("attention_dropout", None, "dropout"),
    ),
    "mpnet": Layout(
        attention="attention.attn",
        projections=("q", "k", "v"),
        attention_dense="attention.attn.o",
        attention_norm="attention.LayerNorm",
    ),
    "deberta-v2": Layout(projections=("query_proj", "key_proj", "value_proj")),
}


def supports(config):
    """Whether `unpadded` can run this encoder, for which `computes_attention` is true."""
    has_convolution = getattr(config, "conv_kernel_size", 0) > 0  # DeBERTa's; it reads padding
    return config.model_type in LAYOUTS and not has_convolution


def unpadded(encoder, input_ids, attention_mask, num_layers=1):
    """Runs the layers on the real tokens, [N, d]. Returns the same as `mention_attention.hooked`,
    with zeros at padding."""
    config, parts = encoder.config, LAYOUTS[encoder.config.model_type]
    index = attention_mask.flatten().nonzero()[:, 0]
    lengths = attention_mask.sum(1).tolist()
    on_weights, on_attention, on_output = (
        getattr(config, name) if name and encoder.training else 0.0 for name in parts.rates
    )

    def padded(values):  # [N, n] -> [W, T, n]
        empty = values.new_zeros(input_ids.numel(), values.shape[1])
        return empty.index_copy(0, index, values).unflatten(0, input_ids.shape)

    x = encoder.embeddings(input_ids=input_ids)
    if hasattr(encoder, "embeddings_project"):  # ELECTRA's, narrower than its layers
        x = encoder.embeddings_project(x)
    x = x.flatten(0, 1).index_select(0, index)
    last = []  # (output, attention module, calls) of the last layers
    for layer in encoder.get_submodule(parts.layers):
        attention = layer.get_submodule(parts.attention)
        query, key, value = (getattr(attention, name)(x) for name in parts.projections)
        calls = {parts.projections[0]: [query], parts.projections[1]: [key]}
        query, tables = relative.tables(encoder, attention, query, calls, input_ids.shape[1])
        heads = config.num_attention_heads
        context = attend(query, key, value, lengths, heads, on_weights, *tables)
        context = dropout(layer.get_submodule(parts.attention_dense)(context), on_attention)
        x = layer.get_submodule(parts.attention_norm)(context + x)
        wide = x
        for name in parts.widening:
            wide = layer.get_submodule(name)(wide)
        output = dropout(layer.get_submodule(parts.dense)(wide), on_output)
        x = layer.get_submodule(parts.norm)(output + x)
        last = [*last, (x, attention, calls)][-num_layers:]
    for _, _, calls in last:
        for name in parts.projections[:2]:
            calls[name][0] = padded(calls[name][0])
    output = sum(output for output, *_ in last) / num_layers if num_layers > 1 else x
    return padded(output), [layer for _, *layer in last]


def attend(query, key, value, lengths, heads, rate, *tables):
    """softmax(Q K^T / sqrt(size of a head)) V in every window, with dropout of the weights: three
    times [N, d] -> [N, d]. lengths: tokens of each window, N in total; tables: see `Attention`."""
    if rate > 0 or tables:
        seed = _seed() if rate > 0 else 0
        return Attention.apply(query, key, value, lengths, heads, rate, seed, *tables)
    parts = (
        x.unflatten(1, (heads, -1)).transpose(0, 1).split(lengths, 1) for x in (query, key, value)
    )
    outputs = [
        F.scaled_dot_product_attention(*(x[None] for x in window))[0]
        for window in zip(*parts, strict=True)
    ]
    return torch.cat(outputs, 1).transpose(0, 1).flatten(1)


class Attention(torch.autograd.Function):
    """Attention with dropout, because torch has a fused one for GPUs only. A block is a window and
    some heads, to fit into the cache. The backward pass computes weights and dropout again.

    tables: none, or (bias, pos_key, pos_query) for relative positions, each of which may be None.
    The score of query i and key j is (Q_i K_j + Q_i pos_key[j - i + T - 1]
    + K_j pos_query[i - j + T - 1]) / sqrt(size of a head) + bias[:, i, j]; bias is [heads, T, T],
    pos_key and pos_query are [2 T - 1, d]."""

    @staticmethod
    def forward(ctx, query, key, value, lengths, heads, rate, seed, *tables):
        ctx.save_for_backward(query, key, value, *tables)
        ctx.settings = lengths, heads, rate, seed
        output = torch.empty_like(query)
        random = np.random.SFC64(seed)
        blocks = _blocks((query, key, value, output), tables, lengths, heads)
        for (q, k, v, out), positions in blocks:
            weights = _softmax(q, k, *positions)
            if rate > 0:
                weights *= keep(weights, rate, random)
            torch.bmm(weights, v, out=out)
        return output.mul_(1 / (1 - rate))

    @staticmethod
    def backward(ctx, grad):
        lengths, heads, rate, seed = ctx.settings
        inputs, tables = ctx.saved_tensors[:3], ctx.saved_tensors[3:]
        grads = [torch.empty_like(x) for x in inputs]
        grad_tables = [None if x is None else torch.zeros_like(x) for x in tables]
        grad = grad / (1 - rate)
        random = np.random.SFC64(seed)
        blocks = _blocks((*inputs, grad, *grads), (*tables, *grad_tables), lengths, heads)
        for (q, k, v, g, dq, dk, dv), positions in blocks:
            positions, grad_positions = positions[: len(tables)], positions[len(tables) :]
            bias, pos_key, pos_query = positions or (None, None, None)
            weights = _softmax(q, k, *positions)
            grad_weights = torch.bmm(g, v.transpose(1, 2))
            if rate > 0:
                mask = keep(weights, rate, random)
                grad_weights.mul_(mask)
                torch.bmm(mask.mul_(weights).transpose(1, 2), g, out=dv)
            else:
                torch.bmm(weights.transpose(1, 2), g, out=dv)
            scale = q.shape[2] ** -0.5
            grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
            if bias is not None:
                grad_positions[0].add_(grad_scores)
            torch.bmm(grad_scores.mul_(scale), k, out=dq)
            torch.bmm(grad_scores.transpose(1, 2), q, out=dk)
            if pos_key is not None:
                by_distance = _from_skewed(grad_scores)
                dq.baddbmm_(by_distance, pos_key)
                grad_positions[1].baddbmm_(by_distance.transpose(1, 2), q)
            if pos_query is not None:
                by_distance = _from_skewed(grad_scores.transpose(1, 2))
                dk.baddbmm_(by_distance, pos_query)
                grad_positions[2].baddbmm_(by_distance.transpose(1, 2), k)
        return *grads, None, None, None, None, *grad_tables


def _blocks(tensors, tables, lengths, heads):
    """Yields, block by block, views [heads of the block, tokens of the window, size of a head] of
    the tensors [N, d], and views of the tables for the same heads and tokens."""
    parts = (x.unflatten(1, (heads, -1)).transpose(0, 1).split(lengths, 1) for x in tensors)
    for window in zip(*parts, strict=True):
        length = window[0].shape[1]
        of_window = [_of_window(table, length, heads) for table in tables]
        step = max(1, BLOCK // length**2)
        for first in range(0, heads, step):
            block = slice(first, first + step)
            yield [x[block] for x in window], [None if x is None else x[block] for x in of_window]


def _of_window(table, length, heads):
    """The part of a table (see `Attention`) for a window of this length."""
    if table is None:
        return None
    if table.dim() == 3:
        return table[:, :length, :length]
    unused = table.shape[0] // 2 + 1 - length  # distances at either end that the window lacks
    middle = table[unused : table.shape[0] - unused]
    return middle.unflatten(1, (heads, -1)).transpose(0, 1)


def _softmax(query, key, bias=None, pos_key=None, pos_query=None):
    scores = torch.bmm(query, key.transpose(1, 2))
    if pos_key is not None:
        scores += _skewed(torch.bmm(query, pos_key.transpose(1, 2)))
    if pos_query is not None:
        scores += _skewed(torch.bmm(key, pos_query.transpose(1, 2))).transpose(1, 2)
    scores.mul_(query.shape[2] ** -0.5)
    if bias is not None:
        scores += bias
    return torch.softmax(scores, -1, out=scores)


def _skewed(by_distance):
    """[heads, n, 2 n - 1] -> the view [heads, n, n] whose (i, j) is (i, j - i + n - 1) there."""
    heads, length, width = by_distance.shape
    strides = (length * width, width - 1, 1)
    return by_distance.as_strided((heads, length, length), strides, length - 1)


def _from_skewed(scores):
    """The inverse of `_skewed`, with zeros at distances that no (i, j) has."""
    heads, length, _ = scores.shape
    by_distance = scores.new_zeros(heads, length, 2 * length - 1)
    _skewed(by_distance).copy_(scores)
    return by_distance


def dropout(x, rate):
    """F.dropout with cheaper random numbers and without a stored mask."""
    return Dropout.apply(x, rate, _seed()) if rate > 0 else x


class Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, rate, seed):
        ctx.settings = rate, seed
        return keep(x, rate, np.random.SFC64(seed)).mul_(x).mul_(1 / (1 - rate))

    @staticmethod
    def backward(ctx, grad):
        return Dropout.forward(ctx, grad, *ctx.settings), None, None


def keep(like, rate, random):
    """A tensor like `like`: 1 with probability 1 - rate (rounded to 16 bits), else 0."""
    bits = random.random_raw(-(-like.numel() // 4)).view(np.int16)
    bits = torch.from_numpy(bits)[: like.numel()].view(like.shape)
    limit = min(round(rate * 2**16), 2**16 - 1) - 2**15
    return torch.ge(bits, limit, out=torch.empty_like(like))


def _seed():
    return int(torch.randint(2**62, ()))
