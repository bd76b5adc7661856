"""Edits of drawn scenes, never trained on: whether what was asked for is made, and whether the rest is preserved.

The score is the share of edits that are both, as the mean of the six kinds. Beside it are both shares by themselves, over all
kinds (mean of six) and by kind, each with its interval. Each item has noise of its own, and languages come in turn.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from unimm.data.records import Record, Text
from unimm.data.worlds.edits import EditsWorld
from unimm.data.worlds.edits_judge import judge_edit
from unimm.data.worlds.shapes_language import LANGUAGES
from unimm.eval.score import SHARE, Score, wilson_interval
from unimm.eval.task import Example, ItemTask, Result, summarize
from unimm.eval.tasks.drawings import SEEDS
from unimm.eval.tasks.shapes import at_side, name_shapes
from unimm.inference.engine import Engine
from unimm.runtime.provenance import carried

ASPECTS = ("made", "preserved")


@dataclass(frozen=True)
class Edits(ItemTask):
    """Edits of unseen scenes; with split="held_out", edits after which a pair is there that training never shows.

    seed: of the scenes, and of the noise.
    guidance_scale, image_guidance_scale, source_bias, temperature: as `Engine.edit_images` takes them.
    kinds: some of `edits_scenes.KINDS` with commas between them [default: all], or "keep", after which all is as it was.
    """

    num_items: int = 300
    seed: int = 0
    split: str = "test"
    guidance_scale: float | None = None
    image_guidance_scale: float | None = None
    temperature: float | None = None
    source_bias: float | None = None
    kinds: str = ""
    batch_size: int = 32

    @property
    def name(self) -> str:
        """Of the score, and of files: what is not as usual is named, so that several of them stand in one evaluation."""
        split = "" if self.split == "test" else f"_{self.split}"
        scales = {"guidance": self.guidance_scale, "image_guidance": self.image_guidance_scale}
        kinds = f"_{self.kinds.replace(',', '_')}" if self.kinds else ""
        return f"edits{split}{kinds}{in_name({**scales, 'source_bias': self.source_bias, 'temperature': self.temperature})}"

    @cached_property
    def world(self) -> EditsWorld:
        """The scenes."""
        kinds = [kind.strip() for kind in self.kinds.split(",")] if self.kinds else None
        return EditsWorld(self.split, num_records=self.num_items, seed=self.seed, kinds=kinds)

    def instruction(self, item: int) -> Text:
        """What is asked for: kinds in turn, and after each round of them the other language."""
        language = LANGUAGES[(item // len(self.world.kinds)) % len(LANGUAGES)]
        return next(text for text in self.world[item].edits[0].instructions if text.language == language)

    def ask(self, engine: Engine, items: list[int]) -> Iterator[Example]:
        """Make and judge these edits."""
        records, texts = [self.world[item] for item in items], [self.instruction(item) for item in items]
        images = engine.edit_images(
            [record.image for record in records],
            [text.text for text in texts],
            seed=[self.seed * SEEDS + item for item in items],
            guidance_scale=self.guidance_scale,
            image_guidance_scale=self.image_guidance_scale,
            temperature=self.temperature,
            source_bias=self.source_bias,
        )
        for record, text, (drawing,) in zip(records, texts, images, strict=True):
            yield judge_example(record, text, np.asarray(drawing), provenance=carried(drawing))

    def score(self, examples: list[Example]) -> Result:
        """Of all edits."""
        others = {aspect: mean_of_kinds(aspect, examples) for aspect in ASPECTS}
        for kind in sorted({example.category for example in examples}):
            own = [example for example in examples if example.category == kind]
            others |= {f"{aspect}_{kind}": share(aspect, own) for aspect in ASPECTS}
        return summarize(self.name, examples, mean_of_categories=True, other_scores=others)


def in_name(scales: dict[str, float | None]) -> str:
    """What a task's name says of its scales: those that are not as usual."""
    return "".join(f"_{name}_{value:g}" for name, value in scales.items() if value is not None)


def judge_example(record: Record, text: Text, image: np.ndarray, provenance: dict | None = None) -> Example:
    """An edit with what the checker says of it."""
    verdict = judge_edit(at_side(image), record.facts)
    return Example(
        key=record.key,
        prompt=text.text,
        expected=name_shapes(record.facts.target.objects),
        answer=name_shapes(verdict.found),
        correct=verdict.made and verdict.preserved,
        reason=verdict.reason,
        category=record.facts.edit.kind,
        language=text.language,
        drawn=True,
        image=image,
        original=np.asarray(record.image),
        provenance=provenance,
        numbers={"made": float(verdict.made), "preserved": float(verdict.preserved)},
    )


def share(aspect: str, examples: Iterable[Example]) -> Score:
    """The share of edits that are made, or that preserve the rest."""
    marks = [example.numbers[aspect] for example in examples]
    return Score.share(sum(marks) / max(len(marks), 1), len(marks))


def mean_of_kinds(aspect: str, examples: list[Example]) -> Score:
    """The mean over kinds of the share; its interval is that of a share of as many edits."""
    kinds = {example.category for example in examples}
    shares = [share(aspect, (one for one in examples if one.category == kind)).value for kind in kinds]
    value = sum(shares) / max(len(shares), 1)
    return Score(value, len(examples), wilson_interval(value, len(examples)), SHARE, True)
