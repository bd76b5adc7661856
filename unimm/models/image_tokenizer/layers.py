"""Layers of the image tokenizer that are quick on a CPU, with the numbers of PyTorch's own.

`GroupNorm` has a backward of our own. PyTorch's CPU backward for channels-last maps runs one scalar loop a group. With one
channel a group (32 channels in 32 groups, the finest level of a small image tokenizer) it took more than half of a training
step: 49 ms where this takes 4 (bf16, 32 x 32 x 64 x 64, 2 cores). Everywhere else PyTorch's own kernel serves.

`Upsample` doubles a map by nearest neighbours, then convolves it 3x3; on a CPU without the multiplications that are done twice.
After doubling, the nine pixels under the kernel are only four different ones: out of rows (i-1, i, i) or (i, i, i+1), by the
parity of the output's row, and columns alike. So each of the four parities (p, q) is a 2x2 convolution of the small map
with weights of which some have been added up: 16 multiplications a small position instead of 36 (sub-pixel convolution,
arXiv 1609.05158, the other way round). Zeros around the doubled map are zeros around the small one, so edges are exact.
"""

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

LARGE_MAP = 48 * 48
"""Positions from which PyTorch's own forward is the faster one."""


class GroupNorm(nn.GroupNorm):
    """`torch.nn.GroupNorm` (affine) of maps (N, C, H, W); on a CPU the result is channels-last."""

    def forward(self, input: Tensor) -> Tensor:
        if input.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(input)
        if not torch.is_grad_enabled() and input.shape[2] * input.shape[3] >= LARGE_MAP:
            return super().forward(input)  # one image of 128 x 384 x 384: 14 ms against 99 with its copies
        return _ChannelsLastGroupNorm.apply(input, self.weight, self.bias, self.num_groups, self.eps)


class _ChannelsLastGroupNorm(torch.autograd.Function):
    """Forward by PyTorch; backward as sums over positions and one affine map a channel, in vectorised passes.

    With y = w (x - mean) / std + b over groups of D channels and P = H W positions, the gradient is affine in x and dy:
    dx = dy w / std + x c + e, where c and e need only the sums over positions of dy and of dy x. First order only.
    """

    @staticmethod
    def forward(ctx: Any, x_NCHW: Tensor, weight: Tensor, bias: Tensor, num_groups: int, eps: float) -> Tensor:
        batch, channels, height, width = x_NCHW.shape
        x_NCHW = x_NCHW.contiguous(memory_format=torch.channels_last)
        # In bf16 with several channels a group the channels-last forward is a scalar loop too: 3 ms where two copies around
        # the channels-first one take 0.3. In fp32 the copies would cost more than they save.
        slow = x_NCHW.element_size() < 4 and channels != num_groups
        copied_NCHW = x_NCHW.contiguous() if slow else x_NCHW
        y_NCHW, mean_NG, rstd_NG = torch.native_group_norm(
            copied_NCHW, weight, bias, batch, channels, height * width, num_groups, eps
        )
        y_NCHW = y_NCHW.contiguous(memory_format=torch.channels_last)
        ctx.save_for_backward(x_NCHW, weight, mean_NG, rstd_NG)
        return y_NCHW

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        x_NCHW, weight, mean_NG, rstd_NG = ctx.saved_tensors
        height, num_groups = x_NCHW.shape[2], mean_NG.shape[1]
        x_NPC = rearrange(x_NCHW, "n c h w -> n (h w) c")
        dy_NPC = rearrange(grads[0].contiguous(memory_format=torch.channels_last), "n c h w -> n (h w) c")
        wide = torch.promote_types(x_NCHW.dtype, torch.float32)  # sums over positions are finished in it
        mean_NG1, rstd_NG1 = mean_NG.to(wide)[..., None], rstd_NG.to(wide)[..., None]
        weight_GD = rearrange(weight.to(wide), "(g d) -> g d", g=num_groups)
        sum_dy_NGD = rearrange(dy_NPC.sum(1).to(wide), "n (g d) -> n g d", g=num_groups)
        sum_dyx_NGD = rearrange((dy_NPC * x_NPC).sum(1).to(wide), "n (g d) -> n g d", g=num_groups)

        dweight = rearrange(((sum_dyx_NGD - mean_NG1 * sum_dy_NGD) * rstd_NG1).sum(0), "g d -> (g d)")
        dbias = rearrange(sum_dy_NGD.sum(0), "g d -> (g d)")
        pull_NG1 = (weight_GD * sum_dy_NGD).sum(-1, keepdim=True) / (x_NPC.shape[1] * weight_GD.shape[1])
        turn_NG1 = (weight_GD * sum_dyx_NGD).sum(-1, keepdim=True) / (x_NPC.shape[1] * weight_GD.shape[1])
        slope_NG1 = (pull_NG1 * mean_NG1 - turn_NG1) * rstd_NG1**3
        offset_NG1 = -slope_NG1 * mean_NG1 - pull_NG1 * rstd_NG1

        def per_channel(value_NGd: Tensor) -> Tensor:
            spread = repeat(value_NGd, "n g d -> n 1 (g r d)", r=weight_GD.shape[1] // value_NGd.shape[-1])
            return spread.to(x_NPC.dtype)

        dx_NPC = torch.addcmul(per_channel(offset_NG1), x_NPC, per_channel(slope_NG1))
        dx_NPC = dx_NPC.addcmul_(dy_NPC, per_channel(rstd_NG1 * weight_GD))
        dx_NCHW = rearrange(dx_NPC, "n (h w) c -> n c h w", h=height)
        return dx_NCHW, dweight.to(weight.dtype), dbias.to(weight.dtype), None, None


SMALL_MAP = 24 * 24
"""Positions below which adding up the weights, once a call, costs what it saves."""


class Upsample(nn.Module):
    """(N, C, H, W) to (N, C, 2H, 2W): doubled by nearest neighbours, then convolved."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        # Measured on CPUs only; and training keeps the gradients of the convolution as it is written.
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
