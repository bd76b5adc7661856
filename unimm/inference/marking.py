"""Boxes, points and heat maps drawn on a picture, for people to look at."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from unimm.data.boxes import Box, Point
from unimm.data.image import decode_image
from unimm.data.records import ImageLike

COLOURS = ("#ff3b30", "#34c759", "#0a84ff", "#ffd60a", "#bf5af2", "#ff9f0a", "#64d2ff", "#ffffff")
"""Of labels in turn, each on any background."""

READABLE = 512
"""Pixels of the long side that smaller pictures are enlarged to, so that labels can be read."""

HEAT = np.array([[0, 0, 80], [0, 100, 255], [0, 230, 180], [255, 230, 0], [255, 40, 0]], dtype=np.float32)
"""From cold to hot, RGB."""


def draw_places(image: ImageLike, places: list[Box] | list[Point] | list[Box | Point]) -> Image.Image:
    """The picture with its boxes and points, a colour a label. A picture that is small is enlarged a whole number of times.

    A label is written as it is where it is ASCII, else as its number among all labels: the font that comes with Pillow has no
    other letters.
    """
    picture, factor = _enlarged(image)
    draw, labels = ImageDraw.Draw(picture), list(dict.fromkeys(one.label for one in places))
    font, line = ImageFont.load_default(size=max(12, max(picture.size) // 40)), max(2, max(picture.size) // 256)
    for place in places:
        number = labels.index(place.label)
        colour = COLOURS[number % len(COLOURS)]
        if isinstance(place, Point):
            x, y = place.x * factor, place.y * factor
            draw.ellipse((x - 3 * line, y - 3 * line, x + 3 * line, y + 3 * line), fill=colour, outline="black")
        else:
            x, y, right, bottom = (factor * one for one in place.corners)
            draw.rectangle((x, y, max(right - 1, x), max(bottom - 1, y)), outline=colour, width=line)
        name = place.label if place.label.isascii() else str(number + 1)
        _write(draw, picture.size, (x, y), f"{name} {place.score:.2f}".strip(), colour, font)
    return picture


def draw_heat_map(image: ImageLike, heat_HW: np.ndarray, strength: float = 0.6) -> Image.Image:
    """The picture under its heat map (H, W) in [0, 1]: what is hot is red. strength: of the colours, 0 to 1.

    Raises:
        ValueError: the map is of another size than the picture.
    """
    picture = decode_image(image)
    if heat_HW.shape != picture.size[::-1]:
        raise ValueError(f"The heat map is {heat_HW.shape}, and the picture (H, W) {picture.size[::-1]}: give its own.")
    place = np.clip(heat_HW, 0, 1) * (len(HEAT) - 1)
    low = np.minimum(place.astype(int), len(HEAT) - 2)
    share = (place - low)[..., None]
    colours = HEAT[low] * (1 - share) + HEAT[low + 1] * share
    mixed = np.asarray(picture, dtype=np.float32) * (1 - strength) + colours * strength
    return _enlarged(mixed.round().astype(np.uint8))[0]


def _enlarged(image: ImageLike) -> tuple[Image.Image, int]:
    picture = decode_image(image)
    factor = max(1, READABLE // max(picture.size))
    if factor > 1:
        picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    return picture, factor


def _write(
    draw: ImageDraw.ImageDraw, size: tuple[int, int], place: tuple[float, float], text: str, colour: str, font: object
) -> None:
    """A label above a place, or inside where there is no room."""
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)  # pyright: ignore[reportArgumentType]
    width, height = right - left + 4, bottom - top + 4
    x = min(max(place[0], 0), max(size[0] - width, 0))
    y = place[1] - height if place[1] >= height else place[1]
    draw.rectangle((x, y, x + width, y + height), fill=colour)
    draw.text((x + 2 - left, y + 2 - top), text, fill="black", font=font)  # pyright: ignore[reportArgumentType]
