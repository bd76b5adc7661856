"""Pictures in other frames, with their boxes: padded, cropped, mirrored and resized at random, so that who learns to locate
meets pictures of many shapes, and things of many sizes, at places where no data set has them.

A frame is chosen by (seed, index) and the boxes alone. Captions and questions are left out: they may not be true of the new
picture. A crop cuts no box of the record, so "all dogs" and "the largest one" stay true. Where it cuts the picture, phrases of
extremes and relations of drawn scenes are left out: they may speak of what has no box. So may sentences that people wrote: crop
those only where they do not. A mirror leaves phrases out that speak of left and right.
"""

import math
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image

from unimm.data.binding import bind
from unimm.data.fit import KEPT
from unimm.data.grounding import size_of_boxes
from unimm.data.image import decode_image
from unimm.data.records import Dataset, DatasetContext, Phrase, PixelBox, Record, key_at
from unimm.runtime.number_checks import check_probability, check_whole

BY_LOOK = ("", "one", "several", "none")
"""Categories of phrases that hold in a part of the picture which has all of their boxes."""

SIDES = re.compile(r"\b(?:left|right|east|west)\w*\b|左|右", re.IGNORECASE)
"""Words that a mirror makes wrong."""


@dataclass(frozen=True)
class Frame:
    """What becomes of a picture: it is mirrored or not, then this window of it is shown, resized to `shown`.

    picture: its width and height. window: x1, y1, x2, y2 in its pixels; beyond its edges it is padded.
    """

    picture: tuple[int, int]
    window: tuple[int, int, int, int]
    shown: tuple[int, int]
    is_mirrored: bool = False

    def move(self, box: PixelBox) -> PixelBox | None:
        """A box of the picture in pixels of the frame, cut at its edges; None where too little of it is there."""
        x1, y1, x2, y2 = box
        x1, x2 = (self.picture[0] - x2, self.picture[0] - x1) if self.is_mirrored else (x1, x2)
        left, top, right, bottom = self.window
        cut = max(x1, left), max(y1, top), min(x2, right), min(y2, bottom)
        width, height = max(cut[2] - cut[0], 0), max(cut[3] - cut[1], 0)
        if width * height < KEPT * (x2 - x1) * (y2 - y1):
            return None
        across, down = self.shown[0] / (right - left), self.shown[1] / (bottom - top)
        moved = (cut[0] - left) * across, (cut[1] - top) * down, (cut[2] - left) * across, (cut[3] - top) * down
        return float(moved[0]), float(moved[1]), float(moved[2]), float(moved[3])

    @property
    def is_cut(self) -> bool:
        """Whether some of the picture lies outside of the window."""
        left, top, right, bottom = self.window
        return left > 0 or top > 0 or right < self.picture[0] or bottom < self.picture[1]

    def apply(self, picture: Image.Image) -> Image.Image:
        """The picture in the frame, padded with the mean colour of its border."""
        if self.is_mirrored:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        left, top, right, bottom = self.window
        array = np.asarray(picture)
        border = np.concatenate([array[0], array[-1], array[:, 0], array[:, -1]]).mean(0).round().astype(int).tolist()
        framed = Image.new("RGB", (right - left, bottom - top), (border[0], border[1], border[2]))
        framed.paste(picture, (-left, -top))
        return framed if framed.size == self.shown else framed.resize(self.shown, Image.Resampling.BICUBIC)


