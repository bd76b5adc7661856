"""The world of emoji as a data set: real pictures that we did not draw, alone or two in a scene, with words in two languages.

The pictures come from a font of the system: nothing is downloaded and nothing shipped. Record `index` of a split depends on
(seed, split, index), the font and the list of emoji alone.
"""

# pyright: reportIncompatibleVariableOverride=false
# A record's parts are values to everyone who reads them, whether they were given or are made when asked for.

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from unimm.data.records import Question, Record, Text
from unimm.data.worlds.emoji_language import CATEGORIES, write_captions, write_prompts, write_questions, write_text
from unimm.data.worlds.emoji_pictures import Emoji, find_font, list_emoji
from unimm.data.worlds.emoji_scenes import (
    SPLITS,
    EmojiScene,
    choose_background,
    make_generator,
    make_scene,
    place_alone,
    render,
)
from unimm.runtime.number_checks import check_probability, check_whole


@dataclass(frozen=True)
class EmojiSet:
    """Some emoji and the font that draws them.

    The numbers of emoji in scenes and in the judge's answers are places in `emoji`.
    """

    font: Path
    emoji: tuple[Emoji, ...]

    @classmethod
    def open(cls, font: str | Path | None = None, subset: str = "things", num_emoji: int | None = None) -> "EmojiSet":
        """The emoji of a subset (`emoji_pictures.SUBSETS`), or so many of them, evenly chosen.

        Raises:
            ValueError: there is no font, no such subset, the `emoji` package is missing, or the subset is smaller.
        """
        found = find_font(font)
        emoji = list_emoji(found, subset)
        if num_emoji is not None:
            check_whole({"num_emoji": num_emoji}, 2)
            if num_emoji > len(emoji):
                raise ValueError(f"The subset '{subset}' has {len(emoji)} emoji, not {num_emoji}: lower num_emoji.")
            emoji = tuple(emoji[place] for place in np.linspace(0, len(emoji) - 1, num_emoji).astype(int))
        return cls(found, emoji)


class EmojiWorld:
    """Emoji as records: image (side, side, 3) uint8, texts in English and Chinese, `EmojiScene` as facts.

    The first records of the training split are all emoji, each alone; then they are drawn at random.

    Args:
        split: "train", "validation", "test", or "held_out": pairs that no other split shows together.
        num_records: how many.
        seed: of scenes and wordings.
        side: height and width in pixels, such as 64 or 128.
        pairs: how often a scene has two emoji.
        centred: an emoji that is alone is an icon, in the middle and large; false: near the middle, of three widths.
        subset: "things", "plain" or "all" (`emoji_pictures.SUBSETS`); num_emoji: only so many of them.
        font: a font file with colour bitmaps; default: Noto Color Emoji of the system.
        categories: of questions, some of `emoji_language.CATEGORIES`.

    Raises ValueError for unknown names, and where the font or the `emoji` package is missing; IndexError outside the records.
    """

    def __init__(  # noqa: PLR0913 - each is a setting of YAML
        self,
        split: str = "train",
        num_records: int = 20_000,
        seed: int = 0,
        side: int = 64,
        pairs: float = 0.5,
        centred: bool = False,
        subset: str = "things",
        num_emoji: int | None = None,
        font: str | Path | None = None,
        categories: tuple[str, ...] | list[str] = CATEGORIES,
    ) -> None:
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")
        if unknown := [name for name in categories if name not in CATEGORIES]:
            raise ValueError(f"unknown category {unknown[0]!r}: choose among {', '.join(CATEGORIES)}")
        self.split = split
        self.num_records = num_records
        self.seed = seed
        self.side = side
        self.pairs = pairs
        self.centred = centred
        self.categories = tuple(categories)
        check_whole(self, 0, "num_records", "seed")
        check_whole(self, 16, "side")
        check_probability(self, "pairs")
        self.emoji_set = EmojiSet.open(font, subset, num_emoji)

    def __len__(self) -> int:
        return self.num_records

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < self.num_records:
            raise IndexError(f"index {index} is outside 0..{self.num_records - 1}")
        return EmojiRecord(self, index)


class EmojiRecord(Record):
    """One scene. Every part has a generator of its own, so it is made when it is first asked for, and always the same."""

    def __init__(self, world: EmojiWorld, index: int) -> None:
        vars(self).update(key=f"emoji/{world.split}/{index}", _world=world, _index=index)

    def _generator(self, purpose: str) -> np.random.Generator:
        world: EmojiWorld = vars(self)["_world"]
        return make_generator(world.seed, world.split, vars(self)["_index"], purpose)

    @property
    def _emoji(self) -> tuple[Emoji, ...]:
        return vars(self)["_world"].emoji_set.emoji

    @cached_property
    def facts(self) -> EmojiScene:
        world, index = vars(self)["_world"], vars(self)["_index"]
        rng = self._generator("scene")
        if world.split == "train" and index < len(self._emoji):
            return EmojiScene((place_alone(rng, index, world.side, world.centred),), choose_background(rng))
        return make_scene(rng, self._emoji, world.side, world.pairs, world.split == "held_out", world.centred)

    @cached_property
    def image(self) -> np.ndarray:
        world = vars(self)["_world"]
        return render(self.facts, self._emoji, world.emoji_set.font, world.side)

    @cached_property
    def captions(self) -> tuple[Text, ...]:
        return write_captions(self.facts, self._emoji, self._generator("captions"))

    @cached_property
    def prompts(self) -> tuple[Text, ...]:
        return write_prompts(self.facts, self._emoji, self._generator("prompts"))

    @cached_property
    def questions(self) -> tuple[Question, ...]:
        return write_questions(self.facts, self._emoji, self._generator("questions"), vars(self)["_world"].categories)

    @cached_property
    def text(self) -> Text:
        return write_text(self._emoji, self._generator("text"))
