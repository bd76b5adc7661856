"""The tasks of the emoji world: a model that knows everything gets all, and one that draws the wrong thing is read right."""

import numpy as np
import pytest
from PIL import Image

from unimm.data.worlds.emoji import EmojiSet
from unimm.data.worlds.emoji_scenes import EmojiScene, Placed, render
from unimm.eval import EmojiDrawings, EmojiNames, load_task
from unimm.eval.tasks.emoji import check_font, drawing_item

pytestmark = pytest.mark.skipif(not check_font(), reason="no font with emoji (fonts-noto-color-emoji), or no package emoji")
FEW = 12


class Knowing:
    """Draws what the item wants and answers what is right."""

    def __init__(self, emoji_set: EmojiSet, task) -> None:
        self.emoji_set, self.task, self.at = emoji_set, task, 0

    def generate_images(self, prompts: list[str], **settings) -> list[list[Image.Image]]:
        drawn = []
        for prompt in prompts:
            scene: EmojiScene = self.task.items[self.at].judge.args[1]
            assert prompt == self.task.items[self.at].prompt.text
            self.at += 1
            drawn.append([Image.fromarray(render(scene, self.emoji_set.emoji, self.emoji_set.font, 64))])
        return drawn

    def answer(self, images: list, questions: list[str], max_new_tokens: int) -> list[str]:
        return [self.task._item(number)[1].answer.upper() for number in range(len(images))]


def test_a_model_that_knows_everything_gets_all() -> None:
    emoji_set = EmojiSet.open(num_emoji=FEW)
    drawings = EmojiDrawings(num_items=16, num_emoji=FEW)
    result = drawings.run(Knowing(emoji_set, drawings), lambda _: None)  # pyright: ignore[reportArgumentType]
    assert result.name == "emoji_drawings" and result.score > 0.9 and {"one", "two", "en", "zh"} <= {*result.details}
    assert result.measures["judge_accuracy"] > 0.9
    names = EmojiNames(num_items=8, num_emoji=FEW)
    assert names.run(Knowing(emoji_set, names), lambda _: None).score == 1.0  # pyright: ignore[reportArgumentType]
    assert {question.category for record in map(names.dataset.__getitem__, range(8)) for question in record.questions} == {
        "name"
    }


def test_another_emoji_or_another_order_is_wrong() -> None:
    emoji_set = EmojiSet.open(num_emoji=FEW)
    item = drawing_item(emoji_set, 1)
    scene: EmojiScene = item.judge.args[1]  # pyright: ignore[reportFunctionMemberAccess]
    first, second = scene.items
    items = tuple(Placed(there.number, here.x, here.y, here.width) for here, there in ((first, second), (second, first)))
    turned = EmojiScene(items, scene.background, scene.relation)
    image = render(turned, emoji_set.emoji, emoji_set.font, 64)
    assert item.judge(render(scene, emoji_set.emoji, emoji_set.font, 64)).correct and not item.judge(image).correct
    assert "read as" in item.judge(image).reason
    assert item.judge(np.full((64, 64, 3), 210, np.uint8)).answer == f"nothing {scene.relation} nothing"


def test_they_are_named_on_the_command_line() -> None:
    task = load_task("unimm.eval:EmojiDrawings?held_out=true&num_emoji=40&num_items=3")
    assert (task.name, task.num_items) == ("emoji_held_out", 3)
