"""Quantizers: continuous latents (N, T, D) to codes (N, T) and back, over `vector-quantize-pytorch`.

The idea: an image tokenizer needs three things of a quantizer, whichever it is: the nearest code with a gradient through it
(`forward`), the nearest code alone (`encode`), and the latents of given codes (`lookup`). Ours, by `QuantizerConfig.kind`:

- `cosine`: l2-normalised latents against an l2-normalised codebook that follows them by moving averages (ViT-VQGAN,
  arXiv 2110.04627; LlamaGen, arXiv 2406.06525), or that lies evenly spread and stays (`spread`). The only kind a Janus
  checkpoint can hold, and the default.
- `simvq`: a frozen random codebook behind one learned linear map (SimVQ, arXiv 2411.02038).
- `fsq`: each of D dimensions rounded to a few levels (FSQ, arXiv 2309.15505).
- `lfq`: each of D dimensions rounded to its sign, with an entropy loss (MAGVIT-v2, arXiv 2310.05737).

All of it runs in fp32 with autocast off: half precision merges neighbouring codes. The library is imported where a quantizer is
made that uses it; codes alone (`learns=False`) do without. One of another package is a `Quantizer` with a config of its own
(`QuantizerSettings`), which `tokenizer.quantizer` names by `_target_`.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unimm.models.image_tokenizer.codebook import spread_points, unit_rows
from unimm.runtime.number_checks import check_number, check_whole


class QuantizerSettings(Protocol):
    """What an image tokenizer needs of a quantizer's config, a frozen dataclass whose fields are JSON."""

    @property
    def codebook_size(self) -> int:
        """K: codes are in [0, K)."""
        ...

    @property
    def code_dim(self) -> int:
        """D: numbers of a code's latent."""
        ...

    def build(self, sync: bool = False, learns: bool = True) -> "Quantizer":
        """The quantizer. sync: statistics of a batch span all ranks. learns: False where only its codes are used at first;
        it is trainable from `train()` on."""
        ...


@dataclass(frozen=True)
class QuantizerConfig:
    """One of our quantizers, and how it is trained.

    kind: "cosine", "simvq", "fsq" or "lfq".
    codebook_size, code_dim: K codes of D numbers. "fsq" needs D levels whose product is K, "lfq" K = 2**D.
    commitment_weight: how strongly latents are pulled to their code.
    decay: of the moving averages ("cosine"); the library's default of 0.8 forgets too fast (its issue 167).
    rotation_trick: carry gradients by rotation instead of copying them (arXiv 2410.06424; "cosine", "simvq").
    dead_code_threshold: a code used by fewer latents a step than this (moving average) is replaced by a latent of the
        batch ("cosine"); 0 never replaces. Without it 40-90 % of a codebook dies (the library's issue 205). It has to be
        well under latents a step / K, or live codes are replaced too.
    kmeans_init: let the first batch place the codes ("cosine"). The first batch should hold several latents a code.
    levels: of each dimension ("fsq").
    entropy_weight: of the entropy loss ("lfq").
    """

    kind: str = "cosine"
    codebook_size: int = 16384
    code_dim: int = 8
    commitment_weight: float = 0.25
    decay: float = 0.99
    rotation_trick: bool = True
    dead_code_threshold: float = 0.02
    kmeans_init: bool = False
    levels: tuple[int, ...] = ()
    entropy_weight: float = 0.1

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", tuple(self.levels))
        if self.kind not in QUANTIZERS:
            raise ValueError(f"Unknown quantizer {self.kind!r}: choose one of {', '.join(QUANTIZERS)}.")
        check_whole(self, 1, "codebook_size", "code_dim")
        check_number(self, "commitment_weight", "dead_code_threshold", "entropy_weight")
        check_number(self, "decay", below=1)
        if self.kind == "fsq" and (len(self.levels) != self.code_dim or math.prod(self.levels) != self.codebook_size):
            raise ValueError(
                f"fsq wants code_dim = number of levels and codebook_size = their product: levels {self.levels} "
                f"do not go with code_dim {self.code_dim} and codebook_size {self.codebook_size}."
            )
        if self.kind == "lfq" and self.codebook_size != 2**self.code_dim:
            raise ValueError(f"lfq wants codebook_size = 2**code_dim: {self.codebook_size} is not 2**{self.code_dim}.")

    def build(self, sync: bool = False, learns: bool = True) -> "Quantizer":
        """As in `QuantizerSettings`; with `sync`, build it after the process group."""
        return QUANTIZERS[self.kind](self, sync, learns)


