"""The world of conversations in which the assistant draws: pictures of shapes, words about them, and changes of them.

A record is one conversation, its pictures in the order in which they are drawn; views write it as a `Dialogue`. Record `index`
depends on (seed, split, kinds, index) alone. Conversations are in English and Chinese in turn, and of each kind as often as of
any other (`interleaved_scenes`). Pairs of colour and form that the shapes world holds out are only shown by the split
"held_out".
"""

# pyright: reportIncompatibleVariableOverride=false
# A record's parts are values to everyone who reads them, whether they were given or are made when asked for.

from functools import cached_property

import numpy as np

from unimm.data.records import Question, Record, RecordImage
from unimm.data.worlds.comparisons import make_generator
from unimm.data.worlds.interleaved_language import write_story
from unimm.data.worlds.interleaved_scenes import KINDS, Story, make_story
from unimm.data.worlds.scenes import SPLITS, choose, render
from unimm.data.worlds.shapes_language import LANGUAGES
from unimm.runtime.number_checks import check_whole

STREAM = 200
"""Of the second word of a generator's key, where the shapes world has the number of a split."""


class InterleavedWorld:
    """Conversations with one to three pictures of 64x64 px that the assistant draws, and a `Story` as facts.

    Args:
        split: "train", "validation", "test" or "held_out", which are disjoint streams.
        num_records: how many.
        seed: of everything.
        kinds: of conversations, some of `interleaved_scenes.KINDS` [default: all of them].

    Raises ValueError for an unknown split or kind, IndexError outside the records.
    """

    def __init__(
        self, split: str = "train", num_records: int = 100_000, seed: int = 0, kinds: tuple[str, ...] | list[str] | None = None
    ) -> None:
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")
        self.kinds = KINDS if kinds is None else tuple(kinds)
        if not self.kinds or any(kind not in KINDS for kind in self.kinds):
            raise ValueError(f"kinds are {', '.join(KINDS)}, not {self.kinds}")
        self.split, self.num_records, self.seed = split, num_records, seed
        check_whole(self, 0, "num_records", "seed")
        self.name = f"interleaved/{split}/{'+'.join(self.kinds)}"

    def __len__(self) -> int:
        return self.num_records

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < self.num_records:
            raise IndexError(f"index {index} is outside 0..{self.num_records - 1}")
        return InterleavedRecord(self, index)


class InterleavedRecord(Record):
    """One conversation. Scenes and words have generators of their own, and are made when they are asked for."""

    def __init__(self, world: InterleavedWorld, index: int) -> None:
        vars(self).update(key=f"{world.name}/{index}", is_dialogue=True, _world=world, _index=index)

    def _generator(self, purpose: int) -> np.random.Generator:
        world: InterleavedWorld = vars(self)["_world"]
        return make_generator(world.seed, STREAM + SPLITS.index(world.split), vars(self)["_index"], purpose)

    @cached_property
    def facts(self) -> Story:
        world: InterleavedWorld = vars(self)["_world"]
        rng = self._generator(0)
        return make_story(choose(rng, world.kinds), rng, world.split == "held_out")

    @property
    def language(self) -> str:
        """Of all that is said in it."""
        return LANGUAGES[vars(self)["_index"] % len(LANGUAGES)]

    @cached_property
    def image(self) -> np.ndarray:
        return render(self.facts.scenes[0])

    @cached_property
    def others(self) -> tuple[RecordImage, ...]:
        return tuple(RecordImage(render(scene)) for scene in self.facts.scenes[1:])

    @property
    def num_images(self) -> int:
        return len(self.facts.scenes)

    @cached_property
    def questions(self) -> tuple[Question, ...]:
        return write_story(self.facts, self.language, self._generator(1))
