"""Drawings: prompts with a requirement each, drawn by the engine and read by a judge.

An engine draws image 0 of every prompt of a call from the same noise, so drawings of one batch are a little alike where
their prompts leave something open. Every batch therefore has a seed of its own, and a score is the same whenever seed and
batch size are.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from unimm.data.records import Text
from unimm.eval.task import Example, Judgement, Result, split_batches, summarize, tell
from unimm.inference.engine import Engine


@dataclass(frozen=True)
class Commission:
    """One drawing to be made. key: a stable name. expected: the requirement in English. judge: reads (H, W, 3) uint8."""

    key: str
    prompt: Text
    category: str
    expected: str
    judge: Callable[[np.ndarray], Judgement]


@dataclass(frozen=True)
class Drawings:
    """Draws every commission once. guidance_scale, temperature: as `Engine.generate_images` takes them.

    seed: of the first batch; the following ones count on. batch_size: prompts the engine is given at once.
    """

    name: str
    commissions: tuple[Commission, ...]
    guidance_scale: float | None = None
    temperature: float | None = None
    seed: int = 0
    mean_of_categories: bool = False
    batch_size: int = 64

    @property
    def num_items(self) -> int:
        """How many drawings are made."""
        return len(self.commissions)

    def run(self, engine: Engine, progress: Callable[[Example], None]) -> Result:
        """Have all of them drawn and judged."""
        examples = tell(self._examples(engine), progress)
        return summarize(self.name, examples, self.measures(), self.mean_of_categories)

    def measures(self) -> dict[str, float]:
        """Numbers to report beside the score, such as how well the judge reads."""
        return {}

    def _examples(self, engine: Engine) -> Iterator[Example]:
        for number, batch in enumerate(split_batches(list(self.commissions), self.batch_size)):
            images = engine.generate_images(
                [commission.prompt.text for commission in batch],
                num_images=1,
                seed=self.seed + number,
                guidance_scale=self.guidance_scale,
                temperature=self.temperature,
            )
            for commission, (drawing,) in zip(batch, images, strict=True):
                image = np.asarray(drawing)
                verdict = commission.judge(image)
                yield Example(
                    key=commission.key,
                    prompt=commission.prompt.text,
                    expected=commission.expected,
                    answer=verdict.answer,
                    correct=verdict.correct,
                    reason=verdict.reason,
                    category=commission.category,
                    language=commission.prompt.language,
                    drawn=True,
                    image=image,
                )
