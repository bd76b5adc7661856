"""A SigLIP vision tower: pixels (N, 3, H, W) in [-1, 1] to one feature a patch, (N, P, C), after its final norm.

Source: SigLIP (arXiv 2303.15343), Janus (arXiv 2410.13848).
"""

from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from unimm.models.vision.transformer import VisionTransformer
from unimm.runtime.number_checks import check_number, check_whole


@dataclass(frozen=True)
class VisionConfig:
    """Sizes of a SigLIP vision tower; `janus` in conf/model are Janus' own (SigLIP-L/16 at 384 px)."""

    image_size: int
    patch_size: int
    width: int
    num_layers: int
    num_heads: int
    mlp_ratio: float = 4.0

    def __post_init__(self) -> None:
        check_whole(self, 1, "image_size", "patch_size", "width", "num_layers", "num_heads")
        check_number(self, "mlp_ratio", above=0)
        if self.image_size % self.patch_size:
            raise ValueError(f"An image of {self.image_size} px cannot be cut into patches of {self.patch_size} px.")
        if self.width % self.num_heads:
            raise ValueError(f"A vision width of {self.width} cannot be split into {self.num_heads} heads.")

    @property
    def num_patches(self) -> int:
        """P: patches of one image."""
        return (self.image_size // self.patch_size) ** 2


class VisionTower(nn.Module):
    """pixels (N, 3, H, W) in [-1, 1] -> patch features (N, P, C)."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        # Without pool and classifier: SigLIP's attention pool would be parameters that no gradient reaches.
        self.transformer = VisionTransformer(
            config.image_size, config.patch_size, config.width, config.num_layers, config.num_heads, config.mlp_ratio
        )

    def forward(self, pixels_NCHW: torch.Tensor) -> torch.Tensor:
        # A GPU's fused attention gives None for no images at all (PyTorch 2.11); plain products give nothing, as asked.
        with nullcontext() if len(pixels_NCHW) else sdpa_kernel(SDPBackend.MATH):
            return self.transformer(pixels_NCHW)
