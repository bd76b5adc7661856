"""Codes to pictures: in float32 on a CPU a picture is the same to the pixel alone and in any batch."""

import numpy as np
import pytest
import torch

from unimm.inference import engine_parts
from unimm.inference.engine_parts import ImageCoder
from unimm.models.image_tokenizer.model import ImageTokenizer, ImageTokenizerConfig
from unimm.models.image_tokenizer.quantizers import QuantizerConfig


@pytest.fixture(scope="module")
def wide() -> ImageTokenizer:
    """As wide as the demo's: narrower ones are convolved by other kernels, which give the same in a batch."""
    torch.manual_seed(0)
    quantizer = QuantizerConfig(codebook_size=64, code_dim=4)
    sizes = {"base_channels": 32, "channel_multipliers": (1, 2, 4), "num_res_blocks": 1, "latent_channels": 128}
    return ImageTokenizer(ImageTokenizerConfig(image_size=32, quantizer=quantizer, **sizes)).freeze()


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """What was computed, before it is rounded."""
    arrays: list[np.ndarray] = []
    plain = engine_parts.to_pil
    monkeypatch.setattr(engine_parts, "to_pil", lambda array: (arrays.append(array), plain(array))[1])
    return arrays


def test_a_picture_is_the_same_alone_and_in_any_company(wide: ImageTokenizer, decoded: list[np.ndarray]) -> None:
    coder = ImageCoder(wide)
    codes = torch.randint(64, (5, wide.num_codes))
    images = coder.decode(codes)
    for start, stop in ((0, 1), (1, 2), (4, 5), (2, 5)):
        del decoded[5:]
        again = coder.decode(codes[start:stop])
        assert all(np.array_equal(one, other) for one, other in zip(decoded[5:], decoded[start:stop], strict=True))
        assert [one.tobytes() for one in again] == [one.tobytes() for one in images[start:stop]]


def test_the_codes_of_a_picture_are_the_same_alone_and_in_any_company(
    wide: ImageTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    latents: list[torch.Tensor] = []
    plain = ImageTokenizer.latents
    monkeypatch.setattr(ImageTokenizer, "latents", lambda self, *x: (latents.append(plain(self, *x)), latents[-1])[1])
    arrays = list(np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8))
    codes = ImageCoder(wide).encode(arrays)
    together = torch.cat(latents)
    latents.clear()
    assert torch.equal(torch.cat([ImageCoder(wide).encode([one]) for one in arrays]), codes)
    assert torch.equal(torch.cat(latents), together)


def test_in_reduced_precision_pictures_still_go_together(wide: ImageTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """There the codes themselves depend on company."""
    sizes: list[int] = []

    def decode(self: ImageTokenizer, codes: torch.Tensor, grid: object) -> torch.Tensor:
        sizes.append(len(codes))
        return torch.zeros(len(codes), 3, 4, 4)

    monkeypatch.setattr(ImageTokenizer, "decode", decode)
    half = ImageTokenizer(wide.config).bfloat16().freeze()
    ImageCoder(half).decode(torch.zeros(5, wide.num_codes, dtype=torch.long))
    ImageCoder(half, alone=True).decode(torch.zeros(3, wide.num_codes, dtype=torch.long))
    assert sizes == [5, 1, 1, 1]
