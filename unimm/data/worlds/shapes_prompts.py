"""What is asked of who draws shapes, in English and Chinese: looser texts than captions, true of the whole picture.

Benchmarks ask in the style LOOSE. The others are for training alone: they name places, and colours without a form.
"""

from dataclasses import dataclass

import numpy as np

from unimm.data.records import Text
from unimm.data.worlds.scenes import Scene, Shape, choose, choose_weighted, find_place, find_relation
from unimm.data.worlds.shapes_language import (
    EMPTY,
    LANGUAGES,
    PLACE_WORDS,
    Appearance,
    Group,
    describe,
    from_left,
    group,
    name_group,
    parse_caption,
    write_list,
    write_pair,
)

PROMPT_FRAMES = {
    "en": ("{}", "{}", "a picture of {}", "draw {}"),
    "zh": ("{}", "{}", "一幅画：{}", "画{}"),
}


@dataclass(frozen=True)
class PromptStyle:
    """What looser prompts say.

    details: how often they name what of the objects; mixed: how often that is chosen for each object anew.
    related: how often they say how two objects lie to each other, where there are two and that is clear.
    placed: how often, of all others, in which part of the picture each object is.
    """

    details: dict[str, float]
    related: float = 0.5
    placed: float = 0.0
    mixed: float = 0.0


LOOSE = PromptStyle({"colour": 0.55, "form": 0.30, "size": 0.15})
"""What benchmarks ask for."""

# Who has heard every colour without a form can put it on a form that it was never seen on.
TEACHING = PromptStyle({"colour": 0.45, "form": 0.20, "size": 0.10, "hue": 0.25}, related=0.6, placed=0.3, mixed=0.3)
"""For training: places, and colours alone, too."""

PLACING = PromptStyle(TEACHING.details, related=0.2, placed=1.0, mixed=0.3)
"""A lesson in putting things where they are wanted."""

# A form without a colour may teach which colours it never had; who hears that seldom may draw it in those, too.
NAMING = PromptStyle(
    {"full": 0.10, "colour": 0.52, "form": 0.04, "size": 0.04, "hue": 0.30}, related=0.5, placed=0.2, mixed=0.2
)
"""A lesson in colours and forms that go together in every way."""

ARRANGING = PromptStyle({"full": 0.10, "colour": 0.75, "form": 0.05, "hue": 0.10}, related=0.8, placed=1.0)
"""A lesson in two things that lie to each other as they are wanted."""

RELATING = PromptStyle({"full": 0.05, "colour": 0.80, "form": 0.10, "hue": 0.05}, related=1.0, placed=0.5)
"""A lesson in how two things lie to each other, wherever that is clear."""

COUNTING = PromptStyle({"colour": 0.6, "form": 0.4}, related=0.0)
"""A lesson in how many."""

# "a yellow object" teaches which forms are never yellow, as "a cross" teaches in which colours no cross comes.
PAIRING = PromptStyle({"full": 0.12, "colour": 0.76, "form": 0.09, "size": 0.03}, related=0.5, placed=0.2)
"""A lesson in colours that are always said with a form."""

COUNTING_PAIRS = PromptStyle({"full": 0.05, "colour": 0.78, "form": 0.17}, related=0.0)
"""A lesson in how many, with the colour."""


def drawing_prompts(
    scene: Scene,
    rng: np.random.Generator,
    style: PromptStyle = LOOSE,
    languages: tuple[str, ...] = LANGUAGES,
    num_each: int = 2,
) -> tuple[Text, ...]:
    """`num_each` looser prompts in each language; vague is what leaves the colour of an object open."""
    prompts = [(write_prompt(scene, language, rng, style), language) for language in languages for _ in range(num_each)]
    return tuple(Text(text, language, vague=not names_colours(text)) for text, language in prompts)


def names_colours(text: str) -> bool:
    """Whether a text says the colour of all that it mentions."""
    return all(colour for _, colour, _ in parse_caption(text))


def write_prompt(scene: Scene, language: str, rng: np.random.Generator, style: PromptStyle = LOOSE) -> str:
    """One looser prompt, true of the whole scene: all objects are counted, but not everything about them is said."""
    if not scene.objects:
        return choose(rng, EMPTY[language])
    looks = choose_looks(scene.objects, style, rng)
    clear = len(looks) == 2 and looks[0] != looks[1] and find_relation(*scene.objects)
    if clear and rng.random() < style.related:
        words = write_pair(looks[0], clear, looks[1], language, rng)
    elif rng.random() < style.placed:
        words = write_places(scene.objects, looks, language, rng)
    else:
        words = write_list(group(scene.objects, looks), language, rng)
    return frame_prompt(words, language, rng)


def choose_looks(objects: tuple[Shape, ...], style: PromptStyle, rng: np.random.Generator) -> list[Appearance]:
    """What a prompt says of each object: mostly the same attributes of all."""

    def choose_detail() -> str:
        return list(style.details)[choose_weighted(rng, tuple(style.details.values()))]

    if style.mixed and rng.random() < style.mixed:
        return [describe(item, choose_detail()) for item in objects]
    detail = choose_detail()
    return [describe(item, detail) for item in objects]


def frame_prompt(words: str, language: str, rng: np.random.Generator) -> str:
    """The words as someone would type them who wants a picture: bare, or "a picture of ..."."""
    return choose(rng, PROMPT_FRAMES[language]).format(words)


def write_places(objects: tuple[Shape, ...], looks: list[Appearance], language: str, rng: np.random.Generator) -> str:
    """Every object and where in the picture it is: "a red circle at the top left and a blue cross in the middle"."""
    placed = []
    for item, look in from_left(objects, looks):
        named, place = name_group(Group(1, look), language, rng), PLACE_WORDS[language][find_place(item)]
        placed.append(f"{named} {place}" if language == "en" else f"{place}有{named}")
    return " and ".join(placed) if language == "en" else "，".join(placed)
