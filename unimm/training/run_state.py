"""What a training checkpoint keeps of a run (model, optimizer, average, place in the data), and how a run resumes from it: each
process writes its part while training goes on (`checkpoint_writer`), and reads what it needs, also of what others wrote.

Checkpoints also keep what the order of samples depends on: a run that went on with another order would learn some samples twice
and others never, and no number would show it. That is the seed, the sizes of steps, and of each source that is learned from its
records, weight and view, as far as they are known without reading samples. Processes, workers and passes are no part of it, for
the order does not depend on them.

A checkpoint that cannot be written (a full disk) does not end the run, which may find room at the next one, but the third in a
row does, and so does the last one: computing what will be lost is worth nothing.
"""

import json
import logging
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from unimm.data.bad_records import BAD_RECORDS, as_listed
from unimm.data.holdout import Subset
from unimm.data.image_batches import ImageBatches
from unimm.data.mixture import Mixture
from unimm.data.records import Dataset, key_at
from unimm.runtime.folder_lock import leave, occupy_together
from unimm.runtime.rank_sync import Ranks
from unimm.training.bad_records import BEFORE_RECORDS, FOUND_RECORDS, BadBudget
from unimm.training.checkpoint import (
    CHECKPOINTS,
    Checkpoint,
    SaveError,
    checkpoint_steps,
    folder_of,
    open_checkpoint,
    passes,
)
from unimm.training.checkpoint_writer import CheckpointConfig, CheckpointWriter, Saving
from unimm.training.finite import FiniteGuard

MAX_FAILED_SAVES = 3
"""So many checkpoints in a row that cannot be written end a run."""

MAX_NAMED = 3
"""Differences that a message names."""

RENAMED_IN_VIEWS = {"decoys": "corrupted"}
"""Settings of views that older runs name otherwise."""

Order = dict[str, Any]
"""JSON-able; of sources by name."""

logger = logging.getLogger(__name__)


