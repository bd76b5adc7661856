"""Towers made by hand, for tests of what is done with vectors: an image is its mean colour, a text how often it names each."""

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from unimm.data.image import decode_image
from unimm.inference.embedding import EmbeddingCalls, Prepared, Towers

COLOURS = ("red", "green", "blue")


class ColourTowers(Towers):
    """The word "photo" draws a text away from all colours. passes: how many images or texts each pass had."""

    dim, logit_scale = 4, 20.0

    def __init__(self, logit_bias: float | None = None) -> None:
        self.logit_bias = logit_bias
        self.passes: list[int] = []

    @property
    def fingerprint(self) -> str:
        return f"colours {self.logit_bias}"

    def prepare(self, image: Any) -> Prepared:
        mean = np.asarray(decode_image(image), dtype=np.float32).mean((0, 1))
        return {"mean": torch.tensor([*mean, 0.0])}

    def embed_prepared(self, images: list[Prepared]) -> Tensor:
        self.passes.append(len(images))
        return normalize(torch.stack([one["mean"] for one in images]) + 1e-3, dim=1)

    def embed_texts(self, texts: list[str]) -> Tensor:
        self.passes.append(len(texts))
        counts = [[*(text.count(colour) for colour in COLOURS), 0.5 * text.count("photo")] for text in texts]
        return normalize(torch.tensor(counts, dtype=torch.float32) + 1e-3, dim=1)


class Embedder(EmbeddingCalls):
    """Two towers with the calls that users have."""

    def __init__(self, towers: Towers) -> None:
        self._towers = towers

    @property
    def towers(self) -> Towers:
        return self._towers


def plain(colour: str | tuple[int, int, int], size: tuple[int, int] = (8, 6)) -> Image.Image:
    """A picture of one colour."""
    return Image.new("RGB", size, colour)
