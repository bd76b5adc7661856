"""Validation during training: scores of the weights so far, and the best model so far as a folder.

    validation/TASK, validation/mean    the scores, in the logbook, beside the losses on what is held out
    out/best/                           the model with the best score, written as any model
    out/best/validation.json            {"step", "score", "monitor", "scores", "tasks", "num_items"}: what it was chosen by

The tasks are those of the suites with other items, from the worlds' validation splits: what a suite scores of the model in the
end did not choose it. Nothing here draws from a generator of the training.
"""

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from safetensors import SafetensorError

from unimm.checkpoints.weight_files import CONFIG
from unimm.eval.task import Example, Task
from unimm.eval.tasks.digits import DigitsAnswers, DigitsDrawings
from unimm.eval.tasks.drawings import DrawingSettings
from unimm.eval.tasks.shapes import ShapesAnswers, ShapesCaptions, ShapesDrawings
from unimm.inference.decode.stoppable import Stopped
from unimm.inference.engine import Engine
from unimm.runtime.atomic_files import check_replaceable, read_json, write_json
from unimm.runtime.number_checks import check_whole

MEAN, LOSS = "mean", "loss"
RECORD = "validation.json"

SEED = 1_000_003
"""Of the prompts and the noise of drawings: none that an evaluation is likely to take."""

CATEGORIES = 6
"""Of drawings of shapes: each gets a sixth of the items."""

TASKS: dict[str, Callable[[int], Task]] = {
    "shapes_answers": lambda num_items: ShapesAnswers(num_items, split="validation"),
    "shapes_captions": lambda num_items: ShapesCaptions(num_items, split="validation"),
    "shapes_drawings": lambda num_items: ShapesDrawings(-(-num_items // CATEGORIES), DrawingSettings(SEED)),
    "digits_answers": lambda num_items: DigitsAnswers(num_items, split="validation"),
    "digits_drawings": lambda num_items: DigitsDrawings(num_items, DrawingSettings(SEED)),
}
"""What can be validated on, by the number of items. Not reconstruction, which is the image tokenizer's; and not held-out pairs,
which say something only as long as nothing was chosen by them.
"""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ValidationConfig:
    """What is validated on, and by which score the best model is chosen.

    tasks: of `TASKS`. num_items: of each; of drawings of shapes rounded up to whole categories.
    monitor: a task; "mean": the mean of all; or "loss": the loss on held-out samples, the lowest being the best.

    Raises ValueError for a task that is none, no tasks where one is monitored, or no items.
    """

    tasks: tuple[str, ...] | list[str] = tuple(TASKS)
    num_items: int = 100
    monitor: str = MEAN

    def __post_init__(self) -> None:
        if isinstance(self.tasks, str) or (not self.tasks and self.monitor != LOSS):
            raise ValueError(
                f"validation.tasks is a list of some of {', '.join(TASKS)}; empty only with validation.monitor={LOSS}."
            )
        if unknown := [name for name in self.tasks if name not in TASKS]:
            raise ValueError(f"There is no validation task '{unknown[0]}': choose among {', '.join(TASKS)}.")
        check_whole(self, 1, "num_items")
        if self.monitor not in (MEAN, LOSS, *self.tasks):
            raise ValueError(f"validation.monitor is {MEAN}, {LOSS} or one of {', '.join(self.tasks)}, not '{self.monitor}'.")


class Validation:
    """What a trainer calls to validate.

    Args:
        config: tasks, their size, and what the best is chosen by.
        folder: where the best model goes.
        save: writes an engine's model as a folder; what its last argument writes into that folder goes with it.
        is_stopped: whether to leave early; then nothing of the validation counts.

    Raises ValueError where the folder holds something else than a model.
    """

    def __init__(
        self,
        config: ValidationConfig,
        folder: Path,
        save: Callable[[Engine, Path, Callable[[Path], None]], object],
        is_stopped: Callable[[], bool],
    ) -> None:
        check_replaceable(folder.resolve(), CONFIG, "a model folder")
        self.config, self.folder = config, folder
        self.best: float | None = None
        self._save, self._is_stopped = save, is_stopped
        self._tasks: dict[str, Task] | None = None

    def resume(self) -> None:
        """Go on with the best model that the folder holds, if it was chosen by the same scores."""
        record = read_json(self.folder / RECORD)
        if record is None:
            return
        if any(record.get(key) != value for key, value in self._settings().items()):
            logger.warning(f"{self.folder} was chosen by other scores: the next validation replaces it.")
            return
        self.best = record["score"]

    def __call__(self, engine: Engine, step: int, losses: dict[str, float]) -> dict[str, float] | None:
        """Score the present weights, and keep them where they are the best so far.

        engine: asks them; nothing of it is kept.
        losses: on held-out samples, their sum as "loss"; empty where there are none.

        Returns:
            The score of every task, and their mean; None where it was stopped.
        """
        scores = self._score(engine)
        if scores is not None:
            self._keep_if_best(engine, step, {**losses, **scores})
        return scores

    def _score(self, engine: Engine) -> dict[str, float] | None:
        """The score of every task, and their mean; None where it was stopped."""
        if self._tasks is None:
            self._tasks = {name: TASKS[name](self.config.num_items) for name in self.config.tasks}
        try:
            scores = {name: task.run(engine, self._leave_if_stopped).score for name, task in self._tasks.items()}
        except Stopped:
            return None
        return {**scores, MEAN: fmean(scores.values())} if scores else {}

    def _leave_if_stopped(self, example: Example) -> None:
        if self._is_stopped():
            raise Stopped

    def _keep_if_best(self, engine: Engine, step: int, scores: dict[str, float]) -> None:
        score = scores[self.config.monitor]
        if self.best is not None and (score >= self.best if self.config.monitor == LOSS else score <= self.best):
            return
        record = {"step": step, "score": score, "scores": scores, **self._settings()}
        try:
            self._save(engine, self.folder, lambda folder: write_json(folder / RECORD, record))
        except (OSError, SafetensorError) as error:
            logger.warning(f"The best model so far cannot be written to {self.folder} ({error}); training goes on without.")
        else:
            self.best = score

    def _settings(self) -> dict[str, Any]:
        settings = asdict(self.config)
        return {**settings, "tasks": list(settings["tasks"])}