class Quantized(NamedTuple):
    """latents (N, T, D) fp32, on the codes, with a gradient to what was quantized; codes (N, T) long; loss: a scalar."""

    latents: Tensor
    codes: Tensor
    loss: Tensor


class Quantizer(nn.Module, ABC):
    """Latents (N, T, D) to codes (N, T) in [0, K) and back."""

    def __init__(self, config: QuantizerSettings):
        super().__init__()
        self.config = config

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # `tokenizer.to(torch.bfloat16)` moves everything else: a codebook in half precision gives other codes.
        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(move, recurse)

    def forward(self, latents_NTD: Tensor) -> Quantized:
        """The nearest codes; in training mode with a gradient and a loss, and the codebook is updated."""
        with torch.autocast(latents_NTD.device.type, enabled=False):
            return self._quantize(latents_NTD.float())

    @torch.no_grad()
    def encode(self, latents_NTD: Tensor) -> Tensor:
        """The nearest codes (N, T) alone; nothing is updated."""
        with torch.autocast(latents_NTD.device.type, enabled=False):
            return self._nearest(latents_NTD.float())

    def lookup(self, codes: Tensor) -> Tensor:
        """The latents (..., D) fp32 of codes (...)."""
        return F.embedding(codes, self.codebook)

    def identity(self) -> dict[str, Tensor]:
        """What, beside the weights of encoder and decoder, decides what codes mean, by name."""
        return {"codebook": self.codebook}

    def spread(self) -> None:
        """Let codes lie evenly, and stay so, instead of following their latents.

        Raises:
            ValueError: this quantizer places its codes otherwise.
        """
        name = self.config.kind if isinstance(self.config, QuantizerConfig) else type(self).__name__
        raise ValueError(f"Only codes of the quantizer 'cosine' can be spread; this is '{name}'.")

    @property
    @abstractmethod
    def codebook(self) -> Tensor:
        """Every code's latent (K, D), fp32."""

    @abstractmethod
    def _quantize(self, latents_NTD: Tensor) -> Quantized: ...

    @abstractmethod
    def _nearest(self, latents_NTD: Tensor) -> Tensor: ...


class CosineQuantizer(Quantizer):
    """Codes are points on the unit sphere; a latent belongs to the one at the smallest angle."""

    def __init__(self, config: QuantizerConfig, sync: bool = False, learns: bool = True):
        super().__init__(config)
        self.settings, self.sync = config, sync
        self.vq: Any = self._learner() if learns else _Codes(config)

    def _learner(self) -> nn.Module:
        from vector_quantize_pytorch import VectorQuantize

        config = self.settings
        return VectorQuantize(
            dim=config.code_dim,
            codebook_size=config.codebook_size,
            use_cosine_sim=True,
            decay=config.decay,
            commitment_weight=config.commitment_weight,
            rotation_trick=config.rotation_trick,
            # The library gives a replaced code the count `reset_cluster_size` = this threshold: it then lives for one step's
            # decay unless it is used.
            threshold_ema_dead_code=config.dead_code_threshold,  # pyright: ignore[reportArgumentType]
            kmeans_init=config.kmeans_init,
            sync_codebook=self.sync,
        )

    def train(self, mode: bool = True) -> Self:
        if mode and isinstance(self.vq, _Codes):
            codes = self.vq
            self.vq = self._learner().to(codes.codebook.device)
            self.vq.load_state_dict(codes.state_dict())
            self.vq.freeze_codebook = codes.freeze_codebook
        return super().train(mode)

    @property
    def codebook(self) -> Tensor:
        return self.vq.codebook

    @torch.no_grad()
    def load_codebook(self, codebook_KD: Tensor, freeze: bool = True) -> None:
        """Takes codes from elsewhere (K, D), normalises each, and (freeze) stops the codebook from learning.

        Janus stores its codebook before normalisation and normalises at each use; here it is done once.
        """
        expected = (self.config.codebook_size, self.config.code_dim)
        if tuple(codebook_KD.shape) != expected:
            raise ValueError(f"The codebook is {tuple(codebook_KD.shape)}, this quantizer's is {expected}.")
        inner = self.vq._codebook
        normalised_KD = unit_rows(codebook_KD)
        cast(Tensor, inner.embed).copy_(normalised_KD[None])
        cast(Tensor, inner.embed_avg).copy_(normalised_KD[None])
        cast(Tensor, inner.cluster_size).fill_(1.0)
        cast(Tensor, inner.initted).fill_(True)
        if freeze:
            self.freeze()

    def spread(self) -> None:
        self.load_codebook(spread_points(self.config.codebook_size, self.config.code_dim), freeze=True)

    def freeze(self) -> None:
        """From now on the codebook stays as it is, in training mode too."""
        self.vq.freeze_codebook = True

    def _quantize(self, latents_NTD: Tensor) -> Quantized:
        if self.training:
            return Quantized(*self.vq(latents_NTD))
        codes_NT = self._nearest(latents_NTD)
        return Quantized(self.lookup(codes_NT), codes_NT, latents_NTD.new_zeros(()))

    def _nearest(self, latents_NTD: Tensor) -> Tensor:
        # The codes are unit vectors, so the largest product is the smallest angle and the smallest distance, whatever the
        # latent's length. The library's own eval path would build one-hot rows of K and copy the codebook N times.
        return (F.normalize(latents_NTD, dim=-1) @ self.codebook.T).argmax(dim=-1)


