"""Drawings: prompts with a requirement each, drawn by the engine and read by a judge.

Every prompt has noise of its own: with the same noise, two drawings of "an orange circle" would be equal, and a mistake would
count twice. The same seed gives the same score.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from unimm.data.records import Text
from unimm.eval.task import Example, ItemTask, Judgement, Result, summarize
from unimm.inference.engine import Engine
from unimm.runtime.provenance import carried

SEEDS = 1_000_003
"""How far the seeds of noise of one evaluation and the next are apart."""


@dataclass(frozen=True)
class DrawingItem:
    """One drawing to be made. key: a stable name. expected: the requirement in English. judge: reads (H, W, 3) uint8."""

    key: str
    prompt: Text
    category: str
    expected: str
    judge: Callable[[np.ndarray], Judgement]


@dataclass(frozen=True)
class DrawingSettings:
    """How drawings are made.

    seed: of the prompts, and of the noise.
    guidance_scale, temperature, best_of, drawing, steps, solver, size: as `Engine.generate_images` takes them.
    """

    seed: int = 0
    guidance_scale: float | None = None
    temperature: float | None = None
    best_of: int = 1
    drawing: str | None = None
    steps: int | None = None
    solver: str | None = None
    size: str | None = None

    def further(self) -> dict[str, Any]:
        """Of the form and of drawing by a flow, those that are set."""
        named = {"drawing": self.drawing, "steps": self.steps, "solver": self.solver, "size": self.size}
        return {name: value for name, value in named.items() if value is not None}


MODEL_DEFAULTS = DrawingSettings()
"""The model's own settings, and seed 0."""


@dataclass(frozen=True)
class Drawings(ItemTask):
    """Draws every item once. batch_size: prompts that one call of the engine takes."""

    name: str
    items: tuple[DrawingItem, ...]
    settings: DrawingSettings = MODEL_DEFAULTS
    mean_of_categories: bool = False
    batch_size: int = 64

    @property
    def num_items(self) -> int:
        """How many drawings are made."""
        return len(self.items)

    def drawn_with(self, settings: DrawingSettings) -> Self:
        """The same drawings, made otherwise."""
        other = copy.copy(self)
        object.__setattr__(other, "settings", settings)
        return other

    def score(self, examples: list[Example]) -> Result:
        """The share of right drawings, or the mean of the categories' shares."""
        return summarize(self.name, examples, self.measures(), self.mean_of_categories)

    def measures(self) -> dict[str, float]:
        """Numbers to report beside the score: here, of how many drawings each was the best."""
        return {"best_of": self.settings.best_of} if self.settings.best_of > 1 else {}

    def ask(self, engine: Engine, items: list[int]) -> Iterator[Example]:
        """Draw and judge these items."""
        batch = [self.items[number] for number in items]
        images = engine.generate_images(
            [item.prompt.text for item in batch],
            num_images=1,
            seed=[self.settings.seed * SEEDS + number for number in items],
            guidance_scale=self.settings.guidance_scale,
            temperature=self.settings.temperature,
            best_of=self.settings.best_of,
            **self.settings.further(),
        )
        for item, (drawing,) in zip(batch, images, strict=True):
            image = np.asarray(drawing)
            verdict = item.judge(image)
            yield Example(
                key=item.key,
                prompt=item.prompt.text,
                expected=item.expected,
                answer=verdict.answer,
                correct=verdict.correct,
                reason=verdict.reason,
                category=item.category,
                language=item.prompt.language,
                drawn=True,
                image=image,
                provenance=carried(drawing),
            )
