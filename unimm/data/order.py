"""The order in which a source's records come: in epochs, each record once in each, shuffled anew; or as a data set has it.

A data set whose class has `order(key)` gives its own, as shards that may grow do (`unimm.data.shards`): then its records need
not be counted. `dataset` of an order gives records by what `index` says.
"""

from typing import Any, Protocol

import numpy as np

from unimm.data.records import Dataset


class Order(Protocol):
    """Number in the stream -> index of a record of `dataset`; in every process the same."""

    dataset: Dataset

    def index(self, number: int) -> int:
        """Of the n-th record of the stream."""
        ...

    def instead(self, number: int, rng: np.random.Generator) -> int:
        """Of a record that may stand in place of the n-th."""
        ...


class EpochOrder:
    """Epoch after epoch. key: of its random numbers."""

    def __init__(self, dataset: Dataset, key: int) -> None:
        self.dataset, self.key, self.length = dataset, key, len(dataset)

    def index(self, number: int) -> int:
        """Of the n-th record of the stream."""
        epoch, place = divmod(number, self.length)
        return int(_shuffled(self.length, self.key, epoch)[place])

    def instead(self, number: int, rng: np.random.Generator) -> int:
        """Of any record."""
        return int(rng.integers(self.length))


def order_of(dataset: Dataset, key: int) -> Order:
    """The order of a data set's records, by its own `order` where it has that."""
    if hasattr(type(dataset), "order"):
        own: Any = dataset
        return own.order(key)
    return EpochOrder(dataset, key)


_orders: dict[tuple[int, int], dict[int, np.ndarray]] = {}


def _shuffled(length: int, key: int, epoch: int) -> np.ndarray:
    """The order of a source's records in one epoch. Two are kept: plans look ahead of what is opened."""
    kept = _orders.setdefault((length, key), {})
    if epoch not in kept:
        order = np.random.Generator(np.random.Philox(key=key, counter=[0, epoch, 0, 0])).permutation(length)
        while len(kept) > 1:
            kept.pop(min(kept, key=lambda other: -abs(other - epoch)))
        kept[epoch] = order.astype(np.uint32 if length < 2**32 else np.uint64)
    return kept[epoch]
