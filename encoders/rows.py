"""The encoder's part: token embeddings, and the last layer's attention at the mentions alone.

Three ways, the first that fits:
- `packed`, on a CPU (unless `--cpu_kernels off`), for BERT and its kin: without padding, see
  packed.py.
- `hooked`, for every encoder of QUERY_KEY: transformers' own forward with fused attention; the rows
  at mentions are computed from what the last layer's query and key projections put out.
- any other encoder must return its attention, and runs without fused attention.
The numbers are the same (dropout aside, whose draws differ).

Shapes: W windows of T tokens; R mentions; width d.
"""

from contextlib import nullcontext

import torch
import torch.nn.functional as F
import transformers
from opt_einsum import contract

from encoders.packed import packed

# Encoders whose self-attention is softmax(Q K^T / sqrt(size)) V, and the names of the linear layers
# that give Q and K.
QUERY_KEY = {
    "bert": ("query", "key"),
    "roberta": ("query", "key"),
    "xlm-roberta": ("query", "key"),
    "camembert": ("query", "key"),
    "electra": ("query", "key"),
    "distilbert": ("q_lin", "k_lin"),
}


def encode_windows(encoder, input_ids, attention_mask, mention_pos, cpu_kernels=True, num_layers=1):
    """Token embeddings [W, T, d] and attention rows [W, R, heads, T] at mention_pos [W, R] (float32
    or float64; in training after attention dropout), both the mean of the last num_layers layers.
    attention_mask [W, T] is 1 at the real tokens, which come first. cpu_kernels False: a CPU goes a
    GPU's way."""
    if not has_plain_attention(encoder.config):
        window = torch.arange(len(input_ids), device=input_ids.device)[:, None]
        options = {"output_attentions": True, "output_hidden_states": num_layers > 1}
        output = encoder(input_ids, attention_mask, **options)
        rows = [x[window, :, mention_pos] for x in output.attentions[-num_layers:]]
        return last_hidden(output, num_layers), at_least_float32(mean(rows))
    is_bert = hasattr(encoder, "encoder") and hasattr(encoder, "embeddings")
    is_packed = cpu_kernels and is_bert and input_ids.device.type == "cpu"
    run = packed if is_packed else hooked
    hidden, queries, keys = run(encoder, input_ids, attention_mask, num_layers)
    rows = [
        attention_rows(encoder, query, key, attention_mask, mention_pos)
        for query, key in zip(queries, keys, strict=True)
    ]
    return hidden, mean(rows)


def mean(tensors):
    return tensors[0] if len(tensors) == 1 else sum(tensors) / len(tensors)


def last_hidden(output, num_layers):
    """The mean of the last layers' outputs; of one layer what the encoder itself calls its last
    (some normalise it once more)."""
    return output.last_hidden_state if num_layers == 1 else mean(output.hidden_states[-num_layers:])


def has_plain_attention(config):
    """True for the encoders of QUERY_KEY, unless made with relative positions."""
    positions = getattr(config, "position_embedding_type", None)
    return config.model_type in QUERY_KEY and positions in (None, "absolute")


def dropout_name(config):
    """What the configuration calls the dropout of attention weights: BERT and its kin; others."""
    bert = "attention_probs_dropout_prob"
    return bert if hasattr(config, bert) else "attention_dropout"


def attention_rows(encoder, query, key, attention_mask, mention_pos):
    """Attention of the mentions, [W, R, heads, T], from the layer's queries and keys [W, T, d]."""
    heads, width = encoder.config.num_attention_heads, query.shape[-1]
    window = torch.arange(len(query), device=query.device)[:, None]
    query = at_least_float32(query[window, mention_pos]).unflatten(-1, (heads, -1))
    key = at_least_float32(key).unflatten(-1, (heads, -1))  # [W, T, heads, size]
    with full_precision(query):  # scores rounded to bf16 make twice the error of the rows
        scores = contract("wrhs,wths->wrht", query, key) * (width // heads) ** -0.5
    scores = scores.masked_fill(attention_mask[:, None, None] == 0, -torch.inf)
    rate = getattr(encoder.config, dropout_name(encoder.config))
    return F.dropout(scores.softmax(-1), rate, encoder.training)


def hooked(encoder, input_ids, attention_mask, num_layers=1):
    """transformers' forward: the mean of the last layers' hidden states [W, T, d], and lists of
    their queries and of their keys, [W, T, d] each."""
    names = QUERY_KEY[encoder.config.model_type]
    seen = {name: [] for name in names}
    hooks = [
        module.register_forward_hook(lambda *call, name=name: seen[name].append(call[-1]))
        for name in names
        for module in _last_modules(encoder, name, num_layers)
    ]
    try:
        output = encoder(input_ids, whole_mask(attention_mask), output_hidden_states=num_layers > 1)
    finally:
        for hook in hooks:
            hook.remove()
    return last_hidden(output, num_layers), *(seen[name] for name in names)


def whole_mask(attention_mask):
    """[W, T] -> [W, 1, T, T], which transformers 5 takes as it is. At a mask [W, T] it looks for
    padding, and so waits for the GPU in every step; transformers 4 takes no other."""
    if int(transformers.__version__.split(".")[0]) < 5:
        return attention_mask
    return attention_mask[:, None, None].bool().expand(-1, 1, attention_mask.shape[1], -1)


def _last_modules(encoder, name, count):
    """Of the modules of that name, one a layer, the last."""
    named = [m for path, m in encoder.named_modules() if path.rsplit(".", 1)[-1] == name]
    return named[-count:]


def full_precision(tensor):
    """Turns autocast off, for what must be computed in float32."""
    kind = tensor.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def at_least_float32(tensor):
    """float64 stays, anything smaller becomes float32."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
