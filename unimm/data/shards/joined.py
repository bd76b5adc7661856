"""Several data sets as one."""

import numpy as np

from unimm.data.readers.paths import locate
from unimm.data.records import Dataset, Record, check, key_at, unchecked


class Joined:
    """Data sets one after another."""

    def __init__(self, parts: list[Dataset]) -> None:
        self.parts = parts
        self._ends = np.cumsum([len(part) for part in parts], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int) -> Record:
        part, place = self._locate(index)
        return part[place]

    def unchecked(self, index: int) -> Record:
        """A record whose image was not compared."""
        return unchecked(*self._locate(index))

    def check(self, index: int) -> None:
        """Compare a record's image."""
        check(*self._locate(index))

    def key_at(self, index: int) -> str:
        """The key of a record."""
        return key_at(*self._locate(index))

    def _locate(self, index: int) -> tuple[Dataset, int]:
        number, place = locate(self._ends, index)
        return self.parts[number], place