class _Codes(nn.Module):
    """What the library's VectorQuantize keeps, under its names: all that codes need while nothing is learned through them."""

    def __init__(self, config: QuantizerConfig):
        super().__init__()
        shape = (1, config.codebook_size, config.code_dim)
        self.freeze_codebook = False
        self._codebook = nn.Module()
        points = F.normalize(nn.init.kaiming_uniform_(torch.empty(shape)), dim=-1)  # as there
        for name, value in {
            "initted": torch.tensor(not config.kmeans_init),
            "cluster_size": torch.zeros(shape[:2]),
            "embed_avg": points.clone(),
            "embed": points,
        }.items():
            self._codebook.register_buffer(name, value)

    @property
    def codebook(self) -> Tensor:
        return cast(Tensor, self._codebook.embed)[0]


class SimVectorQuantizer(Quantizer):
    """Codes are a linear image of fixed random points: all of them move together, so none dies."""

    def __init__(self, config: QuantizerConfig, sync: bool = False, learns: bool = True):
        from vector_quantize_pytorch import SimVQ

        super().__init__(config)
        self.vq = SimVQ(
            dim=config.code_dim,
            codebook_size=config.codebook_size,
            rotation_trick=config.rotation_trick,
            input_to_quantize_commit_loss_weight=config.commitment_weight,
        )

    @property
    def codebook(self) -> Tensor:
        return self.vq.codebook

    def _quantize(self, latents_NTD: Tensor) -> Quantized:
        return Quantized(*self.vq(latents_NTD))

    def _nearest(self, latents_NTD: Tensor) -> Tensor:
        return torch.cdist(latents_NTD, self.codebook).argmin(dim=-1)


class FiniteScalarQuantizer(Quantizer):
    """Codes are a grid: each dimension is bounded and rounded to its levels. Nothing to learn, nothing to lose."""

    def __init__(self, config: QuantizerConfig, sync: bool = False, learns: bool = True):
        from vector_quantize_pytorch import FSQ

        super().__init__(config)
        self.vq = FSQ(levels=list(config.levels))

    @property
    def codebook(self) -> Tensor:
        return cast(Tensor, self.vq.implicit_codebook)

    def _quantize(self, latents_NTD: Tensor) -> Quantized:
        latents_NTD, codes_NT = self.vq(latents_NTD)
        return Quantized(latents_NTD, codes_NT.long(), latents_NTD.new_zeros(()))

    def _nearest(self, latents_NTD: Tensor) -> Tensor:
        return self.vq(latents_NTD)[1].long()


class LookupFreeQuantizer(Quantizer):
    """Codes are the corners of a cube: one bit a dimension; an entropy loss spreads latents over them."""

    def __init__(self, config: QuantizerConfig, sync: bool = False, learns: bool = True):
        from vector_quantize_pytorch import LFQ

        super().__init__(config)
        self.vq = LFQ(
            codebook_size=config.codebook_size,
            dim=config.code_dim,
            entropy_loss_weight=config.entropy_weight,
            commitment_loss_weight=config.commitment_weight,
        )

    @property
    def codebook(self) -> Tensor:
        return cast(Tensor, self.vq.codebook)

    def _quantize(self, latents_NTD: Tensor) -> Quantized:
        latents_NTD, codes_NT, loss = self.vq(latents_NTD)
        return Quantized(latents_NTD, codes_NT.long(), loss)

    def _nearest(self, latents_NTD: Tensor) -> Tensor:
        bits_NTD = (latents_NTD > 0).long()
        return (bits_NTD * cast(Tensor, self.vq.mask)).sum(dim=-1)


QUANTIZERS: dict[str, Callable[[QuantizerConfig, bool, bool], Quantizer]] = {
    "cosine": CosineQuantizer,
    "simvq": SimVectorQuantizer,
    "fsq": FiniteScalarQuantizer,
    "lfq": LookupFreeQuantizer,
}
"""Ours, by `QuantizerConfig.kind`."""
