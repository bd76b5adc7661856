"""Instructions that change drawn scenes, in English and Chinese, in the words and places of the shapes world."""

import numpy as np

from unimm.data.records import Text
from unimm.data.worlds.edits_scenes import Edit
from unimm.data.worlds.scenes import choose
from unimm.data.worlds.shapes_language import LANGUAGES, PLACE_WORDS, Appearance, Group, choose_word, name_group

FRAMES = {
    "en": {
        "recolour": ("make {the} {colour}", "change the colour of {the} to {colour}", "paint {the} {colour}"),
        "move": ("move {the} so that it is {place}", "put {the} {place}", "move {the}, I want it {place}"),
        "add": ("add {a} {place}", "draw {a} {place}", "put {a} {place}"),
        "remove": ("remove {the}", "take {the} away", "delete {the}"),
        "large": ("make {the} larger", "make {the} bigger", "enlarge {the}"),
        "small": ("make {the} smaller", "shrink {the}"),
        "replace": ("replace {the} with {a}", "turn {the} into {a}", "swap {the} for {a}"),
        "keep": ("keep everything as it is", "change nothing", "leave the picture as it is"),
    },
    "zh": {
        "recolour": ("把{the}变成{colour}", "将{the}改为{colour}", "把{the}涂成{colour}"),
        "move": ("把{the}移到{place}", "将{the}放到{place}"),
        "add": ("在{place}添加{a}", "在{place}画{a}", "{place}加上{a}"),
        "remove": ("去掉{the}", "删除{the}", "把{the}拿走"),
        "large": ("把{the}变大", "放大{the}"),
        "small": ("把{the}变小", "缩小{the}"),
        "replace": ("把{the}换成{a}", "将{the}替换为{a}"),
        "keep": ("什么都不要改", "保持原样", "图片保持不变"),
    },
}
"""What is said, by kind; of a resize by the size that is asked for."""


def write_instruction(edit: Edit, language: str, rng: np.random.Generator) -> Text:
    """One instruction for an edit."""
    asks = edit.asks or edit.kind
    frame = choose(rng, FRAMES[language][edit.new_look[0] or "" if asks == "resize" else asks])
    colour = edit.new_look[1]
    words = {
        "the": _definite(edit.look, language, rng) if any(edit.look) else "",
        "a": name_group(Group(1, edit.new_look), language, rng) if asks in ("add", "replace") else "",
        "colour": choose_word(colour, language, None) if colour else "",
        "place": PLACE_WORDS[language].get(edit.place, ""),
    }
    return Text(frame.format(**words), language)


def write_instructions(edit: Edit, rng: np.random.Generator, num_each: int = 2) -> tuple[Text, ...]:
    """`num_each` instructions in each language; two of them may turn out the same."""
    return tuple(write_instruction(edit, language, rng) for language in LANGUAGES for _ in range(num_each))


def _definite(look: Appearance, language: str, rng: np.random.Generator) -> str:
    """What is there already: "the red circle", 红色的圆形."""
    named = name_group(Group(1, look), language, rng)
    if language == "en":
        return f"the {named.split(' ', 1)[1]}"
    return named.removeprefix("一个")
