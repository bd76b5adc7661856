"""The image tokenizer: pixels (N, 3, H, W) in [-1, 1] to a grid of codes and back, by a convolutional VQ autoencoder.

The network is the VQGAN (arXiv 2012.09841) in the form LlamaGen gave it (VQ-16, arXiv 2406.06525), which is also Janus' and
transformers' `JanusVQVAE`: residual blocks of GroupNorm, swish and 3x3 convolutions, attention at the lowest resolution only,
halved by a strided convolution and doubled by nearest neighbours and a convolution. Submodules carry JanusVQVAE's names, so
weights travel either way by name, the codebook apart (`quantize.embedding.weight` there).

L levels halve the image L-1 times: H = W = image_size, grid h = w = image_size / 2**(L-1), T = h*w codes an image, row by row.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from unimm.models.image_tokenizer.layers import GroupNorm, Upsample
from unimm.models.image_tokenizer.quantizers import CosineQuantizer, QuantizerConfig, QuantizerSettings
from unimm.runtime.number_checks import check_number, check_whole

NUM_GROUPS = 32  # of every GroupNorm: JanusVQVAE fixes it, so channels come in multiples of 32


@dataclass(frozen=True)
class ImageTokenizerConfig:
    """Sizes of an image tokenizer; the defaults are LlamaGen's VQ-16 for 256 px.

    image_size: H = W in pixels.
    channel_multipliers: channels of each level, finest first, in units of base_channels.
    num_res_blocks: of each encoder level; a decoder level has one more.
    latent_channels: of the encoder's output and the decoder's input, before and after the 1x1 maps to the quantizer.
    quantizer: one of ours, or of another package.
    """

    image_size: int = 256
    base_channels: int = 128
    channel_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    latent_channels: int = 256
    dropout: float = 0.0
    quantizer: QuantizerSettings = field(default_factory=QuantizerConfig)

    def __post_init__(self) -> None:
        object.__setattr__(self, "channel_multipliers", tuple(self.channel_multipliers))
        check_whole(self, 1, "image_size", "base_channels", "num_res_blocks", "latent_channels")
        check_number(self, "dropout", below=1)
        if not self.channel_multipliers or min(self.channel_multipliers) < 1:
            raise ValueError(f"channel_multipliers are at least 1, one for each level, not {self.channel_multipliers}.")
        if self.base_channels % NUM_GROUPS:
            raise ValueError(f"base_channels must be a multiple of {NUM_GROUPS}, not {self.base_channels}.")
        if self.image_size % self.downsampling:
            raise ValueError(f"image_size {self.image_size} cannot be halved {len(self.channel_multipliers) - 1} times.")

    @property
    def downsampling(self) -> int:
        """Pixels a code, along one side."""
        return 2 ** (len(self.channel_multipliers) - 1)

    @property
    def grid_size(self) -> int:
        """Codes along one side of an image."""
        return self.image_size // self.downsampling

    @property
    def code_dim(self) -> int:
        """Numbers a code's latent."""
        return self.quantizer.code_dim

    def channels(self) -> list[int]:
        """Channels of each level, finest first."""
        return [self.base_channels * multiplier for multiplier in self.channel_multipliers]


class Reconstruction(NamedTuple):
    """pixels (N, 3, H, W), codes (N, T) long, latents (N, T, D) before they were quantized, quantizer_loss: a scalar
    (commitment, entropy: the quantizer's own)."""

    pixels: Tensor
    codes: Tensor
    latents: Tensor
    quantizer_loss: Tensor


class ImageTokenizer(nn.Module):
    """An image as codes. Give pixels in [-1, 1], finite, of exactly the configured size.

    sync_codebook, learns: of the quantizer (`QuantizerSettings.build`).
    """

    def __init__(self, config: ImageTokenizerConfig, sync_codebook: bool = False, learns: bool = True):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.quant_conv = nn.Conv2d(config.latent_channels, config.quantizer.code_dim, 1)
        self.quantize = config.quantizer.build(sync_codebook, learns)
        self.post_quant_conv = nn.Conv2d(config.quantizer.code_dim, config.latent_channels, 1)
        self.decoder = Decoder(config)
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    @property
    def image_size(self) -> int:
        """Pixels along one side."""
        return self.config.image_size

    @property
    def grid_size(self) -> int:
        """Codes along one side."""
        return self.config.grid_size

    @property
    def num_codes(self) -> int:
        """Codes an image."""
        return self.config.grid_size**2

    @property
    def codebook_size(self) -> int:
        """K: codes are in [0, K)."""
        return self.config.quantizer.codebook_size

    @torch.no_grad()
    def encode(self, pixels_NCHW: Tensor) -> Tensor:
        """Codes (N, num_codes) long of pixels (N, 3, H, W) in [-1, 1]. ValueError: another size."""
        return self.quantize.encode(self.latents(pixels_NCHW))

    def decode(self, codes_NT: Tensor) -> Tensor:
        """Pixels (N, 3, H, W), about [-1, 1] (clamp them), of codes (N, num_codes). ValueError: another number of codes."""
        if codes_NT.ndim != 2 or codes_NT.shape[1] != self.num_codes:
            raise ValueError(f"An image is {self.num_codes} codes; codes of shape {tuple(codes_NT.shape)} are not (N, that).")
        return self.decode_latents(self.quantize.lookup(codes_NT))

    def forward(self, pixels_NCHW: Tensor) -> Reconstruction:
        """Pixels through the codes and back, with gradients; in training mode the codebook is updated."""
        latents_NTD = self.latents(pixels_NCHW)
        quantized = self.quantize(latents_NTD)
        return Reconstruction(self.decode_latents(quantized.latents), quantized.codes, latents_NTD, quantized.loss)

    def latents(self, pixels_NCHW: Tensor) -> Tensor:
        """What is quantized: (N, T, D) of pixels (N, 3, H, W)."""
        expected = (3, self.image_size, self.image_size)
        if tuple(pixels_NCHW.shape[1:]) != expected:
            raise ValueError(f"This tokenizer takes pixels (N, {expected}), not {tuple(pixels_NCHW.shape)}: resize first.")
        pixels_NCHW = pixels_NCHW.contiguous(memory_format=torch.channels_last)
        return rearrange(self.quant_conv(self.encoder(pixels_NCHW)), "n d h w -> n (h w) d")

    def decode_latents(self, latents_NTD: Tensor) -> Tensor:
        """Pixels (N, 3, H, W) of quantized latents (N, T, D)."""
        latents_NDhw = rearrange(latents_NTD, "n (h w) d -> n d h w", h=self.grid_size)
        latents_NDhw = latents_NDhw.to(self.post_quant_conv.weight.dtype)
        return self.decoder(self.post_quant_conv(latents_NDhw))

    def freeze(self) -> "ImageTokenizer":
        """Nothing is trained any more; evaluation mode. Returns itself."""
        if isinstance(self.quantize, CosineQuantizer):
            self.quantize.freeze()
        return self.eval().requires_grad_(False)


