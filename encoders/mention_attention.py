"""The encoder's part: token embeddings, and the last layers' attention at the mentions alone.

Three ways, the first that fits:
- `unpadded`, on a CPU (unless `--cpu_kernels off`), for the encoders of packed.py: without padding.
- `hooked`, for every encoder of QUERY_KEY and of relative.py: transformers' own forward, fused
  where it can be; the scores at mentions are computed from what the last layers' linear layers put
  out.
- any other encoder must return its attention, and runs without fused attention.
The numbers are the same (dropout aside, whose draws differ).

Shapes: W windows of T tokens; R mentions; width d.
"""

from contextlib import nullcontext

import torch
import torch.nn.functional as F
import transformers

from encoders import relative
from encoders.cpu_unpadded import supports, unpadded

# cuDNN's attention is planned anew for every shape, and every batch of documents has its own.
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


def encode_windows(encoder, input_ids, attention_mask, mention_pos, cpu_kernels=True, num_layers=1):
    """Token embeddings [W, T, d] and the attention from the mentions at mention_pos [W, R] to all
    tokens, [W, R, heads, T] (float32 or float64; in training after attention dropout), both the
    mean of the last num_layers layers. attention_mask [W, T] is 1 at the real tokens, which come
    first. cpu_kernels False: a CPU goes a GPU's way."""
    num_layers = min(num_layers, encoder.config.num_hidden_layers)
    if not computes_attention(encoder.config):
        window = torch.arange(input_ids.shape[0], device=input_ids.device)[:, None]
        output = run_encoder(encoder, input_ids, attention_mask, num_layers, output_attentions=True)
        attention = [x[window, :, mention_pos] for x in output.attentions[-num_layers:]]
        return last_hidden(encoder, output, num_layers), at_least_float32(mean(attention))
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
    """transformers' own forward. Arguments go by name, since encoders order them differently, and
    the output is an object even where the encoder's configuration asks for tuples."""
    return encoder(
        input_ids=input_ids,
        attention_mask=attention_mask,
        output_hidden_states=num_layers > 1,
        return_dict=True,
        **options,
    )


def last_hidden(encoder, output, num_layers):
    """The mean of the last layers' outputs. ModernBERT normalises its last output once more; so are
    the others here, for one of them is not on the scale of the rest without it."""
    others = output.hidden_states[-num_layers:-1] if num_layers > 1 else ()
    if hasattr(encoder, "final_norm"):
        others = [encoder.final_norm(x) for x in others]
    return mean([*others, output.last_hidden_state])


def computes_attention(config):
    """True for the encoders of QUERY_KEY, unless made with relative positions, and for those of
    relative.py: their mention attention is computed here. Any other must return its attention."""
    positions = getattr(config, "position_embedding_type", None)
    is_plain = config.model_type in QUERY_KEY and positions in (None, "absolute")
    return is_plain or relative.is_known(config)


def dropout_name(config):
    """What the configuration calls the dropout of attention weights: BERT and its kin; others."""
    bert = "attention_probs_dropout_prob"
    return bert if hasattr(config, bert) else "attention_dropout"


def attention_at_mentions(encoder, attention, calls, attention_mask, mention_pos):
    """Attention of the mentions, [W, R, heads, T], in the layer with this attention module; calls:
    see `hooked`."""
    calls = {name: [at_least_float32(x) for x in outputs] for name, outputs in calls.items()}
    _, scores_of = relative.SCORES.get(encoder.config.model_type, (None, plain))
    with full_precision(mention_pos):  # scores rounded to bf16 make twice the error
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
    """transformers' forward: the mean of the last layers' hidden states [W, T, d], and of each of
    these layers (its attention module, calls). calls: name of a linear layer -> list of what it put
    out, call by call, of queries and keys [W, T, d]."""
    kind = encoder.config.model_type
    names = QUERY_KEY[kind] if kind in QUERY_KEY else relative.SCORES[kind][0]
    modules = [module for module in encoder.modules() if hasattr(module, names[0])][-num_layers:]
    layers, hooks = [], []
    for module in modules:
        calls = {name: [] for name in names if hasattr(module, name)}
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


def mask_of(encoder, attention_mask):
    """[W, T] -> [W, 1, T, T], 0 where a token is seen and hugely negative where not, which
    transformers 5 adds to the scores as it is. At a mask [W, T] it looks for padding, and so waits
    for the GPU in every step; transformers 4 and encoders without fused attention take no other."""
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
    """0 where the mask is True, else the most negative number: not -inf, for a row without any True
    would be NaN."""
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)


def autocast_dtype(device, default):
    """What matrix products are computed in on this device; default: without autocast."""
    is_on = torch.is_autocast_enabled(device.type)
    return torch.get_autocast_dtype(device.type) if is_on else default


def full_precision(tensor):
    """Turns autocast off, for what must be computed in float32."""
    kind = tensor.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def at_least_float32(tensor):
    """float64 stays, anything smaller becomes float32."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
