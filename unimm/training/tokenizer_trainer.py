"""Training an image tokenizer: batches of images -> weights, one loop for one CPU and for many GPUs.

A step is a reconstruction and its loss, an update of the tokenizer (Muon for its kernels where asked for, AdamW for the
rest) and, from a given step on, one of an adversary. The codebook is no parameter: it follows its latents inside the
forward. What is kept in the end is the exponential moving average of the weights. Images are keyed by (seed, place),
other chance by (seed, step), so a run resumes to the bit.
"""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, nn
from torch.utils.data import DataLoader, SequentialSampler, Subset

from unimm.data.images import ImageBatches
from unimm.models.image_tokenizer import ImageTokenizer, Reconstruction
from unimm.models.quantizers import CosineQuantizer
from unimm.training.checkpoint import (
    Checkpoint,
    load_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
)
from unimm.training.conv_muon import build_optimizers
from unimm.training.discriminator import Adversary, AdversaryConfig
from unimm.training.logbook import Logbook, ProgressLine
from unimm.training.reconstruction import ReconstructionLoss, ReconstructionLossConfig
from unimm.training.schedule import Budget, Schedule
from unimm.training.tokenizer_report import (
    TokenizerMeter,
    draw_grid,
    measure_fidelity,
    measure_usage,
    reconstruct,
    to_arrays,
)


@dataclass(frozen=True)
class TokenizerTrainerConfig:
    """How a run goes.

    lr: AdamW's. muon_lr: Muon's for the kernels of encoder and decoder; None: AdamW moves them too.
    ema_decay: of the averaged weights, after a ramp over the first steps.
    precision: "no" (fp32) or "bf16" (autocast; weights and quantizer stay fp32).
    compile: encoder and decoder by torch.compile (a minute on a CPU, and little gain there).
    report_every, validate_every, save_every: in steps; 0 is never (the end is always validated and saved).
    save_minutes: a checkpoint also after so many minutes since the last one.
    num_workers: processes that make batches ahead.
    seed: of everything but the weights' initial values and the images, which have their own.
    """

    budget: Budget
    schedule: Schedule = field(default_factory=Schedule)
    loss: ReconstructionLossConfig = field(default_factory=ReconstructionLossConfig)
    adversary: AdversaryConfig | None = None
    lr: float = 1e-4
    muon_lr: float | None = None
    betas: tuple[float, float] = (0.9, 0.95)
    max_grad_norm: float = 1.0
    ema_decay: float = 0.999
    precision: str = "no"
    compile: bool = False
    report_every: int = 20
    validate_every: int = 0
    save_every: int = 0
    save_minutes: float = 2.0
    num_workers: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.precision not in ("no", "bf16"):
            raise ValueError(f"Unknown precision '{self.precision}': use no or bf16.")


