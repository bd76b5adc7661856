"""Emoji and their pictures: which there are, what they are called in English and Chinese, and how a font draws them.

Names are those of the `emoji` package, which takes them from Unicode's CLDR. Pictures are drawn by Pillow from the colour
bitmaps of a font such as Noto Color Emoji, 136 x 128 px each. Emoji that the font does not know, or that look exactly like one
before them (Norway's flag is that of two more regions), are left out.
"""

import os
import re
import unicodedata
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import import_module
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, features

FONT_SIZE = 109
"""The one size that Noto's bitmaps have."""

FONTS = (
    "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf",
    "/usr/share/fonts/noto/NotoColorEmoji.ttf",
    "/usr/share/fonts/google-noto-emoji/NotoColorEmoji.ttf",
    "/usr/share/fonts/google-noto-color-emoji-fonts/NotoColorEmoji.ttf",
    "/usr/local/share/fonts/NotoColorEmoji.ttf",
)
"""Where systems keep Noto Color Emoji."""

VARIABLE = "UNIMM_EMOJI_FONT"
"""The environment variable that names another font."""

SUBSETS = ("all", "plain", "things")
"""all: every emoji that the font draws. plain: without skin tones and flags. things: animals, plants, food, vehicles, places,
clothes."""

MISSING = (
    "The emoji world needs a font with colour bitmaps: install fonts-noto-color-emoji (Debian, Ubuntu), or name a font file "
    f"with font=... or {VARIABLE}=..."
)

_TONES = re.compile("[\U0001f3fb-\U0001f3ff]")
_REGIONS = re.compile("[\U0001f1e6-\U0001f1ff]{2}")
_TAGS = re.compile("[\U000e0020-\U000e007f]")
_THINGS = (
    *((0x1F32D, 0x1F37F), (0x1F400, 0x1F43F), (0x1F950, 0x1F96F), (0x1F980, 0x1F9AE), (0x1FAB0, 0x1FAC2)),
    *((0x1FACE, 0x1FADB), (0x1F680, 0x1F6A4), (0x1F3B7, 0x1F3BD), (0x1F3C0, 0x1F3C0), (0x1F3D4, 0x1F3DF)),
    *((0x1F3E0, 0x1F3F0), (0x1F451, 0x1F462), (0x1F4A1, 0x1F4A1), (0x1F4BA, 0x1F4BB), (0x1F4F7, 0x1F4F7)),
)
_SINGULAR_S = ("ss", "us", "is", "as", "os")
_MASS = {
    *(
        "bacon",
        "bread",
        "broccoli",
        "camping",
        "clothes",
        "construction",
        "cooking",
        "corn",
        "food",
        "garlic",
        "ginger",
        "hugging",
    ),
    *("money", "people", "popcorn", "rice", "salad", "sake", "spaghetti", "sushi", "water", "weather", "wood"),
}
"""Nouns that have no article."""

_LIKE_CONSONANTS = re.compile(r"(?i)eu|ewe|one\b|uni|us[ei]|ut")


@dataclass(frozen=True)
class Emoji:
    """One emoji: its characters, its names without articles, further English names, whether it is a country's flag."""

    characters: str
    english: str
    chinese: str
    keywords: tuple[str, ...] = ()
    is_flag: bool = False

    @property
    def a_name(self) -> str:
        """The English name as a sentence has it: a dog face, an ant, grapes."""
        if self.is_flag:
            return f"the flag of {self.english}"
        noun = re.split(" with(?:out)? | of | in | on ", self.english)[0].split()[-1]
        if noun in _MASS or (noun.endswith("s") and not noun.endswith(_SINGULAR_S)):
            return self.english
        is_vowel = self.english[0].lower() in "aeiou" and not _LIKE_CONSONANTS.match(self.english)
        return f"{'an' if is_vowel else 'a'} {self.english}"

    @property
    def chinese_name(self) -> str:
        """The Chinese name as a sentence has it."""
        return f"{self.chinese}的旗帜" if self.is_flag else self.chinese


def find_font(font: str | Path | None = None) -> Path:
    """The font file: the one that is named, else that of the environment variable, else Noto's where the system keeps it.

    Raises:
        ValueError: there is none.
    """
    named = font or os.environ.get(VARIABLE)
    if named:
        if not Path(named).is_file():
            raise ValueError(f"There is no font file {named}: name one with colour bitmaps, such as NotoColorEmoji.ttf.")
        return Path(named)
    for path in map(Path, FONTS):
        if path.is_file():
            return path
    raise ValueError(MISSING)


