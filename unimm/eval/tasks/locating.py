"""Tasks of grounding: boxes of phrases by intersection over union, and heat maps against the pixels of what is named.

A phrase is located where its boxes and those that are there pair off, each pair with an IoU of at least 0.5; one that is not
there, where the model says so. Sources: RefCOCO's accuracy (arXiv 1608.00272), gRefCOCO's of no target (arXiv 2308.16182).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from unimm.data.boxes import Box, iou
from unimm.data.grounding import size_of_boxes
from unimm.data.image import image_size
from unimm.data.readers.boxes import RefCoco
from unimm.data.records import Dataset, Phrase, PixelBox, Record
from unimm.data.worlds.scenes import SIDE, Scene
from unimm.data.worlds.shapes import ShapesWorld
from unimm.data.worlds.shapes_language import LANGUAGES
from unimm.data.worlds.shapes_phrases import mask_of, objects_of
from unimm.eval.score import SHARE, Score
from unimm.eval.task import Example, ItemTask, Result, summarize
from unimm.eval.tasks.answers import as_array
from unimm.inference.engine import Engine
from unimm.inference.locating import WAYS

ENOUGH = 0.5
"""The IoU from which on a box is right."""

THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7)
"""Where heat maps are cut; the score is that of FIXED."""

FIXED = 0.5


@dataclass(frozen=True)
class Locate(ItemTask):
    """Phrases of a data set's records, one of every record in turn, then a second of every record, and so on.

    Boxes are compared in pixels of the image as it is, which may be a resized copy of the one that they were annotated in.

    The score is the share of right answers to phrases that name something. Other scores: `mean_iou` of the same, of each box
    with the one that pairs with it, or 0; `none_recall`, phrases that name nothing and are answered so; `none_precision`, of
    the answers that say so those that are right; `readable`, answers that are boxes, or say that there is none.
    """

    name: str
    dataset: Dataset
    num_items: int
    batch_size: int = 64

    def ask(self, engine: Engine, items: list[int]) -> Iterator[Example]:
        """Locate these phrases."""
        asked = [self._item(number) for number in items]
        images: list[Any] = [record.image for record, _ in asked]
        found = engine.located(images, [phrase.text for _, phrase in asked])
        for (record, phrase), told in zip(asked, found, strict=True):
            boxes = None if told.found is None else [one.corners for one in told.found if isinstance(one, Box)]
            overlaps = best_pairs(phrase.boxes, boxes or [])
            is_right = boxes is not None and len(boxes) == len(phrase.boxes) and all(one >= ENOUGH for one in overlaps)
            numbers = {
                "is_there": float(bool(phrase.boxes)),
                "said_none": float(boxes == []),
                "readable": float(boxes is not None),
                "iou": float(np.mean(overlaps)) if overlaps else 0.0,
            }
            yield Example(
                key=record.key,
                prompt=phrase.text,
                expected=show_boxes(phrase.boxes),
                answer=told.text if boxes is None else show_boxes(boxes),
                correct=is_right,
                reason="" if is_right else why_wrong(phrase.boxes, boxes),
                category=phrase.category,
                language=phrase.language,
                image=as_array(record),
                numbers=numbers,
            )

    def score(self, examples: list[Example]) -> Result:
        """Of all phrases."""
        there = [one for one in examples if one.numbers["is_there"]]
        absent = [one for one in examples if not one.numbers["is_there"]]
        said = [one for one in examples if one.numbers["said_none"]]
        others = {"mean_iou": Score.mean([one.numbers["iou"] for one in there], SHARE)} if there else {}
        if absent:
            others["none_recall"] = Score.share(sum(one.correct for one in absent) / len(absent), len(absent))
        if said:
            others["none_precision"] = Score.share(sum(not one.numbers["is_there"] for one in said) / len(said), len(said))
        others["readable"] = Score.share(sum(one.numbers["readable"] for one in examples) / len(examples), len(examples))
        return replace(summarize(self.name, there, other_scores=others), examples=examples)

    def _item(self, number: int) -> tuple[Record, Phrase]:
        turn, index = divmod(number, len(self.dataset))
        record = self.dataset[index]
        if not record.phrases:
            raise ValueError(f"Record {record.key} has no phrases: nothing can be located in it.")
        return record, _in_its_pixels(record, record.phrases[(index + turn) % len(record.phrases)])


def _in_its_pixels(record: Record, phrase: Phrase) -> Phrase:
    """A phrase with its boxes in pixels of the record's image. ValueError: as `size_of_boxes`."""
    stated = size_of_boxes(record)
    image: Any = record.image
    across, down = (own / side for own, side in zip(image_size(image), stated, strict=True))
    boxes = tuple((x1 * across, y1 * down, x2 * across, y2 * down) for x1, y1, x2, y2 in phrase.boxes)
    return replace(phrase, boxes=boxes)


class ShapesLocate(Locate):
    """Phrases about unseen drawn scenes, English and Chinese in turn: by look, by relation, the leftmost and so on, and absent.

    split: "test", or "held_out" for scenes with pairs of colour and form that training never shows.
    """

    def __init__(self, num_items: int = 500, seed: int = 0, split: str = "test"):
        world = ShapesWorld(split, num_records=num_items, seed=seed)
        super().__init__("locate" if split == "test" else f"locate_{split}", world, num_items)


