"""What rewards judge: what was asked, and what a model answered or drew."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from unimm.data.records import ImageLike


@dataclass(frozen=True)
class Response:
    """One answer or drawing.

    prompt: what was to be drawn, or the question.
    drawn: what a model drew, (H, W, 3) uint8; None where it answered.
    answer: what it said; None where it drew.
    image: what the question was about, if anything.
    facts: what a judge needs to know of what is right, as the prompt's record has it; such as a world's requirement, or the
        expected answer.
    key: of the prompt, for messages.
    """

    prompt: str
    drawn: np.ndarray | None = None
    answer: str | None = None
    image: ImageLike | None = None
    facts: Any = None
    key: str = ""


Reward = Callable[[list[Response]], list[float | None]]
"""How good each of some responses is, as a rule from 0 to 1; None: it cannot be told, or must not be learned from, and the
response is left out."""


def need_drawn(response: Response, reward: str) -> np.ndarray:
    """What was drawn. ValueError: the response is an answer, which this reward does not judge."""
    if response.drawn is None:
        raise ValueError(f"The reward '{reward}' judges drawings, and {response.key or 'a response'} is an answer.")
    return response.drawn


def need_answer(response: Response, reward: str) -> str:
    """What was answered. ValueError: the response is a drawing, which this reward does not judge."""
    if response.answer is None:
        raise ValueError(f"The reward '{reward}' judges answers, and {response.key or 'a response'} is a drawing.")
    return response.answer
