"""Validation during training: scores of the weights so far, and the best model so far as a folder.

    validation/TASK, validation/mean    the scores, in the logbook, beside the losses on what is held out
    out/best/                           the model with the best score, written as any model
    out/best/validation.json            {"step", "score", "monitor", "scores", "tasks", "num_items", "precision"}: what it was
                                        chosen by
    out/scores_before.json              scores before the first step of what is to be kept (`unimm.eval.kept_scores`)

The built-in tasks are those of the suites with other items, from the worlds' validation splits: the scores of the finished
model are not those by which it was chosen. Further tasks, and those of other packages ("pkg.module:Task?n=100", or an object
that `_target_` makes), bring their own items. Nothing here draws from a random generator of the training.
"""

import copy
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from rich.console import Console
from safetensors import SafetensorError

from unimm.checkpoints.weight_files import CONFIG
from unimm.eval.kept_scores import BEFORE, KeptScores
from unimm.eval.score import SHARE, Example
from unimm.eval.suites import VALIDATION_TASKS, Items, brings_items, load_task
from unimm.eval.task import Result, Task
from unimm.eval.tasks.drawings import DrawingSettings
from unimm.eval.tasks_by_name import check_task
from unimm.inference.decode.scheduler import Stopped
from unimm.inference.engine import Engine
from unimm.runtime.atomic_files import check_replaceable, read_json, write_json
from unimm.runtime.devices import choose_precision, evaluation_precision, has_bf16
from unimm.runtime.number_checks import check_probability, check_whole

MEAN, LOSS = "mean", "loss"
RECORD = "validation.json"

SEED = 1_000_003
"""Of the prompts and the noise of drawings: none that an evaluation is likely to take."""

logger = logging.getLogger(__name__)


def make_task(name: str, num_items: int) -> Task:
    """A task; of the built-in ones on items that no suite asks: of the validation split, and drawings of other prompts."""
    return load_task(name, Items(num_items, "validation", drawing=DrawingSettings(SEED)))


@dataclass(frozen=True)
class ValidationConfig:
    """What is validated on, and by which score the best model is chosen.

    tasks: of `VALIDATION_TASKS`, of those that are in no suite, or "pkg.module:Task" of another package (`load_task`); or a
        task itself, as `_target_` makes it in YAML.
    num_items: of each built-in task whose name says nothing else; of drawings of shapes rounded up to whole categories.
    precision: what the model is scored in: "no" or "fp32" (float32), "bf16" (a copy of it), or "auto", which of them is faster
        here; what was chosen is kept where a run goes on.
    monitor: a task's name; "mean": the mean of all shares, or, where no score is one, of all; or "loss": the loss on held-out
        samples. The best is the lowest loss, and of a score what its direction says.
    keep: tasks, of these or further ones, that the model to start from knows already. They are scored before the first step,
        too, and a warning says where one falls by more than `max_drop` and by more than chance explains.

    Raises ValueError for an unknown task, no tasks where one is monitored, or no items.
    """

    tasks: tuple[str | Task, ...] | list[str | Task] | list[str] = VALIDATION_TASKS
    num_items: int = 100
    monitor: str = MEAN
    precision: str = "no"
    keep: tuple[str, ...] | list[str] = ()
    max_drop: float = 0.02

    def __post_init__(self) -> None:
        object.__setattr__(self, "precision", evaluation_precision(self.precision))
        if isinstance(self.keep, str):
            raise ValueError(f"validation.keep is a list, such as [{self.keep}].")
        object.__setattr__(self, "keep", tuple(self.keep))
        if isinstance(self.tasks, str) or (not self.all_tasks and self.monitor != LOSS):
            raise ValueError(
                f"validation.tasks is a list of some of {', '.join(VALIDATION_TASKS)}; "
                f"empty only with validation.monitor={LOSS}."
            )
        own = [name.partition("?")[0] for name in self.all_tasks if isinstance(name, str) and not brings_items(name)]
        if unknown := [name for name in own if name not in VALIDATION_TASKS]:
            raise ValueError(
                f"There is no validation task '{unknown[0]}': choose among {', '.join(VALIDATION_TASKS)}, "
                f"or name one of your own as pkg.module:Task."
            )
        check_whole(self, 1, "num_items")
        check_probability(self, "max_drop")
        if len(own) == len(self.all_tasks):  # else the names are known when the tasks are loaded
            self.check_monitor(own)

    @property
    def all_tasks(self) -> list[str | Task]:
        """Those of `tasks`, then those that only `keep` names."""
        return [*self.tasks, *(name for name in self.keep if name not in self.tasks)]

    def check_monitor(self, names: Iterable[str]) -> None:
        """Raises ValueError where none of these tasks, nor all of them, nor the loss is monitored."""
        if self.monitor not in (MEAN, LOSS, *names):
            raise ValueError(f"validation.monitor is {MEAN}, {LOSS} or one of {', '.join(names)}, not '{self.monitor}'.")