class RefCocoLocate(Locate):
    """Referring expressions in files, with the arguments of `unimm.data.RefCoco`; num_items: by default one an image.

    The same words for two objects are two items, each with its own box, as RefCOCO's accuracy has it.
    """

    def __init__(
        self,
        refs: str | Path,
        annotations: str | Path | None = None,
        images: str | Path | None = None,
        split: str | None = None,
        num_items: int | None = None,
        batch_size: int = 16,
    ):
        dataset = RefCoco(refs, annotations, images, split, merge=False)
        super().__init__("refcoco", dataset, num_items or len(dataset), batch_size)


@dataclass(frozen=True)
class HeatMaps(ItemTask):
    """Heat maps of phrases about unseen drawn scenes, cut at a threshold, against the pixels of the shapes that are named.

    The score is the mean IoU at a threshold of 0.5, which nothing was chosen by; other scores `iou_at_0.3` and so on are those
    at others, so the best of them is known afterwards.

    by: one of `unimm.inference.locating.WAYS`; default: what the engine takes. languages: of phrases.
    """

    num_items: int = 300
    by: str | None = None
    seed: int = 0
    split: str = "test"
    languages: tuple[str, ...] | list[str] = LANGUAGES
    batch_size: int = 32

    def __post_init__(self) -> None:
        if self.by is not None and self.by not in WAYS:
            raise ValueError(f"Heat maps are made by {' or '.join(WAYS)}, not by '{self.by}'.")

    @property
    def name(self) -> str:
        """Of the score, and of files."""
        return "heat_map" if self.by is None else f"heat_map_{self.by}"

    @cached_property
    def items(self) -> list[tuple[Record, Phrase]]:
        """Phrases by look that name something, one of a scene, languages in turn."""
        world, found, index = ShapesWorld(self.split, seed=self.seed), [], 0
        while len(found) < self.num_items:
            record, language = world[index], self.languages[len(found) % len(self.languages)]
            named = [one for one in record.phrases if one.language == language and one.category in ("one", "several")]
            found += [(record, named[0])] if named else []
            index += 1
        return found

    def ask(self, engine: Engine, items: list[int]) -> Iterator[Example]:
        """Make these maps."""
        asked = [self.items[item] for item in items]
        maps = engine.heat_map([record.image for record, _ in asked], [phrase.text for _, phrase in asked], self.by)
        for (record, phrase), heat in zip(asked, maps, strict=True):
            truth = named_pixels(phrase, record.facts)
            overlaps = {f"iou_at_{one}": overlap(heat >= one, truth) for one in THRESHOLDS}
            value = overlaps[f"iou_at_{FIXED}"]
            yield Example(
                key=record.key,
                prompt=phrase.text,
                expected=show_boxes(phrase.boxes),
                answer=f"IoU {value:.2f}",
                correct=value >= ENOUGH,
                category=phrase.category,
                language=phrase.language,
                image=as_array(record),
                value=value,
                numbers=overlaps,
            )

    def score(self, examples: list[Example]) -> Result:
        """Of all maps."""
        others = {name: Score.mean([one.numbers[name] for one in examples], SHARE) for name in examples[0].numbers}
        return summarize(self.name, examples, {"threshold": FIXED}, other_scores=others)


def best_pairs(expected: tuple[PixelBox, ...], found: list[PixelBox]) -> list[float]:
    """The IoU of each box that is there with the one that pairs with it, the best pairs first; 0 where none is left."""
    pairs = sorted(((iou(a, b), i, j) for i, a in enumerate(expected) for j, b in enumerate(found)), reverse=True)
    overlaps, taken = dict.fromkeys(range(len(expected)), 0.0), set()
    left = set(overlaps)
    for value, i, j in pairs:
        if i in left and j not in taken:
            overlaps[i] = value
            left.discard(i)
            taken.add(j)
    return list(overlaps.values())


def why_wrong(expected: tuple[PixelBox, ...], found: list[PixelBox] | None) -> str:
    """What is wrong with boxes that are."""
    if found is None:
        return "no list of boxes"
    if not expected or not found:
        return "located though it is not there" if found else "not found"
    return f"{len(found)} of {len(expected)} boxes" if len(found) != len(expected) else f"IoU below {ENOUGH}"


def named_pixels(phrase: Phrase, scene: Scene) -> np.ndarray:
    """The pixels of all shapes that a phrase names, (64, 64) bool."""
    pixels = np.zeros((SIDE, SIDE), dtype=bool)
    for item in objects_of(phrase, scene):
        pixels |= mask_of(item)
    return pixels


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """IoU of two masks (H, W) bool."""
    return float((a & b).sum() / max((a | b).sum(), 1))


def show_boxes(boxes: tuple[PixelBox, ...] | list[PixelBox]) -> str:
    """For people."""
    return "; ".join(" ".join(f"{round(one)}" for one in box) for box in boxes) or "none"
