"""Mixing weights: how often each source comes, as a number or as a schedule over the steps of the training (a curriculum).

    weight: 0.5                                always
    weight: [[0, 1.0], [120000, 0.0]]          1 from step 0 on, 0 from step 120,000 on
    weight: [[0%, 1.0], [66%, 0.0]]            the same at shares of the run's steps
    weight: [[0, 1.0], [1000, 0.2], linear]    from 1 to 0.2 along a line, then 0.2
    weight: {0: 1.0, 120000: 0.0}              as a mapping, with `interpolation: linear`; an override adds to it

Steps are those of the trainer, counted from 0, not places in the stream of samples: a weight holds for what a step learns,
however far ahead a process that loads data is. Rows are planned a window of steps at a time (`unimm.data.plan`). A window ends
where a weight begins to change, so that a step has the weights that were said of it; along a line, all steps of a window have
those of its middle.

How such schedules look elsewhere: Levanter's `train_weights`, a list of (step, weights). Janus' stage II draws by the names of
ImageNet's classes for its first 120,000 of 180,000 steps, then from captions (arXiv 2410.13848).
"""

import heapq
import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

SampleId = tuple[int, int]
"""(source, how many of its samples came before)."""

INTERPOLATION = "interpolation"
KINDS = ("constant", "linear")


@dataclass(frozen=True)
class WeightSchedule:
    """A weight by step.

    points: (step, weight) each, the first of step 0, ascending. interpolation: between two of them the weight is that of the
    earlier one ("constant"), or on the line between them ("linear"); behind the last it is the last one's.

    Raises ValueError where that is no schedule.
    """

    points: tuple[tuple[int, float], ...]
    interpolation: str = "constant"

    def __post_init__(self) -> None:
        steps = [step for step, _ in self.points]
        if not steps or steps[0] != 0:
            raise ValueError(f"it begins with step 0, not with {steps[0] if steps else 'nothing'}: say what holds from there")
        if any(later <= before for before, later in itertools.pairwise(steps)):
            raise ValueError(f"its steps ascend, and these do not: {', '.join(map(str, steps))}")
        if self.interpolation not in KINDS:
            raise ValueError(f"interpolation is {' or '.join(KINDS)}, not '{self.interpolation}'")

    @property
    def changes(self) -> list[int]:
        """The steps at which it begins to change, or to change otherwise."""
        return [step for step, _ in self.points[1:]]

    def at(self, step: float) -> float:
        """The weight at a step, or between two."""
        last = max(number for number, (first, _) in enumerate(self.points) if first <= step)
        first, weight = self.points[last]
        if self.interpolation == "constant" or last == len(self.points) - 1:
            return weight
        end, then = self.points[last + 1]
        return weight + (then - weight) * (step - first) / (end - first)


Weight = float | WeightSchedule


def read_weight(name: str, value: Any, num_steps: int | None = None) -> Weight:
    """A weight as a configuration says it. name: of the key, for messages. num_steps: of the run, for shares of it.

    Raises:
        ValueError: it is neither a weight nor a schedule of weights; says what is wrong.
    """
    if not isinstance(value, Mapping | list | tuple):
        if not _is_weight(value):
            raise ValueError(f"{name} is a number of at least 0, or such by step, [[0, 1.0], [1000, 0.5]], not {value!r}.")
        return value
    try:
        pairs: list[tuple[Any, Any]]
        if isinstance(value, Mapping):
            pairs = list(value.items())
        else:
            pairs = [(INTERPOLATION, one) if isinstance(one, str) else (one[0], one[1]) for one in value]
        kind = str(dict(pairs).get(INTERPOLATION, "constant"))
        points = [(key, weight) for key, weight in pairs if key != INTERPOLATION]
        for key, weight in points:
            if not _is_weight(weight):
                raise ValueError(f"at {key} there is a number of at least 0, not {weight!r}")
        steps = [(_step(key, num_steps), weight) for key, weight in points]
        if all(str(key).endswith("%") for key, _ in points):
            steps = list(dict(steps).items())  # in a short run shares may be one step: the last one's weight holds
        return WeightSchedule(tuple(steps), kind)
    except (TypeError, IndexError, KeyError):
        raise ValueError(f"{name} is a number, or weights by step, [[0, 1.0], [1000, 0.5]], not {value}.") from None
    except ValueError as error:
        raise ValueError(f"{name} is no schedule of weights: {error}.") from None