class Reframed:
    """The records of a data set with their images in random frames, and the phrases that are still true.

    Args:
        dataset: records with an image and phrases.
        pad: added to each side, at most this share of the picture's width or height. crop: cut off each side, at most, and
            never some of a box; below a half. mirror: how often it is mirrored.
        scale: the smallest and the largest factor that the result is resized by, in both directions alike.
        seed: of the frames.

    A frame in which no phrase stays is not used: the record is then as it was. ValueError for settings out of range.
    """

    def __init__(
        self,
        dataset: Dataset,
        pad: float = 0.0,
        crop: float = 0.0,
        mirror: float = 0.0,
        scale: tuple[float, float] | list[float] = (1.0, 1.0),
        seed: int = 0,
    ) -> None:
        self.dataset, self.pad, self.crop, self.mirror, self.seed = dataset, pad, crop, mirror, seed
        check_probability(self, "pad", "crop", "mirror")
        check_whole(self, 0, "seed")
        self.scale = (float(scale[0]), float(scale[1])) if len(scale) == 2 else (0.0, 0.0)
        if crop >= 0.5:
            raise ValueError(f"crop is cut off each side, so it is less than a half, not {crop}.")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale is the smallest and the largest factor, such as [0.5, 1.5], not {scale}.")

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Record:
        record = self.dataset[index]
        if record.image is None or not record.phrases:
            raise ValueError(f"Record {record.key} has no image with phrases to put in another frame.")
        rng = np.random.Generator(np.random.Philox(key=[self.seed, index]))
        frame = self._frame(size_of_boxes(record), [box for one in record.phrases for box in one.boxes], rng)
        phrases = tuple(moved for one in record.phrases if (moved := _moved(one, frame)) is not None)
        return ReframedRecord(record, frame, phrases) if phrases else record

    def bind(self, context: DatasetContext) -> "Reframed":
        """With its data set bound to networks (`unimm.data.binding.bind`)."""
        return Reframed(bind(self.dataset, context), self.pad, self.crop, self.mirror, self.scale, self.seed)

    def key_at(self, index: int) -> str:
        """The key of a record, also of one that cannot be read."""
        return key_at(self.dataset, index)

    def _frame(self, picture: tuple[int, int], boxes: list[PixelBox], rng: np.random.Generator) -> Frame:
        edges = (self.pad * rng.random(4) - self.crop * rng.random(4)) * np.array([*picture, *picture])
        left, top, right, bottom = (int(edge) for edge in edges.round())
        window = (-left, -top, max(picture[0] + right, 1 - left), max(picture[1] + bottom, 1 - top))
        factor = self.scale[0] + (self.scale[1] - self.scale[0]) * rng.random()
        is_mirrored = bool(rng.random() < self.mirror)
        window = _widened(window, boxes, picture, is_mirrored)
        shown = (max(round((window[2] - window[0]) * factor), 1), max(round((window[3] - window[1]) * factor), 1))
        return Frame(picture, window, shown, is_mirrored)


class ReframedRecord(Record):
    """A record in a frame; the image is made when it is asked for."""

    def __init__(self, record: Record, frame: Frame, phrases: tuple[Phrase, ...]) -> None:
        vars(self).update(key=record.key, phrases=phrases, image_size=frame.shown, _record=record, _frame=frame)

    @cached_property
    def image(self) -> np.ndarray:  # pyright: ignore[reportIncompatibleVariableOverride] - a value to who reads it
        own: dict[str, Any] = vars(self)
        picture = decode_image(own["_record"].image)
        frame: Frame = own["_frame"]
        if picture.size != frame.picture:  # a file that was resized since its boxes were written down
            picture = picture.resize(frame.picture, Image.Resampling.BICUBIC)
        return np.asarray(frame.apply(picture))


def _widened(
    window: tuple[int, int, int, int], boxes: list[PixelBox], picture: tuple[int, int], is_mirrored: bool
) -> tuple[int, int, int, int]:
    """A window, made as large as it has to be to hold the parts of all boxes that lie in the picture."""
    if not boxes:
        return window
    x1, y1, x2, y2 = np.array(boxes).T
    if is_mirrored:
        x1, x2 = picture[0] - x2, picture[0] - x1
    left, top = (min(edge, max(math.floor(ones.min()), 0)) for edge, ones in zip(window[:2], (x1, y1), strict=True))
    ends = zip(window[2:], picture, (x2, y2), strict=True)
    right, bottom = (max(edge, min(math.ceil(ones.max()), side)) for edge, side, ones in ends)
    return left, top, right, bottom


def _moved(phrase: Phrase, frame: Frame) -> Phrase | None:
    if frame.is_cut and phrase.category not in BY_LOOK:
        return None
    if frame.is_mirrored and SIDES.search(phrase.text + phrase.region):
        return None
    boxes = [frame.move(box) for box in phrase.boxes]
    kept = tuple(box for box in boxes if box is not None)
    if len(kept) < len(boxes):
        return None
    return Phrase(phrase.text, kept, phrase.language, phrase.region, phrase.category)
