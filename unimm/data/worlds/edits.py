"""The world of edits: a picture of drawn shapes, what to change in it in English and Chinese, and the picture afterwards.

Record `index` depends on (seed, split, kinds, index) alone. Its first image is the source, its second the target, where
something changes; the `EditedScene` is its facts, so what a model makes of the source can be judged without another model.
"""

# pyright: reportIncompatibleVariableOverride=false
# A record's parts are values to everyone who reads them, whether they were given or are made when asked for.

from functools import cached_property

import numpy as np

from unimm.data.records import ImageEdit, Record, RecordImage
from unimm.data.worlds.comparisons import make_generator
from unimm.data.worlds.edits_language import write_instructions
from unimm.data.worlds.edits_scenes import COMPOSING, KEEP, KINDS, EditedScene, make_edit
from unimm.data.worlds.scenes import SPLITS, render
from unimm.runtime.number_checks import check_whole

STREAM = 200
"""Of the second word of a generator's key, where the shapes world has the number of a split."""


class EditsWorld:
    """Two pictures of 64x64 px a record, and what makes the second of the first.

    Args:
        split: "train", "validation", "test", or "held_out", where the second picture shows a pair of colour and form that no
            other split shows.
        num_records: how many.
        seed: of everything.
        kinds: some of `edits_scenes.KINDS`, in turn [default: all of them that the split can have], or "keep": nothing changes.

    Raises ValueError for an unknown split or kind, IndexError outside the records.
    """

    def __init__(
        self,
        split: str = "train",
        num_records: int = 100_000,
        seed: int = 0,
        kinds: tuple[str, ...] | list[str] | None = None,
    ) -> None:
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")
        known = COMPOSING if split == "held_out" else KINDS
        self.split, self.num_records, self.seed = split, num_records, seed
        self.kinds = known if kinds is None else tuple(kinds)
        allowed = known if split == "held_out" else (*known, KEEP)
        if not self.kinds or not set(self.kinds) <= set(allowed):
            given = ", ".join(self.kinds) or "none"
            raise ValueError(f"kinds of edits in the split {split!r} are {', '.join(allowed)}, not {given}")
        check_whole(self, 0, "num_records", "seed")
        self.name = f"edits/{split}/{'+'.join(self.kinds)}"

    def __len__(self) -> int:
        return self.num_records

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < self.num_records:
            raise IndexError(f"index {index} is outside 0..{self.num_records - 1}")
        return EditsRecord(self, index)


class EditsRecord(Record):
    """One edit. Scenes and words have generators of their own, and are made when they are asked for."""

    def __init__(self, world: EditsWorld, index: int) -> None:
        vars(self).update(key=f"{world.name}/{index}", _world=world, _index=index)

    def _generator(self, purpose: int) -> np.random.Generator:
        world: EditsWorld = vars(self)["_world"]
        return make_generator(world.seed, STREAM + SPLITS.index(world.split), vars(self)["_index"], purpose)

    @property
    def _kind(self) -> str:
        world: EditsWorld = vars(self)["_world"]
        return world.kinds[vars(self)["_index"] % len(world.kinds)]

    @cached_property
    def facts(self) -> EditedScene:
        world: EditsWorld = vars(self)["_world"]
        return make_edit(self._kind, self._generator(0), world.split == "held_out")

    @cached_property
    def image(self) -> np.ndarray:
        return render(self.facts.source)

    @cached_property
    def others(self) -> tuple[RecordImage, ...]:
        return () if self._kind == KEEP else (RecordImage(render(self.facts.target)),)

    @property
    def num_images(self) -> int:
        return 1 if self._kind == KEEP else 2

    @cached_property
    def edits(self) -> tuple[ImageEdit, ...]:
        texts = write_instructions(self.facts.edit, self._generator(1))
        return (ImageEdit(texts, target=self.num_images - 1, category=self._kind),)
