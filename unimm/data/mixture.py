"""The mixture: an endless stream of samples, each source as often as its weight says. A pure function of the seed.

Sample i of the stream is the n-th of some source, and the n-th sample of a source is a record of its (n // len)-th shuffled
epoch. Sources alternate as evenly as their weights allow, so any stretch of the stream holds all of them in their shares.
Nothing is remembered: any process finds any sample by its number. Where weights change by step (`unimm.data.mixing_weights`),
the stream goes on window by window of a plan, whose origin says how many samples came of each source.
"""

import itertools
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from unimm.data.bad_records import TRIES, BadRecord, StaleStoreError, reason_of
from unimm.data.mixing_weights import MixingWeights, SampleId, Stretch, Weight, interleave
from unimm.data.order import order_of
from unimm.data.records import Dataset, Record, check, key_at, known_length, unchecked
from unimm.data.shards.order import ShardedOrder
from unimm.data.template import Template
from unimm.data.views import TASKS, View
from unimm.runtime.number_checks import check_probability
from unimm.sequence import Image, Sample, Segment, Sequence

WEIGHED_BY = ("samples", "tokens")

MEASURED = 256
"""Samples of each source whose mean length stands for all, where weights are shares of tokens."""


PLACES = 16
"""Between two steps at which weights change, where the mean of shares is taken from."""


@dataclass(frozen=True)
class Source:
    """A data set seen through a view, and its share of the mixture. Weight 0: it is left out; a schedule: while it is 0."""

    name: str
    dataset: Dataset
    view: View
    weight: Weight = 1.0


def check_ratio(tasks: list[str], ratio: Mapping[str, Weight]) -> None:
    """Raises ValueError where a ratio is of other tasks than those of some sources, and ours."""
    known = list(dict.fromkeys([*TASKS, *tasks]))  # a view may have a task of its own
    if set(ratio) != set(known):
        raise ValueError(f"A ratio is of {', '.join(known)}, each with its share (0: none), not of {', '.join(ratio)}.")


