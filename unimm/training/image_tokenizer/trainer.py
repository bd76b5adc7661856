"""Training an image tokenizer: batches of images -> weights, one loop for one CPU and for many GPUs.

A step is a reconstruction and its loss, an update of the tokenizer (Muon for its kernels where asked for, AdamW for the
rest) and, from a given step on, one of an adversary. The codebook is no parameter: it follows its latents inside the
forward. What is kept in the end is the exponential moving average of the weights. Images are keyed by (seed, place),
other random numbers by (seed, step), so a run resumes to the bit.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._functorch import config as functorch

from unimm.batch import normalise_pixels
from unimm.data.image_batches import ImageBatches, ImageStep
from unimm.data.records import Dataset
from unimm.models.image_tokenizer.model import ImageTokenizer, Reconstruction
from unimm.models.image_tokenizer.quantizers import CosineQuantizer
from unimm.runtime.number_checks import check_number, check_whole
from unimm.training.bad_records import BadBudget
from unimm.training.checkpoint import Checkpoint, optimizer_tensors, restore_optimizer, weights_of
from unimm.training.ema import ramp
from unimm.training.finite import spread
from unimm.training.flops import convolution_flops, warn_of_image_cost
from unimm.training.image_tokenizer.discriminator import Adversary, AdversaryConfig
from unimm.training.image_tokenizer.metrics import (
    TokenizerMeter,
    draw_grid,
    measure_fidelity,
    measure_usage,
    reconstruct,
    to_arrays,
)
from unimm.training.image_tokenizer.reconstruction_loss import ReconstructionLoss, ReconstructionLossConfig, roughness
from unimm.training.logbook import Logbook
from unimm.training.loop import Gradient, Loop
from unimm.training.loop_config import LoopConfig
from unimm.training.optimizers import check_betas, step_if_finite, tokenizer_optimizers
from unimm.training.run_state import check_order, order_of_images


@dataclass(frozen=True, kw_only=True)
class TokenizerTrainerConfig(LoopConfig):
    """How a run goes, beside what every loop has.

    lr: AdamW's. muon_lr: Muon's for the kernels of encoder and decoder; None: AdamW updates them too.
    smoothness: weight of the latents' `roughness`: fewer, steadier codes, which are easier to draw, for a less exact image.
    ema_decay: of the averaged weights, after a ramp over the first steps.
    validate_every: in steps; 0 is never (the end is always validated).
    seed: of everything but the weights' initial values and the images, which have their own.
    """

    loss: ReconstructionLossConfig = field(default_factory=ReconstructionLossConfig)
    adversary: AdversaryConfig | None = None
    lr: float = 1e-4
    muon_lr: float | None = None
    betas: tuple[float, float] = (0.9, 0.95)
    max_grad_norm: float = 1.0
    smoothness: float = 0.0
    ema_decay: float = 0.999
    validate_every: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(self, 0, "validate_every", "seed")
        check_number(self, "lr", "max_grad_norm", *(["muon_lr"] if self.muon_lr is not None else []), above=0)
        check_number(self, "smoothness")
        check_number(self, "ema_decay", below=1)
        check_betas(self.betas)


class _Steps:
    """Batches by step, with what was bad in them: what a loader's workers make ahead."""

    def __init__(self, batches: ImageBatches) -> None:
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, step: int) -> ImageStep:
        return self._batches.load(step)


