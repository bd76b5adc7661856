"""Pictures of examples to look at: drawings with their prompts, and reconstructions below their originals.

The frame is the verdict: green is right, red is wrong. Chinese prompts need a font that has their characters; where the
system has none, what the prompt asks for is written in English instead, with the prompt's language before it ("[zh] one red
circle"), since empty boxes would say nothing.
"""

import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from unimm.eval.task import Example, Result

MIN_SIDE = 192
"""Pixels; smaller drawings are enlarged by a whole number, so that their own pixels stay visible."""

FRAME = 4
TEXT_SIZE = 15
LINE_HEIGHT = 20
NUM_LINES = 3
GAP = 10

BACKGROUND, INK = (250, 250, 250), (30, 30, 30)
VERDICTS = {True: (40, 150, 70), False: (205, 50, 50), None: (150, 150, 150)}

CHINESE_FONTS = (
    "NotoSansCJK*", "NotoSansSC*", "NotoSansHans*", "SourceHanSans*", "wqy-*", "DroidSansFallback*", "PingFang*",
    "Hiragino Sans GB*", "STHeiti*", "msyh*", "Deng*", "simhei*", "simsun*", "NotoSerifCJK*", "uming*", "ukai*",
)  # fmt: skip
"""Names of font files with Chinese characters on Linux, macOS and Windows, best first."""

LATIN_FONTS = ("DejaVuSans.ttf",)


@dataclass(frozen=True)
class Tile:
    """One image of a grid, (H, W, 3) uint8, with the text below it and its verdict (None: there is none)."""

    image: np.ndarray
    text: str = ""
    correct: bool | None = None


def picture_result(result: Result, num_examples: int = 48) -> Image.Image | None:
    """The first examples of a task whose results are images; None for other tasks."""
    examples = [example for example in result.examples if example.drawn and example.image is not None][:num_examples]
    if not examples:
        return None
    if any(example.original is not None for example in examples):
        return picture_reconstructions(examples)
    return picture_drawings(examples, columns=8)


def picture_drawings(examples: Iterable[Example], columns: int = 4) -> Image.Image:
    """Drawings in rows, with their prompts under them and their verdicts around them. ValueError: no images."""
    tiles = [Tile(one.image, write_prompt(one), one.correct) for one in examples if one.image is not None]
    return draw_grid(tiles, columns)


def picture_reconstructions(examples: Iterable[Example], columns: int = 8) -> Image.Image:
    """Originals, and below each its reconstruction in the colour of its verdict. ValueError: no images."""
    pairs = [
        Tile(np.concatenate([one.original, one.image]), "", one.correct)
        for one in examples
        if one.image is not None and one.original is not None
    ]
    return draw_grid(pairs, columns)


def draw_grid(tiles: list[Tile], columns: int = 4) -> Image.Image:
    """Tiles in rows, left to right; all have the size of the first one. ValueError: no tiles, or sizes differ."""
    if not tiles:
        raise ValueError("There are no images to put into a picture.")
    if len({tile.image.shape for tile in tiles}) > 1:
        raise ValueError(f"Images of one picture have one size, not {sorted({tile.image.shape for tile in tiles})}.")
    scale = max(1, -(-MIN_SIDE // tiles[0].image.shape[1]))
    height, width = (side * scale for side in tiles[0].image.shape[:2])
    below = NUM_LINES * LINE_HEIGHT + 4 if any(tile.text for tile in tiles) else 0
    columns = min(columns, len(tiles))
    step_x, step_y = width + 2 * FRAME + GAP, height + 2 * FRAME + below + GAP
    page = Image.new("RGB", (columns * step_x + GAP, -(-len(tiles) // columns) * step_y + GAP), BACKGROUND)
    pen = ImageDraw.Draw(page)
    for number, tile in enumerate(tiles):
        row, column = divmod(number, columns)
        x, y = GAP + column * step_x, GAP + row * step_y
        pen.rectangle((x, y, x + width + 2 * FRAME - 1, y + height + 2 * FRAME - 1), VERDICTS[tile.correct])
        enlarged = Image.fromarray(tile.image).resize((width, height), Image.Resampling.NEAREST)
        page.paste(enlarged, (x + FRAME, y + FRAME))
        for line_number, line in enumerate(wrap(tile.text, width + 2 * FRAME)):
            pen.text((x, y + height + 2 * FRAME + 4 + line_number * LINE_HEIGHT), line, INK, find_font())
    return page


def write_prompt(example: Example) -> str:
    """The prompt, or what it asks for in English where no font has its characters."""
    if has_chinese_font() or example.prompt.isascii():
        return example.prompt
    return f"[{example.language}] {example.expected}"


def wrap(text: str, width: int, most: int = NUM_LINES) -> list[str]:
    """At most `most` lines that fit into `width` pixels, broken at spaces, or anywhere where there are none."""
    lines, line = [], ""
    for piece in _pieces(text):
        if line and find_font().getlength((line + piece).rstrip()) > width:
            lines.append(line.rstrip())
            line = piece.lstrip()
        else:
            line += piece
    lines.append(line.rstrip())
    if len(lines) > most:
        lines = [*lines[: most - 1], lines[most - 1][:-1] + "..."]
    return [line for line in lines if line]


def has_chinese_font() -> bool:
    """Whether this system has a font with Chinese characters."""
    return _find_font(CHINESE_FONTS, "红a") is not None


@cache
def find_font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """A font of this system with Chinese characters, else DejaVu, else the one that Pillow brings."""
    font = _find_font(CHINESE_FONTS, "红a") or _find_font(LATIN_FONTS, "a")
    return font or ImageFont.load_default(TEXT_SIZE)


@cache
def _find_font(patterns: tuple[str, ...], needed: str) -> ImageFont.FreeTypeFont | None:
    """The first font by these file names that opens and has the characters that are needed."""
    files = [path for folder in _font_folders() if folder.is_dir() for path in sorted(folder.rglob("*.[to]t[fc]"))]
    for path in (path for pattern in patterns for path in files if path.match(pattern)):
        try:
            font = ImageFont.truetype(str(path), TEXT_SIZE)
        except OSError:  # a damaged file, or one of a kind that FreeType does not know
            continue
        missing = _draw_character("\U0010fffe", font)  # no character at all: what the font shows for those it has not
        if all(_draw_character(character, font) != missing for character in needed):
            return font
    return None


def _draw_character(character: str, font: ImageFont.FreeTypeFont) -> bytes:
    canvas = Image.new("L", (2 * TEXT_SIZE, 2 * TEXT_SIZE))
    ImageDraw.Draw(canvas).text((0, 0), character, 255, font)
    return canvas.tobytes()


def _font_folders() -> list[Path]:
    home = Path.home()
    if sys.platform == "darwin":
        return [Path("/System/Library/Fonts"), Path("/Library/Fonts"), home / "Library/Fonts"]
    if sys.platform == "win32":
        return [Path(os.environ.get("WINDIR", r"C:\Windows")) / "Fonts"]
    return [Path("/usr/share/fonts"), Path("/usr/local/share/fonts"), home / ".fonts", home / ".local/share/fonts"]


def _pieces(text: str) -> list[str]:
    """Words with the space after them; characters where the text is not written with spaces."""
    pieces: list[str] = []
    for character in text:
        if pieces and pieces[-1].isascii() and character.isascii() and not pieces[-1].endswith(" "):
            pieces[-1] += character
        else:
            pieces.append(character)
    return pieces
