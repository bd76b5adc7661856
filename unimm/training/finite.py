"""Steps whose loss or gradient is not finite update nothing: decided on the device, on all processes alike, without waiting.

A loss that is not finite is made to reach the gradient (`spread`), and gradients are summed over processes: so the gradient's
norm alone says, on every process, whether the step counts. The optimizers read that on the device (`found_inf`, as PyTorch's
own gradient scaler has it). The host reads it one step later (`ScalarsOnTheirWay`), when the device has done so much and has
another step to do; then the step is counted, or reported as skipped, or the run ends with the weights that it had before it.
"""

import logging

import torch
from torch import Tensor

from unimm.runtime.rank_sync import Ranks

logger = logging.getLogger(__name__)


class NotFiniteError(FloatingPointError):
    """The loss or the gradient of a step is not finite; the weights are as they were before it."""


def spread(loss: Tensor, factor: float = 1.0) -> Tensor:
    """A loss times a factor; where it is not finite, all gradients of it are not, also where those of the loss would be (an
    infinite cross-entropy has finite ones)."""
    return loss * torch.where(torch.isfinite(loss.detach()), factor, float("nan"))


class ScalarsOnTheirWay:
    """Numbers that the device may still have to compute. Reading waits for them, not for what was queued after them."""

    def __init__(self, *scalars: Tensor) -> None:
        together = torch.stack([scalar.detach().float() for scalar in scalars])
        self._arrival: torch.cuda.Event | None = None
        if together.device.type != "cuda":
            self._numbers = together
            return
        self._numbers = torch.empty(len(scalars), pin_memory=True)
        self._numbers.copy_(together, non_blocking=True)
        self._arrival = torch.cuda.Event()
        self._arrival.record()

    def read(self) -> list[float]:
        """The numbers."""
        if self._arrival is not None:
            self._arrival.synchronize()
        return self._numbers.tolist()


class FiniteGuard:
    """Counts the steps that are not finite: at most `max_skipped` of a run may be skipped, and the next one ends it.

    `num_skipped` is of the whole run: checkpoints keep it.
    """

    def __init__(self, ranks: Ranks, max_skipped: int) -> None:
        self.num_skipped = 0
        self._ranks, self._max_skipped = ranks, max_skipped

    def skip(self, step: int, norm: float, loss: float, samples: list[str]) -> None:
        """Report a step that updated nothing, with this process' samples in it, and count it.

        Raises:
            NotFiniteError: no more steps may be skipped.
        """
        message = (
            f"The loss or gradient of step {step} is not finite (norm {norm:g}, loss {loss:g}, process {self._ranks.number}): "
            f"samples {', '.join(samples)}."
        )
        if self.num_skipped >= self._max_skipped:
            before = f"; {self.num_skipped} steps were skipped before" if self.num_skipped else ""
            raise NotFiniteError(
                f"{message} The weights are as they were before it{before}. Lower the learning rate, look at these samples, "
                f"or let the run pass over such steps with max_skipped_steps."
            )
        self.num_skipped += 1
        logger.warning(f"{message} Its update is skipped, {self.num_skipped} of at most {self._max_skipped}.")
