"""Pixel shuffle: each 2 x 2 patches become one position with four times the width (as in InternVL, arXiv 2404.16821)."""

from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class ShuffleConfig:
    """side: so many patches by as many become one position."""

    side: int = 2

    def build(self, vision_width: int, trunk_width: int) -> "PixelShuffle":
        """The projector."""
        return PixelShuffle(self.side, vision_width, trunk_width)


class PixelShuffle(nn.Module):
    """(N, P, C) -> (N, P / side**2, D)."""

    def __init__(self, side: int, vision_width: int, trunk_width: int) -> None:
        super().__init__()
        self.side = side
        self.linear = nn.Linear(side**2 * vision_width, trunk_width)

    def num_positions(self, num_patches: int) -> int:
        """A position for each group of patches."""
        return num_patches // self.side**2

    def forward(self, features_NPC: Tensor) -> Tensor:
        num_images, num_patches, width = features_NPC.shape
        groups = round(num_patches**0.5) // self.side
        shape = (num_images, groups, self.side, groups, self.side, width)
        return self.linear(features_NPC.reshape(shape).transpose(2, 3).reshape(num_images, groups**2, self.side**2 * width))
