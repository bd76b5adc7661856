"""Zero-shot classes: which of all 32 pairs of colour and form a picture of a single object shows, by `engine.classify`.

Nothing was trained to choose among these labels: each becomes a few sentences of the kind that the text tower has read, and the
class whose mean vector is closest is taken, as in CLIP (arXiv 2103.00020, section 3.1.4).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from unimm.data.worlds.scenes import COLOURS, FORMS, make_scene, render
from unimm.eval.task import Example, ItemTask, Result, Score, summarize
from unimm.inference.engine import Engine

LABELS = tuple(f"{colour} {form}" for colour in COLOURS for form in FORMS)

ENSEMBLE = (
    *("A small {}.", "A large {}.", "There is a small {}.", "There is a large {}."),
    *("The picture shows a small {}.", "The picture shows a large {}.", "I can see a small {}.", "I can see a large {}."),
)
"""What captions of the world say of a single object."""

BARE = ("a {}",)
"""A label by itself."""


@dataclass(frozen=True)
class ShapesZeroShot(ItemTask):
    """Pictures of one object each, named by colour and form.

    ensemble: average the sentences of `ENSEMBLE`; else the label alone is read. seed, split: of the scenes.

    Other scores: `colour` and `form`, each by itself.
    """

    num_items: int = 300
    ensemble: bool = True
    seed: int = 0
    split: str = "test"
    batch_size: int = 64

    @property
    def name(self) -> str:
        """Of the score, and of files."""
        return "shapes_zero_shot" if self.ensemble else "shapes_zero_shot_bare"

    def ask(self, engine: Engine, items: list[int]) -> Iterator[Example]:
        """Classify the pictures of these items."""
        scenes = [make_scene(self.seed, self.split, item, (1,), ()) for item in items]
        images: list[Any] = [render(scene) for scene in scenes]
        found = engine.classify(images, list(LABELS), ENSEMBLE if self.ensemble else BARE)
        for item, scene, image, shares in zip(items, scenes, images, found, strict=True):
            (shown,) = scene.objects
            expected, answer = f"{shown.colour} {shown.form}", max(shares, key=lambda label: shares[label])
            yield Example(
                key=f"shapes/{self.split}/single/{item}",
                prompt="colour and form",
                expected=expected,
                answer=answer,
                correct=answer == expected,
                reason="" if answer == expected else "another class is closer",
                category=shown.form,
                image=image,
                numbers={"probability": shares[expected]},
            )

    def score(self, examples: list[Example]) -> Result:
        """Of all pictures."""
        others = {}
        for place, name in enumerate(("colour", "form")):
            right = [one.answer.split()[place] == one.expected.split()[place] for one in examples]
            others[name] = Score.share(sum(right) / len(right), len(right))
        return summarize(self.name, examples, other_scores=others)
