"""Where the windows of a plan begin and end, and which samples of the stream they are filled from.

A window is as many steps as have `packing.WINDOW_ROWS` rows, and ends earlier where a mixing weight begins to change.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from unimm.data.mixing_weights import Stretch
from unimm.data.mixture import Mixture
from unimm.data.packing import RowLayout


@dataclass(frozen=True)
class PlanCursor:
    """Where a window begins: after so many steps, and with which sample of the stream.

    drawn, owed: where mixing weights change by step, how many samples came of each source before, and by how much its shares so
    far are more than that (`unimm.data.mixing_weights.Stretch`).
    """

    step: int = 0
    sample: int = 0
    drawn: tuple[int, ...] = ()
    owed: tuple[float, ...] = ()

    @classmethod
    def read(cls, kept: Mapping[str, Any]) -> "PlanCursor":
        """From what a checkpoint has kept of one."""
        return cls(kept["step"], kept["sample"], tuple(kept.get("drawn", ())), tuple(kept.get("owed", ())))

    def after(self, num_steps: int, num_samples: int, stretch: Stretch) -> "PlanCursor":
        """Where the next window begins, after so many steps and samples of a stretch of the stream."""
        return PlanCursor(self.step + num_steps, self.sample + num_samples, *stretch.after(num_samples))


def window_layout(mixture: Mixture, shape: RowLayout, step: int) -> tuple[RowLayout, float]:
    """The rows of the window that begins at a step: it ends where a mixing weight begins to change; and the step in its middle,
    whose weights hold in it."""
    own = replace(shape, most_steps=mixture.weights.num_steps(step, shape.num_steps)) if mixture.weights.changes else shape
    return own, step + (own.num_steps - 1) / 2


def open_stretch(mixture: Mixture, origin: PlanCursor, middle: float) -> Stretch:
    """The samples from a window's origin on."""
    return mixture.stretch(origin.sample, middle, origin.drawn, origin.owed)
