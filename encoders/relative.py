"""Mention attention of encoders with relative positions: DeBERTa-v2, MPNet, ModernBERT.

A layer's scores (before mask and softmax) are computed again from the outputs of its own linear
layers, which already contain any dropout before the attention. `SCORES` has for every model type
the names of these linear layers in the attention module, and the function of the scores:

    scores(encoder, attention, calls, mention_pos [W, R]) -> [W, R, heads, T]

attention: the module; calls: name -> list of the linear layer's outputs, one for each call, in
float32 or float64. Shapes: W windows of T tokens; R mentions; "size" is the size of a head.
"""

import torch
from opt_einsum import contract
from transformers.models.modernbert.modeling_modernbert import apply_rotary_pos_emb


def is_known(config):
    """Whether SCORES has a function for this encoder. Of DeBERTa it is for the variant of all
    published versions 2 and 3."""
    if config.model_type == "deberta-v2":
        both = set(config.pos_att_type or []) == {"c2p", "p2c"}
        shared = getattr(config, "share_att_key", False)  # transformers has no default for it
        return both and config.relative_attention and shared
    return config.model_type in SCORES


def at_mentions(values, mention_pos):
    """Values of the mentions: [W, T, ...] -> [W, R, ...]. (By index_select, because the gradient of
    values[window, mention_pos] sorts on a GPU.)"""
    num_windows, length = values.shape[:2]
    first = torch.arange(0, num_windows * length, length, device=values.device)
    index = (first[:, None] + mention_pos).flatten()
    return values.flatten(0, 1).index_select(0, index).unflatten(0, mention_pos.shape)


def products(query, key):
    """Q K^T: [W, R, heads, size], [W, T, heads, size] -> [W, R, heads, T]."""
    return contract("wrhs,wths->wrht", query, key)


def deberta_v2(encoder, attention, calls, mention_pos):
    """DeBERTa-v2 and -v3 (He et al., ICLR 2021, Eq. 4), for query token i and key token j:

        (Q_i K_j + Q_i P^K_b + K_j P^Q_b) / sqrt(3 size)

    b is the bucket of the distance i - j; P^K and P^Q are keys and queries of the embeddings of
    the buckets: the outputs of the tokens' own projections in their second call."""
    size = attention.attention_head_size
    (query, pos_query), (key, pos_key) = (
        [x.unflatten(-1, (-1, size)) for x in calls[name]] for name in ("query_proj", "key_proj")
    )
    query = at_mentions(query, mention_pos)
    scores = products(query, key)
    bucket = encoder.encoder.get_rel_pos(key[:, :, 0])[0][mention_pos]  # [W, R, T]
    index = index_of(bucket, pos_key)[:, :, None].expand(scores.shape)
    to_key = contract("wrhs,nhs->wrhn", query, pos_key[0]).gather(3, index)
    to_query = contract("wths,nhs->whtn", key, pos_query[0])
    to_query = to_query.gather(3, index.permute(0, 2, 3, 1))  # [W, heads, T, R]
    return (scores + to_key + to_query.permute(0, 3, 1, 2)) / divisor(attention)


