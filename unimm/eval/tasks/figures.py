"""Tasks on the world of figures: what unseen pictures show, and drawings read by the shapes world's checker.

They are in no suite, since only a model that was fine-tuned on the figures knows them:
`unimm eval --task unimm.eval:FiguresDrawings`.
"""

from functools import partial

import numpy as np

from unimm.data.worlds.figures import FIGURES, FiguresWorld, describe, find_problem, name_figure, write_prompt
from unimm.eval.task import Judgement
from unimm.eval.tasks.answers import Answers
from unimm.eval.tasks.drawings import MODEL_DEFAULTS, DrawingItem, Drawings, DrawingSettings
from unimm.eval.tasks.shapes import at_side


class FiguresNames(Answers):
    """What a figure is called, in two languages: pictures of a split that is not trained on."""

    def __init__(self, num_items: int = 200, seed: int = 0, split: str = "test") -> None:
        super().__init__("figures_names", FiguresWorld(split, num_items, seed), num_items)


class FiguresDrawings(Drawings):
    """All figures in turn, drawn from prompts; right are all parts, each where it belongs. Details: by figure and language."""

    def __init__(self, num_items: int = 120, settings: DrawingSettings = MODEL_DEFAULTS) -> None:
        super().__init__("figures_drawings", tuple(drawing_item(number) for number in range(num_items)), settings)


def drawing_item(number: int) -> DrawingItem:
    """Drawing `number`: which figure, by which wording."""
    name = name_figure(number)
    prompt = write_prompt(name, number // len(FIGURES))
    return DrawingItem(f"figures/drawing/{number}", prompt, name, describe(name, "en"), partial(judge_drawing, name))


def judge_drawing(name: str, image: np.ndarray) -> Judgement:
    """Whether an image (H, W, 3) uint8 shows this figure."""
    problem = find_problem(at_side(image), name)
    return Judgement(problem is None, problem or name, problem or "")
