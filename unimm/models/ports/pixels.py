"""Images looked at: vision tower and projector. N images as pixels, I all images, P patches, C vision width, D trunk width."""

import torch
from torch import nn

from unimm.batch import Images
from unimm.models.vision.tower import VisionTower


class PixelsPort(nn.Module):
    """Images looked at: vision tower and projector. Nothing is ever predicted here."""

    def __init__(self, tower: VisionTower, projector: nn.Module) -> None:
        super().__init__()
        self.tower = tower
        self.projector = projector

    def embed(self, pixels_NCHW: torch.Tensor) -> torch.Tensor:
        """pixels (N, 3, H, W) in [-1, 1] -> embeddings (N * P, D), image after image."""
        return self.projector(self.features(pixels_NCHW)).flatten(0, 1)

    def embed_batch(self, images: Images) -> torch.Tensor:
        """The images of a batch -> embeddings (I * P, D), image after image, in reading order."""
        return self.projector(self.batch_features(images)).flatten(0, 1)

    def batch_features(self, images: Images) -> torch.Tensor:
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

    def features(self, pixels_NCHW: torch.Tensor) -> torch.Tensor:
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
