"""Object hallucination in captions, after CHAIR (Rohrbach et al. 2018, arXiv 1809.02156): what is named and is not there.

    CHAIRi   objects that are named and not there / objects that are named
    CHAIRs   captions that name one that is not there / captions
    recall   objects that are there and are named / objects that are there

CHAIR finds objects of photographs by a list of words, and only their kind. Here a world says what is there, and objects are
compared as a whole: "a red circle" beside a blue one is invented, and so is the second circle where there is only one.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

Named = TypeVar("Named")
There = TypeVar("There")


@dataclass(frozen=True)
class Mentions:
    """One caption: objects it names, objects there are, and how many of them are the same."""

    named: int
    there: int
    matched: int

    @property
    def invented(self) -> int:
        """Objects that are named and are not there."""
        return self.named - self.matched

    @property
    def missed(self) -> int:
        """Objects that are there and are not named."""
        return self.there - self.matched


@dataclass(frozen=True)
class Chair:
    """The three shares over all captions; what nothing is named of, or nothing is there of, is 0."""

    chair_i: float
    chair_s: float
    recall: float

    @classmethod
    def of(cls, captions: Iterable[Mentions]) -> "Chair":
        """The shares. ValueError: there are no captions."""
        captions = list(captions)
        if not captions:
            raise ValueError("Without captions there is no share of them.")
        named, there, matched = (sum(getattr(one, part) for one in captions) for part in ("named", "there", "matched"))
        return cls(
            chair_i=(named - matched) / max(named, 1),
            chair_s=sum(one.invented > 0 for one in captions) / len(captions),
            recall=matched / max(there, 1),
        )


def match(named: list[Named], there: list[There], fits: Callable[[Named, There], bool]) -> Mentions:
    """Compares what a caption names with what is there: each object answers for one mention, and as many match as can."""
    table = np.array([[fits(name, item) for item in there] for name in named], dtype=np.int8).reshape(len(named), len(there))
    matched = 0 if not table.any() else int((maximum_bipartite_matching(csr_array(table)) >= 0).sum())
    return Mentions(len(named), len(there), matched)
