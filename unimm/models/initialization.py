"""Where fresh weights start from: what the data and the image tokenizer know already need not be learned again.

    init_vision_from_patches    patches are whitened, places are sine waves     a new tower tells shapes many times sooner
    init_codes_from_codebook    codes begin as the tokenizer's own vectors      codes that look alike begin alike, and are
                                                                                told apart later

Both only set initial values: the model's form stays a Janus', and everything goes on learning. Figures: recipes/LOG.md.
"""

import torch
import torch.nn.functional as F
from torch import nn

from unimm.models.ports.vocabulary import CodesPort
from unimm.models.vision.tower import VisionTower

FLAT = 0.02
"""Standard deviation of a patch, in units of pixels in [-1, 1], below which it shows nothing."""

NOISE = 1e-2
"""Variance below which a direction of patch space counts as noise and is not blown up."""

PLACE = 0.3
"""Amplitude of the sine waves beside the whitened patches' 1."""

CODE_LENGTH = 2.0
"""Length of a code's vector where codes are read."""

CODE_REACH = 0.5
"""Distance on the unit sphere at which two codes have exp(-1/2) in common where codes are predicted."""

SCORE_LENGTH = 4.0
"""Length of a code's vector where codes are predicted."""

MAX_PATCHES = 2**16


@torch.no_grad()
def init_vision_from_patches(tower: VisionTower, images_NCHW: torch.Tensor) -> None:
    """Set patch and position embedding of a tower whose images, (N, 3, H, W) in [-1, 1], look like these.

    In pixels, a patch's mean colour varies a hundred times as much as an edge in it, and gradient descent learns what varies
    most first. Whitening gives every direction of patch space the same variance (as in the first layer of Coates and Ng 2012
    and of Jordan's airbench, arXiv 2404.00498), so edges, and thus shapes, are there from the first step.
    """
    config, embedding, places = tower.config, tower.transformer.patch_embed.proj, tower.transformer.pos_embed
    assert embedding.bias is not None and places is not None
    patches_nI = F.unfold(images_NCHW, config.patch_size, stride=config.patch_size).mT.flatten(0, 1)
    textured_n = patches_nI.std(1) > FLAT
    patches_nI = patches_nI[textured_n] if textured_n.any() else patches_nI
    patches_nI = patches_nI[torch.linspace(0, len(patches_nI) - 1, min(len(patches_nI), MAX_PATCHES)).long()]
    mean_I = patches_nI.mean(0)
    variances, directions = torch.linalg.eigh((patches_nI - mean_I).T @ (patches_nI - mean_I) / len(patches_nI))
    # From the largest variance down; a tower narrower than a patch leaves out the smallest, a wider one keeps its own start.
    whitening_OI = (directions / (variances.clamp(min=0) + NOISE).sqrt()).flip(1).T[: config.width]
    embedding.weight[: len(whitening_OI)] = whitening_OI.view(-1, *embedding.weight.shape[1:])
    embedding.bias[: len(whitening_OI)] = -whitening_OI @ mean_I
    places.copy_(PLACE * sine_places(config.image_size // config.patch_size, config.width))


def sine_places(side: int, width: int) -> torch.Tensor:
    """(side * side, width): sines and cosines of row and column at width / 4 frequencies each; what is left over is 0."""
    frequencies = 100.0 ** -(torch.arange(width // 4) / max(width // 4, 1))
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    waves = [place.flatten()[:, None] * frequencies for place in (rows, columns)]
    places = torch.cat([wave for angle in waves for wave in (angle.sin(), angle.cos())], dim=1)
    return F.pad(places, (0, width - places.shape[1]))


@torch.no_grad()
def init_codes_from_codebook(port: CodesPort, codebook_KD: torch.Tensor) -> None:
    """Let a port begin with the image tokenizer's codebook (K, D): its embedding as the codebook itself, each code at one
    length, and the last layer of its head as features in which codes that lie near each other are alike.

    Raises:
        ValueError: the port's embedding has another form.
    """
    if codebook_KD.shape != port.embedding.weight.shape:
        raise ValueError(
            f"A codebook of {tuple(codebook_KD.shape)} cannot start a code embedding of {tuple(port.embedding.weight.shape)}."
        )
    points_KD = F.normalize(codebook_KD.float(), dim=-1)
    port.embedding.weight.copy_(CODE_LENGTH * points_KD)
    scores = port.head[-1]
    assert isinstance(scores, nn.Linear)
    scores.weight.copy_(SCORE_LENGTH * kernel_features(points_KD, scores.in_features, CODE_REACH))
    scores.bias.zero_()


def kernel_features(points_KD: torch.Tensor, width: int, reach: float) -> torch.Tensor:
    """(K, width) of points (K, D): products of rows are about exp(-distance**2 / (2 reach**2)).

    Random Fourier features (Rahimi and Recht 2007), always the same ones.
    """
    generator = torch.Generator().manual_seed(0)
    waves_DW = torch.randn(points_KD.shape[1], width, generator=generator) / reach
    phases_W = 2 * torch.pi * torch.rand(width, generator=generator)
    return (2 / width) ** 0.5 * torch.cos(points_KD.cpu() @ waves_DW + phases_W)
