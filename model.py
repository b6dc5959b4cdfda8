"""The model, top to bottom: encoder, localized context pooling, grouped bilinear classifier (ATLOP,
Zhou et al., 2021). Shapes: B documents of at most L tokens, R mentions and E entities; W encoder
windows of T tokens (W = B, T = L unless a document is long); P entity pairs; width d.

Parameter names are the released code's, so that its checkpoints load as they are.
"""

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from opt_einsum import contract
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModel

from prepro import InputError, read_json
from utils import write_atomically, write_json

# Encoders whose last self-attention is softmax(Q K^T / sqrt(size)) of two linear layers of these
# names: all layers run fused attention, and of the last one only the rows at mentions are computed.
# Any other encoder must return its attention, and runs without fused attention.
QUERY_KEY = {
    "bert": ("query", "key"),
    "roberta": ("query", "key"),
    "xlm-roberta": ("query", "key"),
    "camembert": ("query", "key"),
    "electra": ("query", "key"),
    "distilbert": ("q_lin", "k_lin"),
}


class DocREModel(nn.Module):
    """Scores of all relations for all entity pairs of a batch of documents.

    encoder: a transformers encoder, see `build_encoder`. emb_size: width of the head and tail
    representations, a multiple of block_size, the width of the classifier's blocks.
    """

    def __init__(self, encoder, num_class=97, emb_size=768, block_size=64):
        super().__init__()
        if emb_size % block_size:
            raise ValueError(f"emb_size {emb_size} is not a multiple of block_size {block_size}")
        self.model = encoder
        self.block_size = block_size
        width = encoder.config.hidden_size
        self.head_extractor = nn.Linear(2 * width, emb_size)
        self.tail_extractor = nn.Linear(2 * width, emb_size)
        self.bilinear = nn.Linear(emb_size * block_size, num_class)

    def forward(self, input_ids, attention_mask, mention_pos, entity_mentions, pairs, **windows):
        """A batch of `utils.collate` without its labels -> logits [P, num_class] in float32."""
        tokens, rows = self.encode(input_ids, attention_mask, mention_pos, **windows)
        doc, head, tail = pairs.T
        entities = entity_embeddings(tokens, mention_pos, entity_mentions)  # [B, E, d]
        attention = entity_attention(rows, entity_mentions)  # [B, E, heads, L]
        contexts = localized_contexts(tokens, attention)  # [B, E (E - 1) / 2, d]
        context = unordered_pair(head, tail, entities.shape[1])
        z_head = extract(self.head_extractor, entities, contexts, doc, head, context)  # [P, emb]
        z_tail = extract(self.tail_extractor, entities, contexts, doc, tail, context)
        return grouped_bilinear(z_head, z_tail, self.bilinear, self.block_size)

    def encode(
        self,
        input_ids,
        attention_mask,
        mention_pos,
        window_doc=None,
        window_start=None,
        window_valid=None,
    ):
        """Token embeddings [B, L, d] and the last layer's attention from every mention's marker to
        all tokens, [B, R, heads, L] in float32 (in training after attention dropout)."""
        if window_doc is None:
            return encode_windows(self.model, input_ids, attention_mask, mention_pos)
        pos = mention_pos[window_doc] - window_start[:, None]  # [W, R], in the window's tokens
        inside = (pos >= 0) & (pos < input_ids.shape[1])
        pos = pos.clamp(0, input_ids.shape[1] - 1)
        inside &= window_valid.gather(1, pos)
        hidden, rows = encode_windows(self.model, input_ids, attention_mask, pos)
        rows = rows * inside[:, :, None, None]
        return merge_windows(hidden, rows, window_doc, window_start, window_valid)


