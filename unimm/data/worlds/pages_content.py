"""What stands on a page of the pages world, and what can be asked about it: lines of text, a table, a bar, line or pie chart,
in English or Chinese. A page depends on (seed, split, index) and the world's settings alone, not on a font.

Words are chosen from short lists, so that a small model can learn to read them; hardly any page of a test is in training.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from unimm.data.records import Question, Text
from unimm.data.worlds.pages_language import ASKED, CAPTIONS, COLUMNS, LABELS, MONTHS, TREND, WORDS

SPLITS = ("train", "validation", "test")
KINDS = ("text", "table", "bars", "line", "pie")

CATEGORIES = (
    *("text_all", "text_read", "text_find", "text_count"),
    *("table_cell", "table_row", "table_highest", "table_count"),
    *("bars_value", "bars_highest", "bars_lowest", "bars_count"),
    *("line_value", "line_highest", "line_trend", "line_count"),
    *("pie_share", "pie_largest", "pie_count"),
)
"""What a question is about: the kind of its page, and what is to be found there."""

TOLERANT = ("bars_value", "line_value", "pie_share")
"""Values that are read off a chart, which may be a little off (`unimm.eval.tasks.pages`)."""

PURPOSES = ("page", "questions", "captions")

MARGIN = 8
"""Pixels from the edge of a page to what stands on it, where it is wide enough (`Page.margin`)."""

Colour = tuple[int, int, int]


COLOURS: tuple[Colour, ...] = (
    *((200, 60, 50), (60, 110, 200), (70, 160, 80), (230, 160, 40)),
    *((140, 80, 170), (60, 170, 180), (150, 100, 60), (120, 120, 120)),
)
"""Of bars and slices."""


@dataclass(frozen=True)
class Layout:
    """What a world's pages have in common: their sizes (width, height) in pixels, languages, kinds, and the size of letters."""

    sizes: tuple[tuple[int, int], ...]
    languages: tuple[str, ...]
    kinds: tuple[str, ...]
    font_size: int


