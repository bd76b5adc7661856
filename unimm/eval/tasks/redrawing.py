"""Draw, look, draw again, beside one drawing and the best of several: the same prompts, scores and times in one run.

    redrawing                         prompts with pairs of colour and form that training never shows; details by the way
    redrawing?ways=["one","best_of=4","redraw=3","redraw=3,0.99"]

Every prompt is drawn in every way, with the same seed, so the first drawing is the same in all of them. A way's seconds are
those of the calls that drew for it, on this machine, whatever else it did. What a way brings is the mean of paired differences
to "one".
"""

import re
import time
from collections.abc import Iterator
from statistics import fmean
from typing import Any

import numpy as np

from unimm.data.worlds.drawing import CATEGORIES, HELD_OUT
from unimm.eval.score import Score
from unimm.eval.task import Example, ItemTask, Result, summarize
from unimm.eval.tasks.drawings import SEEDS
from unimm.eval.tasks.shapes import drawing_item
from unimm.inference.engine import Engine
from unimm.inference.redrawing import Redraw
from unimm.runtime.provenance import carried

ONE = "one"
WAYS = (ONE, "best_of=2", "best_of=4", "redraw=1", "redraw=3", "redraw=3,paint")
"""One drawing; the best of so many; so many further tries, which draw anew; or which keep a part where they can (paint). Behind
a comma also how probable a drawing must be to be done."""

DIFFERENCE, SECONDS = "difference", "seconds"


class Redrawing(ItemTask):
    """Prompts drawn in several ways.

    num_items: prompts. category: one of the drawing categories, or "held_out". ways: some of the form of WAYS.
    """

    batch_size = 32

    def __init__(
        self, num_items: int = 120, seed: int = 0, category: str = HELD_OUT, ways: list[str] | tuple[str, ...] = WAYS
    ) -> None:
        if category not in (*CATEGORIES, HELD_OUT):
            raise ValueError(f"category is one of {', '.join((*CATEGORIES, HELD_OUT))}, not {category!r}.")
        self.ways = {way: read_way(way) for way in dict.fromkeys((ONE, *ways))}
        self.name = "redrawing" if category == HELD_OUT else f"redrawing_{category}"
        self.seed, self.category, self.num_items = seed, category, num_items * len(self.ways)

    def ask(self, engine: Engine, items: list[int]) -> Iterator[Example]:
        """The examples of these items: item i is prompt i // n in the i % n-th way."""
        names, found = list(self.ways), {}
        for number, way in enumerate(names):
            own = [item for item in items if item % len(names) == number]
            if own:
                found |= zip(own, self._draw(engine, way, [item // len(names) for item in own]), strict=True)
        for item in items:
            yield found[item]

    def _draw(self, engine: Engine, way: str, numbers: list[int]) -> list[Example]:
        asked = [drawing_item(self.category, number, self.seed) for number in numbers]
        began = time.perf_counter()
        seeds = [self.seed * SEEDS + number for number in numbers]
        images = engine.generate_images([one.prompt.text for one in asked], seed=seeds, **self.ways[way])
        seconds = (time.perf_counter() - began) / len(numbers)
        examples = []
        for one, (image,) in zip(asked, images, strict=True):
            verdict, said = one.judge(np.asarray(image)), carried(image) or {}
            numbers_of = {"seconds": seconds, "way": list(self.ways).index(way), "tries": float(said.get("tries", 1))}
            examples.append(Example(
                f"{one.key}/{way}", one.prompt.text, one.expected, verdict.answer, verdict.correct, verdict.reason, way,
                one.prompt.language, True, np.asarray(image), provenance=said, numbers=numbers_of,
            ))  # fmt: skip
        return examples

    def score(self, examples: list[Example]) -> Result:
        """The share of right drawings of all ways; of each its share, its seconds a drawing, and what it brings."""
        others: dict[str, Score] = {}
        right = {(one.key.rpartition("/")[0], int(one.numbers["way"])): one.mark for one in examples}
        for number, way in enumerate(self.ways):
            own = [one for one in examples if one.numbers["way"] == number]
            if not own:
                continue
            others[way] = Score.share(fmean(one.mark for one in own), len(own))
            gains = [mark - right[key, 0] for (key, which), mark in right.items() if which == number and (key, 0) in right]
            if number and gains:
                others[f"{way} less one"] = Score.mean(gains, DIFFERENCE)
            others[f"{way}, seconds"] = Score.mean([one.numbers["seconds"] for one in own], SECONDS, False)
            others[f"{way}, tries"] = Score.mean([one.numbers["tries"] for one in own], "tries", False)
        return summarize(self.name, examples, other_scores=others)


def read_way(way: str) -> dict[str, Any]:
    """The settings of a way, as `generate_images` takes them. ValueError: it is none."""
    if way == ONE:
        return {}
    if found := re.fullmatch(r"best_of=(\d+)", way):
        return {"best_of": int(found[1])}
    if found := re.fullmatch(r"redraw=(\d+)(,paint)?(?:,([01]?\.?\d+))?", way):
        threshold = {} if found[3] is None else {"threshold": float(found[3])}
        return {"redraw": Redraw(int(found[1]), paint=found[2] is not None, **threshold)}
    raise ValueError(f"A way is one, best_of=4, redraw=3, 'redraw=3,paint' or 'redraw=3,0.99', not {way!r}.")
