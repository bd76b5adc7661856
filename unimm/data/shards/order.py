"""The order in which a training goes through a set of shards. A function of (key, the shards of each pass) alone.

A pass goes through its shards (`unimm.data.shards.passes`) in a random order, a block of `mix_shards` of them at a time, and
through the records of a block in a random order. So the n-th record is found by the counts of the shards before it in its pass;
shards behind it need not be known. What a process keeps is a block or two, whatever the number of shards or records.
"""

from bisect import bisect_right
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from unimm.data.readers.lru_cache import ProcessLocalLRU
from unimm.data.records import Dataset
from unimm.data.shards.located import Located
from unimm.data.shards.passes import Passes

if TYPE_CHECKING:
    from unimm.data.shards.dataset import ShardedDataset

KEPT_BLOCKS = 4
"""Orders of records that a process keeps: plans look ahead of what is opened."""

PLACES = 40
"""Bits of an address that are a place in a shard."""


class _Block(NamedTuple):
    """Shards whose records are shuffled together. first: records of the stream before it."""

    first: int
    number: int
    of_pass: int
    names: tuple[str, ...]
    counts: tuple[int, ...]


class ShardedOrder:
    """Number in the stream -> address of a record; `dataset` gives records by their addresses."""

    def __init__(self, dataset: "ShardedDataset", key: int) -> None:
        self.shards, self.key = dataset, key
        self.passes = Passes(dataset.find, dataset.at_start)
        self.dataset = Addressed(dataset)
        self._blocks: list[_Block] = []
        self._orders: ProcessLocalLRU[np.ndarray] = ProcessLocalLRU(KEPT_BLOCKS)

    def attach(self, folder: Path) -> None:
        """Go by the passes of a folder from now on, as all processes of a run do."""
        self.passes.attach(folder)
        self._blocks, self._orders = [], ProcessLocalLRU(KEPT_BLOCKS)

    def index(self, number: int) -> int:
        """The address of the n-th record of the stream."""
        block = self._block_of(number)
        order = self._orders.get((block.of_pass, block.number), lambda: self._shuffled(block))
        return self._address(block, int(order[number - block.first]))

    def instead(self, number: int, rng: np.random.Generator) -> int:
        """The address of another record, drawn from the same block."""
        block = self._block_of(number)
        return self._address(block, int(rng.integers(sum(block.counts))))

    def _address(self, block: _Block, place: int) -> int:
        ends = np.cumsum(block.counts)
        shard = int(np.searchsorted(ends, place, side="right"))
        name, number = block.names[shard], place - (int(ends[shard - 1]) if shard else 0)
        return self.dataset.address(name, self.shards.place(name, number))

    def _shuffled(self, block: _Block) -> np.ndarray:
        counter = [0, block.of_pass, block.number, 1]
        return (
            np.random.Generator(np.random.Philox(key=self.key, counter=counter))
            .permutation(sum(block.counts))
            .astype(np.uint32)
        )

    def _block_of(self, number: int) -> _Block:
        """The block that holds a number; the ones on the way there are counted, where that was not done before."""
        if not self._blocks or number < self._blocks[0].first:
            self._blocks = [self._begin(self.passes.begun(number))]
        while number >= (last := self._blocks[-1]).first + sum(last.counts):
            self._blocks.append(self._next(last))
            if last.of_pass > self._blocks[0].of_pass + 1:  # what lies two passes back is let go
                self._blocks = [block for block in self._blocks if block.of_pass >= last.of_pass - 1]
        return self._blocks[bisect_right(self._blocks, number, key=lambda block: block.first) - 1]

    def _begin(self, of_pass: int, first: int = 0) -> _Block:
        return self._block(self.passes.get(of_pass, first).first, 0, of_pass)

    def _next(self, last: _Block) -> _Block:
        first = last.first + sum(last.counts)
        sizes = self.passes.get(last.of_pass, 0).sizes
        if (last.number + 1) * self.shards.mix_shards < len(sizes):
            return self._block(first, last.number + 1, last.of_pass)
        if first == self.passes.get(last.of_pass, 0).first:
            raise ValueError(f"None of the {len(sizes):,} shards in {self.shards.top} holds a record that can be used.")
        return self._begin(last.of_pass + 1, first)

    def _block(self, first: int, number: int, of_pass: int) -> _Block:
        sizes = self.passes.get(of_pass, first).sizes
        names, mix = list(sizes), self.shards.mix_shards
        order = np.random.Generator(np.random.Philox(key=self.key, counter=[0, of_pass, 0, 0])).permutation(len(names))
        chosen = tuple(names[place] for place in order[number * mix : (number + 1) * mix])
        for name in chosen:
            self.shards.check_size(name, sizes[name])
        return _Block(first, number, of_pass, chosen, tuple(self.shards.count(name) for name in chosen))


class Addressed(Located):
    """Records of a set of shards by their addresses, which hold in one process."""

    def __init__(self, shards: "ShardedDataset") -> None:
        self.shards = shards
        self._names: list[str] = []
        self._numbers: dict[str, int] = {}

    def address(self, name: str, place: int) -> int:
        """Of a record by its place in a shard."""
        if name not in self._numbers:
            self._numbers[name] = len(self._names)
            self._names.append(name)
        return self._numbers[name] << PLACES | place

    def __len__(self) -> int:
        return len(self.shards)

    def locate(self, index: int) -> tuple[Dataset, int]:
        """The shard at an address, and the place of the record there."""
        return self.shards.open(self._names[index >> PLACES]), index & ((1 << PLACES) - 1)