class Resumable:
    """One run in one folder.

    precision: what it computes in, "no" (float32) or "bf16"; every checkpoint tells.
    writer: of its checkpoints.

    `threads` are those that it computes with on a CPU, and the cores that there were: other numbers round otherwise, so a run
    keeps its own where it goes on with other data loading processes.
    `bad` counts the bad records of what it learns, where others stand in for them. `bad_bytes` are those of their list when the
    checkpoint was written that the run goes on with; None: all are counted, as an older checkpoint does not say.
    `record` is what the caller wants kept in every checkpoint, JSON-able; `unimm.cli.resume_settings` reads it.
    """

    def __init__(
        self, folder: Path, ranks: Ranks, max_skipped_steps: int, precision: str, checkpoint: CheckpointConfig | None = None
    ) -> None:
        self.folder, self.ranks, self.precision = folder, ranks, precision
        self.is_main = ranks.number == 0
        self.guard = FiniteGuard(ranks, max_skipped_steps)
        self.step, self.seconds = 0, 0.0
        self.record: dict[str, Any] = {}
        self.threads: list[int] | None = None
        self.bad: BadBudget | None = None
        self.bad_bytes: int | None = None
        self.writer = CheckpointWriter(folder / CHECKPOINTS, ranks, checkpoint)
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
        """Write a checkpoint of this step, unless there is one, and wait until it is whole.

        Raises:
            SaveError: it could not be written; raised on every process.
        """
        try:
            self.finish_save()
        except SaveError as error:  # of an older step: now this one counts
            self._warn(error)
        if self.is_saved:
            return
        self.writer.write(self._checkpoint())
        saving = self.writer.wait()
        assert saving is not None
        if saving.error is not None:
            raise saving.error
        self._saved_step, self._failed_saves = self.step, 0

    def save_if_possible(self) -> None:
        """`save`, where it is not the third time in a row that this fails."""
        try:
            self.save()
        except SaveError as error:
            self._count(error)

    def begin_save(self) -> None:
        """Begin to write a checkpoint of this step while training goes on; waits before for one that is still on its way.

        Raises:
            SaveError: that one could not be written, or where training waits this one, which was the third in a row.
        """
        self.finish_save()
        if self.is_saved:
            return
        self.writer.begin(self._checkpoint())
        if not self.writer.is_writing:
            self.finish_save()

    def finish_save(self) -> None:
        """Take up what came of the checkpoint that was begun, if one was; waits until it is written.

        Raises:
            SaveError: it could not be written, which was the third time in a row.
        """
        saving = self.writer.wait(self._say_waiting)
        if saving is None:
            return
        if isinstance(saving.error, SaveError):
            self._count(saving.error)
            return
        self._saved_step, self._failed_saves = saving.step, 0
        waited = f"{saving.seconds:.1f} s beside training, which waited {saving.seconds_copying:.2f} s"
        self.say([f"Saved step {saving.step:,}: {waited}."])

    def _checkpoint(self) -> Checkpoint:
        state = {"seconds": self.seconds, "skipped": self.guard.num_skipped, "precision": self.precision}
        state |= {"record": self.record, "threads": self.threads, **self.state()}
        state |= {} if self.bad is None else {"bad_bytes": self.bad.size}
        return Checkpoint(self.step, self.tensors(), state)

    def _say_waiting(self, saving: Saving) -> None:
        self.say([f"Training waits: the checkpoint of step {saving.step:,} is still being written."])

    def _count(self, error: SaveError) -> None:
        self._failed_saves += 1
        if self._failed_saves >= MAX_FAILED_SAVES:
            raise error
        self._warn(error)

    def _warn(self, error: SaveError) -> None:
        if self.is_main:
            logger.warning(f"{error} Training goes on; failure {self._failed_saves} of at most {MAX_FAILED_SAVES}.")

    def say(self, lines: Iterable[str]) -> None:
        """Lines for the person who runs it, once for all processes."""
        for line in lines if self.is_main else ():
            Console(highlight=False).print(line, soft_wrap=True)

    def accept(self, changes: list[str]) -> None:
        """Say what has changed of the data since the run began, and may. Bad records are counted anew, for some of those that
        were listed may be gone: their list is kept beside the new one."""
        self.say(changes)
        if changes:
            self.bad_bytes = 0
            listed = self.folder / BAD_RECORDS
            if self.is_main and listed.is_file():
                with (self.folder / BEFORE_RECORDS).open("ab") as file:
                    file.write(listed.read_bytes())
                listed.unlink()

    def close(self) -> None:
        """Let others write to the run's folder, once nothing of this run does. A second Ctrl-C waits for nothing: what was
        being written is then not read."""
        if not isinstance(sys.exception(), KeyboardInterrupt):
            self.writer.close()
        if self.is_main:
            leave(self.folder)

    def resume(self) -> None:
        """Go on from the newest whole checkpoint of the run's folder, if there is one; from now on it is this run's alone.

        Raises:
            ValueError: it is one of another run, another process writes to it, not every process finds it, or none is whole.
        """
        occupy_together(self.folder, self.ranks, lambda line: self.say([line]))  # two runs would prune each other's
        folder = self.folder / CHECKPOINTS
        step = self._find(folder)
        if step is None:
            return
        checkpoint = open_checkpoint(folder, step)
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

    def _find(self, folder: Path) -> int | None:
        """The step of the newest whole checkpoint, the same on all processes: each proves its share of the files."""
        steps = checkpoint_steps(folder) if self.is_main else []
        num_damaged = 0
        while (step := int(self.ranks.broadcast(steps.pop() if steps else -1))) >= 0:
            if self.ranks.any(not folder_of(folder, step).is_dir()):
                raise ValueError(
                    f"Not every process finds the checkpoint of step {step} in {folder}: name one that they share."
                )
            if not self.ranks.any(not passes(folder, step, self.ranks.number, self.ranks.count)):
                return step
            num_damaged += 1
        if num_damaged:  # to begin anew would in the end remove what may still be mended
            raise ValueError(
                f"None of the checkpoints in {folder} is whole ({num_damaged} damaged): copy them there again, or remove "
                f"that folder to begin at the first step."
            )
        return None


def order_of_rows(mixture: Mixture, num_positions: int, num_rows: int) -> Order:
    """Of a mixture in rows of so many positions, so many a step."""
    sources = {
        one.name: {**_of_dataset(one.dataset), "weight": mixture.weights.described(number), "view": _of_view(one.view)}
        for number, one in enumerate(mixture.sources)
        if number in mixture.used
    }
    sizes = {"seed": mixture.seed, "weigh_by": mixture.weigh_by, "num_positions": num_positions, "num_rows": num_rows}
    own = mixture.template
    template = {
        "prompt_format": asdict(own.prompt_format),
        "vocabulary": len(own.tokenizer),
        "max_positions": own.max_positions,
    }
    return _as_read({**sizes, **template, "sources": sources})