def index_of(bucket, embeddings):
    """Index of a bucket in the embeddings [1, number of buckets, ...]; 0 is in the middle."""
    count = embeddings.shape[1]
    return (bucket + count // 2).clamp(0, count - 1)


def divisor(attention):
    """sqrt(3 size), rounded to float32 as in transformers, also for a float64 model."""
    return torch.tensor(3.0 * attention.attention_head_size).sqrt().item()


def mpnet(encoder, attention, calls, mention_pos):
    """MPNet (Song et al., NeurIPS 2020): Q_i K_j / sqrt(size) + T5's bias, one number for each head
    and each bucket of j - i, the same in all layers."""
    query, key = (
        calls[name][0].unflatten(-1, (attention.num_attention_heads, -1)) for name in ("q", "k")
    )
    scores = products(at_mentions(query, mention_pos), key) * query.shape[-1] ** -0.5
    distance = torch.arange(key.shape[1], device=key.device) - mention_pos[:, :, None]
    bucket = encoder.encoder.relative_position_bucket(distance)
    return scores + encoder.encoder.relative_attention_bias(bucket).transpose(2, 3)


def modernbert(encoder, attention, calls, mention_pos):
    """ModernBERT (Warner et al., 2024): Q_i K_j / sqrt(size) with rotary embeddings. In layers of
    local attention these have another base, and where |i - j| > local_attention / 2 the score is
    the lowest number of its dtype."""
    joint = calls["Wqkv"][0].unflatten(-1, (3, -1, attention.head_dim))
    query, key = joint[:, :, 0], joint[:, :, 1]
    positions = torch.arange(key.shape[1], device=key.device)[None]
    if hasattr(attention, "rotary_emb"):  # transformers 4
        is_local = attention.local_attention != (-1, -1)
        cos, sin = attention.rotary_emb(key, positions)
    else:
        kind = attention.config.layer_types[attention.layer_idx]
        is_local = kind == "sliding_attention"
        cos, sin = encoder.rotary_emb(key, positions, kind)
    query, key = apply_rotary_pos_emb(query, key, cos, sin, unsqueeze_dim=2)
    scores = products(at_mentions(query, mention_pos), key) * attention.head_dim**-0.5
    if is_local:
        far = ~is_near(encoder.config, mention_pos[:, :, None], positions)
        # Not -inf, which padding gets: a mention_pos in the padding may have no real token near.
        scores = scores.masked_fill(far[:, :, None], torch.finfo(scores.dtype).min)
    return scores


def is_near(config, first, second):
    """Whether two positions attend to each other in ModernBERT's local attention."""
    return (first - second).abs() <= config.local_attention // 2


def local_mask(encoder, whole):
    """ModernBERT's mask of local attention, from its mask `whole` of global attention, both
    [W, 1, T, T]. Padding attends at least to itself, because attention to nothing may be NaN."""
    positions = torch.arange(whole.shape[-1], device=whole.device)
    is_same = positions == positions[:, None]
    return whole & is_near(encoder.config, positions, positions[:, None]) | is_same


SCORES = {
    "deberta-v2": (("query_proj", "key_proj"), deberta_v2),
    "mpnet": (("q", "k"), mpnet),
    "modernbert": (("Wqkv",), modernbert),
}
# Encoders that transformers has no fused attention for.
UNFUSED = ("deberta-v2", "mpnet")


def tables(encoder, attention, query, calls, length):
    """(query, tables): a layer's relative positions as `cpu_unpadded.Attention` takes them, for
    windows of at most `length` tokens, and the query [N, d] scaled to fit. For DeBERTa, adds to
    `calls` the outputs that `deberta_v2` needs."""
    kind = encoder.config.model_type
    if kind == "mpnet":
        like = query.new_empty(1, length)  # only its shape and device are read
        return query, (encoder.encoder.compute_position_bias(like)[0], None, None)
    if kind != "deberta-v2":
        return query, ()
    # `Attention` divides by sqrt(size), DeBERTa by its divisor.
    scale = attention.attention_head_size**0.5 / divisor(attention)
    embeddings = attention.pos_dropout(encoder.encoder.get_rel_embedding())[None]
    pos_query, pos_key = attention.query_proj(embeddings), attention.key_proj(embeddings)
    calls["query_proj"].append(pos_query)
    calls["key_proj"].append(pos_key)
    buckets = encoder.encoder.get_rel_pos(query.new_empty(length, 1))[0]  # [T, T]
    by_distance = torch.cat([buckets[0].flip(0), buckets[1:, 0]])  # i - j from 1 - T to T - 1
    index = index_of(by_distance, pos_key)
    return query * scale, (None, pos_key[0, index.flip(0)], pos_query[0, index] * scale)
