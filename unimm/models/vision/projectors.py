"""Projectors: patch features (N, P, C) of the vision tower to embeddings (N, P', D) of the trunk, by `ProjectorConfig.kind`.

    linear          one linear layer, a position a patch: LLaVA (arXiv 2304.08485)
    mlp             linear layers with GELU between them, a position a patch: Janus (arXiv 2410.13848), LLaVA-1.5
    pixel_shuffle   the features of side x side patches one after another, then an MLP: InternVL 1.5 (arXiv 2404.16821)
    average_pool    the mean of side x side patches, then an MLP: DeCo (arXiv 2405.20985)
    qformer         learned queries that attend to themselves and, in some blocks, to the image: BLIP-2 (arXiv 2301.12597)
    perceiver       learned queries that attend to the image and themselves at once: Flamingo (arXiv 2204.14198)

All but the first two compress: an image takes fewer positions than it has patches. How many is known before an image is
opened (`num_positions`), which is what prompts, packing and the engine plan with. One of another package is named in a model's
config by its own config class (`_target_`), a `ProjectorSettings`.

Shapes: N images, P patches, P' positions an image takes, C vision width, D trunk width.
"""

import math
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from unimm.models.vision.resamplers import Perceiver, QFormer
from unimm.runtime.number_checks import check_whole

KINDS = ("linear", "mlp", "pixel_shuffle", "average_pool", "qformer", "perceiver")


class Projector(Protocol):
    """A module (N, P, C) -> (N, P', D), also of no images, that says how many positions an image takes.

    One whose layers do not each see every position may have `path()` and `passes(num_images, num_patches)`, too, by which
    operations are counted (`Resampler`).
    """

    def num_positions(self, num_patches: int) -> int:
        """P' of an image of so many patches: what prompts, packing and the engine plan with. ValueError: it takes no such
        image."""
        ...

    def __call__(self, features_NPC: Tensor) -> Tensor: ...


class ProjectorSettings(Protocol):
    """What a model needs of a projector's config, a frozen dataclass whose fields are JSON."""

    def build(self, vision_width: int, trunk_width: int) -> nn.Module:
        """The projector, a `Projector`, from vision width C to trunk width D."""
        ...


@dataclass(frozen=True)
class ProjectorConfig:
    """One of our projectors. Each kind reads the fields that name it, and `kind`.

    kind: one of `KINDS`.
    depth: linear layers with GELU between them ("mlp"; "pixel_shuffle" and "average_pool" behind their step), or blocks
        ("qformer", "perceiver"). "linear" has one.
    side: side x side patches become one position ("pixel_shuffle", "average_pool").
    num_queries: positions that an image takes ("qformer", "perceiver").
    width: of the blocks ("qformer", "perceiver"); None: the vision tower's.
    num_heads: of their attention.
    cross_every: the first of so many blocks attends to the image ("qformer").
    grid: patches carry fixed 2-D sine-cosine positions, and a square number of queries starts from those of a coarser grid
        ("qformer", "perceiver"), as Qwen-VL (arXiv 2308.12966) has it; False: as in the papers.
    """

    kind: str = "mlp"
    depth: int = 2
    side: int = 2
    num_queries: int = 32
    width: int | None = None
    num_heads: int = 8
    cross_every: int = 2
    grid: bool = True

    def __post_init__(self) -> None:
        check_whole(self, 1, "depth", "side", "num_queries", "num_heads", "cross_every")
        if self.width is not None:
            check_whole(self, 1, "width")
        if self.kind == "linear" and self.depth != 1:
            raise ValueError(f"A linear projector has one layer, not {self.depth}: add depth=1, or use mlp.")

    def build(self, vision_width: int, trunk_width: int) -> nn.Module:
        """The projector.

        Raises:
            ValueError: it is none of ours, or its width does not divide into its heads.
        """
        if self.kind not in KINDS:
            raise ValueError(
                f"Unknown projector '{self.kind}': use {', '.join(KINDS)}, or the config class of your own "
                f"(model.projector._target_)."
            )
        if self.kind in ("linear", "mlp"):
            return MLP(vision_width, trunk_width, self.depth)
        if self.kind in ("pixel_shuffle", "average_pool"):
            pool = PixelShuffle if self.kind == "pixel_shuffle" else AveragePool
            return pool(self.side, vision_width, trunk_width, self.depth)
        width = self.width or vision_width
        if width % self.num_heads or (self.grid and (width % 4 or vision_width % 4)):
            raise ValueError(
                f"A projector that is {width} wide (the vision tower {vision_width}) cannot have {self.num_heads} heads, or is "
                f"no multiple of 4, which its grid needs: change model.projector.width or num_heads."
            )
        sizes = vision_width, trunk_width, width, self.num_queries, self.num_heads, self.depth
        return QFormer(*sizes, self.grid, self.cross_every) if self.kind == "qformer" else Perceiver(*sizes, self.grid)


class MLP(nn.Sequential):
    """`depth` linear layers with exact GELU between them: Janus' aligners of both ports. A position a patch."""

    def __init__(self, width_in: int, width_out: int, depth: int = 2) -> None:
        layers: list[nn.Module] = [nn.Linear(width_in, width_out)]
        for _ in range(depth - 1):
            layers += [nn.GELU(), nn.Linear(width_out, width_out)]
        super().__init__(*layers)

    def num_positions(self, num_patches: int) -> int:
        """As many as patches."""
        return num_patches


class PixelShuffle(nn.Module):
    """Space to depth: (N, P, C) -> (N, P / side^2, side^2 C), a norm, and an MLP. Nothing is thrown away."""

    def __init__(self, side: int, vision_width: int, trunk_width: int, depth: int) -> None:
        super().__init__()
        self.side = side
        self.norm = nn.LayerNorm(side**2 * vision_width)
        self.mlp = MLP(side**2 * vision_width, trunk_width, depth)

    def num_positions(self, num_patches: int) -> int:
        """One for every group of patches."""
        return _groups(num_patches, self.side) ** 2

    def forward(self, features_NPC: Tensor) -> Tensor:
        return self.mlp(self.norm(group_patches(features_NPC, self.side).flatten(2)))


class AveragePool(nn.Module):
    """The mean of side x side patches, and an MLP: (N, P, C) -> (N, P / side^2, D)."""

    def __init__(self, side: int, vision_width: int, trunk_width: int, depth: int) -> None:
        super().__init__()
        self.side = side
        self.mlp = MLP(vision_width, trunk_width, depth)

    def num_positions(self, num_patches: int) -> int:
        """One for every group of patches."""
        return _groups(num_patches, self.side) ** 2

    def forward(self, features_NPC: Tensor) -> Tensor:
        return self.mlp(group_patches(features_NPC, self.side).mean(2))


def group_patches(features_NPC: Tensor, side: int) -> Tensor:
    """(N, P, C) -> (N, P / side^2, side^2, C): squares of side x side patches, row by row, and so are the patches of each."""
    num_images, num_patches, width = features_NPC.shape
    groups = _groups(num_patches, side)
    squares = features_NPC.reshape(num_images, groups, side, groups, side, width).transpose(2, 3)
    return squares.reshape(num_images, groups**2, side**2, width)


def _groups(num_patches: int, side: int) -> int:
    """How many squares of side x side patches lie side by side. ValueError: they do not fill the image."""
    whole = math.isqrt(num_patches)
    if whole**2 != num_patches or whole % side:
        raise ValueError(f"{num_patches} patches do not divide into squares of {side} x {side}: change model.projector.side.")
    return whole // side
