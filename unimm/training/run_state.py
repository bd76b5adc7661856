"""What a training checkpoint keeps of a run (model, optimizer, average, place in the data), and how a run resumes from it:
written by the first process, read by all.

A checkpoint that cannot be written (a full disk) does not end the run, which may find room at the next one, but the third in a
row does, and so does the last one: computing what will be lost is worth nothing.
"""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from unimm.runtime.rank_sync import Ranks
from unimm.training.bad_records import BadBudget
from unimm.training.checkpoint import CHECKPOINTS, Checkpoint, SaveError, find_checkpoint, open_checkpoint, save_checkpoint
from unimm.training.sharding import gather

MAX_FAILED_SAVES = 3
"""So many checkpoints in a row that cannot be written end a run."""

logger = logging.getLogger(__name__)


class NotFiniteError(FloatingPointError):
    """The loss or the gradient of a step is not finite; the weights are as they were before it."""


class FiniteGuard:
    """Says, on all processes alike, whether a step is finite, and counts those that are not: at most `max_skipped` of a run may
    be skipped, and the next one ends it.

    `num_skipped` is of the whole run: checkpoints keep it.
    """

    def __init__(self, ranks: Ranks, max_skipped: int) -> None:
        self.num_skipped = 0
        self._ranks, self._max_skipped = ranks, max_skipped

    def passes(self, norm: torch.Tensor, loss: torch.Tensor) -> bool:
        """Whether the gradient's norm, and the loss of every process, is finite."""
        return not self._ranks.any(not bool(torch.isfinite(norm) & torch.isfinite(loss)))

    def skip(self, step: int, norm: float, loss: float, samples: list[str]) -> None:
        """Report a step that did not pass, with this process' samples in it, and count it.

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


class Resumable:
    """One run in one folder.

    precision: what it computes in, "no" (float32) or "bf16"; every checkpoint tells.

    `threads` are those that it computes with on a CPU, and the cores that there were: other numbers round otherwise, so a run
    keeps its own where it goes on with other data loading processes.
    `bad` counts the bad records of what it learns, where others stand in for them. `bad_bytes` are those of their list when the
    checkpoint was written that the run goes on with; None: all are counted, as where bad records were taken out since.
    `record` is what the caller wants kept in every checkpoint, JSON-able; `unimm.cli.resume_settings` reads it.
    """

    def __init__(self, folder: Path, ranks: Ranks, max_skipped_steps: int, precision: str) -> None:
        self.folder, self.ranks, self.precision = folder, ranks, precision
        self.is_main = ranks.number == 0
        self.guard = FiniteGuard(ranks, max_skipped_steps)
        self.step, self.seconds = 0, 0.0
        self.record: dict[str, Any] = {}
        self.threads: list[int] | None = None
        self.bad: BadBudget | None = None
        self.bad_bytes: int | None = None
        self._saved_step, self._failed_saves = -1, 0

    def tensors(self) -> dict[str, torch.Tensor]:
        """What a checkpoint keeps."""
        raise NotImplementedError

    def restore(self, checkpoint: Checkpoint) -> None:
        """Load what `tensors` and `state` kept."""
        raise NotImplementedError

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps beside tensors, step and clock; JSON-able."""
        return {}

    @property
    def is_saved(self) -> bool:
        """Whether a checkpoint has all that was learned so far."""
        return self._saved_step == self.step

    def save(self) -> None:
        """Write a checkpoint of this step, on the first process, unless there is one; the others wait until it is whole.

        Raises:
            SaveError: it could not be written; raised on every process.
        """
        if self.is_saved:
            return
        failure: SaveError | None = None
        tensors = gather(self.tensors(), keep=self.is_main)
        if self.is_main:
            state = {"seconds": self.seconds, "skipped": self.guard.num_skipped, "precision": self.precision}
            state |= {"record": self.record, "threads": self.threads, **self.state()}
            state |= {} if self.bad is None else {"bad_bytes": self.bad.size}
            try:
                save_checkpoint(self.folder / CHECKPOINTS, Checkpoint(self.step, tensors, state))
            except SaveError as error:
                failure = error
        self.ranks.barrier()
        if self.ranks.any(failure is not None):
            raise failure or SaveError(f"The first process could not write the checkpoint of step {self.step}.")
        self._saved_step = self.step

    def save_if_possible(self) -> None:
        """`save`, where it is not the third time in a row that this fails."""
        try:
            self.save()
        except SaveError as error:
            self._failed_saves += 1
            if self._failed_saves >= MAX_FAILED_SAVES:
                raise
            if self.is_main:
                logger.warning(f"{error} Training goes on; failure {self._failed_saves} of at most {MAX_FAILED_SAVES}.")
        else:
            self._failed_saves = 0

    def say(self, lines: Iterable[str]) -> None:
        """Lines for the person who runs it, once for all processes."""
        for line in lines if self.is_main else ():
            Console(highlight=False).print(line, soft_wrap=True)

    def accept(self, changes: list[str]) -> None:
        """Say what has changed of the data since the run began, and may; bad records that were taken out stay listed."""
        self.say(changes)
        self.bad_bytes = None if changes else self.bad_bytes

    def resume(self) -> None:
        """Go on from the newest whole checkpoint of the run's folder, if there is one.

        Raises:
            ValueError: it is one of another run, or not every process finds it.
        """
        folder = self.folder / CHECKPOINTS
        found = find_checkpoint(folder) if self.is_main else None  # once for all, for it reads every byte
        step = int(self.ranks.broadcast(-1 if found is None else found))
        if step < 0:
            return
        checkpoint = open_checkpoint(folder, step)
        if self.ranks.any(checkpoint is None):
            raise ValueError(f"Not every process finds the checkpoint of step {step} in {folder}: name one that they share.")
        assert checkpoint is not None
        self.bad_bytes = checkpoint.state.get("bad_bytes")
        try:
            self.restore(checkpoint)
        except (RuntimeError, KeyError) as error:
            raise ValueError(
                f"{self.folder} holds a run of another model or stage, or of other optimizers: name another folder."
            ) from error
        self.step = self._saved_step = checkpoint.step
        self.seconds, self.guard.num_skipped = checkpoint.state["seconds"], checkpoint.state.get("skipped", 0)
        self.threads = checkpoint.state.get("threads")
