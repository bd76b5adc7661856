"""Held-out records, which are not trained on: the same ones of a data set, whatever the seed of a run and from stage to stage.

Which ones depends on the number of records alone, so sources that show the same records in several ways hold out the same.
Shards that may grow have a rule of their own (`unimm.data.shards.dataset`).
"""

from typing import Any

import numpy as np

from unimm.data.binding import bind
from unimm.data.records import Dataset, DatasetContext, Record, check, key_at, unchecked

KEY = 7
"""Of the generator that chooses them."""


class Subset:
    """Some records of a data set, by their places there."""

    def __init__(self, dataset: Dataset, places: np.ndarray) -> None:
        self.dataset = dataset
        self.places = places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Record:
        return self.dataset[int(self.places[index])]

    def bind(self, context: DatasetContext) -> "Subset":
        """The same records of the data set as it is used with these networks."""
        return Subset(bind(self.dataset, context), self.places)

    def unchecked(self, index: int) -> Record:
        """A record whose image was not compared (`unimm.data.stores.digests`)."""
        return unchecked(self.dataset, int(self.places[index]))

    def key_at(self, index: int) -> str:
        """The key of a record, also of one that cannot be read."""
        return key_at(self.dataset, int(self.places[index]))

    def check(self, index: int) -> None:
        """Compare a record's image."""
        check(self.dataset, int(self.places[index]))


def hold_out(datasets: dict[str, Dataset], num_records: int) -> tuple[dict[str, Dataset], dict[str, Dataset]]:
    """What is learned from, and what is held out: `num_records` of each data set, drawn at random.

    Raises:
        ValueError: a data set has nothing left to learn from.
    """
    learned: dict[str, Dataset] = {}
    held: dict[str, Dataset] = {}
    for name, dataset in datasets.items():
        if hasattr(type(dataset), "hold_out"):
            own: Any = dataset
            learned[name], held[name] = own.hold_out(num_records)
            continue
        if len(dataset) <= num_records:
            raise ValueError(f"{num_records} records cannot be held out of the {len(dataset)} of '{name}': lower held_out.")
        order = np.random.Generator(np.random.Philox(key=KEY)).permutation(len(dataset))
        held[name], learned[name] = (Subset(dataset, np.sort(part)) for part in np.split(order, [num_records]))
    return learned, held