@dataclass(frozen=True)
class Page:
    """One page.

    width, height, font_size: in pixels.
    names: the lines of a text; the rows of a table; the labels of bars, months or slices.
    columns: of a table. values: of each name: a row's cells, or the one value of a bar, a month or a slice (in percent).
    has_labels: whether values stand beside bars or points; else they are multiples of 10, to be read off the axis.
    colours: of its bars or slices. paper, ink: of the ground, and of all else.
    shift: pixels by which lines of text lie further right and down, where there is room.
    """

    kind: str
    language: str
    width: int
    height: int
    font_size: int
    names: tuple[str, ...]
    columns: tuple[str, ...] = ()
    values: tuple[tuple[int, ...], ...] = ()
    has_labels: bool = True
    colours: tuple[Colour, ...] = ()
    paper: Colour = (255, 255, 255)
    ink: Colour = (0, 0, 0)
    shift: tuple[int, int] = (0, 0)

    @property
    def margin(self) -> int:
        """Pixels from the edge to lines of text."""
        return min(MARGIN // 2, self.width // 16)


def make_generator(seed: int, split: str, index: int, purpose: str) -> np.random.Generator:
    """A generator of its own for one purpose of one page."""
    counter = np.array([0, 0, index, PURPOSES.index(purpose)], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(counter=counter, key=np.array([seed, SPLITS.index(split)], dtype=np.uint64)))


def make_page(rng: np.random.Generator, layout: Layout) -> Page:
    """A page of any of the layout's kinds, languages and sizes."""
    kind, language = _one(rng, layout.kinds), _one(rng, layout.languages)
    width, height = layout.sizes[int(rng.integers(len(layout.sizes)))]
    tone = int(rng.integers(238, 256))
    paper = (tone, tone, int(rng.integers(228, 256)))
    dark = int(rng.integers(0, 50))
    ink = (dark, dark, int(rng.integers(0, 80)))
    page = Page(kind, language, width, height, layout.font_size, (), paper=paper, ink=ink)
    return _MAKERS[kind](rng, page)


def write_captions(page: Page) -> tuple[Text, ...]:
    """What kind of page it is, and how much stands on it, in the page's language."""
    return (Text(CAPTIONS[page.language][page.kind].format(len(page.names)), page.language),)


def write_questions(page: Page, rng: np.random.Generator, categories: tuple[str, ...]) -> tuple[Question, ...]:
    """All questions of some categories, in any order, in the page's language."""
    asked = [
        Question(ASKED[page.language][category].format(*words), answer, category, page.language)
        for category, words, answer in _facts(page)
        if category in categories
    ]
    return tuple(asked[int(place)] for place in rng.permutation(len(asked)))


_LETTER_WIDTHS = {"en": 0.66, "zh": 1.05}
"""Of the widest letters, in heights."""


def letters_in(width: int, font_size: int, language: str) -> int:
    """Letters that fit into so many pixels, however wide they are."""
    return int(width / (font_size * _LETTER_WIDTHS[language]))


def line_step(font_size: int) -> int:
    """Pixels of the grid on which lines of texts and tables stand, and lines of texts begin: a line takes three, so 24 px where
    letters are 14 px high. Where words began at any pixel, a small tower read nothing in two million positions."""
    return round(1.7 * font_size / 3)


def first_middle(page: Page) -> int:
    """Pixels from above to the middle of the uppermost line that a page has room for: a multiple of the grid's step."""
    step = line_step(page.font_size)
    return math.ceil((page.margin + 1.5 * step) / step) * step


def lines_in(page: Page) -> int:
    """How many lines a page has room for."""
    step = line_step(page.font_size)
    return int((page.height - page.margin - first_middle(page) + 1.5 * step) // (3 * step))


def _make_text(rng: np.random.Generator, page: Page) -> Page:
    most = min(6, lines_in(page))
    room = letters_in(page.width - 2 * page.margin, page.font_size, page.language)
    words = [str(word) for word in rng.permutation(WORDS[page.language]) if len(word) <= room]
    lines: list[str] = []
    for _ in range(int(rng.integers(2, most + 1))):
        line = words.pop()
        while rng.random() < 0.6:
            longer = f"{line} {rng.integers(10, 1000) if rng.random() < 0.4 else words[-1]}"
            if len(longer) > room:
                break
            line = longer
            words = words[:-1] if longer.endswith(words[-1]) else words
        lines.append(line)
    # Letters anywhere: a tower that saw them in a few places reads them there alone.
    right = page.width - 2 * page.margin - math.ceil(max(map(len, lines)) * page.font_size * _LETTER_WIDTHS[page.language])
    step = line_step(page.font_size)
    down = page.height - page.margin - first_middle(page) - math.ceil((3 * len(lines) - 1.5) * step)
    shift = step * int(rng.integers(0, max(0, right) // step + 1)), step * int(rng.integers(0, max(0, down) // step + 1))
    return replace(page, names=tuple(lines), shift=shift)


def _make_table(rng: np.random.Generator, page: Page) -> Page:
    cell = 4 * page.font_size
    num_columns = int(rng.integers(1, max(1, min(3, (page.width - 2 * MARGIN - cell) // cell)) + 1))
    num_rows = int(rng.integers(2, min(5, lines_in(page) - 1) + 1))
    columns = _some(rng, COLUMNS[page.language], num_columns)
    cells = [rng.choice(np.arange(1, 100), num_rows, replace=False).tolist() for _ in columns]
    return replace(
        page, names=_some(rng, LABELS[page.language], num_rows), columns=columns, values=tuple(zip(*cells, strict=True))
    )


def _make_bars(rng: np.random.Generator, page: Page) -> Page:
    number = int(rng.integers(2, _num_slots(page) + 1))
    return _charted(rng, page, _some(rng, LABELS[page.language], number))


def _make_line(rng: np.random.Generator, page: Page) -> Page:
    number = int(rng.integers(3, max(3, _num_slots(page)) + 1))
    first = int(rng.integers(0, 12 - number + 1))
    return _charted(rng, page, tuple(MONTHS[page.language][first : first + number]))


def _charted(rng: np.random.Generator, page: Page, names: tuple[str, ...]) -> Page:
    """A bar or line chart, its values all different."""
    has_labels = bool(rng.random() < 0.75)
    choices = np.arange(5, 96) if has_labels else np.arange(10, 100, 10)
    values = rng.choice(choices, len(names), replace=False).tolist()
    return replace(
        page, names=names, values=tuple((value,) for value in values), has_labels=has_labels, colours=_colours(rng, names)
    )


def _make_pie(rng: np.random.Generator, page: Page) -> Page:
    most = max(slices for slices in (2, 3, 4, 5) if slices == 2 or pie_side(page, slices)[0] >= 3 * page.font_size)
    number = int(rng.integers(2, most + 1))
    while True:
        cuts = np.sort(rng.choice(np.arange(1, 20), number - 1, replace=False)) * 5
        shares = np.diff([0, *cuts.tolist(), 100])
        if (shares == shares.max()).sum() == 1:
            break
    names = _some(rng, LABELS[page.language], number)
    return replace(page, names=names, values=tuple((int(share),) for share in shares), colours=_colours(rng, names))


def pie_side(page: Page, number: int) -> tuple[int, bool]:
    """The side of a pie in pixels, as large as can be beside or above the names of its slices, and whether beside."""
    beside = min(page.height - 2 * MARGIN, page.width - 2 * MARGIN - 8 * page.font_size)
    above = min(page.height - 3 * MARGIN - number * (page.font_size + 6), page.width - 2 * MARGIN)
    return max(beside, above), beside >= above


_MAKERS: dict[str, Callable[[np.random.Generator, Page], Page]] = {
    "text": _make_text,
    "table": _make_table,
    "bars": _make_bars,
    "line": _make_line,
    "pie": _make_pie,
}


def _facts(page: Page) -> Iterator[tuple[str, tuple, str]]:
    """All that can be asked about a page: category, what the question names, answer."""
    kind, names, number = page.kind, page.names, str(len(page.names))
    yield f"{kind}_count", (), number
    if kind == "text":
        yield "text_all", (), "\n".join(names)
        for place, line in enumerate(names, 1):
            yield "text_read", (place,), line
            yield from (("text_find", (word,), str(place)) for word in line.split() if not word.isdigit())
    elif kind == "table":
        for place, column in enumerate(page.columns):
            cells = [row[place] for row in page.values]
            yield "table_highest", (column,), names[cells.index(max(cells))]
            for name, cell in zip(names, cells, strict=True):
                yield "table_cell", (column, name), str(cell)
                yield "table_row", (column, cell), name
    else:
        yield from _chart_facts(page, [value for (value,) in page.values])


def _chart_facts(page: Page, values: list[int]) -> Iterator[tuple[str, tuple, str]]:
    kind, names = page.kind, page.names
    highest = names[values.index(max(values))]
    yield {"bars": "bars_highest", "line": "line_highest", "pie": "pie_largest"}[kind], (), highest
    for name, value in zip(names, values, strict=True):
        yield ("pie_share", (name,), f"{value}%") if kind == "pie" else (f"{kind}_value", (name,), str(value))
    if kind == "bars":
        yield "bars_lowest", (), names[values.index(min(values))]
    if kind == "line":
        for place in range(1, len(names)):
            fell = values[place] < values[place - 1]
            yield "line_trend", (names[place - 1], names[place]), TREND[page.language][fell]


def _num_slots(page: Page) -> int:
    """Bars or points, each with room for its label."""
    return max(2, min(6, (page.width - 4 * MARGIN) // round(2.4 * page.font_size)))


def _colours(rng: np.random.Generator, names: tuple[str, ...]) -> tuple[Colour, ...]:
    return tuple(COLOURS[int(place)] for place in rng.permutation(len(COLOURS))[: len(names)])


def _some(rng: np.random.Generator, words: tuple[str, ...], number: int) -> tuple[str, ...]:
    return tuple(words[int(place)] for place in rng.permutation(len(words))[:number])


def _one(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]
