"""The mixture: an endless stream of samples, each source as often as its weight says. A pure function of the seed.

Sample i of the stream is the n-th of some source, and the n-th sample of a source is a record of its (n // len)-th shuffled
epoch. Sources alternate as evenly as their weights allow, so any stretch of the stream holds all of them in their shares.
Nothing is remembered: any process finds any sample by its number.
"""

import heapq
import itertools
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from unimm.data.records import Dataset
from unimm.data.stores.digests import check, unchecked
from unimm.data.template import Template
from unimm.data.views import TASKS, View
from unimm.sequence import Image, Sample, Sequence

SampleId = tuple[int, int]
"""(source, how many of its samples came before)."""

WEIGHED_BY = ("samples", "tokens")

MEASURED = 256
"""Samples of each source whose mean length stands for all, where weights are shares of tokens."""


@dataclass(frozen=True)
class Source:
    """A data set seen through a view, and its share of the mixture. Weight 0: it is left out."""

    name: str
    dataset: Dataset
    view: View
    weight: float = 1.0


def in_ratio(sources: list[Source], ratio: dict[str, float]) -> list[Source]:
    """The same sources, with weights by which their tasks come in a ratio; within a task they keep their proportions.

    ratio: of understanding, text and drawing, such as Janus' 2 : 3 : 5; 0 leaves a task out.

    Raises:
        ValueError: it is of other tasks, or of one that no source has a share in.
    """
    tasks = list(dict.fromkeys([*TASKS, *(source.view.task for source in sources)]))  # a view may have a task of its own
    if set(ratio) != set(tasks):
        raise ValueError(f"A ratio is of {', '.join(tasks)}, each with its share (0: none), not of {', '.join(ratio)}.")
    totals = {task: sum(source.weight for source in sources if source.view.task == task) for task in tasks}
    for task, share in ratio.items():
        if share and not totals[task]:
            raise ValueError(
                f"The ratio asks for {task}, and no source teaches it: add one to the data, or say ratio.{task}=0."
            )
    return [
        replace(source, weight=ratio[source.view.task] * source.weight / (totals[source.view.task] or 1.0))
        for source in sources
    ]


class Mixture:
    """Sources mixed by weight.

    Args:
        sources: what is mixed.
        template: how prompts are written.
        seed: of the order of records and of the choices of views.
        weigh_by: whether weights are shares of "samples" or of "tokens" (positions, those of images too).

    Raises:
        ValueError: there is no source, one holds no records, or the weights are no shares.
    """

    def __init__(self, sources: list[Source], template: Template, seed: int = 0, weigh_by: str = "samples") -> None:
        if not sources:
            raise ValueError("A mixture needs at least one source.")
        weights = [source.weight for source in sources]
        if min(weights) < 0 or max(weights) <= 0:
            raise ValueError(f"Mixture weights must not be negative, and one must be positive: {weights}.")
        for source in sources:
            if len(source.dataset) == 0:
                raise ValueError(f"The source '{source.name}' holds no records.")
        if weigh_by not in WEIGHED_BY:
            raise ValueError(f"Weights are shares of {' or '.join(WEIGHED_BY)}, not of '{weigh_by}'.")
        self.sources = sources
        self.template = template
        self.seed = seed
        self.weigh_by = weigh_by

    def samples(self, start: int, count: int) -> list[SampleId]:
        """Which samples come in the stream: `count` of them from number `start` on."""
        return list(itertools.islice(self._stream(start), count))

    def check(self, sample: SampleId) -> None:
        """Compare what is stored of a sample's image with the image, before it is learned.

        Raises:
            ValueError: codes or features are of another image.
        """
        check(self.sources[sample[0]].dataset, self._index(sample))

    def sample(self, sample: SampleId, max_positions: int | None = None) -> Sample:
        """A sample, its images unopened. max_positions: of each sequence; what is longer is cut, where its view can."""
        source, number = sample
        chosen = self.sources[source]
        # The generator counts up in the first word: samples differ in the second, so that their streams never overlap.
        rng = np.random.Generator(np.random.Philox(key=_key(self.seed, chosen.name, "view"), counter=[0, number, 0, 0]))
        record = unchecked(chosen.dataset, self._index(sample))
        made = chosen.view(record, self.template.limited(max_positions), rng)
        return made if isinstance(made, Sample) else Sample((made,))

    def sequence(self, sample: SampleId, max_positions: int | None = None) -> Sequence:
        """The sequence of a sample that has one.

        Raises:
            ValueError: it has several.
        """
        sequence, *others = self.sample(sample, max_positions).sequences
        if others:
            raise ValueError(f"The sample {self.name(sample)} has {1 + len(others)} sequences: Mixture.sample gives them.")
        return sequence

    def name(self, sample: SampleId) -> str:
        """A sample for a person: its source, its number there, and the key of its record."""
        source = self.sources[sample[0]]
        return f"{source.name} {sample[1]} ({unchecked(source.dataset, self._index(sample)).key})"

    def images(self) -> Iterator[np.ndarray]:
        """Images that are looked at, (3, H, W) float32 in [-1, 1], sample after sample; none where no source shows any."""
        active = [source for source, share in enumerate(self.shares) if share > 0]
        showing = {source for source in active if _images(self.sample((source, 0)))}
        samples = (sample for sample in self._stream(0) if sample[0] in showing)
        for sample in samples if showing else ():
            self.check(sample)
            yield from (image.open() for image in _images(self.sample(sample)) if not image.is_features)

    @cached_property
    def shares(self) -> list[float]:
        """The share of each source in the samples; together 1."""
        weights = [source.weight for source in self.sources]
        if self.weigh_by == "tokens":
            weights = [weight and weight / self._mean_length(source) for source, weight in enumerate(weights)]
        return [weight / sum(weights) for weight in weights]

    def _stream(self, start: int) -> Iterator[SampleId]:
        """Samples from number `start` on: the n-th of a source is due at (n + 1/2) / share, and the first that is due comes."""
        active = [source for source, share in enumerate(self.shares) if share > 0]
        # At this time fewer than `start` have come, for every share of time is rounded up by at most a half.
        time = max(0.0, start - len(active))
        counts = {source: int(time * self.shares[source] + 0.5) for source in active}
        due = [((count + 0.5) / self.shares[source], source) for source, count in counts.items()]
        heapq.heapify(due)
        for passed in itertools.count(sum(counts.values())):
            source = due[0][1]
            number = counts[source]
            counts[source] += 1
            heapq.heapreplace(due, ((counts[source] + 0.5) / self.shares[source], source))
            if passed >= start:
                yield source, number

    def _index(self, sample: SampleId) -> int:
        chosen = self.sources[sample[0]]
        epoch, place = divmod(sample[1], len(chosen.dataset))
        return int(_shuffled(len(chosen.dataset), _key(self.seed, chosen.name), epoch)[place])

    def _mean_length(self, source: int) -> float:
        return float(np.mean([self.sample((source, number)).length for number in range(MEASURED)]))


def _images(sample: Sample) -> list[Image]:
    """Those that a sample shows, unopened."""
    return [one.image for sequence in sample.sequences for one in sequence.segments if one.image is not None]


def _key(*parts: int | str) -> int:
    """A 64-bit key from names and numbers, the same in every process (unlike `hash`)."""
    text = "/".join(str(part) for part in parts).encode()
    return (zlib.crc32(text) << 32) | zlib.crc32(text[::-1])


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