class ConvolvesSwish(nn.Module, ABC):
    """A convolution that takes over the norm and swish before it."""

    @abstractmethod
    def convolve_swish(self, norm: GroupNorm, x_NCHW: Tensor) -> Tensor:
        """What the convolution makes of swish(norm(x))."""


class ResnetBlock(nn.Module):
    """Two 3x3 convolutions, each after GroupNorm and swish, beside a shortcut (1x1 where channels change)."""

    def __init__(self, in_channels: int, out_channels: int, dropout: float = 0.0):
        super().__init__()
        self.norm1 = _norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = _norm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        if in_channels != out_channels:
            self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        h_NCHW = _convolve_swish(self.norm1, self.conv1, x_NCHW)
        h_NCHW = _convolve_swish(self.norm2, self.conv2, h_NCHW, self.dropout)
        shortcut_NCHW = self.nin_shortcut(x_NCHW) if hasattr(self, "nin_shortcut") else x_NCHW
        return shortcut_NCHW + h_NCHW


class AttentionBlock(nn.Module):
    """Every position attends to every other: one head, as wide as the channels."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = _norm(channels)
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


class Encoder(nn.Module):
    """Pixels (N, 3, H, W) to features (N, latent_channels, h, w)."""

    def __init__(self, config: ImageTokenizerConfig):
        super().__init__()
        channels, last = config.channels(), len(config.channel_multipliers) - 1
        entering = [config.base_channels, *channels[:-1]]
        self.conv_in = nn.Conv2d(3, config.base_channels, 3, padding=1)
        self.down = nn.ModuleList(
            Level([enter, *[channel] * config.num_res_blocks], level == last, config.dropout, down=level != last)
            for level, (enter, channel) in enumerate(zip(entering, channels, strict=True))
        )
        self.mid = MidBlock(channels[-1], config.dropout)
        self.norm_out = _norm(channels[-1])
        self.conv_out = nn.Conv2d(channels[-1], config.latent_channels, 3, padding=1)

    def forward(self, pixels_NCHW: Tensor) -> Tensor:
        x_NCHW = self.conv_in(pixels_NCHW)
        for level in self.down:
            x_NCHW = level(x_NCHW)
        return _convolve_swish(self.norm_out, self.conv_out, self.mid(x_NCHW))


class Decoder(nn.Module):
    """Features (N, latent_channels, h, w) to pixels (N, 3, H, W). `up[0]` is the coarsest level, as in JanusVQVAE."""

    def __init__(self, config: ImageTokenizerConfig):
        super().__init__()
        channels = config.channels()[::-1]
        entering, last = [channels[0], *channels[:-1]], len(channels) - 1
        self.conv_in = nn.Conv2d(config.latent_channels, channels[0], 3, padding=1)
        self.mid = MidBlock(channels[0], config.dropout)
        self.up = nn.ModuleList(
            Level([enter, *[channel] * (config.num_res_blocks + 1)], level == 0, config.dropout, up=level != last)
            for level, (enter, channel) in enumerate(zip(entering, channels, strict=True))
        )
        self.norm_out = _norm(channels[-1])
        self.conv_out = nn.Conv2d(channels[-1], 3, 3, padding=1)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        x_NCHW = self.mid(self.conv_in(x_NCHW))
        for level in self.up:
            x_NCHW = level(x_NCHW)
        return _convolve_swish(self.norm_out, self.conv_out, x_NCHW)


def _norm(channels: int) -> GroupNorm:
    return GroupNorm(NUM_GROUPS, channels, eps=1e-6)


def _convolve_swish(norm: GroupNorm, conv: nn.Module, x_NCHW: Tensor, dropout: nn.Module | None = None) -> Tensor:
    """A convolution of x sigmoid(x), x normed; one that can (`int8_convolution`) does all at once."""
    if isinstance(conv, ConvolvesSwish):
        return conv.convolve_swish(norm, x_NCHW)
    # Without gradients in place, for a new map of 128 x 384 x 384 takes a CPU twice the time.
    swish_NCHW = F.silu(norm(x_NCHW), inplace=not torch.is_grad_enabled())
    return conv(swish_NCHW if dropout is None else dropout(swish_NCHW))