def encode_windows(encoder, input_ids, attention_mask, mention_pos):
    """Token embeddings [W, T, d] and attention rows [W, R, heads, T] at mention_pos [W, R]."""
    window = torch.arange(len(input_ids), device=input_ids.device)[:, None]
    names = QUERY_KEY.get(encoder.config.model_type)
    if names is None:
        output = encoder(input_ids, attention_mask, output_attentions=True)
        return output.last_hidden_state, at_least_float32(
            output.attentions[-1][window, :, mention_pos]
        )

    projections = {name: _last_module(encoder, name) for name in names}
    seen = {}
    hooks = [
        module.register_forward_hook(lambda *call, name=name: seen.update({name: call[-1]}))
        for name, module in projections.items()
    ]
    try:
        hidden = encoder(input_ids, attention_mask).last_hidden_state
    finally:
        for hook in hooks:
            hook.remove()
    heads, size = encoder.config.num_attention_heads, seen[names[0]].shape[-1]
    query = seen[names[0]][window, mention_pos].unflatten(-1, (heads, -1))  # [W, R, heads, size]
    key = seen[names[1]].unflatten(-1, (heads, -1))  # [W, T, heads, size]
    scores = contract("wrhs,wths->wrht", query, key) * (size // heads) ** -0.5
    scores = at_least_float32(scores).masked_fill(attention_mask[:, None, None] == 0, -torch.inf)
    dropout = getattr(encoder.config, _dropout_name(encoder.config))
    return hidden, F.dropout(scores.softmax(-1), dropout, encoder.training)


def _dropout_name(config):
    """What the configuration calls the dropout of attention weights: BERT and its kin; others."""
    bert = "attention_probs_dropout_prob"
    return bert if hasattr(config, bert) else "attention_dropout"


def _last_module(encoder, name):
    return [m for path, m in encoder.named_modules() if path.rsplit(".", 1)[-1] == name][-1]


def merge_windows(hidden, rows, window_doc, window_start, window_valid):
    """Windows [W, T] back to documents [B, L]: embeddings are averaged where windows overlap,
    attention rows are added and renormalised."""
    valid = window_valid.to(hidden.dtype)
    width = valid.shape[1]
    num_docs = int(window_doc[-1]) + 1
    length = int(window_start.max()) + width
    place = window_start[:, None] + torch.arange(width, device=valid.device)
    place = (
        place + window_doc[:, None] * length
    ).flatten()  # [W T], in the tokens of all documents

    def add_up(values):  # [W, T, n] -> [B, L, n]
        total = values.new_zeros(num_docs * length, values.shape[2])
        return total.index_add(0, place, values.flatten(0, 1)).unflatten(0, (num_docs, length))

    count = add_up(valid[:, :, None])
    tokens = add_up(hidden * valid[:, :, None]) / count.clamp(min=1)
    rows = rows * window_valid[:, None, None, :]
    shape = rows.shape[1:3]
    rows = add_up(rows.permute(0, 3, 1, 2).flatten(2)).unflatten(2, shape).permute(0, 2, 3, 1)
    is_long = torch.bincount(window_doc, minlength=num_docs) > 1
    renormalised = rows / (rows.sum(-1, keepdim=True) + 1e-10)
    return tokens, torch.where(is_long[:, None, None, None], renormalised, rows)


def entity_embeddings(tokens, mention_pos, entity_mentions):
    """logsumexp over each entity's mentions, [B, E, d] in float32; zeros without a mention."""
    doc = torch.arange(len(tokens), device=tokens.device)[:, None]
    mentions = at_least_float32(tokens[doc, mention_pos])  # [B, R, d]
    # exp is taken relative to the largest mention of the entity. Sums over the mentions are matrix
    # products with the membership matrix: no atomic adds, the same bits in every run.
    owner = entity_mentions.to(torch.uint8).argmax(1)[:, :, None].expand_as(mentions)
    is_padding = ~entity_mentions.any(1)[:, :, None]
    top = mentions.new_full((*entity_mentions.shape[:2], mentions.shape[2]), -torch.inf)
    values = mentions.detach().masked_fill(is_padding, -torch.inf)
    top = top.scatter_reduce(1, owner, values, "amax")
    top = top.masked_fill(top.isinf(), 0)
    relative = (mentions - top.gather(1, owner)).masked_fill(is_padding, 0)
    with full_precision(tokens):
        total = entity_mentions.to(mentions.dtype) @ relative.exp()
    known = entity_mentions.any(2, keepdim=True)
    return torch.where(known, total.where(known, 1.0).log() + top, 0.0)


def entity_attention(rows, entity_mentions):
    """Mean of the attention rows of each entity's mentions, [B, E, heads, L]; zeros without one."""
    share = entity_mentions.to(rows.dtype)
    share = share / share.sum(2, keepdim=True).clamp(min=1)
    with full_precision(rows):
        return (share @ rows.flatten(2)).unflatten(2, rows.shape[2:])


def localized_contexts(tokens, attention):
    """Context embedding of every unordered pair, [B, E (E - 1) / 2, d] in float32.

    q = mean over heads of A_s A_o, divided by (sum of q + 1e-5); c = H^T q. It is the same for
    (s, o) and (o, s), so it is computed once, in the order of `unordered_pair`.
    """
    num_entities, num_heads = attention.shape[1:3]
    first, second = torch.triu_indices(num_entities, num_entities, 1, device=tokens.device)
    with full_precision(tokens):  # products of attention weights underflow in half precision
        by_token = attention.permute(0, 3, 1, 2)  # [B, L, E, heads]
        q = (by_token @ by_token.transpose(2, 3))[:, :, first, second] / num_heads
        q = q / (q.sum(1, keepdim=True) + 1e-5)  # [B, L, E (E - 1) / 2]
        return q.transpose(1, 2) @ at_least_float32(tokens)


def unordered_pair(head, tail, num_entities):
    """The place of {head, tail} among the pairs i < j of the entities, row by row."""
    i, j = torch.minimum(head, tail), torch.maximum(head, tail)
    return i * (2 * num_entities - i - 1) // 2 + j - i - 1


def extract(linear, entities, contexts, doc, entity, context):
    """tanh(W [h; c] + b) of every pair, [P, emb], as tanh(W_1 h + b + W_2 c): W_1 h once an entity,
    W_2 c once an unordered pair."""
    width = entities.shape[-1]
    of_entity = F.linear(entities, linear.weight[:, :width], linear.bias)
    of_context = F.linear(contexts, linear.weight[:, width:])
    return torch.tanh(of_entity[doc, entity] + of_context[doc, context])


def grouped_bilinear(z_head, z_tail, linear, block_size):
    """sum over blocks k of z_head_k^T W_k z_tail_k, + b: [P, emb] twice -> float32 [P, classes]."""
    kind = z_head.device.type
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        z_head, z_tail = z_head.to(dtype), z_tail.to(dtype)
    scores = BlockBilinear.apply(z_head, z_tail, linear.weight.to(z_head.dtype), block_size)
    return scores if linear.bias is None else scores + linear.bias


class BlockBilinear(torch.autograd.Function):
    """A matrix product for every block and chunk of pairs. The outer products [P, block^2], in one
    piece by far the model's largest tensor, are made anew in the backward pass and never stored."""

    @staticmethod
    def forward(ctx, z_head, z_tail, weight, block_size):
        ctx.save_for_backward(z_head, z_tail, weight)
        ctx.block_size = block_size
        dtype = torch.promote_types(weight.dtype, torch.float32)
        scores = torch.zeros(len(z_head), len(weight), dtype=dtype, device=weight.device)
        weights = weight.split(block_size**2, 1)
        for rows in _chunks(z_head):
            blocks = (x[rows].split(block_size, 1) for x in (z_head, z_tail))
            for u, v, w in zip(*blocks, weights, strict=True):
                scores[rows] += _outer(u, v) @ w.T
        return scores

    @staticmethod
    def backward(ctx, grad):
        z_head, z_tail, weight = ctx.saved_tensors
        size = ctx.block_size
        grad = grad.to(weight.dtype)
        grad_head, grad_tail = torch.empty_like(z_head), torch.empty_like(z_tail)
        grad_weight = torch.zeros_like(weight)
        weights, grad_weights = weight.split(size**2, 1), grad_weight.split(size**2, 1)
        for rows in _chunks(z_head):
            blocks = (x[rows].split(size, 1) for x in (z_head, z_tail, grad_head, grad_tail))
            for u, v, grad_u, grad_v, w, grad_w in zip(*blocks, weights, grad_weights, strict=True):
                grad_w += grad[rows].T @ _outer(u, v)
                grad_outer = (grad[rows] @ w).unflatten(1, (size, size))
                grad_u.copy_((grad_outer @ v[:, :, None])[:, :, 0])
                grad_v.copy_((u[:, None, :] @ grad_outer)[:, 0])
        return grad_head, grad_tail, grad_weight, None


def _chunks(z_head):
    """Slices of pairs: on a CPU an outer product that stays in the cache; on a GPU few launches."""
    size = 512 if z_head.device.type == "cpu" else 8192
    return [slice(i, i + size) for i in range(0, len(z_head), size)]


def _outer(u, v):
    return (u[:, :, None] * v[:, None, :]).flatten(1)


def at_least_float32(tensor):
    """float64 stays, anything smaller becomes float32."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def full_precision(tensor):
    """Turns autocast off, for what must be computed in float32."""
    kind = tensor.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def build_encoder(name, config_name=None, weights=True, attention_dropout=None):
    """A transformers encoder that returns what localized context pooling needs.

    name: hub name or folder; config_name: the same, for the configuration, None: name; a dict is
    taken as the configuration itself. weights False draws random ones and needs no weights file.
    attention_dropout None keeps the configuration's (0 lets a CPU train with fused attention).
    Raises InputError, naming the encoder, if it cannot be loaded or returns no attention.
    """
    source = config_name or name
    try:
        if isinstance(source, dict):
            config = AutoConfig.for_model(**source)
        else:
            config = AutoConfig.from_pretrained(source)
        if attention_dropout is not None:
            setattr(config, _dropout_name(config), attention_dropout)
        fused = config.model_type in QUERY_KEY
        options = {} if fused else {"attn_implementation": "eager"}
        if weights:
            encoder = AutoModel.from_pretrained(name, config=config, **options)
        else:
            encoder = AutoModel.from_config(config, **options)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"encoder {source}: cannot be loaded: {reason}") from None
    if not fused:
        _check_returns_attention(encoder, source)
    if getattr(encoder, "pooler", None) is not None:
        encoder.pooler = None  # of no use here: unused parameters and time
    return encoder.float()


@torch.no_grad()
def _check_returns_attention(encoder, name):
    config, length = encoder.config, 8
    attention = None
    if not config.is_encoder_decoder:
        ids = torch.full((1, length), min(10, config.vocab_size - 1))
        try:
            output = encoder(ids, torch.ones_like(ids), output_attentions=True)
            attention = (output.attentions or [None])[-1]
        except (TypeError, ValueError, AttributeError, RuntimeError):
            pass
    if attention is None or attention.shape[2:] != (length, length):
        raise InputError(
            f"encoder {name}: a {config.model_type} model does not return the attention between "
            "its tokens that localized context pooling is made of; use BERT, RoBERTa, DistilBERT, "
            "ELECTRA, DeBERTa-v2/3 or ModernBERT"
        )


def transformer_type(config):
    """ "roberta" or "bert": how the windows of long documents are closed."""
    return "roberta" if config.model_type in ("roberta", "xlm-roberta", "camembert") else "bert"


def window_size(config, largest=512):
    """Tokens of an encoder window: 512 as in the released code, fewer for smaller encoders."""
    limit = getattr(config, "max_position_embeddings", None) or largest
    if transformer_type(config) == "roberta":
        limit -= config.pad_token_id + 1  # RoBERTa counts positions from there
    return min(limit, largest)


def save_config(model, folder, **more):
    """Writes config.json: what `load_model` needs besides model.safetensors, and `more`."""
    encoder = {k: v for k, v in model.model.config.to_dict().items() if k[0] != "_"}
    config = {
        "encoder": encoder,
        "num_class": model.bilinear.out_features,
        "emb_size": model.head_extractor.out_features,
        "block_size": model.block_size,
    }
    write_json(folder / "config.json", config | more)


def save_weights(model, folder):
    """Writes model.safetensors, under the released code's parameter names."""
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    write_atomically(folder / "model.safetensors", lambda path: save_file(state, path))


def load_model(folder):
    """The model of a run folder, and its config.json as a dict. Raises InputError."""
    config = read_json(folder / "config.json")
    try:
        encoder = build_encoder("", config["encoder"], weights=False)
        sizes = {name: config[name] for name in ("num_class", "emb_size", "block_size")}
    except (KeyError, TypeError) as error:
        raise InputError(f"{folder}/config.json: not a run's configuration: {error}") from None
    model = DocREModel(encoder, **sizes)
    load_weights(model, folder / "model.safetensors")
    return model, config


def load_state(path):
    """Parameter name -> tensor, of a .safetensors file or a torch file (.pt; read without running
    any code it may hold). Raises InputError."""
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except Exception as error:  # whatever the readers raise on a foreign file
        raise InputError(f"{path}: not a checkpoint: {str(error).splitlines()[0]}") from None
    if not isinstance(state, dict) or not all(torch.is_tensor(x) for x in state.values()):
        raise InputError(f"{path}: not a checkpoint: expected parameter names and tensors")
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def load_weights(model, path):
    """Loads a checkpoint with the released code's parameter names. Raises InputError, with the
    first names that do not fit, if any parameter is missing, unknown or of another shape."""
    # The pooler is never used, and older transformers saved the position ids 0, 1, 2, ...
    given = {
        name: tensor
        for name, tensor in load_state(path).items()
        if not name.startswith("model.pooler.") and not name.endswith("position_ids")
    }
    own = model.state_dict()
    faults = [f"{name} is missing" for name in own if name not in given]
    faults += [f"{name} is unknown" for name in given if name not in own]
    faults += [
        f"{name} is {list(given[name].shape)}, not {list(own[name].shape)}"
        for name in own
        if name in given and given[name].shape != own[name].shape
    ]
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise InputError(f"{path}: does not fit the model: {'; '.join(faults[:3])}{more}")
    model.load_state_dict(given)
