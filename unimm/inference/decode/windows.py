"""Coupled decoding: several codes of a drawing in one step, the very codes of one at a time (arXiv 2510.24211, Gumbel sharing).

A step computes a window of positions of a drawing: its last code, and behind it guesses of the next ones. What is chosen at
each of them is right if all guesses before it are: so a step gives one code, and one more for every right guess in a row. Noise
is keyed by position (`sampling`), so it is the same whenever a position is computed; what was chosen behind a wrong guess is
often right all the same, and is the next guess of that position. A position that comes into the window begins as a copy of its
left neighbour. Keys and values of wrong guesses are overwritten by the next step before anything looks at them.
"""

from collections import deque
from dataclasses import dataclass

WINDOWS = {1: 0.0, 2: 0.66, 4: 1.49, 8: 2.4, 16: 3.1}
"""Codes of a drawing that a step may compute, and how many it gives beside the first one: of the demo (recipes/LOG.md). Other
models and settings have more or fewer right guesses, with each window by about the same factor."""

LARGEST = 64
"""Window that may be asked for at most: a step computes as much more, and guesses that far ahead are hardly ever right."""

TRIED = (1, 4)
"""Windows that are measured at every load first."""

SAMPLES = 2
"""Steps that are measured before a window is judged; the first one may be slow."""

UNMEASURED = 8
"""Steps in a row with a window, none of which could be measured, behind which it counts as unknown: where drawings are about to
end, or guidance begins, windows are cut short, and what such a step takes says nothing about whole ones."""

RECENT = 8
"""Steps with a window that are kept: the fastest of them counts, since another process may slow any of them down."""

AGAIN = 100
"""After so many steps one with a window of `TRIED` is measured again: what it took may have been somebody else's fault."""

MOST_POSITIONS = 256
"""Of drawings in one step; beyond, a step is bound by arithmetic anywhere, and each guess costs what it may save."""

BEGINNING, STAYING = 1.15, 1.05
"""A window must be reckoned faster than one code at a time by this factor, when there was none before, and to stay."""

CHANGING = 1.05
"""So much better must another window be than the last one: a step with other windows makes its tensors anew."""

PRIOR = 5.0
"""Codes beside the first that count as what steps have given before there are any: as many as with the demo."""

FADING = 0.99
"""What older steps count, a step of a drawing."""

FORGETTING = 0.0005
"""How fast guesses are forgotten while there are no others, a step."""


@dataclass
class WindowTotals:
    """What steps have given to drawings.

    steps: of every drawing, added up. codes: one for each of them, and one more for each right guess. guesses, right: guesses
        that were computed, and those that were right, and all guesses before them too. Codes that are known beforehand are no
        guesses.
    """

    steps: int = 0
    codes: int = 0
    guesses: int = 0
    right: int = 0

    def add(self, num_guesses: int, num_right: int) -> None:
        """A step of a drawing computed guesses, of which so many were right."""
        self.steps += 1
        self.codes += 1 + num_right
        self.guesses += num_guesses
        self.right += num_right


