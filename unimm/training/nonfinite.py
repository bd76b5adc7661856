"""Steps whose loss or gradient is no finite number: told with their samples, kept from the weights, on all processes alike."""

import logging

import torch

from unimm.runtime.rank_sync import Ranks

logger = logging.getLogger(__name__)


class NotFiniteError(FloatingPointError):
    """An update would ruin the weights; they are as they were before the step."""


class FiniteGuard:
    """Lets finite steps pass, at most `max_skipped` others be skipped in a run, and ends it at the next.

    `num_skipped` is of the whole run: it goes through checkpoints.
    """

    def __init__(self, ranks: Ranks, max_skipped: int) -> None:
        self.num_skipped = 0
        self._ranks, self._max_skipped = ranks, max_skipped

    def passes(self, norm: torch.Tensor, loss: torch.Tensor) -> bool:
        """Whether the gradient's norm, and the loss of every process, is finite."""
        return not self._ranks.any(not bool(torch.isfinite(norm) & torch.isfinite(loss)))

    def skip(self, step: int, norm: float, loss: float, samples: list[str]) -> None:
        """Tell of a step that did not pass, and of this process' samples in it, and count it.

        Raises:
            NotFiniteError: no more steps may be skipped.
        """
        told = (
            f"The loss or gradient of step {step} is not finite (norm {norm:g}, loss {loss:g}, process {self._ranks.number}): "
            f"samples {', '.join(samples)}."
        )
        if self.num_skipped >= self._max_skipped:
            before = f"; {self.num_skipped} steps were skipped before" if self.num_skipped else ""
            raise NotFiniteError(
                f"{told} The weights are as they were before it{before}. Lower the learning rate, look at these samples, "
                f"or let the run pass over such steps with max_skipped_steps."
            )
        self.num_skipped += 1
        logger.warning(f"{told} Its update is skipped, {self.num_skipped} of at most {self._max_skipped}.")
