"""The world of drawn shapes as a data set: scenes, captions, questions, prompts and plain sentences in two languages.

Record `index` of a split depends on (seed, split, index) alone. Nothing is stored or downloaded; an item takes less than
a millisecond, so fresh scenes can go on for ever.
"""

# pyright: reportIncompatibleVariableOverride=false
# A record's parts are values to everyone who reads them, whether they were given or are made when asked for.

from functools import cached_property

import numpy as np

from unimm.data.grids import Grid
from unimm.data.records import Phrase, Question, Record, Text
from unimm.data.worlds.scenes import SIDE, SPLITS, Scene, make_generator, make_scene, recolour, render
from unimm.data.worlds.shapes_language import write_captions
from unimm.data.worlds.shapes_lessons import BENCHMARK, LESSONS, TEACHER, Lesson
from unimm.data.worlds.shapes_phrases import write_phrases
from unimm.data.worlds.shapes_prompts import drawing_prompts
from unimm.data.worlds.shapes_questions import write_questions, write_text
from unimm.runtime.number_checks import check_whole


class ShapesWorld:
    """Scenes of 0-4 shapes, 64x64 px; splits "train", "validation", "test" and "held_out" (pairs never trained on).

    `recoloured`: the same scenes with about half of the objects in other colours, as the corrupted codes of a `CodedDataset`.
    With `places`, questions and prompts are also about the part of the picture that something is in: for training, as
    benchmarks do not ask for it. With a `lesson` (one of LESSONS), these teach one skill, and scenes may be simple.
    `size`: width and height of the pictures, as "96x64"; shapes are as large in any.
    Records carry the image as (64, 64, 3) uint8, or of `size`, and the `Scene` as facts. Raises ValueError for an unknown
    split or lesson, or a size of less than 64, and IndexError outside `num_records`.
    """

    def __init__(
        self,
        split: str = "train",
        num_records: int = 100_000,
        seed: int = 0,
        places: bool = False,
        lesson: str | None = None,
        recoloured: bool = False,
        size: str = f"{SIDE}x{SIDE}",
    ) -> None:
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")
        if lesson is not None and lesson not in LESSONS:
            raise ValueError(f"unknown lesson {lesson!r}: choose one of {', '.join(LESSONS)}")
        if lesson is not None and split == "held_out":
            raise ValueError("a lesson shows no pairs that are held out: choose another split")
        self.split = split
        self.num_records = num_records
        self.seed = seed
        check_whole(self, 0, "num_records", "seed")
        self.places = places
        self.lesson = lesson
        self.recoloured = recoloured
        height, width = Grid.read(size)[::-1]
        if min(width, height) < SIDE or (places and (width, height) != (SIDE, SIDE)):
            raise ValueError(
                f"Pictures of shapes are {SIDE}x{SIDE} or larger, and squares where places are asked for, not {size}."
            )
        self.size = (width, height)

    def __len__(self) -> int:
        return self.num_records

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < self.num_records:
            raise IndexError(f"index {index} is outside 0..{self.num_records - 1}")
        usual = TEACHER if self.places else BENCHMARK
        lesson = LESSONS[self.lesson] if self.lesson else usual
        return ShapesRecord(self.seed, self.split, index, lesson, self.recoloured, self.size)


class ShapesRecord(Record):
    """One scene. Every part has a generator of its own, so it is made when it is first asked for, and always the same."""

    def __init__(
        self,
        seed: int,
        split: str,
        index: int,
        lesson: Lesson = BENCHMARK,
        recoloured: bool = False,
        size: tuple[int, int] = (SIDE, SIDE),
    ) -> None:
        own = {"_seed": seed, "_split": split, "_index": index, "_lesson": lesson, "_recoloured": recoloured, "_size": size}
        vars(self).update(key=f"shapes/{split}/{index}", **own)

    def _generator(self, purpose: str) -> np.random.Generator:
        own = vars(self)
        return make_generator(own["_seed"], own["_split"], own["_index"], purpose)

    @cached_property
    def facts(self) -> Scene:
        own = vars(self)
        lesson: Lesson = own["_lesson"]
        scene = make_scene(own["_seed"], own["_split"], own["_index"], lesson.num_objects, lesson.alike, own["_size"])
        return recolour(scene, self._generator("colours")) if own["_recoloured"] else scene

    @cached_property
    def image(self) -> np.ndarray:
        return render(self.facts)

    @cached_property
    def captions(self) -> tuple[Text, ...]:
        return write_captions(self.facts, self._generator("captions"))

    @cached_property
    def prompts(self) -> tuple[Text, ...]:
        lesson: Lesson = vars(self)["_lesson"]
        return drawing_prompts(self.facts, self._generator("prompts"), lesson.prompts, lesson.prompt_languages)

    @cached_property
    def questions(self) -> tuple[Question, ...]:
        lesson: Lesson = vars(self)["_lesson"]
        return write_questions(self.facts, self._generator("questions"), lesson.categories, lesson.languages)

    @cached_property
    def phrases(self) -> tuple[Phrase, ...]:
        lesson: Lesson = vars(self)["_lesson"]
        return write_phrases(self.facts, self._generator("phrases"), lesson.languages)

    @cached_property
    def text(self) -> Text:
        return write_text(self._generator("text"))
