"""The world of comparisons: two or three pictures of drawn shapes, and questions that only all of them together answer.

Which has more, in which is it, are they the same, what differs, which is the odd one: the answer is chosen first, each as often
as any other, and the pictures are made for it. Record `index` depends on (seed, split, pictures, subjects, index) alone. Pairs
of colour and form that the shapes world holds out are never shown. After NLVR2 (Suhr et al. 2019, arXiv 1811.00491) and
Spot-the-Diff (Jhamtani and Berg-Kirkpatrick 2018, arXiv 1808.10584).
"""

# pyright: reportIncompatibleVariableOverride=false
# A record's parts are values to everyone who reads them, whether they were given or are made when asked for.

from functools import cached_property

import numpy as np

from unimm.data.records import Question, Record, RecordImage
from unimm.data.worlds.comparisons_language import write_questions
from unimm.data.worlds.comparisons_scenes import MOST_OBJECTS, SUBJECTS, Comparison, make_comparison
from unimm.data.worlds.scenes import choose, render
from unimm.runtime.number_checks import check_whole

SPLITS = ("train", "validation", "test")

STREAM = 100
"""Of the second word of a generator's key, where the shapes world has the number of a split."""


class ComparisonsWorld:
    """Two or three pictures of 64x64 px a record, with questions in English and Chinese, and a `Comparison` as facts.

    Args:
        split: "train", "validation" or "test", which are disjoint streams.
        num_records: how many.
        seed: of everything.
        pictures: of a record: 2 or 3.
        subjects: what is asked about, some of `comparisons_scenes.SUBJECTS[pictures]` [default: all of them].
        num_questions: of a record, at most. What is asked about the same or changed pictures stands alone: its answer would
            give away others.
        most_objects: of a picture, from 2 to 4.

    Raises ValueError for an unknown split, subject or number of pictures, IndexError outside the records.
    """

    def __init__(
        self,
        split: str = "train",
        num_records: int = 100_000,
        seed: int = 0,
        pictures: int = 2,
        subjects: tuple[str, ...] | list[str] | None = None,
        num_questions: int = 4,
        most_objects: int = MOST_OBJECTS,
    ) -> None:
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")
        if pictures not in SUBJECTS:
            raise ValueError(f"pictures is {' or '.join(map(str, SUBJECTS))}, not {pictures!r}")
        self.split, self.num_records, self.seed, self.pictures = split, num_records, seed, pictures
        self.subjects = SUBJECTS[pictures] if subjects is None else tuple(subjects)
        if not self.subjects or any(subject not in SUBJECTS[pictures] for subject in self.subjects):
            raise ValueError(f"subjects of {pictures} pictures are {', '.join(SUBJECTS[pictures])}, not {self.subjects}")
        self.num_questions, self.most_objects = num_questions, most_objects
        check_whole(self, 0, "num_records", "seed")
        check_whole(self, 1, "num_questions")
        if most_objects not in range(2, MOST_OBJECTS + 1):
            raise ValueError(f"most_objects is a number from 2 to {MOST_OBJECTS}, not {most_objects!r}")
        self.name = f"comparisons/{pictures}/{split}/{'+'.join(self.subjects)}/{most_objects}"

    def __len__(self) -> int:
        return self.num_records

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < self.num_records:
            raise IndexError(f"index {index} is outside 0..{self.num_records - 1}")
        return ComparisonRecord(self, index)


class ComparisonRecord(Record):
    """The pictures of one comparison. Scenes and words have generators of their own, and are made when they are asked for."""

    def __init__(self, world: ComparisonsWorld, index: int) -> None:
        vars(self).update(key=f"{world.name}/{index}", _world=world, _index=index)

    def _generator(self, purpose: int) -> np.random.Generator:
        world: ComparisonsWorld = vars(self)["_world"]
        stream = STREAM + 10 * world.pictures + SPLITS.index(world.split)
        return make_generator(world.seed, stream, vars(self)["_index"], purpose)

    @cached_property
    def facts(self) -> Comparison:
        world: ComparisonsWorld = vars(self)["_world"]
        rng = self._generator(0)
        return make_comparison(choose(rng, world.subjects), world.pictures, rng, world.most_objects)

    @cached_property
    def image(self) -> np.ndarray:
        return render(self.facts.scenes[0])

    @cached_property
    def others(self) -> tuple[RecordImage, ...]:
        return tuple(RecordImage(render(scene)) for scene in self.facts.scenes[1:])

    @property
    def num_images(self) -> int:
        return vars(self)["_world"].pictures

    @cached_property
    def questions(self) -> tuple[Question, ...]:
        world: ComparisonsWorld = vars(self)["_world"]
        return write_questions(self.facts, self._generator(1), world.subjects, world.num_questions)


def make_generator(seed: int, stream: int, index: int, purpose: int) -> np.random.Generator:
    """A generator of its own for one purpose of one item: Philox keyed by (seed, stream), counting from (index, purpose)."""
    counter = np.array([0, 0, index, purpose], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(counter=counter, key=np.array([seed, stream], dtype=np.uint64)))
