"""How long a run is and how the learning rate moves along it.

A run ends after so many steps, after so many minutes, or at whichever comes first; the schedule is a function of the
progress in [0, 1] that follows, so that a run of 15 minutes decays to the end on a fast machine and on a slow one. With steps
alone the progress is a function of the step, and a run can be repeated to the bit.
"""

import math
from dataclasses import dataclass

from unimm.runtime.number_checks import check_number, check_whole


@dataclass(frozen=True)
class Budget:
    """The length of a run. At least one of the two limits is needed."""

    max_steps: int | None = None
    max_minutes: float | None = None

    def __post_init__(self) -> None:
        if self.max_steps is None and self.max_minutes is None:
            raise ValueError("A run needs a length: give max_steps, max_minutes, or both.")
        if self.max_steps is not None:
            check_whole(self, 1, "max_steps")
        if self.max_minutes is not None:
            check_number(self, "max_minutes", above=0)

    def progress(self, step: int, seconds: float) -> float:
        """How much of the run is done after `step` steps and `seconds` seconds of training: 0 to 1."""
        shares = []
        if self.max_steps is not None:
            shares.append(step / self.max_steps)
        if self.max_minutes is not None:
            shares.append(seconds / (60 * self.max_minutes))
        return min(1.0, max(shares))


@dataclass(frozen=True)
class Schedule:
    """Warm-up, then constant or decaying; a factor on every learning rate.

    kind: "constant", "cosine" or "linear", over the progress from `decay_from` to the end.
    warmup_steps: the factor rises linearly over so many steps.
    final: the factor at the end of a decay.
    """

    kind: str = "cosine"
    warmup_steps: int = 0
    decay_from: float = 0.0
    final: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in ("constant", "cosine", "linear"):
            raise ValueError(f"Unknown schedule '{self.kind}': use constant, cosine or linear.")
        check_number(self, "decay_from", below=1)
        check_whole(self, 0, "warmup_steps")
        check_number(self, "final")

    def factor(self, step: int, progress: float) -> float:
        """The factor for the update that follows `step` finished ones."""
        warm = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        if self.kind == "constant":
            return warm
        decayed = max(0.0, (progress - self.decay_from) / (1.0 - self.decay_from))
        shape = 0.5 * (1 + math.cos(math.pi * decayed)) if self.kind == "cosine" else 1.0 - decayed
        return warm * (self.final + (1.0 - self.final) * shape)
