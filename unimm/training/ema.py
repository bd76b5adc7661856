"""The exponential moving average (EMA) of the trained parameters: what is sampled, validated and kept.

    average <- average + (1 - decay) (weight - average),    decay = min(ema_decay, (1 + n) / (10 + n)) at update n = 0, 1, ...

The ramp lets the average forget the weights that the run began with (as TensorFlow's ExponentialMovingAverage has it). Averages
are float32 and lie where the weights lie: of weights in shards, every process averages its own shard, without any exchange.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from unimm.training.checkpoint import Checkpoint, weights_of
from unimm.training.own_parts import read_like
from unimm.training.sharding import local
from unimm.training.signals import signals_blocked

logger = logging.getLogger(__name__)


class Ema:
    """The average of parameters, which begins as a copy of them.

    num_updates: how often they were averaged so far: what the decay depends on.
    """

    def __init__(self, parameters: Iterable[tuple[str, nn.Parameter]], decay: float) -> None:
        """
        Args:
            parameters: all by name; those without gradients are left out. Float32, whole or in shards, on their device.
            decay: in (0, 1): of the average that stays at an update.
        """
        self.decay, self.num_updates = decay, 0
        self._parameters = {name: parameter for name, parameter in parameters if parameter.requires_grad}
        assert all(parameter.dtype == torch.float32 for parameter in self._parameters.values()), "weights that learn are fp32"
        self._averages = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Follow the weights; after each of their updates."""
        decay = ramp(self.decay, self.num_updates)
        averages, parameters = _local(self._averages), _local(self._parameters)
        torch._foreach_lerp_(averages, parameters, 1.0 - decay)  # pyright: ignore[reportPrivateImportUsage]
        self.num_updates += 1

    @torch.no_grad()
    def restart(self) -> None:
        """Begin again, with the weights as they are now."""
        for average, parameter in zip(_local(self._averages), _local(self._parameters), strict=True):
            average.copy_(parameter)
        self.num_updates = 0

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """In here the parameters hold their averages, and after it what they held before, to the bit, also where it raises.

        Values are exchanged in place, so this takes the memory of one parameter. Nothing may be trained in here.
        """
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        with signals_blocked():  # a second Ctrl-C would else leave half of them exchanged
            for average, parameter in zip(_local(self._averages), _local(self._parameters), strict=True):
                kept = parameter.clone()
                parameter.copy_(average)
                average.copy_(kept)

    def tensors(self) -> dict[str, torch.Tensor]:
        """What a checkpoint keeps: `ema/parameter`."""
        return {f"ema/{name}": average for name, average in self._averages.items()}

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, torch.Tensor], num_updates: int) -> None:
        """The inverse of `tensors`, from averages in one piece, by parameter.

        Raises:
            KeyError: one is missing, so they are not of these parameters.
        """
        for name, average in self._averages.items():
            # Copied, not taken: the place in memory stays that of the parameter, by which kernels may round.
            local(average).copy_(local(read_like(tensors, name, average)))
        self.num_updates = num_updates


def resume_ema(ema: Ema | None, checkpoint: Checkpoint, folder: Path, is_main: bool) -> None:
    """Take up the average that a checkpoint in a run's folder keeps, or begin one at its step.

    Raises:
        ValueError: it keeps one, and the run is not to have any.
    """
    kept = checkpoint.state.get("ema")
    if ema is not None and kept is not None:
        ema.restore(weights_of(checkpoint, "ema"), kept["num_updates"])
    elif ema is not None:
        ema.restart()
        if is_main:
            logger.warning(f"The run in {folder} had no EMA so far: it begins at step {checkpoint.step}.")
    elif kept is not None:
        raise ValueError(
            f"{folder} holds a run with an EMA of its weights, which would be lost: add trainer.ema_decay=0.999, or what it "
            f"was, to go on with it, or name another folder."
        )


def ramp(decay: float, num_updates: int) -> float:
    """The decay of an average that was updated so often before."""
    return min(decay, (1 + num_updates) / (10 + num_updates))


def _local(tensors: dict[str, torch.Tensor] | dict[str, nn.Parameter]) -> list[torch.Tensor]:
    return [local(tensor) for tensor in tensors.values()]
