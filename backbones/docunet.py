"""DocuNet (Zhang et al., IJCAI 2021): a U-Net over the image of all pairs' contexts."""

from typing import Annotated

import torch
import torch.nn.functional as F
from msgspec import Meta
from torch import nn

from encoders.mention_attention import full_precision
from inputs.files import InputError
from model import DocREModel, pair_attention, pooled


class DocuNet(DocREModel, backbone="docunet"):
    """The contexts of all pairs of a document are an image, [entities, entities, channels]; a U-Net
    computes the contexts that are used from it.

    An image is padded to max_height x max_height by repeating the last entity. A document with more
    entities has a larger image (the released code fails there).
    """

    own_loss = "balance_softmax"
    float32 = (*DocREModel.float32, "liner.bias")
    sizes = {
        "max_height": (Annotated[int, Meta(ge=4)], 42, "of DocuNet's images of entity pairs"),
        "unet_in_dim": (Annotated[int, Meta(ge=1)], 3, "channels of DocuNet's images"),
        "unet_out_dim": (Annotated[int, Meta(ge=1)], 256, "width of a pair's context in DocuNet"),
        "down_dim": (Annotated[int, Meta(ge=2)], 256, "channels of DocuNet's first layer"),
    }
    learning_rates = {
        "unet_lr": (4e-4, "of DocuNet's U-Net and its projection", ("liner", "segmentation_net"))
    }

    def __init__(self, config, encoder=None):
        context_size = self.with_sizes(config).unet_out_dim
        super().__init__(config, encoder, context_size)
        self.bilinear = nn.Linear(config.emb_size * config.block_size, config.num_labels)
        width = self.model.config.hidden_size
        self.liner = nn.Linear(width, config.unet_in_dim)  # the released code's name
        self.segmentation_net = UNet(config.unet_in_dim, config.unet_out_dim, config.down_dim)
        self.post_init()

    @classmethod
    def sizes_of(cls, state):
        return super().sizes_of(state) | {
            "unet_in_dim": len(state["liner.weight"]),
            "unet_out_dim": len(state["segmentation_net.outc.conv.weight"]),
            "down_dim": len(state["segmentation_net.inc.conv.double_conv.0.weight"]),
        }

    def check_processes(self, device, most_entities):
        # Batch normalisation is synchronised over the processes: torch has it for GPUs only, and it
        # needs images of one size.
        if device == "cpu":
            raise InputError("--backbone docunet: trains in several processes on GPUs only")
        if most_entities > self.config.max_height:
            raise InputError(
                f"--max_height: {self.config.max_height} is less than the {most_entities} entities "
                "of a document; training in several processes needs images of one size"
            )

    def classify(self, tokens, entities, attention, num_entities, pairs):
        # liner(q^T H) = q^T (H W^T) + b, which pools 3 channels instead of d. [B, E, E, 3]
        values = F.linear(tokens, self.liner.weight)
        image = context_grid(values, attention, self.eps) + self.liner.bias
        largest = max(image.shape[1], self.config.max_height)
        grid = image.new_zeros(len(image), largest, largest, self.config.unet_out_dim)
        for docs, height in self.heights(num_entities, image.shape[1]):
            index = torch.arange(height, device=image.device)
            index = torch.minimum(index, num_entities[docs, None] - 1).clamp(min=0)  # [b, height]
            padded = image[docs[:, None, None], index[:, :, None], index[:, None, :]]
            padded = padded.to(self.dtype)
            output = self.segmentation_net(padded.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
            grid[docs, :height, :height] = output.to(grid.dtype)
        doc, head, tail = pairs.T
        index = (doc * largest + head) * largest + tail
        return self.combine(self.bilinear, entities, grid.flatten(0, 2), pairs, index)

    def heights(self, num_entities, most):
        """Groups (documents, height of their images): one, unless a document has more entities."""
        usual = self.config.max_height
        docs = torch.arange(len(num_entities), device=num_entities.device)
        if most <= usual:
            return [(docs, usual)]
        height = num_entities.clamp(min=usual)
        return [(docs[height == h], h) for h in height.unique().tolist()]


class UNet(nn.Module):
    """Two steps down, two up: [B, in_dim, height, width] -> [B, out_dim, height, width]."""

    def __init__(self, in_dim, out_dim, dim):
        super().__init__()
        self.inc = nn.ModuleDict({"conv": DoubleConv(in_dim, dim)})
        self.down1, self.down2 = Down(dim, 2 * dim), Down(2 * dim, 2 * dim)
        self.up1, self.up2 = Up(4 * dim, dim), Up(2 * dim, dim // 2)
        self.outc = nn.ModuleDict({"conv": nn.Conv2d(dim // 2, out_dim, 1)})

    def forward(self, image):
        whole = self.inc["conv"](image)
        half = self.down1(whole)
        quarter = self.down2(half)
        return self.outc["conv"](self.up2(self.up1(quarter, half), whole))


class DoubleConv(nn.Module):
    def __init__(self, in_dim, out_dim):
        super().__init__()
        layers = []
        for size in (in_dim, out_dim):
            layers += [nn.Conv2d(size, out_dim, 3, padding=1), nn.BatchNorm2d(out_dim), nn.ReLU()]
        self.double_conv = nn.Sequential(*layers)

    def forward(self, image):
        return self.double_conv(image)


class Down(nn.Module):
    def __init__(self, in_dim, out_dim):
        super().__init__()
        self.maxpool_conv = nn.Sequential(nn.MaxPool2d(2), DoubleConv(in_dim, out_dim))

    def forward(self, image):
        return self.maxpool_conv(image)


class Up(nn.Module):
    """Doubles the image, pads it to the size of the skip connection and joins the two."""

    def __init__(self, in_dim, out_dim):
        super().__init__()
        self.conv = DoubleConv(in_dim, out_dim)

    def forward(self, image, skip):
        image = F.interpolate(image, scale_factor=2, mode="bilinear", align_corners=True)
        rows, columns = skip.shape[2] - image.shape[2], skip.shape[3] - image.shape[3]
        sides = columns // 2, columns - columns // 2, rows // 2, rows - rows // 2
        return self.conv(torch.cat([skip, F.pad(image, sides)], dim=1))


def context_grid(values, attention, eps):
    """`model.localized_contexts` of values [B, L, n] for all (head, tail), [B, E, E, n]."""
    with full_precision(values):
        contexts = pooled(values, pair_attention(attention).flatten(2), eps)
    return contexts.unflatten(1, (attention.shape[1], -1))
