"""Draws the pages of the pages world with Pillow, and finds the fonts for it.

English is written in DejaVu Sans, which comes with matplotlib and so is the same everywhere. Chinese needs a font of the system
or one that is named; where there is none, the world has English pages alone, and says so.
"""

import os
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from unimm.data.worlds.pages_content import MARGIN, Page, first_middle, line_step, pie_side

CHINESE_FONTS = (
    "/usr/share/fonts/truetype/wqy/wqy-microhei.ttc",
    "/usr/share/fonts/truetype/wqy/wqy-zenhei.ttc",
    "/usr/share/fonts/opentype/noto/NotoSansCJK-Regular.ttc",
    "/usr/share/fonts/google-noto-cjk/NotoSansCJK-Regular.ttc",
    "/usr/share/fonts/noto-cjk/NotoSansCJK-Regular.ttc",
    "/System/Library/Fonts/PingFang.ttc",
    "C:/Windows/Fonts/msyh.ttc",
)
"""Where systems keep fonts with Chinese characters."""

VARIABLE = "UNIMM_CHINESE_FONT"
"""The environment variable that names another one."""

MISSING = (
    "Chinese pages need a font with Chinese characters: install fonts-wqy-microhei or fonts-noto-cjk (Debian, Ubuntu), or name "
    f"a font file with chinese_font=... or {VARIABLE}=..."
)

TICKS = range(0, 101, 20)
"""What stands at the axis of a chart."""

_UNKNOWN = "\U0010fffe"  # what a font draws for a character that it lacks
_GRID = 0.85  # of the way from ink to paper


def find_font(font: str | Path | None = None) -> Path:
    """The font of English pages: the one that is named, else DejaVu Sans of matplotlib. ValueError: there is no such file."""
    if font:
        return _checked(Path(font), "a")
    place = find_spec("matplotlib")
    folders = [] if place is None else place.submodule_search_locations or []
    for folder in folders:
        path = Path(folder) / "mpl-data/fonts/ttf/DejaVuSans.ttf"
        if path.is_file():
            return path
    raise ValueError("matplotlib is here without its font DejaVuSans.ttf: install it again, or name a font file with font=...")


def find_chinese_font(font: str | Path | None = None) -> Path | None:
    """The font of Chinese pages: the one that is named, else that of the environment variable, else the system's; None: there
    is none. ValueError: a font that is named is no file, or has no Chinese characters."""
    named = font or os.environ.get(VARIABLE)
    if named:
        return _checked(Path(named), "茶")
    return next((path for path in map(Path, CHINESE_FONTS) if path.is_file()), None)


def _checked(path: Path, character: str) -> Path:
    if not path.is_file():
        raise ValueError(f"There is no font file {path}: name a .ttf, .otf or .ttc.")
    opened = _open(path, 16)
    shown, unknown = (_drawn(opened, letter) for letter in (character, _UNKNOWN))
    if shown == unknown or not any(shown):
        raise ValueError(f"The font {path} does not draw {character!r}: {MISSING}")
    return path


def _drawn(font: ImageFont.FreeTypeFont, letter: str) -> bytes:
    picture = Image.new("L", (32, 32))
    ImageDraw.Draw(picture).text((4, 4), letter, 255, font)
    return picture.tobytes()


@lru_cache(maxsize=64)
def _open(path: Path, size: int) -> ImageFont.FreeTypeFont:
    try:
        return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)
    except OSError as error:
        raise ValueError(f"The font {path} cannot be used ({error}): name another one.") from None


def render(page: Page, font: Path) -> np.ndarray:
    """The picture of a page, (height, width, 3) uint8, written in a font."""
    picture = Image.new("RGB", (page.width, page.height), page.paper)
    pen = ImageDraw.Draw(picture)
    {"text": _draw_text, "table": _draw_table, "pie": _draw_pie}.get(page.kind, _draw_chart)(pen, page, font)
    return np.asarray(picture)


def _draw_text(pen: ImageDraw.ImageDraw, page: Page, font: Path) -> None:
    letters, pitch = _open(font, page.font_size), 3 * line_step(page.font_size)
    right, down = page.shift
    for place, line in enumerate(page.names):
        pen.text((page.margin + right, first_middle(page) + down + pitch * place), line, page.ink, letters, "lm")


