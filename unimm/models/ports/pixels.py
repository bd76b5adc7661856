"""Images looked at: the vision tower's patch features (N, P, C), and the projector that carries them into the trunk
(N, P', D).

As in Janus (arXiv 2410.13848). A projector of another package is named in a model's config by its own config class
(`_target_`), a `ProjectorSettings`.

Shapes: N images as pixels, I all images, P patches, P' positions an image takes, C vision width, D trunk width.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

from unimm.batch import Batch, Images
from unimm.models.ports.base import Passes, Port
from unimm.models.vision.tower import VisionTower
from unimm.runtime.number_checks import check_whole
from unimm.sequence import Kind, Segment


class PixelsPort(Port):
    """Images looked at: vision tower and projector (a `Projector`). Nothing is ever predicted here."""

    kind = Kind.PIXELS
    hidden_parts: ClassVar[tuple[str, ...]] = ("vision", "projector")

    def __init__(self, tower: VisionTower, projector: nn.Module) -> None:
        super().__init__()
        self.tower = tower
        self.projector: Any = projector

    @property
    def num_positions(self) -> int:
        """P': positions that an image takes."""
        return self.projector.num_positions(self.tower.config.num_patches)

    def content(self, batch: Batch, where_n: Tensor) -> Images:
        """The images, in reading order."""
        return batch.images

    def embed(self, content: Images) -> Tensor:
        """The images of a batch -> embeddings (I * P', D), image after image, in reading order."""
        return self.projector(self.batch_features(content)).flatten(0, 1)

    def batch_features(self, images: Images) -> Tensor:
        """The images of a batch -> patch features (I, P, C), in reading order: looked at now, or stored before.

        Raises:
            ValueError: features are stored that this tower cannot have made.
        """
        looked_NPC = self.features(images.pixels)
        if not len(images.features):
            return looked_NPC
        if images.features.shape[1:] != looked_NPC.shape[1:]:
            raise ValueError(
                f"Stored features are {tuple(images.features.shape[1:])} an image, this vision tower makes "
                f"{tuple(looked_NPC.shape[1:])}: store its own with `unimm encode-features`."
            )
        features_IPC = looked_NPC.new_empty(len(images), *looked_NPC.shape[1:])
        features_IPC = features_IPC.index_put((~images.is_seen,), looked_NPC)
        return features_IPC.index_put((images.is_seen,), images.features.to(looked_NPC.dtype))

    def features(self, pixels_NCHW: Tensor) -> Tensor:
        """pixels (N, 3, H, W) in [-1, 1] -> patch features (N, P, C), also of no images at all.

        Raises:
            ValueError: the images do not have the size that the tower was made for.
        """
        size = self.tower.config.image_size
        if len(pixels_NCHW) == 0:
            pixels_NCHW = pixels_NCHW.new_zeros(0, 3, size, size)
        if pixels_NCHW.shape[1:] != (3, size, size):
            raise ValueError(f"The vision tower looks at (3, {size}, {size}), not at {tuple(pixels_NCHW.shape[1:])}.")
        dtype = next(self.tower.parameters()).dtype
        return self.tower(pixels_NCHW.to(dtype))

    def check(self, segment: Segment) -> None:
        size, pixels = self.tower.config.image_size, segment.pixels
        if pixels is not None and pixels.shape != (3, size, size):
            raise ValueError(f"The vision tower looks at (3, {size}, {size}), not at {pixels.shape}.")

    def parts(self) -> dict[str, nn.Module]:
        return {"vision": self.tower, "projector": self.projector}

    def units(self) -> list[nn.Module]:
        return list(self.tower.transformer.blocks)

    def set_attention(self, backend: str) -> None:
        """With "documents", for training on a CPU, the tower takes plain products: the backward pass of PyTorch's fused kernel
        takes several times as long as theirs there (recipes/LOG.md)."""
        for module in self.tower.modules():
            if hasattr(module, "fused_attn"):
                setattr(module, "fused_attn", backend != "documents")  # noqa: B010 - a plain attribute, whatever the types say

    def passes(self, batch: Batch) -> list[Passes]:
        """Images whose features are stored do not go through the tower."""
        config, num_looked = self.tower.config, len(batch.images.pixels)
        # Scores and their sums, each 2 operations a pair of patches and dimension.
        an_image = 4 * config.num_layers * config.width * config.num_patches**2
        return [
            Passes(num_looked * config.num_patches, num_looked * an_image),
            Passes(int(batch.image_spans[:, 2].sum())),
        ]


class Projector(Protocol):
    """A module (N, P, C) -> (N, P', D), also of no images, that says how many positions an image takes."""

    def num_positions(self, num_patches: int) -> int:
        """P' of an image of so many patches: what prompts, packing and the engine plan with."""
        ...

    def __call__(self, features_NPC: Tensor) -> Tensor: ...


class ProjectorSettings(Protocol):
    """What a model needs of a projector's config, a frozen dataclass whose fields are JSON."""

    def build(self, vision_width: int, trunk_width: int) -> nn.Module:
        """The projector, a `Projector`, from vision width C to trunk width D."""
        ...


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

    def build(self, vision_width: int, trunk_width: int) -> nn.Module:
        """The projector.

        Raises:
            ValueError: it is none of ours.
        """
        if self.kind != "mlp":
            raise ValueError(
                f"Unknown projector '{self.kind}': use mlp, or the config class of your own (model.projector._target_)."
            )
        return MLP(vision_width, trunk_width, self.depth)


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
