"""Re-ranking by the unified model: what two towers found first is looked at together with the text, and put in a better order.

Two towers see an image and a text apart, each as one vector; whether it is the circle that lies left of the square, or the
square left of the circle, is often lost. A model that reads the image and the text in one sequence can tell, at the price of a
pass for each pair (the fusion encoders of VisualBERT, arXiv 1908.03557, and BLIP, arXiv 2201.12086, are used so). Three scores:

    alignment     the probability of "yes" to whether the image shows what the text says (VQAScore, arXiv 2404.01291)
    likelihood    the mean log-probability of the text's tokens as a caption of the image
    both          the log-probability of "yes" and that of the whole text as a caption, added up

A question about a few words suits the first, a text that is written as the model's own captions are the second.
"""

import re

import numpy as np

from unimm.data.records import ImageLike
from unimm.data.template import Turn
from unimm.data.views import DESCRIBE
from unimm.inference.engine import Engine
from unimm.inference.input_validation import check_text
from unimm.sequence import Sequence

SCORES = ("both", "alignment", "likelihood")
LEAST = 1e-12
"""A probability below this is taken for it, so that its logarithm is finite."""

HAN = re.compile(r"[\u3400-\u9fff]")
"""A text with such a character is Chinese; accents and curly quotes are none."""

FIRST = 10
"""So many of what was found are ranked again."""


def check_score(by: str) -> None:
    """Raises ValueError where there is no such score."""
    if by not in SCORES:
        raise ValueError(f"Images are ranked again by one of {', '.join(SCORES)}, not by '{by}'.")


class Reranker:
    """Scores images beside texts with a unified model.

    Args:
        engine: of `unimm.load`.
        by: one of `SCORES`.

    Raises:
        ValueError: there is no such score.
    """

    def __init__(self, engine: Engine, by: str = "both") -> None:
        check_score(by)
        self.engine, self.by = engine, by

    def scores(self, images: list[ImageLike], texts: list[str]) -> np.ndarray:
        """How well each image fits the text of its place, (N,) float64; larger is better.

        Raises:
            ValueError: a text is empty or too long for the model, or an image cannot be read.
        """
        if not images:
            return np.empty(0)
        yes = np.ones(1) if self.by == "likelihood" else np.array(self.engine.alignment(images, texts), dtype=np.float64)
        if self.by == "alignment":
            return yes
        sequences = [self.described(image, text) for image, text in zip(images, texts, strict=True)]
        found = self.engine.loglikelihood(sequences)
        if self.by == "likelihood":
            return np.array([one.logprob / one.num_targets for one in found], dtype=np.float64)
        return np.log(np.maximum(yes, LEAST)) + np.array([one.logprob for one in found], dtype=np.float64)

    def described(self, image: ImageLike, text: str) -> Sequence:
        """The image, the request to describe it, and the text as the answer, which is what is scored."""
        check_text(text, "text")
        language = "zh" if HAN.search(text) else "en"
        template = self.engine.template
        turns = [Turn("user", (template.look(image), DESCRIBE[language][0])), Turn("assistant", (text,))]
        return template.chat(turns)

    def order(self, images: list[ImageLike], texts: list[str]) -> list[int]:
        """The places of what fits best first; what fits alike stays in its order."""
        return np.argsort(-self.scores(images, texts), kind="stable").tolist()
