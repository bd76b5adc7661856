"""The mixture: which sample is learned when, as a pure function of (seed, step).

Every step holds a fixed number of samples of each source, by the sources' weights, so that all tasks are in every step. The
n-th sample of a source is a record of its (n // len)-th shuffled epoch. Nothing is remembered, so a run resumes from one
integer, and the global batch does not depend on the number of ranks or workers.
"""

import itertools
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from torch.utils.data import Dataset as TorchDataset

from unimm.batch import Batch, collate
from unimm.data.packing import best_fit
from unimm.data.records import Dataset
from unimm.data.template import Template
from unimm.data.views import View
from unimm.sequence import Sequence


@dataclass(frozen=True)
class Source:
    """A data set seen through a view, and its share of the samples of every step."""

    name: str
    dataset: Dataset
    view: View
    weight: float = 1.0


class Mixture:
    """Sources mixed by weight into global batches of `batch_size` samples."""

    def __init__(self, sources: list[Source], template: Template, batch_size: int, seed: int = 0) -> None:
        if not sources:
            raise ValueError("A mixture needs at least one source.")
        for source in sources:
            if len(source.dataset) == 0:
                raise ValueError(f"The source '{source.name}' holds no records.")
        self.sources = sources
        self.template = template
        self.batch_size = batch_size
        self.seed = seed
        self.counts = apportion([source.weight for source in sources], batch_size)

    def samples(self, step: int) -> list[tuple[int, int]]:
        """The global batch of a step: (source, how many of its samples came before)."""
        return [(number, step * count + item) for number, count in enumerate(self.counts) for item in range(count)]

    def sequence(self, source: int, number: int) -> Sequence:
        """The `number`-th sample of a source, counted from the start of the run."""
        chosen = self.sources[source]
        epoch, place = divmod(number, len(chosen.dataset))
        index = int(_shuffled(len(chosen.dataset), _key(self.seed, chosen.name), epoch)[place])
        key = _key(self.seed, chosen.name, "view")
        # The generator counts up in the first word: samples differ in the second, so that their streams never overlap.
        rng = np.random.Generator(np.random.Philox(key=key, counter=[0, number, 0, 0]))
        return chosen.view(chosen.dataset[index], self.template, rng)

    def images(self) -> Iterator[np.ndarray]:
        """Images that are looked at, (3, H, W) float32 in [-1, 1], sample after sample; none where no source shows any."""
        for step in itertools.count():
            segments = [segment for sample in self.samples(step) for segment in self.sequence(*sample).segments]
            shown = [segment.pixels for segment in segments if segment.pixels is not None]
            if not shown:
                return
            yield from shown


class StepBatches(TorchDataset):
    """The batches of one rank by step: item `step` is the rank's share of that step, cut into micro-batches.

    Every rank takes every `num_ranks`-th sample of each source, so that all ranks see all kinds.

    num_positions: row length T; sequences are packed into rows. num_micro_batches: how many forward passes a step takes.

    Raises ValueError where a micro-batch would get no sample at all.
    """

    def __init__(
        self,
        mixture: Mixture,
        num_positions: int,
        num_micro_batches: int = 1,
        rank: int = 0,
        num_ranks: int = 1,
        num_steps: int = 1 << 40,
    ) -> None:
        if mixture.batch_size < num_ranks * num_micro_batches:
            raise ValueError(
                f"A batch of {mixture.batch_size} samples cannot be cut into {num_micro_batches} micro-batches for each of "
                f"{num_ranks} processes: raise data.batch_size to at least {num_ranks * num_micro_batches}."
            )
        self.mixture = mixture
        self.num_positions = num_positions
        self.num_micro_batches = num_micro_batches
        self.rank = rank
        self.num_ranks = num_ranks
        self.num_steps = num_steps

    def __len__(self) -> int:
        return self.num_steps

    def __getitem__(self, step: int) -> list[Batch]:
        samples = self.mixture.samples(step)[self.rank :: self.num_ranks]
        parts = [samples[micro :: self.num_micro_batches] for micro in range(self.num_micro_batches)]
        return [self._pack([self.mixture.sequence(*sample) for sample in part]) for part in parts]

    def _pack(self, sequences: list[Sequence]) -> Batch:
        rows = best_fit((sequence.length for sequence in sequences), self.num_positions)
        return collate([[sequences[index] for index in row] for row in rows], self.num_positions)


def apportion(weights: list[float], total: int) -> list[int]:
    """`total` split by weights into whole numbers (largest remainder); every positive weight gets at least one.

    Raises:
        ValueError: a weight is negative, all are zero, or `total` is too small for one each.
    """
    positive = sum(weight > 0 for weight in weights)
    if min(weights) < 0 or positive == 0:
        raise ValueError(f"Mixture weights must not be negative, and one must be positive: {weights}.")
    if total < positive:
        raise ValueError(f"A batch of {total} samples cannot hold one of each of {positive} sources.")
    shares = [weight / sum(weights) * total for weight in weights]
    counts = [max(int(share), int(weight > 0)) for share, weight in zip(shares, weights, strict=True)]
    while sum(counts) != total:
        up = sum(counts) < total
        candidates = [i for i, count in enumerate(counts) if weights[i] > 0 and (up or count > 1)]
        best = max(candidates, key=lambda i: (shares[i] - counts[i]) * (1 if up else -1))
        counts[best] += 1 if up else -1
    return counts


def _key(*parts: int | str) -> int:
    """A 64-bit key from names and numbers, the same in every process (unlike `hash`)."""
    text = "/".join(str(part) for part in parts).encode()
    return (zlib.crc32(text) << 32) | zlib.crc32(text[::-1])


@lru_cache(maxsize=64)
def _shuffled(length: int, key: int, epoch: int) -> np.ndarray:
    """The order of a source's records in one epoch."""
    return np.random.Generator(np.random.Philox(key=key, counter=[0, epoch, 0, 0])).permutation(length)
