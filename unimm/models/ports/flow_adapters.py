"""What stands between the latents of an image and a Transformer that is to move them: shallow convolutional adapters on both
sides, with a long skip between them, as JanusFlow has them (arXiv 2411.07975, section 3.1).

    latents (I, C, H, W) --FlowEncoder--> features (I, E, h, w), time (I, D) --Transformer--> states (I, E, h, w)
    states, features, time --FlowDecoder--> velocity (I, C, H, W)

Each is a patch convolution and a few ConvNeXt-V2 blocks (arXiv 2301.00808), scaled and shifted by the time. The decoder reads
the encoder's features beside what the Transformer says: what is fine in an image need not go through it. Names of submodules
are those of JanusFlow's weights.

Shapes: I images, C channels, H W of the latents, h w = H W / patch size, E width of the adapters, D width of the trunk.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

EPS = 1e-6
TIME_STEPS = 1000.0
"""The time that is embedded runs from 0 (noise) to this (an image)."""


class FlowEncoder(nn.Module):
    """Latents and their time to features and an embedding of the time."""

    def __init__(self, channels: int, patch_size: int, width: int, num_blocks: int, trunk_width: int) -> None:
        super().__init__()
        self.width = width
        self.time_embed = TimeEmbedding(width, trunk_width)
        self.in_conv = nn.Conv2d(channels, width, patch_size, stride=patch_size)
        self.mid_block = ConvNextBlocks(width, num_blocks, trunk_width)

    def forward(self, latents_ICHW: Tensor, times_I: Tensor) -> tuple[Tensor, Tensor]:
        """times: in [0, 1]. Returns features (I, E, h, w) and the embedded time (I, D)."""
        waves_IE = sinusoids(times_I * TIME_STEPS, self.width).to(self.in_conv.weight.dtype)
        time_ID = self.time_embed(waves_IE)
        return self.mid_block(self.in_conv(latents_ICHW.to(self.in_conv.weight.dtype)), time_ID), time_ID


class FlowDecoder(nn.Module):
    """What the trunk says of an image's positions, and the encoder's features of them, to the velocity of its latents."""

    def __init__(self, channels: int, patch_size: int, width: int, num_blocks: int, trunk_width: int) -> None:
        super().__init__()
        self.input_norm = nn.RMSNorm(width, EPS)
        self.mid_block = ConvNextBlocks(2 * width, num_blocks, trunk_width)
        self.out_convs = nn.ModuleList([Unpatchify(2 * width, channels, patch_size)])

    def forward(self, states_IEhw: Tensor, features_IEhw: Tensor, time_ID: Tensor) -> Tensor:
        """(I, C, H, W)."""
        x = torch.cat([_over_channels(self.input_norm, states_IEhw), features_IEhw], dim=1)
        return self.out_convs[0](self.mid_block(x, time_ID))


class TimeEmbedding(nn.Module):
    """Two layers over sinusoids."""

    def __init__(self, width: int, trunk_width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(width, trunk_width)
        self.linear_2 = nn.Linear(trunk_width, trunk_width)

    def forward(self, waves_IE: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(waves_IE)))


class ConvNextBlocks(nn.Module):
    """ConvNeXt blocks one after another, all told the time."""

    def __init__(self, width: int, num_blocks: int, trunk_width: int) -> None:
        super().__init__()
        self.res_blocks = nn.ModuleList(ConvNextBlock(width, trunk_width) for _ in range(num_blocks))

    def forward(self, x_IEhw: Tensor, time_ID: Tensor) -> Tensor:
        for block in self.res_blocks:
            x_IEhw = block(x_IEhw, time_ID)
        return x_IEhw


class ConvNextBlock(nn.Module):
    """A 7x7 depthwise convolution and an MLP of each position beside a shortcut; then scale and shift by the time, which begin
    at none."""

    def __init__(self, width: int, trunk_width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.RMSNorm(width, EPS)
        self.channelwise_linear_1 = nn.Linear(width, 4 * width)
        self.channelwise_norm = GlobalResponseNorm(4 * width)
        self.channelwise_linear_2 = nn.Linear(4 * width, width)
        self.cond_embeds_mapper = nn.Linear(trunk_width, 2 * width)
        nn.init.zeros_(self.cond_embeds_mapper.weight)
        nn.init.zeros_(self.cond_embeds_mapper.bias)

    def forward(self, x_IEhw: Tensor, time_ID: Tensor) -> Tensor:
        y_IhwE = self.norm(self.depthwise(x_IEhw).permute(0, 2, 3, 1))
        y_IhwE = self.channelwise_norm(F.gelu(self.channelwise_linear_1(y_IhwE)))
        x_IEhw = x_IEhw + self.channelwise_linear_2(y_IhwE).permute(0, 3, 1, 2)
        scale_IE11, shift_IE11 = self.cond_embeds_mapper(F.silu(time_ID))[:, :, None, None].chunk(2, dim=1)
        return x_IEhw * (1 + scale_IE11) + shift_IE11


class GlobalResponseNorm(nn.Module):
    """Each channel of a map (I, h, w, E) against the mean of all, by its norm over the map (ConvNeXt V2)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, 1, 1, width))
        self.bias = nn.Parameter(torch.zeros(1, 1, 1, width))

    def forward(self, x_IhwE: Tensor) -> Tensor:
        norm_I11E = x_IhwE.norm(dim=(1, 2), keepdim=True)
        relative_I11E = norm_I11E / (norm_I11E.mean(-1, keepdim=True) + EPS)
        return x_IhwE * (self.weight * relative_I11E + 1) + self.bias


class Unpatchify(nn.Module):
    """(I, E, h, w) to (I, C, h patch size, w patch size)."""

    def __init__(self, width: int, channels: int, patch_size: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width, EPS)
        self.unpatch_conv = nn.Conv2d(width, channels * patch_size**2, 1)
        self.patch_size = patch_size

    def forward(self, x_IEhw: Tensor) -> Tensor:
        patches = self.unpatch_conv(_over_channels(self.norm, x_IEhw))
        return rearrange(patches, "i (c p q) h w -> i c (h p) (w q)", p=self.patch_size, q=self.patch_size)  # also of no image


def sinusoids(times_I: Tensor, width: int) -> Tensor:
    """(I, width) float32: cosines, then sines, of wavelengths from 2 pi to 10,000 times that."""
    rates = torch.exp(-math.log(10_000) * torch.arange(width // 2, device=times_I.device) / (width // 2))
    angles = times_I.float()[:, None] * rates
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def _over_channels(norm: nn.Module, x_IEhw: Tensor) -> Tensor:
    return norm(x_IEhw.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
