"""Networks of random weights in place of Inception and CLIP, which cannot be downloaded here."""

from types import SimpleNamespace

import torch
from torch import nn


class Features(nn.Module):
    """Means of four parts of an image, times a random matrix."""

    num_features = 6

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(12, 6, generator=torch.Generator().manual_seed(0)), requires_grad=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return nn.functional.adaptive_avg_pool2d(images.float() / 255, 2).flatten(1) @ self.matrix


class Clip(nn.Module):
    """Looks at the mean colour, reads the number of letters."""

    config = SimpleNamespace()

    def get_image_features(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.float().mean((2, 3))

    def get_text_features(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return torch.cat([ids.float(), ids.float() * 0 + 50, ids.float() * 0 + 90], 1)


def clip_processor(images=None, text=None, **_):
    if images is not None:
        return {"pixel_values": torch.stack(images)}
    ids = torch.tensor([[len(one)] for one in text])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
