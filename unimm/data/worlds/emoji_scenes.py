"""Scenes of one or two emoji on a plain light ground, made from (seed, split, index); and combinations that are held out.

Two emoji stand beside or above each other with a gap between them, so that a judge can part them. Which pairs are held out
depends on the pair alone: about one in ten, in either order. The idea is that of the held-out pairs of the shapes world.
"""

import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unimm.data.worlds.emoji_pictures import Emoji, draw_emoji

SPLITS = ("train", "validation", "test", "held_out")

RELATIONS = ("left", "right", "above", "below")
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}

HELD_OUT_OF = 10
"""One pair of so many is held out."""

ALONE = (0.72, 0.80, 0.88)
"""Widths of an emoji that is alone, as shares of the picture's."""

PAIRED = 0.42
"""Width of each of two."""

JITTER = 0.025
"""How far a pair's emoji may stand off the middle of its half, as a share of the picture's width; twice that across."""

PURPOSES = ("scene", "captions", "prompts", "questions", "text", "drawing", "judge")


@dataclass(frozen=True)
class Placed:
    """An emoji in a scene: its number in the world's list, the centre of its picture and its width, all in pixels."""

    number: int
    x: int
    y: int
    width: int


@dataclass(frozen=True)
class EmojiScene:
    """One or two emoji, their ground (RGB), and where the first of two is, seen from the second."""

    items: tuple[Placed, ...]
    background: tuple[int, int, int]
    relation: str | None = None


def make_generator(seed: int, split: str, index: int, purpose: str) -> np.random.Generator:
    """A generator of its own for one purpose of one item."""
    counter = np.array([0, 0, index, PURPOSES.index(purpose)], dtype=np.uint64)
    key = np.array([seed, SPLITS.index(split)], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(counter=counter, key=key))


def is_held_out(one: Emoji, other: Emoji) -> bool:
    """Whether only the split `held_out` shows these two together."""
    pair = "\n".join(sorted((one.characters, other.characters)))
    return zlib.crc32(pair.encode()) % HELD_OUT_OF == 0


def make_scene(
    rng: np.random.Generator,
    emoji: tuple[Emoji, ...],
    side: int,
    pairs: float,
    held_out: bool = False,
    centred: bool = False,
) -> EmojiScene:
    """A scene of `side` px.

    pairs: how often there are two. held_out: two that are held out; else never such. centred: one that is alone is an icon.
    """
    background = choose_background(rng)
    if not held_out and rng.random() >= pairs:
        return EmojiScene((place_alone(rng, int(rng.integers(len(emoji))), side, centred),), background)
    while True:
        first, second = (int(number) for number in rng.choice(len(emoji), 2, replace=False))
        if is_held_out(emoji[first], emoji[second]) == held_out:
            break
    relation = RELATIONS[rng.integers(len(RELATIONS))]
    return EmojiScene(place_two(rng, first, second, relation, side), background, relation)


def choose_background(rng: np.random.Generator) -> tuple[int, int, int]:
    """A light grey, slightly tinted."""
    tone = 200 + 40 * rng.random()
    red, green, blue = (round(tone + 14 * rng.random()) for _ in range(3))
    return red, green, blue


def place_alone(rng: np.random.Generator, number: int, side: int, centred: bool = False) -> Placed:
    """An emoji somewhere near the middle, wholly inside; or as an icon, in the middle and of the largest width."""
    if centred:
        return Placed(number, side // 2, side // 2, round(side * ALONE[-1]))
    width = round(side * ALONE[rng.integers(len(ALONE))])
    room = max(1, (side - width) // 2)
    x, y = (side // 2 + int(rng.integers(-room + 1, room)) if room > 1 else side // 2 for _ in range(2))
    return Placed(number, x, y, width)


def place_two(rng: np.random.Generator, first: int, second: int, relation: str, side: int) -> tuple[Placed, Placed]:
    """Two emoji, the first in this relation to the second."""
    along, across = (0.25, 0.75) if relation in ("left", "above") else (0.75, 0.25), 0.5
    placed = []
    for number, middle in zip((first, second), along, strict=True):
        a = side * (middle + JITTER * (2 * rng.random() - 1))
        b = side * (across + 4 * JITTER * (2 * rng.random() - 1))
        x, y = (a, b) if relation in ("left", "right") else (b, a)
        placed.append(Placed(number, round(x), round(y), round(side * PAIRED)))
    return placed[0], placed[1]


def render(scene: EmojiScene, emoji: tuple[Emoji, ...], font: Path, side: int) -> np.ndarray:
    """The picture of a scene, (side, side, 3) uint8."""
    image = np.empty((side, side, 3), dtype=np.float32)
    image[:] = scene.background
    for item in scene.items:
        picture = draw_emoji(font, emoji[item.number].characters, item.width)
        top, left = item.y - picture.shape[0] // 2, item.x - picture.shape[1] // 2
        window = image[max(top, 0) : top + picture.shape[0], max(left, 0) : left + picture.shape[1]]
        shown = picture[max(-top, 0) :, max(-left, 0) :][: window.shape[0], : window.shape[1]].astype(np.float32)
        window += shown[..., 3:] / 255 * (shown[..., :3] - window)
    return np.rint(image).astype(np.uint8)