def _draw_table(pen: ImageDraw.ImageDraw, page: Page, font: Path) -> None:
    """Names on the left, columns as wide as they can be, lines between all."""
    letters, pitch = _open(font, page.font_size), 3 * line_step(page.font_size)
    width, top = (page.width - 2 * MARGIN) // (len(page.columns) + 1), first_middle(page) - pitch // 2
    right, bottom = MARGIN + width * (len(page.columns) + 1), top + pitch * (len(page.names) + 1)
    for place in range(len(page.names) + 2):
        pen.line((MARGIN, top + pitch * place, right, top + pitch * place), _between(page, 0.5))
    for place in range(len(page.columns) + 2):
        pen.line((MARGIN + width * place, top, MARGIN + width * place, bottom), _between(page, 0.5))
    rows = [("", *page.columns), *((name, *map(str, cells)) for name, cells in zip(page.names, page.values, strict=True))]
    for row, cells in enumerate(rows):
        for column, cell in enumerate(cells):
            middle = (MARGIN + width * (column + 0.5), first_middle(page) + pitch * row)
            pen.text(middle, cell, page.ink, letters, "mm")


def _draw_chart(pen: ImageDraw.ImageDraw, page: Page, font: Path) -> None:
    """Bars, or points on a line, over an axis from 0 to 100."""
    size = page.font_size - 2
    letters, small = _open(font, size), _open(font, size - 1)
    left, top, bottom = 3.6 * MARGIN, MARGIN + size, page.height - MARGIN - size
    width = (page.width - MARGIN - left) / len(page.names)

    def height(value: float) -> float:
        return bottom - (bottom - top) * value / 100

    for tick in TICKS:
        pen.line((left, height(tick), page.width - MARGIN, height(tick)), _between(page, _GRID))
        pen.text((left - 3, height(tick)), str(tick), page.ink, small, "rm")
    middles = [left + width * (place + 0.5) for place in range(len(page.names))]
    values = [value for (value,) in page.values]
    if page.kind == "line":
        points = [(middle, height(value)) for middle, value in zip(middles, values, strict=True)]
        pen.line(points, page.colours[0], 2, "curve")
    for middle, value, name, colour in zip(middles, values, page.names, page.colours, strict=True):
        if page.kind == "bars":
            pen.rectangle((middle - width * 0.32, height(value), middle + width * 0.32, bottom), colour)
        else:
            pen.ellipse((middle - 3, height(value) - 3, middle + 3, height(value) + 3), page.colours[0])
        if page.has_labels:
            pen.text((middle, height(value) - 5), str(value), page.ink, letters, "ms")
        pen.text((middle, bottom + 4), name, page.ink, letters, "mt")
    pen.line((left, top, left, bottom, page.width - MARGIN, bottom), page.ink)


def _draw_pie(pen: ImageDraw.ImageDraw, page: Page, font: Path) -> None:
    """Slices clockwise from the top, and a legend with their shares: beside the pie or below it, where there is more room."""
    letters, pitch = _open(font, page.font_size), page.font_size + 6
    side, is_beside = pie_side(page, len(page.names))
    start = -90.0
    for (share,), colour in zip(page.values, page.colours, strict=True):
        stop = start + 3.6 * share
        pen.pieslice((MARGIN, MARGIN, MARGIN + side, MARGIN + side), start, stop, colour, page.paper)
        start = stop
    left, top = (2 * MARGIN + side, MARGIN) if is_beside else (MARGIN, 2 * MARGIN + side)
    for place, (name, (share,), colour) in enumerate(zip(page.names, page.values, page.colours, strict=True)):
        middle = top + pitch * (place + 0.5)
        pen.rectangle((left, middle - 5, left + 10, middle + 5), colour)
        pen.text((left + 15, middle), f"{name} {share}%", page.ink, letters, "lm")


def _between(page: Page, share: float) -> tuple[int, int, int]:
    """A colour so far on the way from ink to paper."""
    red, green, blue = (round(ink + share * (paper - ink)) for ink, paper in zip(page.ink, page.paper, strict=True))
    return red, green, blue
