"""Images looked at: the vision tower's patch features (N, P, C), and the projector that carries them into the trunk
(N, P', D).

As in Janus (arXiv 2410.13848). A projector of another package is named in a model's config by its own config class
(`_target_`), a `ProjectorSettings`.

Shapes: N images as pixels, I all images, P patches, P' positions an image takes, C vision width, D trunk width.
"""

from typing import Any, ClassVar

from torch import Tensor, nn

from unimm.batch import Batch, Images
from unimm.models.ports.base import Passes, Port
from unimm.models.vision.resamplers import Resampler
from unimm.models.vision.tower import VisionTower
from unimm.sequence import Kind, Segment


class PixelsPort(Port):
    """Images looked at: vision tower and projector (a `Projector`). Nothing is ever predicted here."""

    kind = Kind.PIXELS
    hidden_parts: ClassVar[tuple[str, ...]] = ("vision", "projector")

    def __init__(self, tower: VisionTower, projector: nn.Module) -> None:
        super().__init__()
        self.tower = tower
        self.projector: Any = projector
        projector.num_positions(tower.config.num_patches)  # pyright: ignore[reportCallIssue] - raises where they do not fit

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
        inside = self.projector.blocks if isinstance(self.projector, Resampler) else ()
        return [*self.tower.transformer.blocks, *inside]

    def path(self) -> list[nn.Module]:
        return [self.tower, *(self.projector.path() if hasattr(self.projector, "passes") else [self.projector])]

    def set_attention(self, backend: str) -> None:
        """With "documents", for training on a CPU, images take plain products: the backward pass of PyTorch's fused kernel
        takes several times as long as theirs there (recipes/LOG.md)."""
        for module in self.modules():
            if hasattr(module, "fused_attn"):
                setattr(module, "fused_attn", backend != "documents")  # noqa: B010 - a plain attribute, whatever the types say

    def passes(self, batch: Batch) -> list[Passes]:
        """Images whose features are stored do not go through the tower."""
        config, num_looked = self.tower.config, len(batch.images.pixels)
        # Scores and their sums, each 2 operations a pair of patches and dimension.
        an_image = 4 * config.num_layers * config.width * config.num_patches**2
        tower = Passes(num_looked * config.num_patches, num_looked * an_image)
        if hasattr(self.projector, "passes"):
            return [tower, *(Passes(*one) for one in self.projector.passes(len(batch.images), config.num_patches))]
        return [tower, Passes(int(batch.image_spans[:, 2].sum()))]
