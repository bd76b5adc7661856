"""Twice the map: nearest neighbours, then a 3x3 convolution; on a CPU without the multiplications that are done twice.

After doubling, the nine pixels under the kernel are only four different ones: out of rows (i-1, i, i) or (i, i, i+1), by the
parity of the output's row, and columns alike. So each of the four parities (p, q) is a 2x2 convolution of the small map
with weights of which some have been added up: 16 multiplications a small position instead of 36 (sub-pixel convolution,
arXiv 1609.05158, the other way round). Zeros around the doubled map are zeros around the small one, so edges are exact.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

SMALL_MAP = 24 * 24
"""Positions below which adding up the weights, once a call, costs what it saves."""


class Upsample(nn.Module):
    """(N, C, H, W) to (N, C, 2H, 2W): doubled by nearest neighbours, then convolved."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        # Measured on CPUs only; and what learns keeps the gradients of the convolution as it is written.
        plain = x_NCHW.device.type != "cpu" or torch.is_grad_enabled() or torch.compiler.is_compiling()
        if plain or x_NCHW.shape[2] * x_NCHW.shape[3] < SMALL_MAP:
            return self.conv(F.interpolate(x_NCHW, scale_factor=2.0, mode="nearest"))
        return convolve_doubled(x_NCHW, self.conv.weight, self.conv.bias)


def convolve_doubled(x_NCHW: Tensor, weight_KC33: Tensor, bias_K: Tensor | None) -> Tensor:
    """What `F.conv2d(doubled x, weight, bias, padding=1)` gives, (N, K, 2H, 2W) channels-last, from the small map.

    All parities are one convolution with 4K outputs over the map and a border of zeros, (H+1) x (W+1) windows.
    """
    bias = None if bias_K is None else bias_K.repeat(4)
    return join_parities(F.conv2d(x_NCHW, parity_weights(weight_KC33), bias, padding=1))


def join_parities(windows_NFHW: Tensor) -> Tensor:
    """(N, K, 2H, 2W) channels-last of all windows (N, 4K, H+1, W+1); parity (p, q) takes those that begin at (p, q)."""
    batch, features, height, width = windows_NFHW.shape
    height, width, channels = height - 1, width - 1, features // 4
    windows_NHWF = rearrange(windows_NFHW, "n f h w -> n h w f")
    out_NHWK = windows_NFHW.new_empty(batch, 2 * height, 2 * width, channels)
    by_parity = rearrange(out_NHWK, "n (h p) (w q) k -> p q n h w k", p=2, q=2)  # a view
    for parity in range(4):
        p, q = divmod(parity, 2)
        outputs = slice(parity * channels, (parity + 1) * channels)
        by_parity[p, q] = windows_NHWF[:, p : p + height, q : q + width, outputs]
    return rearrange(out_NHWK, "n h w k -> n k h w")


def parity_weights(weight_KC33: Tensor) -> Tensor:
    """(4K, C, 2, 2) of (K, C, 3, 3): parities (0, 0), (0, 1), (1, 0), (1, 1). Added up in float32 at least, rounded once."""
    wide = weight_KC33.to(torch.promote_types(weight_KC33.dtype, torch.float32))
    by_parity = [columns for rows in _pairs(wide, 2) for columns in _pairs(rows, 3)]
    return torch.cat(by_parity).to(weight_KC33.dtype, memory_format=torch.channels_last)


def _pairs(weight: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Three taps along a dimension as two, of the even and of the odd outputs."""
    before, at, after = weight.split(1, dim)
    return torch.cat((before, at + after), dim), torch.cat((before + at, after), dim)
