"""How much a step computes, by formula: what MFU, the share of a device's peak that a training uses, is made of.

Counted is what the model asks for: products of weights at real positions (of heads, and of the last layer behind its keys and
values, where something is learned), attention of each document to its own past, the vision tower; each once forward, once more
for the gradient of what goes in where something before it learns, once more for gradients of weights that learn. Not counted:
padding, what rounds up the number of learned positions, pairs that a mask hides, activations computed again, everything that
is no product of matrices. A multiplication with its addition is two.
"""

from typing import NamedTuple

import torch
from torch import nn

from unimm.batch import PADDING, Batch
from unimm.models.attention import document_sizes
from unimm.models.unified import UnifiedModel
from unimm.sequence import Kind

PEAKS = {
    "B200": 2250e12,
    "GH200": 989e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
    "V100": 125e12,
}
"""Dense products a second with 16-bit numbers, by a piece of the name (the first that fits), from NVIDIA's data sheets."""


def peak_flops(device: torch.device) -> float | None:
    """The most that a device computes in a second with 16-bit numbers; None where it is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for piece, peak in PEAKS.items() if piece in name), None)


class _Part(NamedTuple):
    """The products of a part, for one vector that goes through it.

    flops: forward and backward. is_followed: whether gradients pass through what comes out of it.
    """

    flops: int
    is_followed: bool

    @property
    def times(self) -> int:
        """How often what has no weights (attention) is computed, forward and backward."""
        return 1 + 2 * self.is_followed


class FlopCount:
    """The FLOPs of batches, for what learns of a model now. Layers that look at a window alone count as if they saw it all."""

    def __init__(self, model: UnifiedModel) -> None:
        parts = model.parts()
        before = any(p.requires_grad for name in ("text_embedding", "code_embedding") for p in parts[name].parameters())
        self.vision = _part(parts["vision"])
        self.projector = _part(parts["projector"], self.vision.is_followed)
        self.aligner = _part(parts["code_embedding"])
        self.trunk = _part(parts["trunk"], self.projector.is_followed or before)
        self.heads = {
            Kind.TEXT: _part(parts["text_head"], self.trunk.is_followed),
            Kind.CODES: _part(parts["code_head"], self.trunk.is_followed),
        }
        self.num_patches = model.config.vision.num_patches
        vision, trunk = model.config.vision, model.config.trunk_config()
        width = getattr(trunk, "head_dim", None) or trunk.hidden_size // trunk.num_attention_heads
        # Scores and their sums, each 2 operations a pair and dimension, of one layer.
        self.a_pair = 4 * trunk.num_attention_heads * width * self.trunk.times
        self.num_layers = trunk.num_hidden_layers
        last = model.trunk.layers[-1]
        behind = [last.self_attn.o_proj, last.mlp] if model.skips_unused_positions else []
        self.wanted = _part(nn.ModuleList(behind), self.trunk.is_followed)
        self.an_image = 4 * vision.num_layers * vision.width * self.num_patches**2 * self.vision.times

    def about(self, num_positions: int) -> int:
        """Forward and backward pass of so many positions through trunk and the larger head, before their batch is made: without
        attention and images."""
        return num_positions * (self.trunk.flops + max(head.flops for head in self.heads.values()))

    def of(self, batch: Batch) -> int:
        """Forward and backward pass of a batch that still lies in main memory."""
        sizes = document_sizes(batch.documents)
        sizes = sizes[sizes > 0]
        # Images whose features are stored do not go through the tower.
        num_seen, num_images = len(batch.images.pixels), batch.num_images
        is_wanted_BT = batch.target_kinds != PADDING
        pairs = int((sizes * (sizes + 1) // 2).sum())
        last_pairs = int((batch.positions + 1)[is_wanted_BT].sum()) if self.wanted.flops else pairs
        count = int(sizes.sum()) * (self.trunk.flops - self.wanted.flops) + int(is_wanted_BT.sum()) * self.wanted.flops
        count += ((self.num_layers - 1) * pairs + last_pairs) * self.a_pair
        count += num_seen * (self.num_patches * self.vision.flops + self.an_image)
        count += num_images * self.num_patches * self.projector.flops
        count += int((batch.kinds == Kind.CODES).sum()) * self.aligner.flops
        return count + sum(int((batch.target_kinds == kind).sum()) * head.flops for kind, head in self.heads.items())


def _part(part: nn.Module, is_followed: bool = False) -> _Part:
    """is_followed: whether gradients pass through what goes into it."""
    flops = 0
    for module in part.modules():
        learns = any(parameter.requires_grad for parameter in module.parameters(recurse=False))
        if isinstance(module, nn.Linear | nn.Conv2d):
            flops += 2 * module.weight.numel() * (1 + is_followed + module.weight.requires_grad)
        is_followed |= learns
    return _Part(flops, is_followed)
