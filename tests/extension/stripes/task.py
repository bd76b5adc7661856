"""An evaluation task: is the colour on the left named?"""

from collections.abc import Callable

from stripes.data import QUESTION, Stripes
from unimm import Engine
from unimm.eval import Example, Result, collect, summarize


class LeftColours:
    """Every picture of `Stripes`, at most `num_items`."""

    name = "left_colours"

    def __init__(self, num_items: int = 9) -> None:
        self.num_items = num_items

    def run(self, engine: Engine, progress: Callable[[Example], None]) -> Result:
        """One question a picture."""
        records = [Stripes()[index] for index in range(self.num_items)]
        answers = engine.answer([record.image for record in records], QUESTION, max_new_tokens=4)
        pairs = zip(records, answers, strict=True)
        examples = [
            Example(one.key, QUESTION, one.facts[0], text, text == one.facts[0], image=one.image) for one, text in pairs
        ]
        return summarize(self.name, collect(examples, progress))
