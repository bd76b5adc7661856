"""Starts: whitened patches, places that differ, codes that begin as the tokenizer's own."""

import pytest
import torch
import torch.nn.functional as F
from toys import make_mixture, make_model

from unimm.models.initialization import (
    CODE_LENGTH,
    SCORE_LENGTH,
    init_codes_from_codebook,
    init_vision_from_patches,
    kernel_features,
    sine_places,
)
from unimm.models.ports.vocabulary import CodesPort
from unimm.models.vision.tower import VisionConfig, VisionTower


def embedded_patches(tower: VisionTower, images: torch.Tensor) -> torch.Tensor:
    return tower.transformer.patch_embed(images).flatten(0, 1)


@pytest.mark.parametrize("width", [24, 48, 64])
def test_patches_are_whitened(width: int) -> None:
    """A patch has 48 numbers: narrower towers keep the strongest directions, wider ones leave the rest as it was."""
    tower = VisionTower(VisionConfig(image_size=16, patch_size=4, width=width, num_layers=1, num_heads=2))
    before = tower.transformer.patch_embed.proj.weight.clone()
    mixing = torch.linalg.qr(torch.randn(48, 48, generator=torch.Generator().manual_seed(0))).Q * torch.linspace(2, 10, 48)
    patches = torch.randn(4000, 16, 48, generator=torch.Generator().manual_seed(1)) @ mixing.T + 3
    images = F.fold(patches.mT, 16, 4, stride=4)
    init_vision_from_patches(tower, images)
    known = min(width, 48)
    with torch.no_grad():
        values = embedded_patches(tower, images)[:, :known]
    torch.testing.assert_close(values.mean(0), torch.zeros(known), atol=0.02, rtol=0)
    torch.testing.assert_close(values.T @ values / len(values), torch.eye(known), atol=0.06, rtol=0)
    assert torch.equal(tower.transformer.patch_embed.proj.weight[known:], before[known:])


def test_images_that_show_nothing_are_no_harm() -> None:
    tower = VisionTower(VisionConfig(image_size=16, patch_size=4, width=24, num_layers=1, num_heads=2))
    init_vision_from_patches(tower, torch.zeros(3, 3, 16, 16))
    assert torch.isfinite(tower(torch.zeros(1, 3, 16, 16))).all()


@pytest.mark.parametrize("width", [8, 18, 192])
def test_places_differ(width: int) -> None:
    places = sine_places(8, width)
    assert places.shape == (64, width) and places.abs().max() <= 1
    assert torch.cdist(places, places).add(torch.eye(64)).min() > 0.05


def test_codes_begin_as_the_codebook() -> None:
    port, codebook = CodesPort(10, 4, 8), torch.randn(10, 4)
    init_codes_from_codebook(port, codebook)
    torch.testing.assert_close(F.cosine_similarity(port.embedding.weight, codebook, dim=1), torch.ones(10))
    torch.testing.assert_close(port.embedding.weight.norm(dim=1), torch.full((10,), CODE_LENGTH))
    with pytest.raises(ValueError, match="code embedding"):
        init_codes_from_codebook(port, torch.randn(10, 5))


def test_codes_that_look_alike_are_predicted_alike() -> None:
    points = F.normalize(torch.randn(40, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    features = kernel_features(points, 4096, reach=0.5)
    torch.testing.assert_close(features @ features.T, (-(torch.cdist(points, points) ** 2) / 0.5).exp(), atol=0.08, rtol=0)
    port = CodesPort(40, 4, 4096)
    init_codes_from_codebook(port, 3 * points)
    torch.testing.assert_close(port.head[-1].weight, SCORE_LENGTH * features)
    assert not port.head[-1].bias.any()


def test_a_mixture_shows_its_images() -> None:
    mixture, tower = make_mixture(), make_model().pixels.tower
    images = [image for image, _ in zip(mixture.images(), range(30), strict=False)]
    assert len(images) == 30 and all(image.shape == (3, 16, 16) for image in images)
    init_vision_from_patches(tower, torch.stack([torch.from_numpy(image) for image in images]))
