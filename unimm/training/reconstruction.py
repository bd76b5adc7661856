"""How wrong a reconstruction is: pixels (N, 3, H, W) in [-1, 1] against pixels.

Absolute error keeps edges crisp, squared error makes the few badly wrong pixels count (on drawn shapes, small ones above
all: with absolute error alone they blur, because most of a dark scene is right already), and LPIPS (arXiv 1801.03924)
adds texture.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

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


class ReconstructionLoss(nn.Module):
    """The weighted sum, and each term by name.

    Raises:
        ValueError: LPIPS is asked for and its package or weights are not here.
    """

    def __init__(self, config: ReconstructionLossConfig):
        super().__init__()
        self.config = config
        # Its weights are no part of the run's own: kept out of the modules, so that no checkpoint holds them.
        self._lpips = [_load_lpips()] if config.lpips else []

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


def _load_lpips() -> nn.Module:
    if find_spec("lpips") is None:
        raise ValueError('LPIPS needs the package `lpips`: pip install "unimm[eval]", or set loss.lpips=0.')
    weights = Path(torch.hub.get_dir()) / "checkpoints" / VGG_WEIGHTS
    if not weights.is_file():
        raise ValueError(f"LPIPS needs VGG's weights at {weights}, and they are not there: put them, or set loss.lpips=0.")
    import lpips  # pyright: ignore[reportMissingImports] - an extra

    return lpips.LPIPS(net="vgg", verbose=False).eval().requires_grad_(False)
