"""How wrong a reconstruction is: pixels (N, 3, H, W) in [-1, 1] against pixels.

Absolute error keeps edges crisp, squared error makes the few badly wrong pixels count (on drawn shapes, small ones above
all: with absolute error alone they blur, because most of a dark scene is right already), and LPIPS (arXiv 1801.03924)
adds texture.

`roughness` is no error but a price on codes: what it costs an autoregressive model to write them afterwards.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from unimm.runtime.number_checks import check_number

VGG_WEIGHTS = "vgg16-397923af.pth"


@dataclass(frozen=True)
class ReconstructionLossConfig:
    """Weights of the terms; a term with weight 0 is not computed.

    l1, l2: mean absolute and mean squared error.
    edges: mean absolute error of the differences between neighbouring pixels.
    hard_pixels: l1 and l2 count a pixel 1 + hard_pixels * (its absolute error / the batch's mean) times.
    lpips: perceptual distance (VGG). Needs the package `lpips` and torchvision's VGG weights on disk.
    """

    l1: float = 1.0
    l2: float = 0.0
    edges: float = 0.0
    hard_pixels: float = 0.0
    lpips: float = 0.0

    def __post_init__(self) -> None:
        check_number(self, "l1", "l2", "edges", "hard_pixels", "lpips")


class ReconstructionLoss(nn.Module):
    """The weighted sum, and each term by name.

    Raises:
        ValueError: LPIPS is asked for and its package or weights are not here.
    """

    def __init__(self, config: ReconstructionLossConfig):
        super().__init__()
        self.config = config
        # Its weights are no part of the run's own: kept out of the modules, so that no checkpoint holds them.
        self._lpips = [load_lpips("set loss.lpips=0")] if config.lpips else []

    def forward(self, pixels_NCHW: Tensor, target_NCHW: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, a scalar in fp32, and its terms before weighting."""
        config, difference_NCHW = self.config, pixels_NCHW.float() - target_NCHW.float()
        error_NCHW = difference_NCHW.abs()
        weight_N1HW: Tensor | float = 1.0
        if config.hard_pixels:
            error_N1HW = error_NCHW.detach().mean(dim=1, keepdim=True)
            weight_N1HW = 1 + config.hard_pixels * (error_N1HW / (error_N1HW.mean() + 1e-3)).clamp(max=20)
        terms: dict[str, Tensor] = {}
        if config.l1:
            terms["l1"] = (weight_N1HW * error_NCHW).mean()
        if config.l2:
            terms["l2"] = (weight_N1HW * difference_NCHW.square()).mean()
        if config.edges:
            across, down = difference_NCHW.diff(dim=3), difference_NCHW.diff(dim=2)
            terms["edges"] = across.abs().mean() + down.abs().mean()
        if config.lpips:
            terms["lpips"] = self._lpips[0].to(pixels_NCHW.device)(pixels_NCHW.float(), target_NCHW.float()).mean()
        total = sum((getattr(config, name) * term for name, term in terms.items()), difference_NCHW.new_zeros(()))
        return total, terms


def roughness(latents_NTD: Tensor) -> Tensor:
    """How far neighbouring latents of a square grid, (N, T, D), lie apart on the unit sphere: the mean distance, a scalar.

    A plain background needs one code. Nothing in a reconstruction's error says so: the encoder writes there whatever its
    borders, norms and neighbours leave, and a model that is to predict the codes learns that noise first. The distance is
    not squared, so that few large steps cost less than many small ones (total variation, Rudin et al. 1992).
    """
    side = round(latents_NTD.shape[1] ** 0.5)
    points_NhwD = F.normalize(rearrange(latents_NTD.float(), "n (h w) d -> n h w d", h=side), dim=-1)
    across, down = points_NhwD.diff(dim=2), points_NhwD.diff(dim=1)
    # The small number keeps the gradient finite where two neighbours are equal.
    return sum(((step.square().sum(-1) + 1e-4).sqrt().mean() for step in (across, down)), points_NhwD.new_zeros(()))


def load_lpips(otherwise: str) -> nn.Module:
    """LPIPS with VGG (arXiv 1801.03924), in eval mode: images (N, 3, H, W) in [-1, 1] -> distances (N, 1, 1, 1).

    otherwise: what a user can do without, for the sentence of the ValueError where its package or weights are not here.
    """
    if find_spec("lpips") is None:
        raise ValueError(f'LPIPS needs the package `lpips`: pip install "unimm[eval]", or {otherwise}.')
    weights = Path(torch.hub.get_dir()) / "checkpoints" / VGG_WEIGHTS
    if not weights.is_file():
        raise ValueError(f"LPIPS needs VGG's weights at {weights}, and they are not there: put them, or {otherwise}.")
    import lpips  # pyright: ignore[reportMissingImports] - an extra

    return lpips.LPIPS(net="vgg", verbose=False).eval().requires_grad_(False)
