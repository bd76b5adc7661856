"""Tasks on the world of shapes: unseen questions, captions, drawings of GenEval's six categories, held-out pairs.

Answers are judged by the scene's facts and drawings by a checker of pixels, without any learned model. Both languages are
asked in turn.
"""

from collections import Counter
from collections.abc import Iterable
from functools import partial

import numpy as np
from PIL import Image

from unimm.data.records import Record
from unimm.data.worlds.checker import read_objects, scene_is_exact
from unimm.data.worlds.drawing import (
    CATEGORIES,
    HELD_OUT,
    DrawingTask,
    Requirement,
    judge,
    make_drawing_task,
    name_look,
)
from unimm.data.worlds.scenes import SIDE, Shape
from unimm.data.worlds.shapes import ShapesWorld
from unimm.data.worlds.shapes_language import RELATION_WORDS, Appearance, caption_is_exact, describe, parse_caption
from unimm.data.worlds.shapes_questions import count_objects
from unimm.eval.task import Judgement
from unimm.eval.tasks.answers import Answers, Captions
from unimm.eval.tasks.drawings import MODEL_DEFAULTS, DrawingItem, Drawings, DrawingSettings


class ShapesAnswers(Answers):
    """Questions about scenes never trained on: colour, shape, size, count, existence, relation.

    split: "test", or "held_out" for scenes with pairs of colour and form that training never shows.
    """

    def __init__(self, num_items: int = 1000, seed: int = 0, split: str = "test"):
        name = "shapes_answers" if split == "test" else f"shapes_answers_{split}"
        super().__init__(name, ShapesWorld(split, num_records=num_items, seed=seed), num_items)


class ShapesCaptions(Captions):
    """Captions that name every object with size, colour and form, and invent none; relations are not looked at.

    Details: by the number of objects, and by language.
    """

    def __init__(self, num_items: int = 300, seed: int = 0, split: str = "test"):
        name = "shapes_captions" if split == "test" else f"shapes_captions_{split}"
        world = ShapesWorld(split, num_records=num_items, seed=seed)
        super().__init__(name, world, judge_caption, describe_record, num_items)


class ShapesDrawings(Drawings):
    """The six drawing categories, `num_each` prompts of each; the score is the mean of the six categories' scores."""

    def __init__(self, num_each: int = 40, settings: DrawingSettings = MODEL_DEFAULTS):
        # Categories in turn: any part of the drawings shows all of them.
        tasks = [(category, index) for index in range(num_each) for category in CATEGORIES]
        items = tuple(drawing_item(category, index, settings.seed) for category, index in tasks)
        super().__init__("shapes_drawings", items, settings, mean_of_categories=True)


class ShapesHeldOut(Drawings):
    """Drawings with a pair of colour and form that training never shows: whether the model composes."""

    def __init__(self, num_items: int = 120, settings: DrawingSettings = MODEL_DEFAULTS):
        items = tuple(drawing_item(HELD_OUT, index, settings.seed) for index in range(num_items))
        super().__init__("shapes_held_out", items, settings)


def drawing_item(category: str, index: int, seed: int) -> DrawingItem:
    """Prompt `index` of a category and how its drawing is judged."""
    task: DrawingTask = make_drawing_task(category, index, seed)
    required = task.requirement
    kind = name_held_out(required) if category == HELD_OUT else category
    key = f"shapes/drawing/{category}/{index}"
    return DrawingItem(key, task.prompt, kind, name_requirement(required), partial(judge_drawing, required))


def judge_drawing(requirement: Requirement, image: np.ndarray) -> Judgement:
    """What the checker reads in a drawing, (H, W, 3) uint8, and whether that is what was asked for."""
    verdict = judge(at_side(image), requirement)
    return Judgement(verdict.correct, name_shapes(verdict.found), "" if verdict.correct else verdict.reason)


def judge_caption(caption: str, record: Record) -> Judgement:
    """Whether a caption names all that the record's scene shows, and nothing else."""
    if caption_is_exact(caption, record.facts):
        return Judgement(True, caption)
    shown = Counter(describe(item) for item in record.facts.objects)
    named = Counter(parse_caption(caption))
    wrong = {"missing": shown - named, "invented": named - shown}
    reason = "; ".join(f"{word}: {name_looks(looks)}" for word, looks in wrong.items() if looks)
    return Judgement(False, caption, reason or "does not say that nothing is there")


def judge_reconstruction(image: np.ndarray, record: Record) -> Judgement:
    """Whether the checker reads the record's scene in an image (H, W, 3) uint8."""
    found = read_objects(at_side(image))
    correct = scene_is_exact(found, record.facts)
    return Judgement(correct, name_shapes(found), "" if correct else "read as another scene")


def describe_record(record: Record) -> tuple[str, str]:
    """The category of a scene, by its number of objects, and all that it shows."""
    count = len(record.facts.objects)
    return f"{count} object{'' if count == 1 else 's'}", name_shapes(record.facts.objects)


def name_held_out(requirement: Requirement) -> str:
    """Which kind of task a held-out one is: its own category says only that it is held out."""
    if requirement.relation:
        return "position"
    if len(requirement.groups) > 1:
        return "colour_attribution"
    return "counting" if sum(group.count for group in requirement.groups) > 1 else "colours"


def name_requirement(requirement: Requirement) -> str:
    """A requirement in English: "one red circle, two squares", "one red circle above one blue cross"."""
    groups = [count_objects(group.look, group.count, "en") for group in requirement.groups]
    relation = RELATION_WORDS["en"][requirement.relation][0] if requirement.relation else ""
    return (f" {relation} " if relation else ", ").join(groups)


def name_shapes(shapes: Iterable[Shape]) -> str:
    """The objects in English: "small red circle, large blue cross"; "nothing" where there are none."""
    return name_looks(Counter(describe(item) for item in shapes)) or "nothing"


def name_looks(looks: Counter[Appearance]) -> str:
    """Looks in English, each as often as it is counted."""
    return ", ".join(name_look(look) for look in looks.elements())


def at_side(image: np.ndarray) -> np.ndarray:
    """An image of any size as the checker reads it: its short side has 64 pixels."""
    if min(image.shape[:2]) == SIDE:
        return image
    height, width = (max(SIDE, round(length * SIDE / min(image.shape[:2]))) for length in image.shape[:2])
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