class TokenizerTrainer(Loop):
    """One run. `ema` is the tokenizer to keep.

    Args:
        model: the tokenizer; with several processes built after the process group, with `sync_codebook=True`.
        batches: the images to learn from.
        config: how the run goes.
        folder: metrics, samples and checkpoints go below it; a checkpoint found there is resumed.
        device: where to train; default: what accelerate finds.
        validation_NCHW: pixels (N, 3, H, W) in [-1, 1] to validate on.
        score: gives more validation numbers from reconstructions (N, H, W, 3) uint8 of all of `validation_NCHW`.
    """

    def __init__(
        self,
        model: ImageTokenizer,
        batches: ImageBatches,
        config: TokenizerTrainerConfig,
        folder: Path,
        device: str | None = None,
        validation_NCHW: np.ndarray | None = None,
        score: Callable[[np.ndarray], dict[str, float]] | None = None,
    ) -> None:
        super().__init__(config, folder, device)
        self.config, self.score = config, score
        self.validation_NCHW = None if validation_NCHW is None else torch.from_numpy(validation_NCHW)
        if config.smoothness and model.is_continuous:
            raise ValueError(
                "smoothness is a price on codes, and this tokenizer has latents: set tokenizer_trainer.smoothness=0."
            )
        world = self.accelerator.num_processes
        self.batches = batches.for_rank(self.accelerator.process_index, world)
        self.order = order_of_images(batches)
        if world > 1 and isinstance(model.quantize, CosineQuantizer) and not model.quantize.sync:
            raise ValueError(f"{world} processes learn one codebook: build the tokenizer with sync_codebook=True.")
        self.model = model.to(self.accelerator.device)
        self.ema = copy.deepcopy(self.model).eval().requires_grad_(False)
        if self.compiles():
            if config.adversary is not None:
                # How much it counts is found by walking the graph once more: buffers may not be given away.
                functorch.donated_buffer = False
            model.encoder.compile()
            model.decoder.compile()
        self.wrapped = self.accelerator.prepare(self.model)
        self.loss = ReconstructionLoss(config.loss)
        self.optimizers = tokenizer_optimizers(self.model, config.lr, config.muon_lr, config.betas, self.muon_dtype)
        adversary = config.adversary
        self.adversary = Adversary(adversary, self.accelerator, config.betas) if adversary is not None else None
        self._kept: list[Tensor] = []
        self.names = {id(p): name for name, p in self.model.named_parameters()}
        self.resume()
        self.bad = BadBudget(folder, self.batches, self.ranks, self.bad_bytes if self.step else 0)

    def fit(self) -> ImageTokenizer:
        """Train to the end of the budget and give the averaged tokenizer; leaves a checkpoint, also when interrupted."""
        if self.progress < 1.0 and self.accelerator.device.type == "cpu":
            num_images, size = self.batches.batch_size // self.ranks.count, self.model.image_size
            flops = num_images * self.flops_per_image()
            self.say(warn_of_image_cost(flops, num_images, size, self.precision, self.accelerator.device))
        self.run("training (image tokenizer)", TokenizerMeter(self.model.codebook_size))
        return self.ema

    def flops_per_image(self) -> int:
        """Of a step's convolutions: forward and backward of the tokenizer, and of an adversary. Counted on the averaged one, on
        an image that has one latent."""
        side = self.model.image_size // self.model.config.grid_size
        encoding, _ = convolution_flops(self.ema.encoder, torch.zeros(1, 3, side, side))
        decoding, _ = convolution_flops(self.ema.decoder, torch.zeros(1, self.model.config.latent_channels, 1, 1))
        flops = 3 * (encoding + decoding) * self.model.num_codes
        if self.adversary is not None:  # once for the tokenizer's sake, without gradients of weights; of two images for its own
            judging, _ = convolution_flops(self.adversary.discriminator, torch.zeros(1, 3, *2 * [self.model.image_size]))
            flops += (2 + 2 * 3) * judging
        return flops

    def data(self) -> "_Steps":
        """This process' share of the images, by step."""
        return _Steps(self.batches)

    def datasets(self) -> list[Dataset]:
        """Of all sources."""
        return [source.dataset for source in self.batches.sources]

    def name_samples(self, batch: Any, step: int) -> list[str]:
        """The keys of this process' records in a step."""
        return self.batches.names(step)

    def compute_gradient(self, batch: Any, totals: list[float] | None = None) -> Gradient:
        """Forward and backward of the tokenizer and, once it has started, of the adversary. batch: an `ImageStep`."""
        pixels_NCHW = normalise_pixels(batch.pixels.to(self.accelerator.device, non_blocking=True))
        self.wrapped.train()
        self._kept = [buffer.clone() for buffer in self.model.buffers()]  # the codebook moves inside the forward
        drawn: Reconstruction = self.wrapped(pixels_NCHW)
        loss, terms = self.loss(drawn.pixels, pixels_NCHW)
        terms["quantizer"] = drawn.quantizer_loss
        adversary = self.adversary if self.adversary and self.step >= self.adversary.config.start_step else None
        if adversary is not None:
            terms |= adversary.generator_loss(drawn.pixels, loss, self.model.decoder.conv_out.weight)
            loss = loss + terms["adversarial"]
        if self.config.smoothness:  # after the adversary, whose weight is set by what reaches the decoder
            terms["roughness"] = roughness(drawn.latents)
            loss = loss + self.config.smoothness * terms["roughness"]
        loss = loss + drawn.quantizer_loss
        self.accelerator.backward(spread(loss))
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm)
        if adversary is not None:
            terms["discriminator"], adversary_norm = adversary.learn(pixels_NCHW, drawn.pixels.detach())
            loss, norm = loss + terms["discriminator"], norm + adversary_norm
        return Gradient(norm, loss.detach(), (terms, drawn.codes, adversary))

    def apply_gradient(self, gradient: Gradient) -> None:
        """One step of the tokenizer and, once it has started, of the adversary; what is not finite leaves no trace."""
        adversary = gradient.outcome[2]
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = group["base_lr"] * self.rate()
            step_if_finite(optimizer, gradient.norm)
            optimizer.zero_grad(set_to_none=True)
        if adversary is not None:
            adversary.step(gradient.norm)
        self._put_back(torch.isfinite(gradient.norm))
        self._kept = []

    def count_step(self, gradient: Gradient, batch: Any, meter: TokenizerMeter, norm: float | None, step: int) -> None:
        """The average follows, and the numbers of the step are counted."""
        if norm is None:
            return
        terms, codes, _ = gradient.outcome
        self._average(step)
        meter.add(terms, codes)

    def seed(self) -> int:
        """The configuration's."""
        return self.config.seed

    def forget_step(self) -> None:
        """Drop the gradients, and put the codebook back."""
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        if self.adversary is not None:
            self.adversary.optimizer.zero_grad(set_to_none=True)
        self._put_back(torch.tensor(False))

    @torch.no_grad()
    def _put_back(self, counts: Tensor) -> None:
        """Unless a step counts, its forward pass has not moved the codebook; the average has the codebook, which is one."""
        counts = counts.to(self.accelerator.device)
        for buffer, kept, average in zip(self.model.buffers(), self._kept, self.ema.buffers(), strict=True):
            buffer.copy_(torch.where(counts, buffer, kept))
            average.copy_(buffer)

    @torch.no_grad()
    def _average(self, step: int) -> None:
        decay = ramp(self.config.ema_decay, step)
        for average, parameter in zip(self.ema.parameters(), self.model.parameters(), strict=True):
            average.lerp_(parameter, 1 - decay)

    def report(self, meter: TokenizerMeter) -> dict[str, float]:
        """Means of this process since the last report."""
        return meter.report() | {"optim/rate_factor": self.rate()}

    def after_step(self, logbook: Logbook) -> None:
        """Validation, when it is due, and at the end."""
        if self.is_due(self.config.validate_every) or self.progress >= 1.0:
            self._validate(logbook)

    def _validate(self, logbook: Logbook) -> None:
        """Fidelity, codebook use and a picture of the averaged tokenizer; left early for a signal, but at the end."""
        self.settle()
        if self.is_main and self.validation_NCHW is not None:
            drawn_NCHW, codes_NT = reconstruct(self.ema, self.validation_NCHW)
            if not self.stop.made or self.progress >= 1.0:
                self._log_validation(logbook, drawn_NCHW, codes_NT, self.validation_NCHW)
        self.ranks.barrier()

    def _log_validation(self, logbook: Logbook, drawn_NCHW: Tensor, codes_NT: Tensor, target_NCHW: Tensor) -> None:
        values = measure_fidelity(drawn_NCHW, target_NCHW)
        usage = measure_usage(torch.bincount(codes_NT.flatten(), minlength=self.ema.codebook_size))
        values |= {f"validation/{name}": value for name, value in usage.items()}
        if self.score is not None:
            values |= {f"validation/{name}": value for name, value in self.score(to_arrays(drawn_NCHW)).items()}
        logbook.numbers(self.step, values)
        logbook.picture(self.step, "reconstructions", draw_grid(target_NCHW, drawn_NCHW))

    def tensors(self) -> dict[str, Tensor]:
        """Weights, their average, the optimizers' state and the adversary."""
        tensors: dict[str, Tensor] = {}
        for prefix, optimizer in self.optimizers.items():
            tensors |= optimizer_tensors(optimizer, self.names, prefix)
        if self.adversary is not None:
            tensors |= self.adversary.tensors()
        parts: dict[str, nn.Module] = {"model": self.model, "ema": self.ema}
        for part, module in parts.items():
            tensors |= {f"{part}/{name}": tensor for name, tensor in module.state_dict().items()}
        return tensors

    def state(self) -> dict[str, Any]:
        """The order of images, which has to be the same to resume."""
        return {"order": self.order}

    def restore(self, checkpoint: Checkpoint) -> None:
        """The inverse of `tensors`.

        Raises:
            ValueError: the checkpoint is one of a run with other data.
        """
        self.model.load_state_dict(weights_of(checkpoint, "model"))
        self.ema.load_state_dict(weights_of(checkpoint, "ema"))
        for prefix, optimizer in self.optimizers.items():
            restore_optimizer(optimizer, checkpoint.tensors, self.names, prefix)
            _match_layout(optimizer)
        if self.adversary is not None:
            self.adversary.restore(checkpoint.tensors)
        self.accept(check_order(self.folder, checkpoint.state.get("order", {}), self.order))


def _match_layout(optimizer: torch.optim.Optimizer) -> None:
    """Lays state out in memory as its parameter is: other kernels round otherwise, and a resumed run would drift."""
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if torch.is_tensor(value) and value.shape == parameter.shape:
                state[key] = torch.empty_like(parameter).copy_(value)
