"""The image tokenizer: pixels (N, 3, H, W) in [-1, 1] to a grid of codes and back, by a convolutional VQ autoencoder; or to a
grid of continuous latents and back, where its quantizer is a Gaussian: only that differs (`gaussian`).

The network is the VQGAN (arXiv 2012.09841) in the form LlamaGen gave it (VQ-16, arXiv 2406.06525), which is also Janus' and
transformers' `JanusVQVAE`: residual blocks of GroupNorm, swish and 3x3 convolutions, attention at the lowest resolution only,
halved by a strided convolution and doubled by nearest neighbours and a convolution. Submodules carry JanusVQVAE's names, so
weights travel either way by name, the codebook apart (`quantize.embedding.weight` there).

L levels halve the image L-1 times: H = W = image_size, grid h = w = image_size / 2**(L-1), T = h*w codes an image, row by row.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from unimm.models.image_tokenizer.blocks import NUM_GROUPS, Level, MidBlock, convolve_swish, norm_of
from unimm.models.image_tokenizer.gaussian import GaussianConfig, GaussianQuantizer
from unimm.models.image_tokenizer.quantizers import CosineQuantizer, QuantizerConfig, QuantizerSettings
from unimm.runtime.number_checks import check_number, check_whole


@dataclass(frozen=True)
class ImageTokenizerConfig:
    """Sizes of an image tokenizer; the defaults are LlamaGen's VQ-16 for 256 px.

    image_size: H = W in pixels.
    channel_multipliers: channels of each level, finest first, in units of base_channels.
    num_res_blocks: of each encoder level; a decoder level has one more.
    latent_channels: of the encoder's output and the decoder's input, before and after the 1x1 maps to the quantizer; the output
        has twice as many where the quantizer takes a mean and a variance.
    quantizer: one of ours, or of another package.
    coarsest_attends: attention in the coarsest level, as LlamaGen has it, beside that in the middle; Stable Diffusion's
        autoencoder has that alone.
    """

    image_size: int = 256
    base_channels: int = 128
    channel_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    latent_channels: int = 256
    dropout: float = 0.0
    quantizer: QuantizerSettings = field(default_factory=QuantizerConfig)
    coarsest_attends: bool = True

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
    """An image as codes, or as latents (`is_continuous`). Give pixels in [-1, 1], finite, of exactly the configured size.

    sync_codebook, learns: of the quantizer (`QuantizerSettings.build`).
    """

    def __init__(self, config: ImageTokenizerConfig, sync_codebook: bool = False, learns: bool = True):
        super().__init__()
        self.config = config
        times = 2 if isinstance(config.quantizer, GaussianConfig) else 1  # a mean and a log-variance
        self.encoder = Encoder(config, times * config.latent_channels)
        self.quant_conv = nn.Conv2d(times * config.latent_channels, times * config.quantizer.code_dim, 1)
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

    @property
    def is_continuous(self) -> bool:
        """Whether an image is latents here, and no codes."""
        return isinstance(self.quantize, GaussianQuantizer)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of an image's latents."""
        return self.config.code_dim, self.grid_size, self.grid_size

    @torch.no_grad()
    def encode_latents(self, pixels_NCHW: Tensor) -> Tensor:
        """Latents (N, C, h, w) float32 of pixels (N, 3, H, W) in [-1, 1]: their means, each channel of unit variance over
        images. ValueError: another size, or an image is codes here."""
        gaussian = self._gaussian
        return rearrange(gaussian.standardise(self.latents(pixels_NCHW)), "n (h w) c -> n c h w", h=self.grid_size)

    def draw_latents(self, latents_NChw: Tensor) -> Tensor:
        """Pixels (N, 3, H, W), about [-1, 1] (clamp them), of latents as `encode_latents` gives them. ValueError: another
        shape."""
        if tuple(latents_NChw.shape[1:]) != self.latent_shape:
            raise ValueError(f"An image is latents {self.latent_shape}; {tuple(latents_NChw.shape)} are not (N, that).")
        return self.decode_latents(self._gaussian.restore(rearrange(latents_NChw, "n c h w -> n (h w) c")))

    @torch.no_grad()
    def measure_latents(self, pixels_NCHW: Tensor, batch_size: int = 32) -> None:
        """Measure mean and standard deviation of each channel of the latents over images, and keep them."""
        gaussian, device = self._gaussian, next(self.parameters()).device
        parts = [self.latents(part.to(device)).float().chunk(2, dim=-1)[0] for part in pixels_NCHW.split(batch_size)]
        means_NTC = torch.cat(parts).double()
        gaussian.set_statistics(means_NTC.mean((0, 1)), means_NTC.std((0, 1), correction=0))

    @property
    def _gaussian(self) -> GaussianQuantizer:
        if not isinstance(self.quantize, GaussianQuantizer):
            raise ValueError("This image tokenizer has codes, no latents: train one with tokenizer=vae_tiny, or name another.")
        return self.quantize

    @torch.no_grad()
    def there_and_back(self, pixels_NCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels (N, 3, H, W) of an image's codes, or the means of its latents, and the codes (N, num_codes), none of
        latents."""
        if self.is_continuous:
            pixels_NCHW = self.draw_latents(self.encode_latents(pixels_NCHW))
            return pixels_NCHW, torch.empty(len(pixels_NCHW), 0, dtype=torch.long, device=pixels_NCHW.device)
        codes_NT = self.encode(pixels_NCHW)
        return self.decode(codes_NT), codes_NT

    @torch.no_grad()
    def encode(self, pixels_NCHW: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """Codes (N, num_codes) long of pixels (N, 3, H, W) in [-1, 1], row by row. ValueError: another size.

        grid: rows and columns of codes; None: the tokenizer's own.
        """
        return self.quantize.encode(self.latents(pixels_NCHW, grid))

    def decode(self, codes_NT: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """Pixels (N, 3, H, W), about [-1, 1] (clamp them), of codes (N, num_codes). ValueError: another number of codes.

        grid: as `encode` takes it.
        """
        rows, columns = grid or (self.grid_size, self.grid_size)
        if codes_NT.ndim != 2 or codes_NT.shape[1] != rows * columns:
            raise ValueError(f"An image is {rows * columns} codes; codes of shape {tuple(codes_NT.shape)} are not (N, that).")
        return self.decode_latents(self.quantize.lookup(codes_NT), rows)

    def forward(self, pixels_NCHW: Tensor) -> Reconstruction:
        """Pixels through the codes and back, with gradients; in training mode the codebook is updated."""
        latents_NTD = self.latents(pixels_NCHW)
        quantized = self.quantize(latents_NTD)
        return Reconstruction(self.decode_latents(quantized.latents), quantized.codes, latents_NTD, quantized.loss)

    def latents(self, pixels_NCHW: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """What is quantized: (N, T, D) of pixels (N, 3, H, W); of a Gaussian means and log-variances, (N, T, 2 D)."""
        rows, columns = grid or (self.grid_size, self.grid_size)
        expected = (3, rows * self.config.downsampling, columns * self.config.downsampling)
        if tuple(pixels_NCHW.shape[1:]) != expected:
            raise ValueError(f"This tokenizer takes pixels (N, {expected}), not {tuple(pixels_NCHW.shape)}: resize first.")
        pixels_NCHW = pixels_NCHW.contiguous(memory_format=torch.channels_last)
        return rearrange(self.quant_conv(self.encoder(pixels_NCHW)), "n d h w -> n (h w) d")

    def decode_latents(self, latents_NTD: Tensor, rows: int | None = None) -> Tensor:
        """Pixels (N, 3, H, W) of quantized latents (N, T, D), in so many rows; None: the tokenizer's own."""
        latents_NDhw = rearrange(latents_NTD, "n (h w) d -> n d h w", h=rows or self.grid_size)
        latents_NDhw = latents_NDhw.to(self.post_quant_conv.weight.dtype)
        return self.decoder(self.post_quant_conv(latents_NDhw))

    def freeze(self) -> "ImageTokenizer":
        """Nothing is trained any more; evaluation mode. Returns itself."""
        if isinstance(self.quantize, CosineQuantizer):
            self.quantize.freeze()
        return self.eval().requires_grad_(False)


class Encoder(nn.Module):
    """Pixels (N, 3, H, W) to features (N, out_channels, h, w)."""

    def __init__(self, config: ImageTokenizerConfig, out_channels: int):
        super().__init__()
        channels, last = config.channels(), len(config.channel_multipliers) - 1
        attends = config.coarsest_attends
        entering = [config.base_channels, *channels[:-1]]
        self.conv_in = nn.Conv2d(3, config.base_channels, 3, padding=1)
        self.down = nn.ModuleList(
            Level([enter, *[channel] * config.num_res_blocks], attends and level == last, config.dropout, down=level != last)
            for level, (enter, channel) in enumerate(zip(entering, channels, strict=True))
        )
        self.mid = MidBlock(channels[-1], config.dropout)
        self.norm_out = norm_of(channels[-1])
        self.conv_out = nn.Conv2d(channels[-1], out_channels, 3, padding=1)

    def forward(self, pixels_NCHW: Tensor) -> Tensor:
        x_NCHW = self.conv_in(pixels_NCHW)
        for level in self.down:
            x_NCHW = level(x_NCHW)
        return convolve_swish(self.norm_out, self.conv_out, self.mid(x_NCHW))


class Decoder(nn.Module):
    """Features (N, latent_channels, h, w) to pixels (N, 3, H, W). `up[0]` is the coarsest level, as in JanusVQVAE."""

    def __init__(self, config: ImageTokenizerConfig):
        super().__init__()
        channels = config.channels()[::-1]
        entering, last = [channels[0], *channels[:-1]], len(channels) - 1
        attends = config.coarsest_attends
        self.conv_in = nn.Conv2d(config.latent_channels, channels[0], 3, padding=1)
        self.mid = MidBlock(channels[0], config.dropout)
        self.up = nn.ModuleList(
            Level([enter, *[channel] * (config.num_res_blocks + 1)], attends and level == 0, config.dropout, up=level != last)
            for level, (enter, channel) in enumerate(zip(entering, channels, strict=True))
        )
        self.norm_out = norm_of(channels[-1])
        self.conv_out = nn.Conv2d(channels[-1], 3, 3, padding=1)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        x_NCHW = self.mid(self.conv_in(x_NCHW))
        for level in self.up:
            x_NCHW = level(x_NCHW)
        return convolve_swish(self.norm_out, self.conv_out, x_NCHW)
