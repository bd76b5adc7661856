"""The eye that looks: a SigLIP vision tower, and the projectors that carry its features into the trunk.

Shapes: N images, P patches, C vision width, D trunk width. The tower gives one feature a patch, (N, P, C), after its final
norm; a projector turns them into what the trunk reads, (N, P', D). Source: SigLIP (arXiv 2303.15343), Janus (arXiv 2410.13848).
"""

from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from unimm.checks import check_number, check_whole
from unimm.models.vision_transformer import VisionTransformer


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


@dataclass(frozen=True)
class ProjectorConfig:
    """How patch features become trunk embeddings.

    kind: "mlp" (Janus' own: `depth` linear layers with GELU between them).
    depth: number of linear layers; 1 is a plain linear projector.
    """

    kind: str = "mlp"
    depth: int = 2

    def __post_init__(self) -> None:
        check_whole(self, 1, "depth")


class MLP(nn.Sequential):
    """`depth` linear layers with exact GELU between them: Janus' aligners of both ports."""

    def __init__(self, width_in: int, width_out: int, depth: int = 2) -> None:
        layers: list[nn.Module] = [nn.Linear(width_in, width_out)]
        for _ in range(depth - 1):
            layers += [nn.GELU(), nn.Linear(width_out, width_out)]
        super().__init__(*layers)


PROJECTORS = {"mlp": lambda config, width_in, width_out: MLP(width_in, width_out, config.depth)}
"""Projectors by name: (config, vision width, trunk width) -> module (N, P, C) -> (N, P', D)."""


def build_projector(config: ProjectorConfig, vision_width: int, trunk_width: int) -> nn.Module:
    """The projector that the config names.

    Raises:
        ValueError: the name is none of `PROJECTORS`.
    """
    if config.kind not in PROJECTORS:
        raise ValueError(f"Unknown projector '{config.kind}': use one of {', '.join(sorted(PROJECTORS))}.")
    return PROJECTORS[config.kind](config, vision_width, trunk_width)