def order_of_images(batches: ImageBatches) -> Order:
    """Of batches of images."""
    sources = {str(number): {**_of_dataset(one.dataset), "weight": one.weight} for number, one in enumerate(batches.sources)}
    return _as_read({"seed": batches.seed, "batch_size": batches.batch_size, "sources": sources})


def check_order(folder: Path, began: Order, now: Order) -> list[str]:
    """What has changed of the order of samples that a run in a folder began with, and may: records that were taken out of a
    source, in the middle or such as the run could not use. What only one of them holds is not compared, but for sources.

    Raises:
        ValueError: anything else has changed.
    """
    began, notes = _without_removed(folder, _with_new_names(began), now)
    found = list(_differences(began, now))
    if found:
        differences = " and ".join(f"{what} {before}, not {after}" for what, before, after in found[:MAX_NAMED])
        raise ValueError(
            f"{folder} holds a run that began with {differences}, and what it has learned from depends on that: give what it "
            f"began with, or begin another run (out=FOLDER), from its model if you like (init_from=FOLDER)."
        )
    return notes


def _with_new_names(began: Order) -> Order:
    """What an older run began with, its views' settings by the names that they have now."""
    sources = {
        name: {**one, "view": {RENAMED_IN_VIEWS.get(key, key): value for key, value in one["view"].items()}}
        if "view" in one
        else one
        for name, one in began.get("sources", {}).items()
    }
    return {**began, "sources": sources} if sources else began


def _without_removed(folder: Path, began: Order, now: Order) -> tuple[Order, list[str]]:
    """What it began with, but for records that were taken out since; and of which sources, in words."""
    names = (BAD_RECORDS, BEFORE_RECORDS, FOUND_RECORDS)
    paths = [path for path in (folder / name for name in names) if path.is_file()]
    bad = {line.partition("\t")[0] for path in paths for line in path.read_text("utf-8", "backslashreplace").splitlines()}
    ends = ("first_key", "last_key")
    sources, notes = dict(began.get("sources", {})), []
    for name, before in sources.items():
        after = now.get("sources", {}).get(name)
        if after is None or not {"num_records", *ends} <= before.keys():
            continue
        ends_are_theirs = all(before[key] == after[key] or as_listed(str(before[key])) in bad for key in ends)
        if after["num_records"] < before["num_records"] and ends_are_theirs:
            sources[name] = {**before, **{key: after[key] for key in ("num_records", *ends)}}
            held = "; so are those that are held out, of which some were learned from" if after["held_out"] else ""
            notes.append(
                f"The source {name} has {after['num_records']:,} records now, and had {before['num_records']:,}: {folder} goes "
                f"on with these, whose order is drawn anew{held}."
            )
    return ({**began, "sources": sources} if sources else began), notes


def _differences(began: Order, now: Order, of: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The names of what differs, and both values."""
    for key in [key for key in now if key in began]:
        before, after = began[key], now[key]
        if key == "sources" and list(before) != list(after):
            yield key, ", ".join(before), ", ".join(after)
        elif isinstance(before, dict) and isinstance(after, dict):
            yield from _differences(before, after, of if key == "sources" else f" of {key}{of}")
        elif before != after:
            yield f"{key}{of}", before, after


def _of_dataset(dataset: Dataset) -> dict[str, Any]:
    """Of all of it, and how many records of it are not learned from; of shards that may grow, what is not kept of each pass."""
    if hasattr(type(dataset), "settings"):
        own: Any = dataset
        return own.settings()
    entire = dataset.dataset if isinstance(dataset, Subset) else dataset
    ends = {"first_key": key_at(entire, 0), "last_key": key_at(entire, len(entire) - 1)}
    return {"held_out": len(entire) - len(dataset), "num_records": len(entire), **ends}


def _of_view(view: Any) -> dict[str, Any]:
    return {"name": type(view).__name__, **(asdict(view) if is_dataclass(view) and not isinstance(view, type) else {})}


def _as_read(order: Order) -> Order:
    """As it will come back from a file."""
    return json.loads(json.dumps(order, default=str))
