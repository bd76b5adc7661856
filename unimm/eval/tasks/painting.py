"""In-painting on the world of shapes: an object replaced, added or removed inside of a mask, and nothing changed outside of it.

Right is an image in which the checker reads inside of the mask just what the prompt asks for there, and whose pixels outside of
it are equal to the byte; both shares stand beside the score. Every item has noise of its own.
"""

from collections.abc import Iterator

import numpy as np

from unimm.data.worlds.drawing import name_look
from unimm.data.worlds.shapes_painting import judge_painting, make_painting_task
from unimm.eval.score import Example, Score
from unimm.eval.task import ItemTask, Result, summarize
from unimm.eval.tasks.drawings import SEEDS
from unimm.eval.tasks.shapes import at_side, name_shapes
from unimm.inference.engine import Engine
from unimm.runtime.provenance import carried


class ShapesInpainting(ItemTask):
    """Masks over scenes of the test split; details by kind (replace, add, remove) and by language.

    best_of, guidance_scale: as `Engine.inpaint` takes them. seed: of the scenes, and of the noise.
    """

    def __init__(self, num_items: int = 100, seed: int = 0, best_of: int = 1, guidance_scale: float | None = None) -> None:
        self.name, self.num_items, self.seed = "shapes_inpainting", num_items, seed
        self.best_of, self.guidance_scale = best_of, guidance_scale

    def ask(self, engine: Engine, items: list[int]) -> Iterator[Example]:
        """Paint and judge these items, one after the other."""
        for number in items:
            task = make_painting_task(number, self.seed)
            words = {"best_of": self.best_of, "guidance_scale": self.guidance_scale}
            seed = self.seed * SEEDS + number
            (painted,) = engine.inpaint(task.image, task.mask, task.prompt.text, seed=seed, **words)
            image = np.asarray(painted)
            verdict = judge_painting(at_side(image), task)
            yield Example(
                key=f"shapes/painting/{number}",
                prompt=task.prompt.text,
                expected="nothing" if task.wanted is None else name_look(task.wanted),
                answer=name_shapes(verdict.found),
                correct=verdict.is_met and verdict.is_kept,
                reason="" if verdict.is_met and verdict.is_kept else verdict.reason,
                category=task.kind,
                language=task.prompt.language,
                drawn=True,
                image=image,
                original=task.image,
                provenance=carried(painted),
                numbers={"met": float(verdict.is_met), "kept": float(verdict.is_kept)},
            )

    def score(self, examples: list[Example]) -> Result:
        """The share of right images; beside it those in which the prompt is met, and those whose other pixels are equal."""
        others = {
            name: Score.share(sum(one.numbers[name] for one in examples) / max(len(examples), 1), len(examples))
            for name in ("met", "kept")
        }
        return summarize(self.name, examples, {"best_of": self.best_of} if self.best_of > 1 else {}, other_scores=others)
