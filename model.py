"""ATLOP (Zhou et al., AAAI 2021) from tokens to logits: encoder windows, localized context pooling
and the grouped bilinear layer that classifies a pair. The other backbones are in backbones/.

Shapes: B documents of at most L tokens, R mentions and E entities; W encoder windows of T tokens
(W = B and T = L unless a document is long); P entity pairs; width d. Parameters are named as in the
released code, so that its checkpoints can be loaded.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel

from encoders.loading import new_encoder
from encoders.mention_attention import (
    at_least_float32,
    autocast_dtype,
    encode_windows,
    full_precision,
)
from encoders.relative import at_mentions
from inputs.files import relation_ids


class DocREConfig(PretrainedConfig):
    """A model's configuration; transformers saves it as config.json.

    encoder             the encoder's own configuration (as a dict: with its model_type)
    backbone            a key of backbones.BACKBONES
    loss_type           the loss it is trained with, which also decides how logits are decoded
    evidence_weight     factor of DREEAM's evidence loss, 0: none
    evidence_threshold  sentences with more of a pair's attention are predicted as its evidence
    fusion_threshold    threshold of engine/fusion.py, None: not tuned (train.py --fusion)
    labels_per_pair     most relations predicted for a pair, -1: no limit (--num_labels, a name that
                        transformers uses for the number of classes)
    max_seq_length      longer documents are cut to so many tokens
    emb_size            width of the head and tail representations, a multiple of block_size
    block_size          width of the grouped bilinear layer's blocks
    label2id            property -> class id, 0 the threshold class; default: meta/rel2id.json

    The options of the loss (losses.options_of) and the sizes that only one backbone has
    (DocREModel.sizes) are further attributes. So is class_priors with SSR_PU: property -> the share
    of the training pairs that are labelled with it.
    """

    model_type = "docre"

    def __init__(
        self,
        encoder=None,
        backbone="atlop",
        loss_type="ATL",
        evidence_weight=0.0,
        evidence_threshold=0.2,
        fusion_threshold=None,
        labels_per_pair=4,
        max_seq_length=1024,
        emb_size=768,
        block_size=64,
        label2id=None,
        **more,
    ):
        self.encoder = AutoConfig.for_model(**encoder) if isinstance(encoder, dict) else encoder
        if encoder is not None:  # the encoder takes the data type of the whole model
            name = "dtype" if hasattr(self.encoder, "dtype") else "torch_dtype"  # transformers 5, 4
            setattr(self.encoder, name, None)
        self.backbone = backbone
        self.loss_type = loss_type
        self.evidence_weight = evidence_weight
        self.evidence_threshold = evidence_threshold
        self.fusion_threshold = fusion_threshold
        self.labels_per_pair = labels_per_pair
        self.max_seq_length = max_seq_length
        self.emb_size = emb_size
        self.block_size = block_size
        label2id = relation_ids() if label2id is None else label2id
        more["id2label"] = {number: name for name, number in label2id.items()}
        super().__init__(label2id=label2id, **more)


class DocREModel(PreTrainedModel):
    """Base class of the backbones: logits of all relations for all entity pairs of a batch.

    DocREModel(config) makes an object of the subclass that config.backbone names. encoder: a
    transformers encoder (`encoders.loading.build_encoder`), None: a new one from config.encoder.
    context_size: width of a pair's context, None: d. Raises ValueError
    for an unknown backbone and for sizes that do not fit together.
    """

    config_class = DocREConfig
    base_model_prefix = "model"
    backbones = {}  # name -> subclass; each subclass registers itself
    own_loss = "ATL"  # the loss of the backbone's own paper
    # Further flags of train.py for this backbone.
    sizes = {}  # name -> (type, default, help); saved with the model
    learning_rates = {}  # name -> (default, help, modules with this learning rate)
    pair_layer = "bilinear"  # name of the layer that `combine` gets
    class_layer = "bilinear"  # name of the layer whose outputs are the logits
    num_layers = 1  # the mean of so many last encoder layers (output and attention) is taken
    eps = 1e-5  # in the normalised attention of a pair, q / (sum of q + eps)
    float32 = ("bilinear.bias",)  # weights of linear layers that are added to float32
    cpu_kernels = True  # False: on a CPU, too, it computes as on a GPU

    def __init_subclass__(cls, backbone, **more):
        super().__init_subclass__(**more)
        cls.backbones[backbone] = cls

    def __new__(cls, config=None, *args, **kwargs):
        if cls is DocREModel:
            if config.backbone not in cls.backbones:
                raise ValueError(f"backbone {config.backbone}: unknown before `import backbones`")
            cls = cls.backbones[config.backbone]
        return super().__new__(cls)

    def __init__(self, config, encoder=None, context_size=None):
        super().__init__(self.with_sizes(config))
        if config.emb_size % config.block_size:
            raise ValueError(
                f"emb_size {config.emb_size} is not a multiple of block_size {config.block_size}"
            )
        self.model = new_encoder(config.encoder) if encoder is None else encoder
        width = self.model.config.hidden_size
        inputs = width + (context_size or width)
        self.head_extractor = nn.Linear(inputs, config.emb_size)
        self.tail_extractor = nn.Linear(inputs, config.emb_size)

    @classmethod
    def with_sizes(cls, config):
        """Sets the backbone's sizes that are missing in the configuration to their defaults."""
        for name, (_, default, _) in cls.sizes.items():
            setattr(config, name, getattr(config, name, default))
        return config

    @classmethod
    def sizes_of(cls, state):
        """The sizes of the model that a checkpoint was saved from, name -> number. state: parameter
        name -> tensor. Raises KeyError for the checkpoint of another backbone."""
        emb_size = len(state["head_extractor.bias"])
        inputs = state[f"{cls.pair_layer}.weight"].shape[1]
        return {"emb_size": emb_size, "block_size": inputs // emb_size}

    @property
    def on_cpu(self):
        """Whether it computes as is faster on a CPU (`cpu_kernels`), not as on a GPU."""
        return self.cpu_kernels and self.device.type == "cpu"

    def check_processes(self, device, most_entities):
        """Raises InputError if the backbone cannot be trained in several processes on this device,
        with documents of at most most_entities entities."""

    def init_weights(self):
        """No-op: keeps PyTorch's default initialisation of the new layers."""

    def forward(
        self,
        input_ids,
        attention_mask,
        mention_pos,
        entity_mentions,
        num_entities,
        pairs,
        sentences=None,
        **windows,
    ):
        """A batch of `utils.collate` without its labels -> logits [P, num_class] in float32.

        With sentences [B, L, S], 1 where a token belongs to a sentence, also returns
        `sentence_attention`, [P, S] in float32.
        """
        tokens, mention_attention = self.encode(input_ids, attention_mask, mention_pos, windows)
        entities = entity_embeddings(tokens, mention_pos, entity_mentions)  # [B, E, d]
        attention = entity_attention(mention_attention, entity_mentions)  # [B, E, heads, L]
        logits = self.classify(tokens, entities, attention, num_entities, pairs)
        if sentences is None:
            return logits
        return logits, sentence_attention(attention, sentences, pairs, self.eps)

    def encode(self, input_ids, attention_mask, mention_pos, windows):
        """Token embeddings [B, L, d] and mention attention, from each mention's opening marker to
        all tokens, [B, R, heads, L] in float32 (in training after attention dropout)."""
        how = {"cpu_kernels": self.cpu_kernels, "num_layers": self.num_layers}
        if not windows:
            return encode_windows(self.model, input_ids, attention_mask, mention_pos, **how)
        window_doc, window_start = windows["window_doc"], windows["window_start"]
        window_valid, doc_mask = windows["window_valid"], windows["doc_mask"]
        pos = mention_pos[window_doc] - window_start[:, None]  # [W, R], counted from window_start
        inside = (pos >= 0) & (pos < input_ids.shape[1])
        pos = pos.clamp(0, input_ids.shape[1] - 1)
        inside &= window_valid.gather(1, pos)
        hidden, attention = encode_windows(self.model, input_ids, attention_mask, pos, **how)
        attention = attention * inside[:, :, None, None]
        return merge_windows(hidden, attention, window_doc, window_start, window_valid, doc_mask)

    def combine(self, linear, entities, contexts, pairs, context_index):
        """Head and tail extractor, then the grouped bilinear layer `linear`: [P, outputs of linear]
        in float32. A pair's context is contexts[context_index], contexts [N, n]."""
        doc, head, tail = pairs.T
        first = doc * entities.shape[1]  # entities of all documents in one row
        dtype = autocast_dtype(entities.device, self.head_extractor.weight.dtype)
        entities, contexts = entities.flatten(0, 1).to(dtype), contexts.to(dtype)
        z_head = extract(self.head_extractor, entities, first + head, contexts, context_index)
        z_tail = extract(self.tail_extractor, entities, first + tail, contexts, context_index)
        return grouped_bilinear(z_head, z_tail, linear, self.config.block_size, self.on_cpu)


class ATLOP(DocREModel, backbone="atlop"):
    """Localized context pooling, then a grouped bilinear layer over the classes."""

    def __init__(self, config, encoder=None):
        super().__init__(config, encoder)
        self.bilinear = nn.Linear(config.emb_size * config.block_size, config.num_labels)
        self.post_init()

    def classify(self, tokens, entities, attention, num_entities, pairs):
        contexts = localized_contexts(tokens, attention, self.eps)
        context_index = unordered_pair(pairs, entities.shape[1])
        return self.combine(self.bilinear, entities, contexts.flatten(0, 1), pairs, context_index)


AutoConfig.register(DocREConfig.model_type, DocREConfig)
AutoModel.register(DocREConfig, DocREModel)


def new_model(encoder, rel2id=None, **settings):
    """A model with new layers on an encoder (`encoders.loading.build_encoder`). rel2id: property ->
    class id, default: meta/rel2id.json; settings: see `DocREConfig`. Raises what `DocREModel` does.
    """
    return DocREModel(DocREConfig(encoder.config, label2id=rel2id, **settings), encoder)


def merge_windows(hidden, attention, window_doc, window_start, window_valid, doc_mask):
    """Windows to documents: hidden [W, T, d] -> [B, L, d], averaged where windows overlap, and
    attention [W, R, heads, T] -> [B, R, heads, L], summed, and renormalised in long documents."""
    valid = window_valid.to(hidden.dtype)
    width = valid.shape[1]
    num_docs, length = doc_mask.shape
    index = window_start[:, None] + torch.arange(width, device=valid.device)
    # [W T] into [B L]. Padding only adds zeros, so its index just has to exist.
    index = (index.clamp(max=length - 1) + window_doc[:, None] * length).flatten()

    def add_up(values):  # [W, T, n] -> [B, L, n]
        total = values.new_zeros(num_docs * length, values.shape[2])
        return total.index_add(0, index, values.flatten(0, 1)).unflatten(0, (num_docs, length))

    count = add_up(valid[:, :, None])
    tokens = add_up(hidden * valid[:, :, None]) / count.clamp(min=1)
    attention = attention * window_valid[:, None, None, :]
    shape = attention.shape[1:3]
    summed = add_up(attention.permute(0, 3, 1, 2).flatten(2))
    attention = summed.unflatten(2, shape).permute(0, 2, 3, 1)
    is_long = doc_mask.sum(1) > width
    renormalised = attention / (attention.sum(-1, keepdim=True) + 1e-10)
    return tokens, torch.where(is_long[:, None, None, None], renormalised, attention)


def entity_embeddings(tokens, mention_pos, entity_mentions):
    """logsumexp over each entity's mentions, [B, E, d] in float32; zeros without a mention."""
    mentions = at_least_float32(at_mentions(tokens, mention_pos))  # [B, R, d]
    # Against overflow the entity's maximum is subtracted before exp. The sums are matrix products
    # with entity_mentions.
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


def entity_attention(attention, entity_mentions):
    """Mean of the attention [B, R, heads, L] of each entity's mentions, [B, E, heads, L]; zeros
    without a mention."""
    weights = entity_mentions.to(attention.dtype)
    weights = weights / weights.sum(2, keepdim=True).clamp(min=1)
    with full_precision(attention):
        return (weights @ attention.flatten(2)).unflatten(2, attention.shape[2:])


def localized_contexts(tokens, attention, eps=1e-5, diagonal=False):
    """Context of every unordered pair {s, o}, [B, E (E - 1) / 2, d] in float32; diagonal: also of
    every entity with itself, [B, E (E + 1) / 2, d]. The order is that of `unordered_pair`.

    q = mean over heads of A_s A_o, c = H^T q / (sum of q + eps), the same for (s, o) and (o, s).
    """
    size = attention.shape[1]
    first, second = torch.triu_indices(size, size, 0 if diagonal else 1, device=tokens.device)
    with full_precision(tokens):  # products of attention weights underflow in half precision
        q = pair_attention(attention).flatten(2)
        return pooled(tokens, q.index_select(2, first * size + second), eps)


def pooled(tokens, q, eps):
    """H^T q / (sum of q + eps) for each of the pairs' q [B, L, pairs], [B, pairs, d]."""
    q = q / (q.sum(1, keepdim=True) + eps)
    return q.transpose(1, 2) @ at_least_float32(tokens)


def pair_attention(attention):
    """Mean over heads of A_s A_o for every token, [B, E, heads, L] -> [B, L, E, E]."""
    by_token = attention.permute(0, 3, 1, 2)
    return by_token @ by_token.transpose(2, 3) / attention.shape[2]


def unordered_pair(pairs, num_entities, diagonal=False):
    """Where a pair [P, 3] is in `localized_contexts`, of all documents in one row, [P]. In a
    document the pairs {head, tail} = {i, j}, i < j, are ordered by i, then j. diagonal: i <= j."""
    doc, head, tail = pairs.T
    i, j = torch.minimum(head, tail), torch.maximum(head, tail)
    if diagonal:  # i <= j among E entities are i < j + 1 among E + 1
        num_entities, j = num_entities + 1, j + 1
    before = doc * (num_entities * (num_entities - 1) // 2) - 1
    return before + i * (2 * num_entities - 3 - i) // 2 + j


def sentence_attention(attention, sentences, pairs, eps):
    """Sum of a pair's attention q over the tokens of each sentence, [P, S] (DREEAM, Eq. 5). It sums
    to less than 1, because special tokens belong to no sentence."""
    contexts = localized_contexts(sentences.to(attention.dtype), attention, eps)
    return contexts.flatten(0, 1).index_select(0, unordered_pair(pairs, attention.shape[1]))


def extract(linear, entities, entity_index, contexts, context_index):
    """tanh(W [h; c] + b) of every pair, [P, emb_size], h = entities[entity_index] and c =
    contexts[context_index]. W [h; c] = W_1 h + W_2 c, so W_1 h is computed once for an entity and
    W_2 c once for a context, before they are indexed. (By index_select, because the gradient of
    x[index] sorts on a GPU. It adds up an entity's gradients one by one, so in float32.)"""
    of_h, of_c = linear.weight.split([entities.shape[1], contexts.shape[1]], 1)
    by_entity = F.linear(entities, of_h, linear.bias)
    by_context = F.linear(contexts, of_c)
    of_entity = at_least_float32(by_entity).index_select(0, entity_index)
    return torch.tanh(of_entity + by_context.index_select(0, context_index))


def grouped_bilinear(z_head, z_tail, linear, block_size, by_block=False):
    """sum over blocks k of z_head_k^T W_k z_tail_k, + b: twice [P, emb_size] -> [P, classes] in
    float32. by_block: see `BlockBilinear`."""
    dtype = autocast_dtype(z_head.device, linear.weight.dtype)
    z_head, z_tail = z_head.to(dtype), z_tail.to(dtype)
    scores = BlockBilinear.apply(z_head, z_tail, linear.weight.to(dtype), block_size, by_block)
    return scores if linear.bias is None else scores + linear.bias


class BlockBilinear(torch.autograd.Function):
    """The outer products of the blocks, [P, emb_size * block_size], would be the model's largest
    tensor: only those of a chunk of pairs exist at a time, and the backward pass computes them
    again. by_block: of a single block, too, which fits into a CPU's cache. A GPU takes all blocks
    at once, which is fewer kernels."""

    @staticmethod
    def forward(ctx, z_head, z_tail, weight, block_size, by_block):
        ctx.save_for_backward(z_head, z_tail, weight)
        ctx.settings = block_size, by_block
        dtype = torch.promote_types(weight.dtype, torch.float32)
        scores = torch.zeros(len(z_head), len(weight), dtype=dtype, device=weight.device)
        for pairs, columns, of_weight in _parts(z_head, block_size, by_block):
            outer = _outer(z_head[pairs, columns], z_tail[pairs, columns], block_size)
            if by_block:
                scores[pairs] += outer @ weight[:, of_weight].T
            else:  # a product for each block, for a sum in float32
                outer = outer.unflatten(1, (-1, block_size**2)).transpose(0, 1)
                blocks = weight.unflatten(1, (-1, block_size**2)).permute(1, 2, 0)
                torch.sum(outer @ blocks, 0, dtype=dtype, out=scores[pairs])
        return scores

    @staticmethod
    def backward(ctx, grad):
        z_head, z_tail, weight = ctx.saved_tensors
        size, by_block = ctx.settings
        grad = grad.to(weight.dtype)
        grad_head, grad_tail = torch.empty_like(z_head), torch.empty_like(z_tail)
        grad_weight = torch.zeros_like(weight)
        for pairs, columns, of_weight in _parts(z_head, size, by_block):
            u, v = z_head[pairs, columns], z_tail[pairs, columns]
            grad_weight[:, of_weight] += grad[pairs].T @ _outer(u, v, size)
            grad_outer = (grad[pairs] @ weight[:, of_weight]).view(-1, size, size)
            grad_head[pairs, columns] = (grad_outer @ v.reshape(-1, size, 1)).view_as(u)
            grad_tail[pairs, columns] = (u.reshape(-1, 1, size) @ grad_outer).view_as(v)
        return grad_head, grad_tail, grad_weight, None, None


def _parts(z_head, block_size, by_block):
    """Slices of the pairs, of the columns of z, and of those of the weight."""
    num_pairs, emb_size = z_head.shape
    chunk, width = (512, block_size) if by_block else (2048, emb_size)
    for first in range(0, num_pairs, chunk):
        for column in range(0, emb_size, width):
            of_weight = slice(column * block_size, (column + width) * block_size)
            yield slice(first, first + chunk), slice(column, column + width), of_weight


def _outer(u, v, size):
    """Outer products of the blocks: twice [P, n] -> [P, n * size]."""
    return (u.unflatten(1, (-1, size, 1)) * v.unflatten(1, (-1, 1, size))).flatten(1)
