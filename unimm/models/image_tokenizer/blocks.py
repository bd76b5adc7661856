"""Blocks of the image tokenizer's encoder and decoder: residual blocks of GroupNorm, swish and 3x3 convolutions, attention
over a map, and levels of them, each at one resolution (arXiv 2012.09841).

Shapes: N images, C channels, H W of a map.
"""

from abc import ABC, abstractmethod
from itertools import pairwise

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from unimm.models.image_tokenizer.layers import GroupNorm, Upsample

NUM_GROUPS = 32  # of every GroupNorm: JanusVQVAE fixes it, so channels come in multiples of 32


class ConvolvesSwish(nn.Module, ABC):
    """A convolution that takes over the norm and swish before it."""

    @abstractmethod
    def convolve_swish(self, norm: GroupNorm, x_NCHW: Tensor) -> Tensor:
        """What the convolution makes of swish(norm(x))."""


class ResnetBlock(nn.Module):
    """Two 3x3 convolutions, each after GroupNorm and swish, beside a shortcut (1x1 where channels change)."""

    def __init__(self, in_channels: int, out_channels: int, dropout: float = 0.0):
        super().__init__()
        self.norm1 = norm_of(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = norm_of(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        if in_channels != out_channels:
            self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        h_NCHW = convolve_swish(self.norm1, self.conv1, x_NCHW)
        h_NCHW = convolve_swish(self.norm2, self.conv2, h_NCHW, self.dropout)
        shortcut_NCHW = self.nin_shortcut(x_NCHW) if hasattr(self, "nin_shortcut") else x_NCHW
        return shortcut_NCHW + h_NCHW


class AttentionBlock(nn.Module):
    """Every position attends to every other: one head, as wide as the channels."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = norm_of(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        h_NCHW = self.norm(x_NCHW)
        q, k, v = (rearrange(project(h_NCHW), "n c h w -> n 1 (h w) c") for project in (self.q, self.k, self.v))
        out_N1TC = F.scaled_dot_product_attention(q, k, v)
        return x_NCHW + self.proj_out(rearrange(out_N1TC, "n 1 (h w) c -> n c h w", h=x_NCHW.shape[2]))


class Downsample(nn.Module):
    """Halves the map. The zero column and row come right and below only, as in the VQGAN."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.conv(F.pad(x_NCHW, (0, 1, 0, 1)))


class MidBlock(nn.Module):
    """Residual block, attention, residual block at the lowest resolution."""

    def __init__(self, channels: int, dropout: float = 0.0):
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels, dropout)
        self.attn_1 = AttentionBlock(channels)
        self.block_2 = ResnetBlock(channels, channels, dropout)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x_NCHW)))


class Level(nn.Module):
    """One resolution: residual blocks, each followed by attention if `attend`, then the way to the next resolution."""

    def __init__(self, channels: list[int], attend: bool, dropout: float, *, up: bool = False, down: bool = False):
        super().__init__()
        pairs = list(pairwise(channels))
        self.block = nn.ModuleList(ResnetBlock(wide_in, wide_out, dropout) for wide_in, wide_out in pairs)
        self.attn = nn.ModuleList(AttentionBlock(channel) for channel in channels[1:] if attend)
        if up:
            self.upsample = Upsample(channels[-1])
        if down:
            self.downsample = Downsample(channels[-1])

    def forward(self, x_NCHW: Tensor) -> Tensor:
        for index, block in enumerate(self.block):
            x_NCHW = block(x_NCHW)
            if len(self.attn):
                x_NCHW = self.attn[index](x_NCHW)
        if hasattr(self, "upsample"):
            return self.upsample(x_NCHW)
        return self.downsample(x_NCHW) if hasattr(self, "downsample") else x_NCHW


def norm_of(channels: int) -> GroupNorm:
    """The norm over groups of so many channels."""
    return GroupNorm(NUM_GROUPS, channels, eps=1e-6)


def convolve_swish(norm: GroupNorm, conv: nn.Module, x_NCHW: Tensor, dropout: nn.Module | None = None) -> Tensor:
    """A convolution of x sigmoid(x), x normed; one that can (`int8_convolution`) does all at once."""
    if isinstance(conv, ConvolvesSwish):
        return conv.convolve_swish(norm, x_NCHW)
    # Without gradients in place, for a new map of 128 x 384 x 384 takes a CPU twice the time.
    swish_NCHW = F.silu(norm(x_NCHW), inplace=not torch.is_grad_enabled())
    return conv(swish_NCHW if dropout is None else dropout(swish_NCHW))