class TokenizerTrainer:
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
        self.config, self.folder, self.score = config, folder, score
        self.validation_NCHW = None if validation_NCHW is None else torch.from_numpy(validation_NCHW)
        ddp = DistributedDataParallelKwargs(gradient_as_bucket_view=True, broadcast_buffers=False)
        self.accelerator = Accelerator(mixed_precision=config.precision, cpu=device == "cpu", kwargs_handlers=[ddp])
        self.is_main = self.accelerator.is_main_process
        world = self.accelerator.num_processes
        self.batches = batches.for_rank(self.accelerator.process_index, world)
        if world > 1 and isinstance(model.quantize, CosineQuantizer) and not model.quantize.sync:
            raise ValueError(f"{world} processes learn one codebook: build the tokenizer with sync_codebook=True.")
        self.model = model.to(self.accelerator.device)
        self.ema = copy.deepcopy(self.model).eval().requires_grad_(False)
        if config.compile:
            model.encoder.compile()
            model.decoder.compile()
        self.wrapped = self.accelerator.prepare(self.model)
        self.loss = ReconstructionLoss(config.loss)
        dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
        self.optimizers = build_optimizers(self.model, config.lr, config.muon_lr, config.betas, dtype)
        adversary = config.adversary
        self.adversary = Adversary(adversary, self.accelerator, config.betas) if adversary is not None else None
        self.names = {id(p): name for name, p in self.model.named_parameters()}
        self.step = 0
        self.seconds = 0.0
        self.resume()

    # -- the loop -----------------------------------------------------------------------------------------------------

    def fit(self) -> ImageTokenizer:
        """Train to the end of the budget and give the averaged tokenizer; leaves a checkpoint, also when interrupted."""
        logbook = Logbook(self.folder, self.is_main)
        logbook.rewind(self.step)
        line = ProgressLine("training (image tokenizer)", self.is_main)
        meter = TokenizerMeter(self.model.codebook_size)
        saved_at = time.monotonic()
        try:
            images = iter(self._loader()) if self.progress < 1.0 else iter(())
            while self.progress < 1.0:
                started = time.monotonic()
                pixels_NCHW = next(images)
                waited = time.monotonic() - started
                self._update(pixels_NCHW.to(self.accelerator.device), meter)
                self._tick(time.monotonic() - started)
                meter.add_time(time.monotonic() - started, waited)
                line.update(self.progress, meter.note())
                if self._due(self.config.report_every):
                    logbook.numbers(self.step, meter.report() | {"optim/rate_factor": self._rate()})
                if self._due(self.config.validate_every) or self.progress >= 1.0:
                    self._validate(logbook)
                if self._due(self.config.save_every) or time.monotonic() - saved_at > 60 * self.config.save_minutes:
                    self.save()
                    saved_at = time.monotonic()
        finally:
            line.close()
            logbook.close()
            self.save()
        return self.ema

    @property
    def progress(self) -> float:
        """How much of the run is done, 0 to 1."""
        return self.config.budget.progress(self.step, self.seconds)

    def _update(self, pixels_NCHW: Tensor, meter: TokenizerMeter) -> None:
        """One step of the tokenizer, of its average and, once it has started, of the adversary."""
        self.wrapped.train()
        devices = [self.accelerator.device] if self.accelerator.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            # Replaced codes and dropout draw from here: keyed by the step, there is no generator's state to keep.
            torch.manual_seed((self.config.seed * 1_000_003 + self.step) * 1024 + self.accelerator.process_index)
            drawn: Reconstruction = self.wrapped(pixels_NCHW)
        loss, terms = self.loss(drawn.pixels, pixels_NCHW)
        terms["quantizer"] = drawn.quantizer_loss
        adversary = self.adversary if self.adversary and self.step >= self.adversary.config.start_step else None
        if adversary is not None:
            terms |= adversary.generator_loss(drawn.pixels, loss, self.model.decoder.conv_out.weight)
            loss = loss + terms["adversarial"]
        self.accelerator.backward(loss + drawn.quantizer_loss)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm)
        if not torch.isfinite(norm):
            raise FloatingPointError(
                f"The gradient of step {self.step + 1} is not finite; the weights are as they were before it. "
                f"Lower the learning rate or look at that step's images."
            )
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = group["base_lr"] * self._rate()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self._average()
        if adversary is not None:
            terms["discriminator"] = adversary.update(pixels_NCHW, drawn.pixels.detach())
        meter.add(terms, drawn.codes)

    @torch.no_grad()
    def _average(self) -> None:
        decay = min(self.config.ema_decay, (self.step + 1) / (self.step + 10))
        for average, parameter in zip(self.ema.parameters(), self.model.parameters(), strict=True):
            average.lerp_(parameter, 1 - decay)
        for average, buffer in zip(self.ema.buffers(), self.model.buffers(), strict=True):
            average.copy_(buffer)  # the codebook is an average already

    def _rate(self) -> float:
        return self.config.schedule.factor(self.step, self.progress)

    def _tick(self, seconds: float) -> None:
        """Count one step; with a budget in minutes all processes go by the first one's clock."""
        self.step += 1
        if self.config.budget.max_minutes is not None and self.accelerator.num_processes > 1:
            clock = torch.tensor([seconds if self.is_main else 0.0], device=self.accelerator.device)
            seconds = float(self.accelerator.reduce(clock, "sum"))  # pyright: ignore[reportArgumentType]
        self.seconds += seconds

    def _due(self, every: int) -> bool:
        return every > 0 and (self.step % every == 0 or self.progress >= 1.0)

    def _validate(self, logbook: Logbook) -> None:
        """Fidelity, codebook use and a picture of the averaged tokenizer."""
        if self.is_main and self.validation_NCHW is not None:
            drawn_NCHW, codes_NT = reconstruct(self.ema, self.validation_NCHW)
            values = measure_fidelity(drawn_NCHW, self.validation_NCHW)
            usage = measure_usage(torch.bincount(codes_NT.flatten(), minlength=self.ema.codebook_size))
            values |= {f"validation/{name}": value for name, value in usage.items()}
            if self.score is not None:
                values |= {f"validation/{name}": value for name, value in self.score(to_arrays(drawn_NCHW)).items()}
            logbook.numbers(self.step, values)
            logbook.picture(self.step, "reconstructions", draw_grid(self.validation_NCHW, drawn_NCHW))
        self.accelerator.wait_for_everyone()

    def _loader(self) -> DataLoader:
        ahead = Subset(self.batches, range(self.step, len(self.batches)))  # pyright: ignore[reportArgumentType]
        workers = self.config.num_workers
        return DataLoader(
            ahead,
            batch_size=None,
            sampler=SequentialSampler(ahead),
            num_workers=workers,
            prefetch_factor=4 if workers else None,
            pin_memory=self.accelerator.device.type == "cuda",
        )

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write a checkpoint of this step, on the first process."""
        if self.is_main:
            parts: dict[str, nn.Module] = {"model": self.model, "ema": self.ema}
            tensors: dict[str, Tensor] = {}
            for prefix, optimizer in self.optimizers.items():
                tensors |= optimizer_tensors(optimizer, self.names, prefix)
            if self.adversary is not None:
                tensors |= self.adversary.tensors()
            for part, module in parts.items():
                tensors |= {f"{part}/{name}": tensor for name, tensor in module.state_dict().items()}
            save_checkpoint(self.folder / "checkpoints", Checkpoint(self.step, tensors, {"seconds": self.seconds}))
        self.accelerator.wait_for_everyone()

    def resume(self) -> None:
        """Go on from the newest whole checkpoint of the run's folder, if there is one."""
        checkpoint = load_checkpoint(self.folder / "checkpoints")
        if checkpoint is None:
            return
        self.model.load_state_dict(_part(checkpoint.tensors, "model"))
        self.ema.load_state_dict(_part(checkpoint.tensors, "ema"))
        for prefix, optimizer in self.optimizers.items():
            restore_optimizer(optimizer, checkpoint.tensors, self.names, prefix)
            _match_layout(optimizer)
        if self.adversary is not None:
            self.adversary.restore(checkpoint.tensors)
        self.step, self.seconds = checkpoint.step, checkpoint.state["seconds"]


def _match_layout(optimizer: torch.optim.Optimizer) -> None:
    """Lays state out in memory as its parameter is: other kernels round otherwise, and a resumed run would drift."""
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if torch.is_tensor(value) and value.shape == parameter.shape:
                state[key] = torch.empty_like(parameter).copy_(value)


def _part(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}/"): tensor for key, tensor in tensors.items() if key.startswith(f"{name}/")}
