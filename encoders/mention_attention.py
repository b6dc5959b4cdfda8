"""Token embeddings and mention attention, the attention from the mentions alone to all tokens.

Localized context pooling needs no other attention, so the encoder can use fused attention, which
returns none; mention attention is computed again from the queries and keys of the last layers. The
first of three ways that fits is taken:
- `unpadded`, on a CPU (unless `--cpu_kernels off`), for the encoders of cpu_unpadded.py.
- `hooked`: the forward of transformers, for the encoders of QUERY_KEY and relative.py.
- Any other encoder must return its whole attention, and so runs without fused attention.
The results are equal, except that dropout draws other random numbers.

Shapes: W windows of T tokens; R mentions; width d.
"""

from contextlib import nullcontext
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
import transformers

from encoders import relative
from encoders.cpu_unpadded import supports, unpadded

# cuDNN plans its attention for every new shape, and nearly every batch has a shape of its own.
torch.backends.cuda.enable_cudnn_sdp(False)

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
ATTENTION_MODULES = WeakKeyDictionary()  # of `attention_modules`, which takes as long as a layer


def encode_windows(encoder, input_ids, attention_mask, mention_pos, cpu_kernels=True, num_layers=1):
    """Token embeddings [W, T, d] and mention attention of mention_pos [W, R], [W, R, heads, T] in
    float32 or float64 (in training after attention dropout), both the mean over the last num_layers
    layers. attention_mask [W, T] is 1 at real tokens, which come first. cpu_kernels False:
    `unpadded` is not used."""
    num_layers = min(num_layers, encoder.config.num_hidden_layers)
    if not computes_attention(encoder.config):
        output = run_encoder(encoder, input_ids, attention_mask, num_layers, output_attentions=True)
        attention = mean(output.attentions[-num_layers:])  # [W, heads, T, T]
        index = mention_pos[:, :, None, None].expand(-1, -1, *attention.shape[1::2])
        attention = attention.transpose(1, 2).gather(1, index)
        return last_hidden(encoder, output, num_layers), at_least_float32(attention)
    is_unpadded = cpu_kernels and supports(encoder.config) and input_ids.device.type == "cpu"
    run = unpadded if is_unpadded else hooked
    hidden, layers = run(encoder, input_ids, attention_mask, num_layers)
    attention = [
        attention_at_mentions(encoder, *layer, attention_mask, mention_pos) for layer in layers
    ]
    return hidden, mean(attention)


def mean(tensors):
    return tensors[0] if len(tensors) == 1 else sum(tensors) / len(tensors)


def run_encoder(encoder, input_ids, attention_mask, num_layers, **options):
    """The forward of transformers. Arguments go by name, because encoders order them differently;
    return_dict, because an encoder's configuration may ask for tuples."""
    return encoder(
        input_ids=input_ids,
        attention_mask=attention_mask,
        output_hidden_states=num_layers > 1,
        return_dict=True,
        **options,
    )


def last_hidden(encoder, output, num_layers):
    """The mean of the last layers' outputs, [W, T, d]. ModernBERT normalises the last one by
    final_norm; the others are normalised here, too, to have the same scale."""
    others = output.hidden_states[-num_layers:-1] if num_layers > 1 else ()
    if hasattr(encoder, "final_norm"):
        others = [encoder.final_norm(x) for x in others]
    return mean([*others, output.last_hidden_state])


def computes_attention(config):
    """Whether mention attention can be computed from queries and keys: for the encoders of
    QUERY_KEY, unless they have relative positions, and for those of relative.py."""
    positions = getattr(config, "position_embedding_type", None)
    is_plain = config.model_type in QUERY_KEY and positions in (None, "absolute")
    return is_plain or relative.is_known(config)


def dropout_name(config):
    """The configuration's name of the dropout of attention weights."""
    bert = "attention_probs_dropout_prob"
    return bert if hasattr(config, bert) else "attention_dropout"


