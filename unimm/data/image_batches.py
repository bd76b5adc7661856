"""Batches of images alone, by step: what an image tokenizer learns from.

Which image stands at which place of which step depends on (seed, place counted over all steps) alone, so a run resumes from one
integer and any number of processes cuts the same global batch.
"""

from dataclasses import dataclass

import numpy as np

from unimm.data.image import crop
from unimm.data.records import Dataset, Record
from unimm.runtime.number_checks import check_whole


@dataclass(frozen=True)
class ImageSource:
    """A data set, and how often its images come up beside the others'."""

    dataset: Dataset
    weight: float = 1.0


class ImageBatches:
    """Step -> pixels (N, 3, size, size) float32 in [-1, 1], N = batch_size / world.

    Args:
        sources: where images come from; those of a source are drawn at random, with replacement.
        batch_size: images a step, over all processes.
        image_size: in pixels; images are resized and cropped to it.
        seed: of the draw.
        num_steps: the length; a run that is longer than its data is simply given more.
    """

    def __init__(
        self, sources: list[ImageSource], batch_size: int, image_size: int, seed: int = 0, num_steps: int = 1_000_000_000
    ) -> None:
        weights = np.array([source.weight for source in sources], dtype=np.float64)
        if not len(sources) or (weights < 0).any() or weights.sum() <= 0:
            raise ValueError("An image tokenizer needs at least one source of images with a weight above 0.")
        self.sources = sources
        self.batch_size = batch_size
        self.image_size = image_size
        self.seed = seed
        self.num_steps = num_steps
        self.rank, self.world = 0, 1
        check_whole(self, 1, "batch_size")
        self._bounds = np.cumsum(weights / weights.sum())

    def for_rank(self, rank: int, world: int) -> "ImageBatches":
        """The same batches, of which this process takes its share.

        Raises:
            ValueError: the batch does not divide by the number of processes.
        """
        if self.batch_size % world:
            raise ValueError(f"A batch of {self.batch_size} images does not divide by {world} processes.")
        weighted = ImageBatches(self.sources, self.batch_size, self.image_size, self.seed, self.num_steps)
        weighted.rank, weighted.world = rank, world
        return weighted

    def __len__(self) -> int:
        return self.num_steps

    def __getitem__(self, step: int) -> np.ndarray:
        if not 0 <= step < self.num_steps:
            raise IndexError(f"step {step} is outside 0..{self.num_steps - 1}")
        return np.stack([self._image(self._record(place)) for place in self._places(step)])

    def names(self, step: int) -> list[str]:
        """The keys of the records of a step."""
        return [self._record(place).key for place in self._places(step)]

    def _places(self, step: int) -> range:
        """This process' share of a step, counted over all steps."""
        share = self.batch_size // self.world
        first = step * self.batch_size + self.rank * share
        return range(first, first + share)

    def _record(self, place: int) -> Record:
        rng = np.random.default_rng([self.seed, place])
        number = min(int(np.searchsorted(self._bounds, rng.random(), side="right")), len(self.sources) - 1)
        dataset = self.sources[number].dataset
        return dataset[int(rng.integers(len(dataset)))]

    def _image(self, record: Record) -> np.ndarray:
        if record.image is None:
            raise ValueError(f"Record {record.key} has no image to learn from.")
        return crop(record.image, self.image_size)
