"""Tasks on the world of handwritten digits: questions about unseen scans, and drawings read by a support vector machine.

The machine is fitted on the training half and is not perfect: its own accuracy on the unseen half stands beside the score.
"""

from functools import cache, partial

import numpy as np

from unimm.data.records import Record
from unimm.data.worlds.digits import DigitJudge, DigitsWorld
from unimm.data.worlds.digits_language import drawing_prompt
from unimm.eval.task import Judgement
from unimm.eval.tasks.answers import Answers
from unimm.eval.tasks.drawings import MODEL_DEFAULTS, DrawingItem, Drawings, DrawingSettings

NUM_DIGITS = 10


class DigitsAnswers(Answers):
    """Questions about scans never trained on: the digit, its parity, a comparison, its identity. split: "test" or another."""

    def __init__(self, num_items: int = 300, seed: int = 0, split: str = "test"):
        name = "digits_answers" if split == "test" else f"digits_answers_{split}"
        super().__init__(name, DigitsWorld(split, seed=seed), num_items)


class DigitsDrawings(Drawings):
    """Digits drawn from prompts, all ten in turn, and read by the machine. Details: by digit, and by language."""

    def __init__(self, num_items: int = 100, settings: DrawingSettings = MODEL_DEFAULTS):
        items = tuple(drawing_item(number) for number in range(num_items))
        super().__init__("digits_drawings", items, settings)

    def measures(self) -> dict[str, float]:
        """The machine's own accuracy on the unseen half of the scans."""
        return {**super().measures(), "judge_accuracy": find_judge().accuracy}


def drawing_item(number: int) -> DrawingItem:
    """Drawing `number`: which digit, by which wording."""
    wording, digit = divmod(number, NUM_DIGITS)
    prompt = drawing_prompt(digit, wording)
    return DrawingItem(f"digits/drawing/{number}", prompt, f"digit {digit}", str(digit), partial(judge_digit, digit))


def judge_digit(digit: int, image: np.ndarray) -> Judgement:
    """Whether the machine reads this digit in an image (H, W, 3) uint8."""
    read = find_judge().read(image)
    return Judgement(read == digit, str(read), "" if read == digit else f"read as {read}")


def judge_reconstruction(image: np.ndarray, record: Record) -> Judgement:
    """Whether the machine reads the record's digit in an image (H, W, 3) uint8."""
    return judge_digit(record.facts.digit, image)


def describe_record(record: Record) -> tuple[str, str]:
    """The category of a scan, and its digit."""
    return f"digit {record.facts.digit}", str(record.facts.digit)


@cache
def find_judge() -> DigitJudge:
    """The one machine that all tasks ask: fitting it takes a second."""
    return DigitJudge()
