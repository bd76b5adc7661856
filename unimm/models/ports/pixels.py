"""Images looked at: the vision tower's patch features (N, P, C), and the projector that carries them into the trunk
(N, P', D).

As in Janus (arXiv 2410.13848). A projector of another package is named in a model's config by its own config class
(`_target_`), a `ProjectorSettings`.

An image that claims fewer positions, such as a frame of a video, gets means of squares of neighbouring ones: LLaVA-Video
(arXiv 2410.02713) pools behind the projector, too.

Shapes: N images as pixels, I all images, P patches, P' positions an image takes, C vision width, D trunk width.
"""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from unimm.batch import Batch, Images, normalise_pixels
from unimm.models.context_parallel import ContextGroup
from unimm.models.ports.base import Passes, Port, mismatch
from unimm.models.vision.projectors import group_patches
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

    def content(self, batch: Batch, where_n: Tensor) -> tuple[Images, Tensor]:
        """The images, in reading order, and how many positions each takes, (I,) long."""
        return batch.images, batch.image_spans[:, 2]

    def embed(self, content: tuple[Images, Tensor]) -> Tensor:
        """The images of a batch -> embeddings (positions of all images, D), image after image, in reading order.

        Raises:
            ValueError: an image claims positions that it cannot take.
        """
        images, counts_I = content
        embeddings_IPD = self.projector(self.batch_features(images))
        wanted = counts_I.unique().tolist()
        if wanted == [self.num_positions] or not wanted:
            return embeddings_IPD.flatten(0, 1)
        starts_I = counts_I.cumsum(0) - counts_I
        embeddings_nD = embeddings_IPD.new_zeros(int(counts_I.sum()), embeddings_IPD.shape[-1])
        for count in wanted:
            own_i = (counts_I == count).nonzero().squeeze(1)
            where_ip = starts_I[own_i, None] + torch.arange(count, device=counts_I.device)
            pooled_ipD = pool_positions(embeddings_IPD[own_i], count)
            embeddings_nD = embeddings_nD.index_put((where_ip.flatten(),), pooled_ipD.flatten(0, 1))
        return embeddings_nD

    def embed_own(self, batch: Batch, own_n: Tensor, context: ContextGroup) -> Tensor:
        """Each process of the group looks at its share of the images, wherever they lie, and sends their embeddings to those
        who hold their positions: the tower is much of the work, and all images of a row may lie in one process' part."""
        counts_I, where_n = batch.image_spans[:, 2], (batch.kinds.flatten() == self.kind).nonzero().squeeze(1)
        if len(where_n) != int(counts_I.sum()):
            raise mismatch(self.kind, len(where_n), int(counts_I.sum()))
        shares = context.shares(batch.num_images)
        own = shares[context.number]
        embeddings_mD = self.embed((batch.images.part(own), counts_I[own]))
        # (n, n): how many positions of the images that one process looks at lie with another.
        owners = context.owners(where_n, batch.kinds.shape[1]).split([int(counts_I[share].sum()) for share in shares])
        table = [one.bincount(minlength=context.count).tolist() for one in owners]
        sent_mD = embeddings_mD[owners[context.number].argsort(stable=True)]
        return context.exchange(sent_mD, table[context.number], [row[context.number] for row in table])

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
        """pixels (N, 3, H, W), uint8 or in [-1, 1] -> patch features (N, P, C), also of no images at all.

        Raises:
            ValueError: the images do not have the size that the tower was made for.
        """
        size = self.tower.config.image_size
        if len(pixels_NCHW) == 0:
            pixels_NCHW = pixels_NCHW.new_zeros(0, 3, size, size)
        if pixels_NCHW.shape[1:] != (3, size, size):
            raise ValueError(f"The vision tower looks at (3, {size}, {size}), not at {tuple(pixels_NCHW.shape[1:])}.")
        dtype = next(self.tower.parameters()).dtype
        return self.tower(normalise_pixels(pixels_NCHW).to(dtype))

    def check(self, segment: Segment) -> None:
        size, pixels = self.tower.config.image_size, segment.pixels
        if pixels is not None and pixels.shape != (3, size, size):
            raise ValueError(f"The vision tower looks at (3, {size}, {size}), not at {pixels.shape}.")
        if segment.length != self.num_positions:
            pool_positions(torch.empty(0, self.num_positions, 1), segment.length)

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
        return [tower, Passes(len(batch.images) * self.num_positions)]


def pool_positions(embeddings_IPD: Tensor, count: int) -> Tensor:
    """(I, P', D) -> (I, count, D): means of squares of neighbours, row by row. ValueError: they do not divide so."""
    num_positions = embeddings_IPD.shape[1]
    side, fewer = math.isqrt(num_positions), math.isqrt(count)
    if count == num_positions:
        return embeddings_IPD
    if side**2 != num_positions or fewer**2 != count or not fewer or side % fewer:
        smaller = [(side // step) ** 2 for step in range(1, side + 1) if side % step == 0] if side**2 == num_positions else []
        raise ValueError(
            f"An image of {num_positions} positions cannot take {count}: set prompt_format.video.frame_positions to one of "
            f"{', '.join(map(str, smaller or [num_positions]))}."
        )
    return group_patches(embeddings_IPD, side // fewer).mean(2)