def attention_at_mentions(encoder, attention, calls, attention_mask, mention_pos):
    """Mention attention [W, R, heads, T] of one layer. attention, calls: see `hooked`."""
    calls = {name: [at_least_float32(x) for x in outputs] for name, outputs in calls.items()}
    _, scores_of = relative.SCORES.get(encoder.config.model_type, (None, plain))
    with full_precision(mention_pos):  # rounding the scores to bf16, too, would double the error
        scores = scores_of(encoder, attention, calls, mention_pos)
    scores = scores.masked_fill(attention_mask[:, None, None] == 0, -torch.inf)
    rate = getattr(encoder.config, dropout_name(encoder.config))
    return F.dropout(scores.softmax(-1), rate, encoder.training)


def plain(encoder, attention, calls, mention_pos):
    """BERT's scores Q_i K_j / sqrt(size), [W, R, heads, T]."""
    heads = encoder.config.num_attention_heads
    query, key = (
        calls[name][0].unflatten(-1, (heads, -1)) for name in QUERY_KEY[encoder.config.model_type]
    )
    query = relative.at_mentions(query, mention_pos)
    return relative.products(query, key) * query.shape[-1] ** -0.5


def hooked(encoder, input_ids, attention_mask, num_layers=1):
    """The forward of transformers with hooks. Returns the mean of the last num_layers outputs,
    [W, T, d], and (attention module, calls) of each of these layers. calls: name of a linear layer
    in the attention module -> its outputs, one for each call, such as the queries [W, T, d]."""
    names, modules = attention_modules(encoder)
    layers, hooks = [], []
    for module in modules[-num_layers:]:
        calls = {name: [] for name in names}
        layers.append((module, calls))
        for name, outputs in calls.items():
            hook = getattr(module, name).register_forward_hook
            hooks.append(hook(lambda *call, outputs=outputs: outputs.append(call[-1])))
    try:
        mask = mask_of(encoder, attention_mask)
        output = run_encoder(encoder, input_ids, mask, num_layers)
    finally:
        for hook in hooks:
            hook.remove()
    return last_hidden(encoder, output, num_layers), layers


def attention_modules(encoder):
    """The names of the linear layers that `hooked` listens to, and the modules that have them."""
    if encoder not in ATTENTION_MODULES:
        kind = encoder.config.model_type
        names = QUERY_KEY[kind] if kind in QUERY_KEY else relative.SCORES[kind][0]
        modules = [module for module in encoder.modules() if hasattr(module, names[0])]
        ATTENTION_MODULES[encoder] = names, modules
    return ATTENTION_MODULES[encoder]


def mask_of(encoder, attention_mask):
    """[W, T] -> `additive` [W, 1, T, T], which transformers 5 takes as it is. In a mask [W, T] it
    would look for padding, for which the host waits for the GPU in every step. transformers 4 and
    encoders without fused attention get [W, T]. (ModernBERT gets two masks, a dict.)"""
    kind = encoder.config.model_type
    if int(transformers.__version__.split(".")[0]) < 5 or kind in relative.UNFUSED:
        return attention_mask
    length = attention_mask.shape[1]
    whole = attention_mask[:, None, None].bool().expand(-1, 1, length, -1)
    dtype = autocast_dtype(attention_mask.device, encoder.dtype)
    if kind != "modernbert":
        return additive(whole, dtype)
    masks = {"full_attention": whole, "sliding_attention": relative.local_mask(encoder, whole)}
    return {name: additive(mask, dtype) for name, mask in masks.items()}


def additive(mask, dtype):
    """0 where the mask is True, else the lowest number of dtype. (-inf would give NaN where nothing
    in a line of the mask is True.)"""
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)


def autocast_dtype(device, default):
    """The dtype of matrix products on this device; default: the one without autocast."""
    is_on = torch.is_autocast_enabled(device.type)
    return torch.get_autocast_dtype(device.type) if is_on else default


def full_precision(tensor):
    """A context manager without autocast, for what must be computed in float32."""
    kind = tensor.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def at_least_float32(tensor):
    """The tensor in float32, or in float64 if it is."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
