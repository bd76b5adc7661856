"""The tasks of the world of figures: a model that knows everything gets all, and another figure is wrong."""

from typing import Any

import numpy as np
from PIL import Image

from unimm.data.worlds.figures import FIGURES, make_figure
from unimm.data.worlds.scenes import render
from unimm.eval import FiguresDrawings, FiguresNames, load_task
from unimm.eval.suites import choose_tasks
from unimm.eval.tasks.drawings import DrawingSettings


class Knowing:
    """Draws what the item wants and answers what is right."""

    def __init__(self, task: Any, name: str | None = None) -> None:
        self.task, self.name, self.at = task, name, 0

    def generate_images(self, prompts: list[str], **settings: Any) -> list[list[Image.Image]]:
        drawn = []
        for prompt in prompts:
            item = self.task.items[self.at]
            assert prompt == item.prompt.text
            scene = make_figure(self.name or item.judge.args[0], np.random.default_rng(self.at))
            drawn.append([Image.fromarray(render(scene))])
            self.at += 1
        return drawn

    def answer(self, images: list, questions: list[str], max_new_tokens: int) -> list[str]:
        return [self.task._item(number)[1].answer.upper() for number in range(len(images))]


def test_a_model_that_knows_everything_gets_all() -> None:
    task: Any = load_task("unimm.eval:FiguresDrawings?num_items=40")
    result = task.run(Knowing(task), lambda _: None)
    assert (result.name, result.score, result.count) == ("figures_drawings", 1.0, 40)
    assert {*FIGURES, "en", "zh"} <= {*result.details}
    names: Any = FiguresNames(num_items=8)
    assert names.run(Knowing(names), lambda _: None).score == 1.0


def test_another_figure_is_wrong() -> None:
    task: Any = FiguresDrawings(num_items=20)
    result = task.run(Knowing(task, "house"), lambda _: None)
    wrong = [example for example in result.examples if not example.correct]
    assert len(wrong) == 19 and wrong[0].expected == "a snowman"
    assert wrong[0].reason == "shows large red triangle, large white square"


def test_drawings_are_made_as_the_shell_says_for_all() -> None:
    said = DrawingSettings(guidance_scale=4.0)
    (task,) = choose_tasks(["unimm.eval:FiguresDrawings?num_items=2"], drawing=said)
    assert isinstance(task, FiguresDrawings) and task.settings == said and task.num_items == 2
