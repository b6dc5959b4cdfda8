"""The CPU's own way through BERT and its kin: the real tokens one after the other, without padding;
attention in blocks that stay in the cache; dropout of 16 random bits a number, never stored. The
numbers are those of transformers' forward (dropout aside, whose draws differ).

Shapes: W windows of T tokens, N of them real; width d.
"""

import numpy as np
import torch
import torch.nn.functional as F

# Scores computed at a time: 1 MiB in float32, which a core's cache holds.
BLOCK = 1 << 18


def packed(encoder, input_ids, attention_mask, num_layers=1):
    """BERT's layers over the real tokens [N, d] alone: what `rows.hooked` returns, zero at
    padding."""
    config, training = encoder.config, encoder.training
    place = attention_mask.flatten().nonzero()[:, 0]
    lengths = attention_mask.sum(1).tolist()
    x = encoder.embeddings(input_ids=input_ids)
    if hasattr(encoder, "embeddings_project"):  # ELECTRA's, narrower than its layers
        x = encoder.embeddings_project(x)
    x = x.flatten(0, 1).index_select(0, place)
    on_weights = config.attention_probs_dropout_prob if training else 0.0
    on_hidden = config.hidden_dropout_prob if training else 0.0
    last = []  # (output, attention module, query, key) of each of the last layers
    for layer in encoder.encoder.layer:
        projections = (getattr(layer.attention.self, name) for name in ("query", "key", "value"))
        query, key, value = (linear(x) for linear in projections)
        context = attend(query, key, value, lengths, config.num_attention_heads, on_weights)
        x = _add_norm(layer.attention.output, context, x, on_hidden)
        x = _add_norm(layer.output, layer.intermediate(x), x, on_hidden)
        last = [*last, (x, layer.attention.self, query, key)][-num_layers:]

    def unpack(values):
        empty = values.new_zeros(input_ids.numel(), values.shape[1])
        return empty.index_copy(0, place, values).unflatten(0, input_ids.shape)

    output = sum(output for output, *_ in last) / num_layers if num_layers > 1 else x
    return unpack(output), [
        (attention, {"query": [unpack(query)], "key": [unpack(key)]})
        for _, attention, query, key in last
    ]


def _add_norm(block, x, residual, rate):
    return block.LayerNorm(dropout(block.dense(x), rate) + residual)


def attend(query, key, value, lengths, heads, rate):
    """softmax(Q K^T / sqrt(size)) V of every head and window, with dropout of the weights at this
    rate: [N, d] three times -> [N, d]; lengths: the windows' tokens, which sum to N."""
    if rate > 0:
        return Attention.apply(query, key, value, lengths, heads, rate, _seed())
    parts = (
        x.unflatten(1, (heads, -1)).transpose(0, 1).split(lengths, 1) for x in (query, key, value)
    )
    outputs = [
        F.scaled_dot_product_attention(*(x[None] for x in window))[0]
        for window in zip(*parts, strict=True)
    ]
    return torch.cat(outputs, 1).transpose(0, 1).flatten(1)


class Attention(torch.autograd.Function):
    """Attention with dropout, which torch has fused for GPUs only: of a window, as many heads at a
    time as the cache holds. Weights and dropout are made anew in the backward pass."""

    @staticmethod
    def forward(ctx, query, key, value, lengths, heads, rate, seed):
        ctx.save_for_backward(query, key, value)
        ctx.settings = lengths, heads, rate, seed
        output = torch.empty_like(query)
        random = np.random.SFC64(seed)
        parts = _blocks((query, key, value, output), lengths, heads)
        for q, k, v, out in parts:
            weights = _softmax(q, k)
            weights *= keep(weights, rate, random)
            torch.bmm(weights, v, out=out)
        return output.mul_(1 / (1 - rate))

    @staticmethod
    def backward(ctx, grad):
        lengths, heads, rate, seed = ctx.settings
        inputs = ctx.saved_tensors
        grads = [torch.empty_like(x) for x in inputs]
        grad = grad / (1 - rate)
        random = np.random.SFC64(seed)
        for q, k, v, g, dq, dk, dv in _blocks((*inputs, grad, *grads), lengths, heads):
            weights = _softmax(q, k)
            mask = keep(weights, rate, random)
            grad_weights = torch.bmm(g, v.transpose(1, 2)).mul_(mask)
            torch.bmm(mask.mul_(weights).transpose(1, 2), g, out=dv)
            scale = q.shape[2] ** -0.5
            grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
            torch.bmm(grad_scores.mul_(scale), k, out=dq)
            torch.bmm(grad_scores.transpose(1, 2), q, out=dk)
        return *grads, None, None, None, None


def _blocks(tensors, lengths, heads):
    """Views [heads of the block, tokens of a window, size] of tensors [N, d], block after block."""
    for window in zip(
        *(x.unflatten(1, (heads, -1)).transpose(0, 1).split(lengths, 1) for x in tensors),
        strict=True,
    ):
        step = max(1, BLOCK // window[0].shape[1] ** 2)
        yield from zip(*(x.split(step) for x in window), strict=True)


def _softmax(query, key):
    scores = torch.bmm(query, key.transpose(1, 2)).mul_(query.shape[2] ** -0.5)
    return torch.softmax(scores, -1, out=scores)


def dropout(x, rate):
    """F.dropout of a training step, with cheap random numbers and nothing stored."""
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
    """1 with probability 1 - rate (to 16 bits), else 0: a tensor like `like`."""
    bits = random.random_raw(-(-like.numel() // 4)).view(np.int16)
    bits = torch.from_numpy(bits)[: like.numel()].view(like.shape)
    limit = min(round(rate * 2**16), 2**16 - 1) - 2**15
    return torch.ge(bits, limit, out=torch.empty_like(like))


def _seed():
    return int(torch.randint(2**62, ()))
