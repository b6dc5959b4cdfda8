"""KD-DocRE (Tan et al., Findings of ACL 2022): axial attention among the pairs of a document."""

import torch
from torch import nn

from encoders.mention_attention import at_least_float32
from model import DocREModel, localized_contexts, unordered_pair


class KDDocRE(DocREModel, backbone="kd_docre"):
    """The grouped bilinear layer gives an embedding of each pair; pairs with the same head or the
    same tail attend to each other."""

    own_loss = "AFL"
    pair_layer = "projection"
    class_layer = "classifier"

    def __init__(self, config, encoder=None):
        super().__init__(config, encoder)
        width = self.model.config.hidden_size
        self.projection = nn.Linear(config.emb_size * config.block_size, width, bias=False)
        self.axial_transformer = AxialTransformer(width)
        self.classifier = nn.Linear(width, config.num_labels)
        self.post_init()

    def classify(self, tokens, entities, attention, num_entities, pairs):
        num_docs, most = entities.shape[:2]
        # Cells of the grid [heads, tails] of a document. An entity with itself takes part in the
        # attention; pairs that are no candidates do not.
        entity = torch.arange(most, device=pairs.device).expand(num_docs, most)
        doc = torch.arange(num_docs, device=pairs.device)[:, None].expand_as(entity)
        cells = torch.cat([pairs, torch.stack([doc, entity, entity], dim=2).flatten(0, 1)])
        # The released code takes the sum over heads, not the mean, which only changes eps.
        contexts = localized_contexts(tokens, attention, 1e-10 / attention.shape[2], diagonal=True)
        context_index = unordered_pair(cells, most, diagonal=True)
        contexts = contexts.flatten(0, 1)
        embeddings = self.combine(self.projection, entities, contexts, cells, context_index)
        embeddings = embeddings.to(self.dtype)
        index = tuple(cells.T)
        is_cell = torch.zeros(num_docs, most, most, dtype=torch.bool, device=cells.device)
        # Not `= True`: the host would wait for the GPU to copy it.
        is_cell[index] = torch.ones_like(cells[:, 0], dtype=torch.bool)
        embeddings = embeddings + self.axial_transformer(embeddings, index, is_cell)
        return at_least_float32(self.classifier(embeddings[: len(pairs)]))


class AxialTransformer(nn.Module):
    """Layers x = LN(FFN(x + axial(x))) over the grid of pairs; FFN is a single linear layer."""

    def __init__(self, width, num_layers=6, num_heads=8):
        super().__init__()
        layers = range(num_layers)
        self.axial_attns = nn.ModuleList(AxialAttention(width, num_heads) for _ in layers)
        self.ffns = nn.ModuleList(nn.Linear(width, width) for _ in layers)
        self.lns = nn.ModuleList(nn.LayerNorm(width) for _ in layers)

    def forward(self, x, index, is_cell):
        """x [N, d]: embeddings of the cells; index: (document, head, tail), each [N], of the cells;
        is_cell [B, E, E]: True where there is a cell. Returns [N, d]."""
        for attention, ffn, norm in zip(self.axial_attns, self.ffns, self.lns, strict=True):
            x = norm(ffn(x + attention(x, index, is_cell)))
        return x


class AxialAttention(nn.Module):
    """The sum of two attentions: to the pairs with the same tail, and with the same head."""

    def __init__(self, width, num_heads):
        super().__init__()
        self.axial_attentions = nn.ModuleList(
            nn.ModuleDict({"fn": SelfAttention(width, num_heads)}) for _ in range(2)
        )

    def forward(self, x, index, is_cell):
        over_heads, over_tails = (attention["fn"] for attention in self.axial_attentions)
        doc, head, tail = index
        same_tail = over_heads(x, (doc, tail, head), is_cell.transpose(1, 2))
        return same_tail + over_tails(x, index, is_cell)


class SelfAttention(nn.Module):
    def __init__(self, width, num_heads):
        super().__init__()
        if width % num_heads:
            raise ValueError(f"width {width} is not a multiple of {num_heads} attention heads")
        self.num_heads = num_heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_kv = nn.Linear(width, 2 * width, bias=False)
        self.to_out = nn.Linear(width, width)

    def forward(self, x, index, is_cell):
        """Attention of every cell of x [N, d] to the cells of its line (same head or same tail).
        index: (document, line, position in the line) of the cells. Returns [N, d]."""
        doc, line, position = index
        num_docs, most, _ = is_cell.shape

        def lines(part):  # [N, d] -> [B, E, heads, E, size of a head]
            part = part.unflatten(1, (self.num_heads, -1))
            grid = part.new_zeros(num_docs, most, self.num_heads, most, part.shape[2])
            grid[doc, line, :, position] = part
            return grid

        q, k, v = map(lines, (self.to_q(x), *self.to_kv(x).chunk(2, dim=-1)))
        # On a CPU in bf16 this takes a fifth to a half of the time of fused attention.
        scores = at_least_float32(q * q.shape[-1] ** -0.5 @ k.transpose(3, 4))
        scores.masked_fill_(~is_cell[:, :, None, None], -torch.inf)
        output = scores.softmax(-1).to(v.dtype) @ v
        return self.to_out(output[doc, line, :, position].flatten(1))
