"""What a model could do before it was trained on, and a warning where the training costs it more than chance explains.

    out/scores_before.json   {"precision": ..., "scores": {task: {"score", "interval", "count", ...}}}, as they were at step 0

A score falls where it goes against its better direction. Two scores differ by more than chance where Newcombe's interval of
their difference (1998, method 10, from the two 95 % intervals, of shares Wilson's) leaves out 0. That they are of the same
items is not used: the warning comes rather late than for nothing.
"""

import logging
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from unimm.eval.score import Score
from unimm.eval.task import Result
from unimm.runtime.atomic_files import read_json, write_json

BEFORE = "scores_before.json"

logger = logging.getLogger(__name__)


class Loss(NamedTuple):
    """A score that has fallen. chance: how large a fall chance alone explains."""

    name: str
    before: float
    now: float
    chance: float

    def __str__(self) -> str:
        return f"{self.name} from {self.before:.3f} to {self.now:.3f} (chance explains {self.chance:.3f})"


def largest_chance_drop(before: Score, now: Score) -> float:
    """How much worse the second score may be than the first by chance alone, at 95 %; 0 where nothing is known of that."""
    if before.interval is None or now.interval is None:
        return 0.0
    if now.higher_is_better:
        return math.hypot(before.value - before.interval[0], now.interval[1] - now.value)
    return math.hypot(before.interval[1] - before.value, now.value - now.interval[0])


class KeptScores:
    """The scores before the training, and the comparison of later ones with them.

    Args:
        path: the file that keeps them over a resume.
        names: of the tasks that are compared.
        max_drop: so far each may fall without a warning.
    """

    def __init__(self, path: Path, names: Iterable[str], max_drop: float) -> None:
        self.path, self.names, self.max_drop = path, tuple(names), max_drop
        self.before: dict[str, Score] = {}

    def resume(self) -> str | None:
        """Go on with what the file holds; a warning says which scores it lacks. Returns the precision they were measured in."""
        record: dict[str, Any] = (read_json(self.path) if self.names else None) or {}
        for name, kept in record.get("scores", {}).items():
            self.before[name] = Score.read(kept)
        if lacking := [name for name in self.names if name not in self.before]:
            logger.warning(
                f"{self.path} has no score of {', '.join(lacking)} from before the training: a fall cannot be noticed. "
                f"Only a run that begins anew (out=FOLDER) measures it."
            )
        return record.get("precision")

    def keep(self, results: Mapping[str, Result], precision: str | None) -> None:
        """Keep the scores of step 0; a disk that does not take them costs a warning."""
        self.before = {name: results[name].total for name in self.names}
        scores = {name: one.plain() for name, one in self._items()}
        if not scores:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.path, {"precision": precision, "scores": scores})
        except OSError as error:
            logger.warning(f"{self.path} cannot be written ({error}): a run that is resumed will not know these scores.")

    def losses(self, results: Mapping[str, Result]) -> list[Loss]:
        """The scores that have fallen by more than `max_drop`, and by more than chance explains."""
        found = []
        for name, before in self._items():
            now = results[name].total
            one = Loss(name, before.value, now.value, largest_chance_drop(before, now))
            drop = before.value - now.value if now.higher_is_better else now.value - before.value
            if drop > max(self.max_drop, one.chance):
                found.append(one)
        return found

    def compare(self, results: Mapping[str, Result], step: int) -> None:
        """Warn of the scores that have fallen, in a sentence that says what helps."""
        if losses := self.losses(results):
            logger.warning(
                f"At step {step:,} the model has lost some of what it could do before this training, "
                f"{', '.join(map(str, losses))}: mix the old data in (replay), lower trainer.optimizer.lr, or train adapters "
                f"alone (lora=default stage=adapters); see recipes/keep_what_was_known.md."
            )

    def _items(self) -> list[tuple[str, Score]]:
        return [(name, self.before[name]) for name in self.names if name in self.before]