class Validation:
    """What a trainer calls to validate.

    Args:
        config: tasks, their size, and what the best is chosen by.
        folder: where the best model goes.
        save: writes an engine's model as a folder; what its last argument writes into that folder goes with it.
        is_stopped: whether to leave early; an interrupted validation leaves nothing behind.

    Raises:
        ValueError: the folder holds something else than a model, a task of another package cannot be loaded, two tasks have one
            name, or there is none of the name that is monitored.
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
        self._precision: str | None = None if config.precision == "auto" else config.precision
        self._save, self._is_stopped = save, is_stopped
        # Built-in tasks are made when they are first needed, by the one process that validates; others at once, so that a
        # mistake ends the run before it begins.
        self._tasks: dict[str, Task | None] = {}
        self._asked: dict[str, str | Task] = {}
        kept = []
        for name in config.all_tasks:
            if isinstance(name, str):
                task = load_task(name) if brings_items(name) else None
                known = task.name if task else name.partition("?")[0]
            else:
                task = check_task(name, "A task of the validation")
                known = task.name
            if known in (*self._tasks, MEAN, LOSS):
                raise ValueError(f"Two scores of the validation are called '{known}': give the task another name.")
            self._tasks[known] = task
            self._asked[known] = name
            kept += [known] if name in config.keep else []
        self.kept = KeptScores(folder.with_name(BEFORE), kept, config.max_drop)
        config.check_monitor(self._tasks)

    def resume(self) -> None:
        """Go on with the scores before the training, and with the best model that the folder holds, if it was chosen by the
        same scores."""
        precision = self.kept.resume()
        self._precision = self._precision or precision
        record = read_json(self.folder / RECORD)
        if record is None:
            return
        if self._precision is None:
            self._precision = record.get("precision", "no")
        record = {"precision": "no", **record}  # of an older unimm
        if any(record.get(key) != value for key, value in self._settings().items()):
            logger.warning(f"{self.folder} was chosen by other scores: the next validation replaces it.")
            return
        self.best = record["score"]

    def __call__(self, engine: Engine, step: int, losses: dict[str, float]) -> dict[str, float] | None:
        """Score the present weights, and keep them where they are the best so far. Those of step 0 are only scored.

        engine: of the present weights; nothing of it is kept.
        losses: on held-out samples, their sum as "loss"; empty where there are none.

        Returns:
            The score of every task, and their mean; None where it was stopped.
        """
        results = self._score(engine)
        if results is None:
            return None
        scores = {name: result.score for name, result in results.items()}
        if averaged := [one for one in results.values() if one.unit == SHARE and one.higher_is_better] or [*results.values()]:
            scores[MEAN] = fmean(one.score for one in averaged)
        monitored = [results[self.config.monitor]] if self.config.monitor in results else averaged
        if step == 0:
            self.kept.keep(results, self._precision)
        else:
            lower = self.config.monitor == LOSS or not any(one.higher_is_better for one in monitored)
            self._keep_if_best(engine, step, {**losses, **scores}, lower)
            self.kept.compare(results, step)
        return scores

    def _score(self, engine: Engine) -> dict[str, Result] | None:
        """The result of every task; None where it was stopped."""
        if not self._tasks:
            return {}
        results: dict[str, Result] = {}
        engine = self._in_precision(engine)
        try:
            for name, task in self._tasks.items():
                self._tasks[name] = task = task or make_task(str(self._asked[name]), self.config.num_items)
                results[name] = task.run(engine, self._leave_if_stopped)
        except Stopped:
            return None
        return results

    def _in_precision(self, engine: Engine) -> Engine:
        """An engine of a copy of the model in bfloat16, where it is to be scored so; else the one that is given."""
        device = engine.device
        if self._precision is None or (self._precision == "bf16" and not has_bf16(device)):
            self._precision = choose_precision(self.config.precision, device)
            if self.config.precision == "auto":
                name = "float32" if self._precision == "no" else "bf16"
                Console(highlight=False).print(f"validation.precision=auto takes {name} on this {device.type} device.")
        if self._precision == "no" or next(engine.model.parameters()).dtype == torch.bfloat16:
            return engine
        bundle = engine.bundle
        parts = copy.deepcopy((bundle.model, dict(bundle.image_tokenizers), dict(bundle.heads)))
        scored = replace(bundle, **dict(zip(("model", "image_tokenizers", "heads"), parts, strict=True)))
        return Engine(scored.change_dtype(torch.bfloat16), is_stopped=self._is_stopped)

    def _leave_if_stopped(self, example: Example) -> None:
        if self._is_stopped():
            raise Stopped

    def _keep_if_best(self, engine: Engine, step: int, scores: dict[str, float], lower_is_better: bool) -> None:
        score = scores[self.config.monitor]
        if self.best is not None and (score >= self.best if lower_is_better else score <= self.best):
            return
        record = {"step": step, "score": score, "scores": scores, **self._settings()}
        try:
            self._save(engine, self.folder, lambda folder: write_json(folder / RECORD, record))
        except (OSError, SafetensorError) as error:
            logger.warning(f"The best model so far cannot be written to {self.folder} ({error}); training goes on without.")
        else:
            self.best = score

    def _settings(self) -> dict[str, Any]:
        config = self.config
        tasks = [task if isinstance(task, str) else task.name for task in config.all_tasks]
        return {"tasks": tasks, "num_items": config.num_items, "monitor": config.monitor, "precision": self._precision}