@cache
def list_emoji(font: Path, subset: str = "plain") -> tuple[Emoji, ...]:
    """The emoji of a subset (one of SUBSETS) that a font draws, in the order of their characters' numbers.

    Raises:
        ValueError: there is no such subset, or the `emoji` package is missing.
    """
    if subset not in SUBSETS:
        raise ValueError(f"unknown subset {subset!r}: choose one of {', '.join(SUBSETS)}")
    names = {one.english: one for one in reversed(_named()) if _belongs(one.characters, subset)}  # of one name the first
    drawn: dict[bytes, Emoji] = {}
    for one in reversed(names.values()):
        picture = _bitmap(font, one.characters)
        if picture is not None:
            drawn.setdefault(picture.tobytes(), one)
    drawn.pop(_unknown(font), None)
    if not drawn:
        raise ValueError(f"The font {font} draws no emoji in colour: {MISSING}")
    return tuple(drawn.values())


@lru_cache(maxsize=4096)
def draw_emoji(font: Path, characters: str, size: int) -> np.ndarray:
    """An emoji as wide as `size` px on transparent ground, (height, size, 4) uint8; height is about 0.94 of the width."""
    picture = _bitmap(font, characters)
    if picture is None:
        raise ValueError(f"The font {font} has no picture of {characters!r}.")
    height = round(size * picture.height / picture.width)
    # Premultiplied while it is resized, or dark seams would show where it is transparent.
    small = picture.convert("RGBa").resize((size, height), Image.Resampling.LANCZOS).convert("RGBA")
    array = np.asarray(small)
    array.flags.writeable = False
    return array


@cache
def _named() -> tuple[Emoji, ...]:
    """All emoji of the `emoji` package that have both names."""
    try:
        emoji = import_module("emoji")
    except ImportError:
        raise ValueError('The names of emoji are in the package `emoji`: pip install "unimm[emoji]".') from None
    emoji.config.load_language("zh")
    found = []
    for characters, data in sorted(emoji.EMOJI_DATA.items()):
        if data["status"] == emoji.STATUS["fully_qualified"] and "zh" in data:
            is_flag = _REGIONS.fullmatch(characters) is not None or _TAGS.search(characters) is not None
            english, chinese = (_plain(data[language]) for language in ("en", "zh"))
            keywords = tuple(word for alias in data.get("alias", ()) if (word := _plain(alias)) != english)
            found.append(Emoji(characters, english, chinese, keywords, is_flag))
    return tuple(found)


def _plain(name: str) -> str:
    return unicodedata.normalize("NFKC", name.strip(":").replace("_", " ")).strip()


def _belongs(characters: str, subset: str) -> bool:
    if subset == "all":
        return True
    if _TONES.search(characters) or _REGIONS.search(characters) or _TAGS.search(characters):
        return False
    first = ord(characters[0])
    is_one = len(characters.rstrip("\ufe0f")) == 1
    return subset == "plain" or (is_one and any(low <= first <= high for low, high in _THINGS))


@cache
def _open(font: Path) -> ImageFont.FreeTypeFont:
    try:
        layout = ImageFont.Layout.RAQM if features.check("raqm") else ImageFont.Layout.BASIC
        return ImageFont.truetype(str(font), FONT_SIZE, layout_engine=layout)
    except OSError as error:
        raise ValueError(f"The font {font} cannot be used at size {FONT_SIZE} ({error}): {MISSING}") from None


def _bitmap(font: Path, characters: str) -> Image.Image | None:
    """What the font draws, where it is one picture: sequences that it does not know are drawn as several."""
    opened = _open(font)
    if opened.getlength(characters) > 1.5 * FONT_SIZE:
        return None
    _, _, width, height = opened.getbbox(characters)
    if width < 1 or height < FONT_SIZE:
        return None
    picture = Image.new("RGBA", (int(width), int(height)))
    ImageDraw.Draw(picture).text((0, 0), characters, font=opened, embedded_color=True)
    return picture if picture.getbbox() else None


def _unknown(font: Path) -> bytes:
    """What the font draws for characters that there are not."""
    picture = _bitmap(font, "\U0010fffe")
    return b"" if picture is None else picture.tobytes()
