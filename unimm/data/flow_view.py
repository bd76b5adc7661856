"""The view of drawings by a flow: a prompt, and the latents of its image to learn."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from unimm.data.records import LATENTS, Record
from unimm.data.template import Template
from unimm.data.views import DRAWING, Drawing, prompted
from unimm.segment import NOISE_KEYS
from unimm.sequence import Sequence


@dataclass(frozen=True)
class FlowDrawing:
    """TEXT(prompt), then the image's latents to learn, with noise and a time of their own; of a record with several images one
    of them, any as often as the others.

    drop: the probability that the prompt is the null prompt, as JanusFlow drops 10 % (arXiv 2411.07975).
    prompt_share: as in `Drawing`.
    """

    task: ClassVar[str] = DRAWING
    drop: float = 0.1
    prompt_share: float | None = None

    def __post_init__(self) -> None:
        Drawing(self.drop, self.prompt_share)  # checks both

    def __call__(self, record: Record, template: Template, rng: np.random.Generator) -> Sequence:
        images = record.images
        latents = images[int(rng.integers(len(images)))].codes.get(LATENTS) if images else None
        if latents is None:
            raise ValueError(f"Record {record.key} has no latents, which this view needs: wrap its data set in LatentDataset.")
        prompt = Drawing(prompt_share=self.prompt_share).choose_prompt(record, rng)
        key = int(rng.integers(NOISE_KEYS))
        sequence = prompted(prompt.text, lambda text: template.draw_latents(text, latents, key), record, template)
        return sequence.unconditioned(template.tokenizer.special.pad) if rng.random() < self.drop else sequence
