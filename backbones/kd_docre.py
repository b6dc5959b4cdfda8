"""KD-DocRE (Tan et al., Findings of ACL 2022): axial attention between the pairs of a document."""

import torch
import torch.nn.functional as F
from torch import nn

from encoders.rows import at_least_float32
from model import DocREModel, localized_contexts, unordered_pair


class KDDocRE(DocREModel, backbone="kd_docre"):
    """The grouped bilinear form gives an embedding of each pair; pairs that share an entity attend
    to each other."""

    own_loss = "AFL"

    def __init__(self, config, encoder=None):
        super().__init__(config, encoder)
        width = self.model.config.hidden_size
        self.projection = nn.Linear(config.emb_size * config.block_size, width, bias=False)
        self.axial_transformer = AxialTransformer(width)
        self.classifier = nn.Linear(width, config.num_labels)
        self.post_init()

    def classify(self, tokens, entities, attention, num_entities, pairs):
        num_docs, most = entities.shape[:2]
        # The grid's diagonal, an entity with itself, takes part in the attention.
        entity = torch.arange(most, device=pairs.device).expand(num_docs, most)
        doc = torch.arange(num_docs, device=pairs.device)[:, None].expand_as(entity)
        cells = torch.cat([pairs, torch.stack([doc, entity, entity], dim=2).flatten(0, 1)])
        # The released code normalises the sum over heads, not the mean: the same but for eps.
        contexts = localized_contexts(tokens, attention, 1e-10 / attention.shape[2], diagonal=True)
        place = unordered_pair(cells, most, diagonal=True)
        embeddings = self.combine(self.projection, entities, contexts, cells, place)
        grid = embeddings.new_zeros(num_docs, most, most, embeddings.shape[1])
        grid[tuple(cells.T)] = embeddings
        # At least one: the softmax over no cell is not a number.
        is_entity = torch.arange(most, device=grid.device) < num_entities[:, None].clamp(min=1)
        grid = grid + self.axial_transformer(grid, is_entity)
        return at_least_float32(self.classifier(grid[tuple(pairs.T)]))


class AxialTransformer(nn.Module):
    """Layers x = LN(FFN(x + axial(x))) over the grid of pairs, FFN a single linear layer."""

    def __init__(self, width, num_layers=6, num_heads=8):
        super().__init__()
        layers = range(num_layers)
        self.axial_attns = nn.ModuleList(AxialAttention(width, num_heads) for _ in layers)
        self.ffns = nn.ModuleList(nn.Linear(width, width) for _ in layers)
        self.lns = nn.ModuleList(nn.LayerNorm(width) for _ in layers)

    def forward(self, grid, is_entity):
        """grid [B, E, E, d], is_entity [B, E] False where a row or column is padding."""
        for attention, ffn, norm in zip(self.axial_attns, self.ffns, self.lns, strict=True):
            grid = norm(ffn(grid + attention(grid, is_entity)))
        return grid


class AxialAttention(nn.Module):
    """A pair attends to the pairs of its column, and to the pairs of its row; the sum of both."""

    def __init__(self, width, num_heads):
        super().__init__()
        self.axial_attentions = nn.ModuleList(
            nn.ModuleDict({"fn": SelfAttention(width, num_heads)}) for _ in range(2)
        )

    def forward(self, grid, is_entity):
        over_heads, over_tails = (attention["fn"] for attention in self.axial_attentions)
        columns = over_heads(grid.transpose(1, 2), is_entity).transpose(1, 2)
        return columns + over_tails(grid, is_entity)


class SelfAttention(nn.Module):
    def __init__(self, width, num_heads):
        super().__init__()
        if width % num_heads:
            raise ValueError(f"width {width} is not a multiple of {num_heads} attention heads")
        self.num_heads = num_heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_kv = nn.Linear(width, 2 * width, bias=False)
        self.to_out = nn.Linear(width, width)

    def forward(self, grid, is_entity):
        """Attention within each line of the grid, [B, lines, E, d]."""
        num_docs, num_lines, length, _ = grid.shape
        parts = self.to_q(grid), *self.to_kv(grid).chunk(2, dim=-1)
        q, k, v = (
            x.flatten(0, 1).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in parts
        )
        mask = (
            is_entity[:, None, None, None].expand(num_docs, num_lines, 1, 1, length).flatten(0, 1)
        )
        output = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        output = output.transpose(1, 2).flatten(2).unflatten(0, (num_docs, num_lines))
        return self.to_out(output)
