"""Coupled decoding: several codes of a drawing in one step, the very codes of one at a time (arXiv 2510.24211, Gumbel sharing).

A step computes a window of positions of a drawing: its last code, and behind it guesses of the next ones. What is chosen at
each of them is right if all guesses before it are: so a step gives one code, and one more for every right guess in a row. Noise
is keyed by position (`sampling`), so it is the same whenever a position is computed; what was chosen behind a wrong guess is
often right all the same, and is the next guess of that position. A position that comes into the window begins as a copy of its
left neighbour. Keys and values of wrong guesses are overwritten by the next step before anything looks at them.
"""

from dataclasses import dataclass


@dataclass
class WindowTotals:
    """What steps have given to drawings.

    steps: of every drawing, added up. codes: that they gave. guesses, right: guesses that were computed, and those that were
        right, and all guesses before them too.
    """

    steps: int = 0
    codes: int = 0
    guesses: int = 0
    right: int = 0

    def add(self, width: int, count: int) -> None:
        """A step of a drawing computed `width` positions, of which `count` hold."""
        self.steps += 1
        self.codes += count
        self.guesses += width - 1
        self.right += count - 1