class WindowChoice:
    """Which window lets steps give most here, by what steps took and by how many guesses were right lately.

    A step of more positions takes longer: how much longer, the first steps tell, some with one code of each drawing and some
    with a few; larger windows are measured where they might be better. All of these are steps that drawings need anyway. With
    another number of rows, steps are reckoned by their positions until they are measured. Codes are the same whichever is
    chosen.
    """

    def __init__(self) -> None:
        self._seconds: dict[tuple[int, int], dict[int, deque[float]]] = {}
        self._curves: dict[int, dict[int, float]] = {}
        self._given = self._expected = PRIOR
        self._steps, self._last = 0, 1
        self._unmeasured = dict.fromkeys(WINDOWS, 0)

    def choose(self, num_drawings: int, num_drawing_rows: int, num_other_rows: int) -> int:
        """Codes of each drawing that the next step computes. Rows are with those of guidance."""
        window = self._choose(num_drawings, num_drawing_rows, num_other_rows)
        self._unmeasured[window] += 1
        return window

    def _choose(self, num_drawings: int, num_drawing_rows: int, num_other_rows: int) -> int:
        windows = [window for window in WINDOWS if window == 1 or window * num_drawing_rows <= MOST_POSITIONS]
        tried = [window for window in TRIED if window in windows]
        curve, own = self._curve(num_other_rows), self._own(num_drawing_rows, num_other_rows)
        known = {window for window in windows if window in own or _is_covered(window * num_drawing_rows, curve)}
        for window in tried:
            if window not in known and (window == 1 or self._unmeasured[window] < UNMEASURED):
                return window
        self._steps += 1
        if self._steps % AGAIN == 0:
            self._curves.clear()
            return tried[self._steps // AGAIN % len(tried)]
        gains, largest = {}, 1
        for window in windows:
            if window <= 2 * largest and (window in known or self._unmeasured[window] < UNMEASURED):
                seconds = own.get(window) or _reckoned(window * num_drawing_rows, curve)
                gains[window] = (num_drawings * self._codes(window) + num_other_rows) / seconds
                largest = window if window in known else largest
        best = max(gains, key=gains.__getitem__)
        if self._last in gains and gains[best] < CHANGING * gains[self._last]:
            best = self._last
        if gains[best] > (STAYING if self._last > 1 else BEGINNING) * gains[1]:
            self._last = best
            return best
        self._last = 1
        # Nothing is guessed, so nothing is learned: what was learned counts less and less, and guesses get another chance.
        self._given += FORGETTING * (self._expected - self._given)
        return 1

    def measured(self, window: int, num_drawing_rows: int, num_other_rows: int, seconds: float) -> None:
        """A step with that window of every drawing took so long."""
        self._unmeasured[window] = 0
        taken = self._seconds.setdefault((num_other_rows.bit_length(), num_drawing_rows), {})
        times = taken.setdefault(window, deque(maxlen=RECENT))
        times.append(seconds)
        if len(times) == SAMPLES:
            self._curves.clear()

    def guessed(self, width: int, count: int) -> None:
        """Of `width` positions of a drawing `count` hold; guesses that are known beforehand, which always do, are left out of
        both: behind them, it is as if the window were shorter."""
        if width in WINDOWS:
            self._given = FADING * self._given + count - 1
            self._expected = FADING * self._expected + WINDOWS[width]

    def _codes(self, window: int) -> float:
        """That a step with this window gives a drawing."""
        return 1 + WINDOWS[window] * self._given / self._expected

    def _own(self, num_drawing_rows: int, num_other_rows: int) -> dict[int, float]:
        """Seconds of a step by window, with so many rows."""
        taken = self._seconds.get((num_other_rows.bit_length(), num_drawing_rows), {})
        return {window: min(times) for window, times in taken.items() if len(times) >= SAMPLES}

    def _curve(self, num_other_rows: int) -> dict[int, float]:
        """Seconds of a step by positions of drawings, never falling: what is slower than more positions was disturbed."""
        bits = num_other_rows.bit_length()
        if bits in self._curves:
            return self._curves[bits]
        found: dict[int, float] = {}
        for others, num_rows in self._seconds:
            if others == bits:
                for window, seconds in self._own(num_rows, num_other_rows).items():
                    found[window * num_rows] = min(seconds, found.get(window * num_rows, seconds))
        curve, least = {}, float("inf")
        for positions in sorted(found, reverse=True):
            curve[positions] = least = min(least, found[positions])
        return self._curves.setdefault(bits, curve)


def _is_covered(positions: int, curve: dict[int, float]) -> bool:
    """Whether steps of about as many positions were measured, or of fewer and of more."""
    return bool(curve) and min(curve) / 1.3 <= positions <= max(curve) * 1.3


def _reckoned(positions: int, curve: dict[int, float]) -> float:
    """Seconds on the line between neighbours. More positions than were ever measured take at least as long as the most: so they
    are measured, too, if they might be better."""
    lower, higher = [one for one in curve if one <= positions], [one for one in curve if one > positions]
    if not lower or not higher:
        return curve[min(higher)] if higher else curve[max(lower)]
    low, high = max(lower), min(higher)
    return curve[low] + (curve[high] - curve[low]) * (positions - low) / (high - low)
