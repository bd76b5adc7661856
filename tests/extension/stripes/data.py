"""Pictures of two colours, side by side; and a view that asks for the left one."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from unimm.data import Record, Template, Text, Turn
from unimm.sequence import Sequence

COLOURS = {"red": (240, 20, 20), "green": (20, 240, 20), "blue": (20, 20, 240)}
QUESTION = "Which colour is on the left?"


class Stripes:
    """Every pair of colours, once: pictures of `size` x `size` pixels."""

    def __init__(self, size: int = 32) -> None:
        self.size = size
        self.pairs = [(left, right) for left in COLOURS for right in COLOURS]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Record:
        left, right = self.pairs[index]
        image = np.zeros((self.size, self.size, 3), dtype=np.uint8)
        image[:, : self.size // 2], image[:, self.size // 2 :] = COLOURS[left], COLOURS[right]
        return Record(f"stripes/{index}", image, (Text(f"{left} beside {right}"),), facts=(left, right))


@dataclass(frozen=True)
class LeftColour:
    """A question about the image, and its answer. A task of its own."""

    task: ClassVar[str] = "left colour"
    question: str = QUESTION

    def __call__(self, record: Record, template: Template, rng: np.random.Generator) -> Sequence:
        turns = [Turn("user", (template.look(record.image), self.question)), Turn("assistant", (record.facts[0],))]
        return template.chat(turns)
