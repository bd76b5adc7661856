"""Edits by people in turns (MagicBrush, arXiv 2306.10012): how much of what the masks do not free is preserved, and how far
each result is from the one that people made.

L1 and L2 are the benchmark's: mean absolute and mean squared differences of values in [0, 1]. Preserved is 1 - L1 outside of
the mask, between a turn's image before and after: 1 where nothing else was touched. CLIP-I and DINO need other models.
"""

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np

from unimm.data.image import decode_image
from unimm.data.readers.magic_brush import MagicBrush, free_part
from unimm.eval.score import Example, Score
from unimm.eval.task import ItemTask, Result, summarize
from unimm.eval.tasks.drawings import SEEDS
from unimm.eval.tasks.edits import in_name
from unimm.inference.engine import Engine
from unimm.inference.windows_of_images import lay_over

DISTANCE = "of [0, 1]"


class EditSessions(ItemTask):
    """The sessions of MagicBrush's tables; a session is an item.

    paths, root: as `MagicBrush` takes them. num_items: so many of them; None: all.
    chain: a turn goes on from the model's own last result (the benchmark's multi-turn setting), not from the people's.
    seed, guidance_scale, image_guidance_scale, source_bias: as `Engine.edit_images` takes them.
    """

    def __init__(
        self,
        paths: str,
        root: str | None = None,
        num_items: int | None = None,
        chain: bool = False,
        seed: int = 0,
        guidance_scale: float | None = None,
        image_guidance_scale: float | None = None,
        source_bias: float | None = None,
    ) -> None:
        self.paths, self.root, self.chain, self.seed = paths, root, chain, seed
        scales = {"guidance_scale": guidance_scale, "image_guidance_scale": image_guidance_scale}
        self.scales: dict[str, Any] = {**scales, "source_bias": source_bias}
        said = {name.removesuffix("_scale"): value for name, value in self.scales.items()}
        self.name = f"edit_sessions{'_chained' if chain else ''}{in_name(said)}"  # so several stand in one evaluation
        self.num_items = len(self.sessions) if num_items is None else min(num_items, len(self.sessions))

    @cached_property
    def sessions(self) -> MagicBrush:
        """The data set."""
        return MagicBrush(self.paths, self.root)

    def ask(self, engine: Engine, items: list[int]) -> Iterator[Example]:
        """Make all turns of these sessions, one after the other."""
        for item in items:
            yield self._session(engine, item)

    def _session(self, engine: Engine, item: int) -> Example:
        record = self.sessions[item]
        images, numbers, made = [decode_image(one.image) for one in record.images], [], None
        for turn, edit in enumerate(record.edits):
            before = made if self.chain and made is not None else images[edit.source]
            seed = (self.seed * SEEDS + item) * 100 + turn
            (square,) = engine.edit_images(before, edit.instructions[0].text, seed=seed, **self.scales)
            made = lay_over(before, square)
            assert edit.mask is not None
            free_HW = free_part(edit.mask, images[edit.source])
            numbers.append(distances(np.asarray(made), np.asarray(before), np.asarray(images[edit.target]), free_HW))
        mean = {name: float(np.mean([one[name] for one in numbers])) for name in numbers[0]}
        said = " / ".join(edit.instructions[0].text for edit in record.edits)
        return Example(
            key=record.key,
            prompt=said,
            expected="the rest preserved",
            answer=f"{mean['preserved']:.3f} preserved",
            correct=mean["preserved"] == 1.0,
            category=f"{len(record.edits)} turns" if len(record.edits) > 1 else "1 turn",
            drawn=True,
            image=None if made is None else np.asarray(made),
            original=np.asarray(images[0]),
            value=mean["preserved"],
            numbers=mean,
        )

    def score(self, examples: list[Example]) -> Result:
        """The mean share that is preserved; beside it L1 and L2."""
        others = {
            name: Score.mean([one.numbers[name] for one in examples], DISTANCE, higher_is_better=False) for name in ("l1", "l2")
        }
        return summarize(self.name, examples, other_scores=others)


def distances(made: np.ndarray, before: np.ndarray, target: np.ndarray, free_HW: np.ndarray) -> dict[str, float]:
    """Of images (H, W, 3) uint8 of one size: what an edit preserved outside of what is free, and its L1 and L2 to a target."""
    if made.shape != target.shape:
        raise ValueError(f"The target has the shape {target.shape}, and the source {made.shape}: give images of one size.")
    change_HW3 = np.abs(made.astype(np.float64) - before) / 255
    off_HW3 = np.abs(made.astype(np.float64) - target) / 255
    rest = change_HW3[~free_HW]
    preserved = 1.0 - float(rest.mean()) if rest.size else 1.0
    return {"preserved": preserved, "l1": float(off_HW3.mean()), "l2": float((off_HW3**2).mean())}
