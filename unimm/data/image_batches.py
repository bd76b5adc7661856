"""Batches of images alone, by step: what an image tokenizer learns from.

Which image stands at which place of which step depends on (seed, place counted over all steps) alone, so a run resumes from one
integer and any number of processes cuts the same global batch. That holds for what stands in place of a bad image, too.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from unimm.data.bad_records import TRIES, BadRecord, StaleStoreError, reason_of
from unimm.data.image import crop_uint8
from unimm.data.records import Dataset, key_at
from unimm.runtime.number_checks import check_probability, check_whole
from unimm.segment import in_unit_range


@dataclass(frozen=True)
class ImageSource:
    """A data set, how often its images come up beside the others', and what it is called in messages."""

    dataset: Dataset
    weight: float = 1.0
    name: str = "images"


class ImageStep(NamedTuple):
    """A process' share of a step: pixels (N, 3, size, size) uint8; the bad records in whose place others stand; images of the
    whole stream up to the end of the step."""

    pixels: np.ndarray
    bad: list[BadRecord]
    num_samples: int

    @property
    def drawn(self) -> tuple[int, ...]:
        """Of each source, where its share changes: it does not."""
        return ()


class _Drawn(NamedTuple):
    """An image of a step: pixels (3, size, size) uint8, its record's key, and the bad records in whose place it stands."""

    pixels: np.ndarray
    key: str
    bad: list[BadRecord]


class ImageBatches:
    """Step -> pixels (N, 3, size, size) float32 in [-1, 1], N = batch_size / world.

    Args:
        sources: where images come from; those of a source are drawn at random, with replacement.
        batch_size: images a step, over all processes.
        image_size: in pixels; images are resized and cropped to it.
        seed: of the draw.
        num_steps: the length; a run that is longer than its data is simply given more.
        max_bad: the share of a source's records that may be bad; above 0 others of the source stand in for them, at 0 the first
            one raises.
    """

    def __init__(
        self,
        sources: list[ImageSource],
        batch_size: int,
        image_size: int,
        seed: int = 0,
        num_steps: int = 1_000_000_000,
        max_bad: float = 0.0,
    ) -> None:
        for source in sources:
            if not isinstance(source.weight, int | float):
                raise ValueError(
                    f"The weight of the images '{source.name}' is a number, not {source.weight}: it does not change."
                )
        weights = np.array([source.weight for source in sources], dtype=np.float64)
        if not len(sources) or (weights < 0).any() or weights.sum() <= 0:
            raise ValueError("An image tokenizer needs at least one source of images with a weight above 0.")
        self.sources = sources
        self.batch_size = batch_size
        self.image_size = image_size
        self.seed = seed
        self.num_steps = num_steps
        self.rank, self.world = 0, 1
        self.max_bad = max_bad
        check_whole(self, 1, "batch_size")
        check_probability(self, "max_bad")
        self.shares: list[float] = (weights / weights.sum()).tolist()
        self._bounds = np.cumsum(weights / weights.sum())

    def for_rank(self, rank: int, world: int) -> "ImageBatches":
        """The same batches, of which this process takes its share.

        Raises:
            ValueError: the batch does not divide by the number of processes.
        """
        if self.batch_size % world:
            raise ValueError(f"A batch of {self.batch_size} images does not divide by {world} processes.")
        weighted = ImageBatches(self.sources, self.batch_size, self.image_size, self.seed, self.num_steps, self.max_bad)
        weighted.rank, weighted.world = rank, world
        return weighted

    def __len__(self) -> int:
        return self.num_steps

    def __getitem__(self, step: int) -> np.ndarray:
        return in_unit_range(self.load(step).pixels)

    def load(self, step: int) -> ImageStep:
        """This process' share of a step, and what was bad in it.

        Raises:
            ValueError: an image cannot be used, and none may be bad, or all that were tried in its place are bad, too.
        """
        if not 0 <= step < self.num_steps:
            raise IndexError(f"step {step} is outside 0..{self.num_steps - 1}")
        places = self._places(step)
        bad: dict[BadRecord, None] = {}
        pixels = np.empty((len(places), 3, self.image_size, self.image_size), dtype=np.uint8)
        for number, place in enumerate(places):  # each into its place: to stack them would hold all of them twice
            drawn = self._draw(place)
            pixels[number] = drawn.pixels
            bad.update(dict.fromkeys(drawn.bad))
        return ImageStep(pixels, list(bad), (step + 1) * self.batch_size)

    def names(self, step: int) -> list[str]:
        """The keys of the records of a step."""
        return [self._draw(place).key for place in self._places(step)]

    def _places(self, step: int) -> range:
        """This process' share of a step, counted over all steps."""
        share = self.batch_size // self.world
        first = step * self.batch_size + self.rank * share
        return range(first, first + share)

    def _draw(self, place: int) -> _Drawn:
        """The image at a place, or that of another record of its source where it cannot be used."""
        rng = np.random.default_rng([self.seed, place])
        source = self.sources[min(int(np.searchsorted(self._bounds, rng.random(), side="right")), len(self.sources) - 1)]
        bad: list[BadRecord] = []
        for attempt in range(TRIES if self.max_bad else 1):
            rng = np.random.default_rng([self.seed, place, attempt]) if attempt else rng
            index = int(rng.integers(len(source.dataset)))
            try:
                return self._open(source.dataset, index, bad)
            except StaleStoreError:
                raise
            except (ValueError, OSError) as error:
                if not self.max_bad:
                    raise
                bad.append(BadRecord(key_at(source.dataset, index) or f"record {index}", reason_of(error), source.name))
        tried = f"{TRIES} records of the source '{source.name}' were tried, and none can be used"
        raise ValueError(f"{tried}: {bad[-1].reason}.")

    def _open(self, dataset: Dataset, index: int, bad: list[BadRecord]) -> _Drawn:
        record = dataset[index]
        if record.image is None:
            raise ValueError(f"Record {record.key} has no image to learn from.")
        return _Drawn(crop_uint8(record.image, self.image_size), record.key, bad)
