"""The world of pages as a data set: documents of 128 to 256 px with lines of text, tables and charts, which are too large to be
read in one look of a small vision tower; with questions in English and Chinese (recipes/large_pictures.md).

Record `index` of a split depends on (seed, split, index), the settings, and, its picture, on the font. Its key names the
languages and a hash of the other settings: pages of a machine without a Chinese font are other records than those of one with
it.
"""

# pyright: reportIncompatibleVariableOverride=false
# A record's parts are values to everyone who reads them, whether they were given or are made when asked for.

import hashlib
import logging
from functools import cached_property
from pathlib import Path

import numpy as np

from unimm.data.records import Question, Record, Text
from unimm.data.worlds.pages_content import (
    CATEGORIES,
    KINDS,
    SPLITS,
    Layout,
    Page,
    make_generator,
    make_page,
    write_captions,
    write_questions,
)
from unimm.data.worlds.pages_drawing import MISSING, find_chinese_font, find_font, render
from unimm.data.worlds.pages_language import LANGUAGES
from unimm.runtime.number_checks import check_whole

SIZES = ((256, 128), (192, 192), (192, 128), (128, 192), (128, 256))
"""Widths and heights of pages in pixels."""

LARGEST = 4096
"""A side of a page, in pixels."""

logger = logging.getLogger(__name__)


class PagesWorld:
    """Pages as records: image (height, width, 3) uint8, questions and a caption in the page's language, `Page` as facts.

    Args:
        split: "train", "validation" or "test".
        num_records: how many.
        seed: of pages and questions.
        languages: "en", "zh" or both; None: both where there is a font for Chinese, else English alone, which is said.
        kinds: some of `pages_content.KINDS`; categories: of questions, some of `pages_content.CATEGORIES`.
        sizes: width and height of each size that a page may have, in pixels: at least 9 times font_size, for text alone 4.5.
        font_size: height of letters in pixels.
        font, chinese_font: font files; default: DejaVu Sans of matplotlib, and a font of the system.

    Raises ValueError for unknown names, sizes on which nothing can stand, and where a font is missing; IndexError outside the
    records.
    """

    def __init__(  # noqa: PLR0913 - each is a setting of YAML
        self,
        split: str = "train",
        num_records: int = 100_000,
        seed: int = 0,
        languages: tuple[str, ...] | list[str] | None = None,
        kinds: tuple[str, ...] | list[str] = KINDS,
        categories: tuple[str, ...] | list[str] = CATEGORIES,
        sizes: tuple[tuple[int, int], ...] | list[list[int]] = SIZES,
        font_size: int = 14,
        font: str | Path | None = None,
        chinese_font: str | Path | None = None,
    ) -> None:
        _check_names("split", [split], SPLITS)
        _check_names("kind", kinds, KINDS)
        _check_names("category", categories, CATEGORIES)
        _check_names("language", LANGUAGES if languages is None else languages, LANGUAGES)
        self.split, self.num_records, self.seed = split, num_records, seed
        check_whole(self, 0, "num_records", "seed")
        check_whole({"font_size": font_size}, 8)
        self.categories = tuple(categories)
        fonts = {"en": find_font(font), "zh": find_chinese_font(chinese_font)}
        self.fonts = {language: path for language, path in fonts.items() if path is not None}
        known = tuple(self.fonts) if languages is None else tuple(languages)
        if languages is None and "zh" not in self.fonts:
            logger.warning(f"There are English pages alone. {MISSING}")
        if any(language not in self.fonts for language in known):
            raise ValueError(MISSING)
        checked = _checked_sizes(sizes, font_size, only_text=set(kinds) == {"text"})
        self.layout = Layout(checked, known, tuple(kinds), font_size)
        settings = hashlib.sha256(repr((self.layout, self.categories)).encode()).hexdigest()[:6]
        self.name = f"pages/{split}/{'+'.join(known)}/{settings}"

    def __len__(self) -> int:
        return self.num_records

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < self.num_records:
            raise IndexError(f"index {index} is outside 0..{self.num_records - 1}")
        return PageRecord(self, index)


class PageRecord(Record):
    """One page. Every part has a generator of its own, so it is made when it is first asked for, and always the same."""

    def __init__(self, world: PagesWorld, index: int) -> None:
        vars(self).update(key=f"{world.name}/{index}", _world=world, _index=index)

    def _generator(self, purpose: str) -> np.random.Generator:
        world: PagesWorld = vars(self)["_world"]
        return make_generator(world.seed, world.split, vars(self)["_index"], purpose)

    @cached_property
    def facts(self) -> Page:
        return make_page(self._generator("page"), vars(self)["_world"].layout)

    @cached_property
    def image(self) -> np.ndarray:
        return render(self.facts, vars(self)["_world"].fonts[self.facts.language])

    @cached_property
    def captions(self) -> tuple[Text, ...]:
        return write_captions(self.facts)

    @cached_property
    def questions(self) -> tuple[Question, ...]:
        return write_questions(self.facts, self._generator("questions"), vars(self)["_world"].categories)


def _check_names(what: str, given: tuple[str, ...] | list[str], known: tuple[str, ...]) -> None:
    """ValueError: there is none, or one that is not known."""
    if not given:
        raise ValueError(f"Name at least one {what} of {', '.join(known)}.")
    if unknown := [name for name in given if name not in known]:
        raise ValueError(f"unknown {what} {unknown[0]!r}: choose among {', '.join(known)}")


def _checked_sizes(
    sizes: tuple[tuple[int, int], ...] | list[list[int]], font_size: int, only_text: bool
) -> tuple[tuple[int, int], ...]:
    """The sizes of pages. ValueError: there is none, or one on which two words, or a chart, have no room."""
    times = 4.5 if only_text else 9
    least = int(times * font_size)
    pairs = [tuple(size) for size in sizes]
    if not pairs or any(len(pair) != 2 or not all(least <= side <= LARGEST for side in pair) for pair in pairs):
        raise ValueError(
            f"sizes are widths and heights in pixels, from {least} ({times:g} times font_size) to {LARGEST}, not {pairs}."
        )
    return tuple((int(width), int(height)) for width, height in pairs)
