"""Data sets whose records lie in others."""

from abc import ABC, abstractmethod

from unimm.data.records import Dataset, Record, check, key_at, unchecked


class Located(ABC):
    """A data set that knows of each of its numbers where that record lies."""

    @abstractmethod
    def locate(self, index: int) -> tuple[Dataset, int]:
        """The data set that a record lies in, and its place there."""

    def __getitem__(self, index: int) -> Record:
        records, place = self.locate(index)
        return records[place]

    def unchecked(self, index: int) -> Record:
        """A record whose image was not compared (`unimm.data.stores.digests`)."""
        return unchecked(*self.locate(index))

    def check(self, index: int) -> None:
        """Compare a record's image."""
        check(*self.locate(index))

    def key_at(self, index: int) -> str:
        """The key of a record, also of one that cannot be read."""
        return key_at(*self.locate(index))