class Mixture:
    """Sources mixed by weight.

    Args:
        sources: what is mixed.
        template: how prompts are written.
        seed: of the order of records and of the choices of views.
        weigh_by: whether weights are shares of "samples" or of "tokens" (positions, those of images too).
        max_bad: the share of records that may be bad; above 0 they are replaced by others of their source
            (`unimm.data.bad_records`), at 0 the first one raises.
        ratio: in which tasks come, of understanding, text and drawing, such as Janus' 2 : 3 : 5; within a task its sources keep
            their proportions. 0 leaves a task out. None: as the weights say.

    Raises:
        ValueError: there is no source, one holds no records, the weights are no shares, or the ratio is of other tasks, or of
            one that no source has a share in.
    """

    def __init__(
        self,
        sources: list[Source],
        template: Template,
        seed: int = 0,
        weigh_by: str = "samples",
        max_bad: float = 0.0,
        ratio: Mapping[str, Weight] | None = None,
    ) -> None:
        if not sources:
            raise ValueError("A mixture needs at least one source.")
        names, tasks = [source.name for source in sources], [getattr(source.view, "task", "") for source in sources]
        if ratio is not None:
            check_ratio(tasks, ratio)
        self.weights = MixingWeights(names, tasks, [source.weight for source in sources], ratio)
        for source in sources:
            if known_length(source.dataset) == 0:
                raise ValueError(f"The source '{source.name}' holds no records.")
        if weigh_by not in WEIGHED_BY:
            raise ValueError(f"Weights are shares of {' or '.join(WEIGHED_BY)}, not of '{weigh_by}'.")
        self.sources = sources
        self.template = template
        self.seed = seed
        self.weigh_by = weigh_by
        self.max_bad = max_bad
        self.orders = [order_of(source.dataset, _key(seed, source.name)) for source in sources]
        check_probability(self, "max_bad")
        self._mean_lengths: dict[int, float] = {}
        self._bad: dict[tuple[int, int], BadRecord] = {}  # by source and index, of those that were met while planning

    def attach(self, folder: Path) -> None:
        """Have sources in shards that may grow go by the passes that a run keeps in a folder, each below its name."""
        for source, order in zip(self.sources, self.orders, strict=True):
            if isinstance(order, ShardedOrder):
                order.attach(folder / source.name)
                self._mean_lengths, self._bad = {}, {}  # of the first samples, which may be others now
                vars(self).pop("shares", None)

    @property
    def used(self) -> list[int]:
        """The sources that come at any step, by number."""
        return [source for source, is_used in enumerate(self.weights.used) if is_used]

    def samples(self, start: int, count: int) -> list[SampleId]:
        """Which samples come in the stream: `count` of them from number `start` on.

        Raises:
            ValueError: weights change by step, and what comes where depends on how samples are packed into steps.
        """
        if self.weights.changes:
            raise ValueError("Weights that change by step are for trainings that pack data into rows: give constant ones here.")
        return list(itertools.islice(self._stream(start), count))

    def stretch(self, first: int, step: float, drawn: tuple[int, ...] = (), owed: tuple[float, ...] = ()) -> Stretch:
        """The stream from sample `first` on, with the weights of a step. drawn, owed: as an earlier stretch says, if any."""
        if not self.weights.changes:
            return Stretch(self._stream(first), self.shares)
        shares, nothing = self.shares_at(step), (0,) * len(self.sources)
        drawn, owed = drawn or nothing, owed or tuple(map(float, nothing))
        counts = {source: 0 for source, share in enumerate(shares) if share > 0}
        return Stretch(interleave(shares, counts, drawn, owed), shares, drawn, owed)

    def check(self, sample: SampleId) -> None:
        """Compare what is stored of a sample's image with the image, before it is learned.

        Raises:
            ValueError: codes or features are of another image.
        """
        check(self.orders[sample[0]].dataset, next(self._candidates(sample))[0])

    def sample(self, sample: SampleId, max_positions: int | None = None) -> Sample:
        """A sample, its images unopened; in place of a bad record, where there may be some, another one of its source.

        max_positions: of each sequence; what is longer is cut, where its view can.

        Raises:
            ValueError: its record is bad, and there may be none, or all that were tried in its place are bad, too.
        """
        last: Exception | None = None
        for index, attempt in self._candidates(sample):
            try:
                return self._made(sample, index, attempt, max_positions)
            except StaleStoreError:
                raise
            except (ValueError, OSError) as error:
                if not self.max_bad:
                    raise
                last = error
                self._bad[sample[0], index] = self._describe(sample[0], index, error)
        source = self.sources[sample[0]].name
        raise ValueError(f"{TRIES} records of the source '{source}' were tried, and none can be used: {last}")

    def record(self, sample: SampleId) -> tuple[Record, np.random.Generator]:
        """The record of a sample, and the generator of its view's choices, where no sequence is made of it.

        Raises:
            ValueError: the record is bad.
        """
        chosen = self.sources[sample[0]]
        rng = np.random.Generator(np.random.Philox(key=_key(self.seed, chosen.name, "view"), counter=[0, sample[1], 0, 0]))
        return unchecked(self.orders[sample[0]].dataset, self._index(sample)), rng

    def replaced(self, sample: SampleId) -> list[BadRecord]:
        """The bad records in whose place another one stands in a sample that was made before, in this process."""
        order = itertools.takewhile(lambda one: one is not None, (self._bad.get(key) for key in self._order(sample)))
        return [one for one in order if one is not None]

    def open(self, name: SampleId, sequences: tuple[Sequence, ...]) -> tuple[tuple[Sequence, ...] | None, list[BadRecord]]:
        """The sequences of a sample with their images opened; and the records that were found to be bad.

        Where an image cannot be used it is those of another record of the source, which take no more positions; None where
        there is no such record.
        """
        source, room = name[0], sum(sequence.length for sequence in sequences)
        bad: list[BadRecord] = []
        index, _ = next(self._candidates(name))
        for attempt in range(TRIES):
            try:
                if attempt:
                    index = self._instead(name, attempt, 1)
                    sequences = self._made(name, index, -attempt, None).sequences
                if sum(sequence.length for sequence in sequences) <= room:
                    check(self.orders[source].dataset, index)
                    opened = (tuple(map(Segment.opened, one.segments)) for one in sequences)
                    return tuple(replace(one, segments=own) for one, own in zip(sequences, opened, strict=True)), bad
            except StaleStoreError:
                raise
            except (ValueError, OSError) as error:
                bad.append(self._describe(source, index, error))
        return None, bad

    def _made(self, name: SampleId, index: int, attempt: int, max_positions: int | None) -> Sample:
        """The sample of a record. attempt: 0 for the record whose turn it is, others for those in its place."""
        chosen = self.sources[name[0]]
        # The generator counts up in the first word: samples differ in the second, so that their streams never overlap.
        counter = [0, name[1], abs(attempt), int(attempt < 0)]
        rng = np.random.Generator(np.random.Philox(key=_key(self.seed, chosen.name, "view"), counter=counter))
        made = chosen.view(unchecked(self.orders[name[0]].dataset, index), self.template.limited(max_positions), rng)
        return made if isinstance(made, Sample) else Sample((made,))

    def _candidates(self, name: SampleId) -> Iterator[tuple[int, int]]:
        """The record of a sample and those that stand in for it, which are not known to be bad: index, and which attempt."""
        for attempt, (source, index) in enumerate(self._order(name)):
            if (source, index) not in self._bad:
                yield index, attempt

    def _order(self, name: SampleId) -> Iterator[tuple[int, int]]:
        """Source and index of the record of a sample, and of those in its place."""
        yield name[0], self._index(name)
        for attempt in range(1, TRIES if self.max_bad else 1):
            yield name[0], self._instead(name, attempt, 0)

    def _instead(self, name: SampleId, attempt: int, opening: int) -> int:
        """The record that is tried in place of a bad one. opening: whether that was found out when its image was opened."""
        chosen = self.sources[name[0]]
        key = _key(self.seed, chosen.name, "instead")
        rng = np.random.Generator(np.random.Philox(key=key, counter=[0, name[1], attempt, opening]))
        return self.orders[name[0]].instead(name[1], rng)

    def _describe(self, source: int, index: int, error: Exception) -> BadRecord:
        key = key_at(self.orders[source].dataset, index)
        return BadRecord(key or f"record {index}", reason_of(error), self.sources[source].name)

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
        return f"{source.name} {sample[1]} ({key_at(self.orders[sample[0]].dataset, next(self._candidates(sample))[0])})"

    def images(self) -> Iterator[np.ndarray]:
        """Images that are looked at, (3, H, W) float32 in [-1, 1], sample after sample; none where no source shows any."""
        active = [source for source, share in enumerate(self.shares) if share > 0]
        showing = {source for source in active if _images(self.sample((source, 0)).sequences)}
        samples = (sample for sample in self._stream(0) if sample[0] in showing)
        for sample in samples if showing else ():
            made = self.sample(sample)
            if not self.max_bad:
                self.check(sample)
            opened = self.open(sample, made.sequences)[0] if self.max_bad else made.sequences
            yield from (image.open() for image in _images(opened or ()) if not image.is_features)

    @cached_property
    def shares(self) -> list[float]:
        """The share of each source in the samples, at the first step where that changes; together 1."""
        return self.shares_at(0)

    def shares_at(self, step: float) -> list[float]:
        """The share of each source in the samples of a step; together 1."""
        weights = self.weights.at(step)
        if self.weigh_by == "tokens":
            weights = [weight and weight / self._mean_length(source) for source, weight in enumerate(weights)]
        return [weight / sum(weights) for weight in weights]

    def mean_shares(self, num_steps: int) -> list[float]:
        """The share of each source in the samples of so many steps, where all steps have as many."""
        bounds = [step for step in self.weights.steps if step < num_steps]
        parts = list(zip(bounds, [*bounds[1:], num_steps], strict=True)) if self.weights.changes else [(0, 0)]
        shares = [
            [(end - start or 1) * share for share in self.shares_at(start + (end - start) * (place + 0.5) / PLACES)]
            for start, end in parts
            for place in range(PLACES)
        ]
        return [sum(column) / sum(map(sum, shares)) for column in zip(*shares, strict=True)]

    def tell_shares(self) -> list[str]:
        """Sources and their shares, for a person."""
        lines = []
        for step in self.weights.steps:
            shares = zip(self.sources, self.shares_at(step), strict=True)
            told = ", ".join(f"{source.name} {share:.1%}" for source, share in shares if share)
            lines.append(f"{'Sources and shares of samples' if not step else f'  from step {step:,} on'}: {told}")
        if self.weights.is_linear:
            lines.append("  between these steps, weights that are linear lie on a line")
        return lines

    def _stream(self, start: int) -> Iterator[SampleId]:
        """Samples from number `start` on, by the shares of the first step."""
        active = [source for source, share in enumerate(self.shares) if share > 0]
        # At this time fewer than `start` have come, for every share of time is rounded up by at most a half.
        time = max(0.0, start - len(active))
        counts = {source: int(time * self.shares[source] + 0.5) for source in active}
        return itertools.islice(interleave(self.shares, counts), start - sum(counts.values()), None)

    def _index(self, sample: SampleId) -> int:
        return self.orders[sample[0]].index(sample[1])

    def _mean_length(self, source: int) -> float:
        if source not in self._mean_lengths:
            self._mean_lengths[source] = float(np.mean([self.sample((source, number)).length for number in range(MEASURED)]))
        return self._mean_lengths[source]


def _images(sequences: tuple[Sequence, ...]) -> list[Image]:
    """Those that sequences show."""
    return [one.image for sequence in sequences for one in sequence.segments if one.image is not None]


def _key(*parts: int | str) -> int:
    """A 64-bit key from names and numbers, the same in every process (unlike `hash`)."""
    text = "/".join(str(part) for part in parts).encode()
    return (zlib.crc32(text) << 32) | zlib.crc32(text[::-1])