def _is_weight(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0


def _step(key: Any, num_steps: int | None) -> int:
    """A step, from a number or from a share of the run such as "66%"."""
    text = str(key).strip()
    if not text.endswith("%"):
        if not text.isdecimal():
            raise ValueError(f"a step is a whole number, or a share of the run such as 66%, not {key!r}")
        return int(text)
    try:
        share = float(text[:-1]) / 100
    except ValueError:
        share = math.nan
    if not 0 <= share <= 1:
        raise ValueError(f"a share of the run lies from 0% to 100%, not at {key!r}")
    if num_steps is None:
        raise ValueError(f"{key} of a run is not known in steps: set trainer.budget.max_steps, or name steps")
    return round(share * num_steps)


class MixingWeights:
    """The weights of all sources by step.

    Args:
        names: of the sources. tasks: of their views.
        weights: of the sources.
        ratio: of tasks, such as Janus' 2 : 3 : 5 of understanding, text and drawing; 0 leaves a task out. Then the sources of a
            task share in it by their weights. None: weights are what they are.

    Raises ValueError where at some step there is no positive weight, or none for a task that the ratio asks for.
    """

    def __init__(
        self, names: list[str], tasks: list[str], weights: list[Weight], ratio: Mapping[str, Weight] | None = None
    ) -> None:
        self.names, self.tasks, self.weights, self.ratio = names, tasks, list(weights), ratio
        schedules = [one for one in (*weights, *(ratio or {}).values()) if isinstance(one, WeightSchedule)]
        self.is_linear = any(one.interpolation == "linear" for one in schedules)
        self.changes: list[int] = sorted({step for one in schedules for step in one.changes})
        self._check()
        every = [self.at(step) for step in self.steps]
        self.used: list[bool] = [any(weights[source] > 0 for weights in every) for source in range(len(names))]

    @property
    def steps(self) -> list[int]:
        """Step 0, and those at which a weight begins to change."""
        return [0, *self.changes]

    def at(self, step: float) -> list[float]:
        """The weight of each source."""
        own = [_at(weight, step) for weight in self.weights]
        if self.ratio is None:
            return own
        totals = self._totals(own)
        return [
            _at(self.ratio[task], step) * weight / (totals[task] or 1.0) for task, weight in zip(self.tasks, own, strict=True)
        ]

    def num_steps(self, first: int, most: int) -> int:
        """How many steps from a first one on, at most so many, come before a weight begins to change."""
        return min([most, *(step - first for step in self.changes if step > first)])

    def described(self, source: int) -> Any:
        """What a source's weights are, JSON-able: a number, or a list of [step, weight], and "linear" where any is."""
        if not self.changes:
            return self.at(0)[source]
        points = [[step, self.at(step)[source]] for step in self.steps]
        return [*points, "linear"] if self.is_linear else points

    def _totals(self, weights: list[float]) -> dict[str, float]:
        totals = dict.fromkeys(self.tasks, 0.0)
        for task, weight in zip(self.tasks, weights, strict=True):
            totals[task] += weight
        return totals

    def _check(self) -> None:
        for step in self.steps:
            own, when = [_at(weight, step) for weight in self.weights], f"from step {step:,} on " if step else ""
            totals = self._totals(own)
            for task in (task for task, share in (self.ratio or {}).items() if _at(share, step) > 0):
                if totals.get(task):
                    continue
                if any(self.tasks[source] == task for source in range(len(own))) and step:
                    raise ValueError(
                        f"The ratio asks for {task}, and {when}all its sources have the weight 0: give one a weight there."
                    )
                raise ValueError(
                    f"The ratio asks for {task}, and no source teaches it: add one to the data, or say ratio.{task}=0."
                )
            weights = self.at(step)
            if min(weights) < 0 or max(weights) <= 0:
                if step:
                    names = ", ".join(self.names)
                    raise ValueError(f"{when.capitalize()}the weights of all sources ({names}) are 0: give one a weight there.")
                raise ValueError(f"Mixture weights must not be negative, and one must be positive: {weights}.")


def _at(weight: Weight, step: float) -> float:
    return weight.at(step) if isinstance(weight, WeightSchedule) else weight


def interleave(
    shares: list[float], counts: Mapping[int, int], first: tuple[int, ...] = (), owed: tuple[float, ...] = ()
) -> Iterator[SampleId]:
    """Samples of several sources as evenly as their shares allow: the n-th of a source is due at (n + 1/2 - owed) / share, and
    the first that is due comes.

    counts: of the sources that come at all, how many are not to come again. first: the numbers that these are counted from;
    default: 0. owed: by each source, of earlier shares; default: none.
    """
    offsets = {source: 0.5 - (owed[source] if owed else 0.0) for source in counts}
    taken = dict(counts)
    due = [((count + offsets[source]) / shares[source], source) for source, count in taken.items()]
    heapq.heapify(due)
    while True:
        source = due[0][1]
        number = taken[source]
        taken[source] += 1
        heapq.heapreplace(due, ((taken[source] + offsets[source]) / shares[source], source))
        yield source, number + (first[source] if first else 0)


class Stretch:
    """Samples of the stream from where a window begins on, with one share for each source.

    Args:
        stream: of them. shares: by source.
        drawn: of each source, samples that came before. owed: what its shares so far are more than that. Neither is needed
            where shares never change: then they are empty.
    """

    def __init__(
        self, stream: Iterator[SampleId], shares: list[float], drawn: tuple[int, ...] = (), owed: tuple[float, ...] = ()
    ) -> None:
        self._stream, self._shares, self._drawn, self._owed = stream, shares, drawn, owed
        self._names: list[SampleId] = []

    def samples(self, start: int, count: int) -> list[SampleId]:
        """So many from number `start` of the stretch on."""
        self._names += itertools.islice(self._stream, max(0, start + count - len(self._names)))
        return self._names[start : start + count]

    def after(self, count: int) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """`drawn` and `owed` for a stretch that begins after so many samples of this one."""
        counts = [0] * len(self._drawn)
        for source, _ in self.samples(0, count) if counts else ():
            counts[source] += 1
        owed = (have + share * count - came for have, share, came in zip(self._owed, self._shares, counts, strict=False))
        return tuple(before + came for before, came in zip(self._drawn, counts, strict=True)), tuple(owed)
