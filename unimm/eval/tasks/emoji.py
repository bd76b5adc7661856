"""Tasks on the world of emoji: names and other questions, and drawings of one emoji or two, read by a classifier.

They are in no suite, since they need a font and the `emoji` package: `unimm eval --task unimm.eval:EmojiDrawings`. What they
are about (`subset`, `num_emoji`, `font`) has to be what the model was trained on. The classifier's own accuracy stands beside
the scores.
"""

from functools import cache, partial
from pathlib import Path

import numpy as np

from unimm.data.worlds.emoji import EmojiSet, EmojiWorld
from unimm.data.worlds.emoji_judge import NOTHING, EmojiJudge
from unimm.data.worlds.emoji_language import LANGUAGES, describe, write_prompt
from unimm.data.worlds.emoji_scenes import EmojiScene, make_generator, make_scene
from unimm.eval.task import Judgement
from unimm.eval.tasks.answers import Answers
from unimm.eval.tasks.drawings import MODEL_DEFAULTS, DrawingItem, Drawings, DrawingSettings

SIDE = 64


class EmojiNames(Answers):
    """What an emoji that is alone is called, in two languages: pictures of the test split."""

    def __init__(
        self, num_items: int = 400, seed: int = 0, side: int = SIDE, subset: str = "things", num_emoji: int | None = None,
        font: str | None = None,
    ) -> None:  # fmt: skip
        world = EmojiWorld(
            "test", num_items, seed, side, 0.0, subset=subset, num_emoji=num_emoji, font=font, categories=("name",)
        )
        super().__init__("emoji_names", world, num_items)


class EmojiAnswers(Answers):
    """All questions about scenes of the test split."""

    def __init__(
        self, num_items: int = 400, seed: int = 0, side: int = SIDE, subset: str = "things", num_emoji: int | None = None,
        font: str | None = None,
    ) -> None:  # fmt: skip
        world = EmojiWorld("test", num_items, seed, side, 0.5, subset=subset, num_emoji=num_emoji, font=font)
        super().__init__("emoji_answers", world, num_items)


class EmojiDrawings(Drawings):
    """One emoji, or two with their relation, in turn; drawn from prompts and read by the classifier.

    held_out: only two that no training shows together; the task is then called emoji_held_out.
    """

    def __init__(
        self, num_items: int = 200, seed: int = 0, subset: str = "things", num_emoji: int | None = None,
        font: str | None = None, held_out: bool = False, settings: DrawingSettings = MODEL_DEFAULTS,
    ) -> None:  # fmt: skip
        emoji_set = EmojiSet.open(font, subset, num_emoji)
        items = tuple(drawing_item(emoji_set, number, seed, held_out) for number in range(num_items))
        super().__init__("emoji_held_out" if held_out else "emoji_drawings", items, settings)
        object.__setattr__(self, "_emoji_set", emoji_set)

    def measures(self) -> dict[str, float]:
        """The classifier's own accuracy."""
        return {**super().measures(), "judge_accuracy": find_judge(vars(self)["_emoji_set"]).accuracy}


def drawing_item(emoji_set: EmojiSet, number: int, seed: int = 0, held_out: bool = False) -> DrawingItem:
    """Drawing `number`: one emoji where it is even, else two; languages in pairs of numbers."""
    rng = make_generator(seed, "held_out" if held_out else "test", number, "drawing")
    scene = make_scene(rng, emoji_set.emoji, SIDE, pairs=float(number % 2), held_out=held_out)
    language = LANGUAGES[number // 2 % len(LANGUAGES)]
    prompt = write_prompt(scene, emoji_set.emoji, language, rng)
    category = "one" if scene.relation is None else "two"
    return DrawingItem(
        f"emoji/drawing/{number}",
        prompt,
        category,
        describe(scene, emoji_set.emoji, "en"),
        partial(judge_drawing, emoji_set, scene),
    )


def judge_drawing(emoji_set: EmojiSet, scene: EmojiScene, image: np.ndarray) -> Judgement:
    """Whether the classifier reads in an image (H, W, 3) uint8 what a scene holds, where it holds it."""
    judge, wanted = find_judge(emoji_set), tuple(item.number for item in scene.items)
    read = (judge.read(image),) if scene.relation is None else judge.read_pair(image, scene.relation)
    names = ["nothing" if number == NOTHING else emoji_set.emoji[number].english for number in read]
    said = f" {scene.relation} ".join(names)
    return Judgement(read == wanted, said, "" if read == wanted else f"read as {said}")


@cache
def find_judge(emoji_set: EmojiSet) -> EmojiJudge:
    """The one classifier for these emoji that all tasks ask: fitting it takes seconds."""
    return EmojiJudge(emoji_set)


def check_font(font: str | Path | None = None) -> bool:
    """Whether the emoji world can be used here: there is a font, and the `emoji` package."""
    try:
        EmojiSet.open(font, "things", 2)
    except ValueError:
        return False
    return True
