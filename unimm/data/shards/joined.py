"""Several data sets as one."""

import numpy as np

from unimm.data.readers.paths import locate
from unimm.data.records import Dataset
from unimm.data.shards.located import Located


class Joined(Located):
    """Data sets one after another."""

    def __init__(self, parts: list[Dataset]) -> None:
        self.parts = parts
        self._ends = np.cumsum([len(part) for part in parts], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def locate(self, index: int) -> tuple[Dataset, int]:
        """The part that holds a record, and its place there."""
        number, place = locate(self._ends, index)
        return self.parts[number], place
