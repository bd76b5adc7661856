"""The quantizer that does not quantize: a Gaussian over each latent, which makes a variational autoencoder (arXiv 1312.6114) of
the image tokenizer, for models that draw by a flow through its latents.

The encoder says a mean and a log-variance. In training a latent is drawn from them, in evaluation it is the mean; the
Kullback-Leibler divergence from a standard normal keeps the latents close together, at a small weight (arXiv 2112.10752).

A flow is to move noise of unit variance to latents of about that size, so the quantizer keeps their mean and standard
deviation, measured once training has ended: what is stored and drawn is (latent - mean) / std, channel by channel. SDXL's
autoencoder has one number for all channels, its scaling factor (mean 0, std 1 / 0.13025).

Shapes: N images, T latents an image, C channels.
"""

from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor

from unimm.models.image_tokenizer.quantizers import Quantized, Quantizer
from unimm.runtime.number_checks import check_number, check_whole

LOG_VARIANCES = (-30.0, 20.0)
"""Log-variances are kept between these, as LDM's and diffusers' autoencoders have it."""


@dataclass(frozen=True)
class GaussianConfig:
    """A Gaussian over each latent instead of a code.

    code_dim: C, numbers of a latent.
    kl_weight: of the divergence in nats a number of a latent, the mean over all of them.
    """

    IS_NAMED: ClassVar[bool] = True
    code_dim: int = 4
    kl_weight: float = 1e-4

    def __post_init__(self) -> None:
        check_whole(self, 1, "code_dim")
        check_number(self, "kl_weight")

    @property
    def codebook_size(self) -> int:
        """0: there are no codes."""
        return 0

    def build(self, sync: bool = False, learns: bool = True) -> "GaussianQuantizer":
        """The quantizer; it keeps nothing of a batch, so that there is nothing to synchronise."""
        return GaussianQuantizer(self)


class GaussianQuantizer(Quantizer):
    """Means and log-variances (N, T, 2 C) to latents (N, T, C), in float32."""

    def __init__(self, config: GaussianConfig) -> None:
        super().__init__(config)
        self.kl_weight = config.kl_weight
        self.register_buffer("mean", torch.zeros(config.code_dim))
        self.register_buffer("std", torch.ones(config.code_dim))

    @property
    def codebook(self) -> Tensor:
        """(0, C): there are no codes."""
        return self._mean.new_zeros(0, self.config.code_dim)

    def identity(self) -> dict[str, Tensor]:
        """What, beside the weights, decides what stored latents mean."""
        return {"mean": self._mean, "std": self._std}

    def standardise(self, said_NTC2: Tensor) -> Tensor:
        """The means (N, T, C) of what the encoder said (N, T, 2 C), each channel with mean 0 and variance 1 over images."""
        return (said_NTC2.float().chunk(2, dim=-1)[0] - self._mean) / self._std

    def restore(self, standard_NTC: Tensor) -> Tensor:
        """The inverse of `standardise`: latents (N, T, C) as the decoder takes them."""
        return standard_NTC.float() * self._std + self._mean

    @torch.no_grad()
    def set_statistics(self, mean_C: Tensor, std_C: Tensor) -> None:
        """Take the mean and the standard deviation of each channel of the latents, (C,) each. ValueError: one is not above
        0."""
        if not bool((std_C > 0).all()):
            raise ValueError(f"A channel of the latents never changes (standard deviations {std_C.tolist()}): train longer.")
        self._mean.copy_(mean_C)
        self._std.copy_(std_C)

    def lookup(self, codes: Tensor) -> Tensor:
        raise ValueError(NO_CODES)

    def _quantize(self, latents_NTD: Tensor) -> Quantized:
        mean_NTC, log_variance_NTC = latents_NTD.chunk(2, dim=-1)
        log_variance_NTC = log_variance_NTC.clamp(*LOG_VARIANCES)
        divergence = 0.5 * (mean_NTC.square() + log_variance_NTC.exp() - 1 - log_variance_NTC).mean()
        drawn_NTC = mean_NTC
        if self.training:
            drawn_NTC = mean_NTC + (0.5 * log_variance_NTC).exp() * torch.randn_like(mean_NTC)
        codes = torch.empty(len(mean_NTC), 0, dtype=torch.long, device=mean_NTC.device)
        return Quantized(drawn_NTC, codes, self.kl_weight * divergence)

    def _nearest(self, latents_NTD: Tensor) -> Tensor:
        raise ValueError(NO_CODES)

    @property
    def _mean(self) -> Tensor:
        return cast(Tensor, self.mean)

    @property
    def _std(self) -> Tensor:
        return cast(Tensor, self.std)


NO_CODES = "This image tokenizer is a variational autoencoder and has latents, no codes: name one with a codebook."
