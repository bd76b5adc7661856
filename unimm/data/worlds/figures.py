"""The world of figures: a snowman, a house, a car, put together from the forms of the shapes world, with names of their own.

It is for trying out fine-tuning: few pictures of something new that the image tokenizer of the demo can show, since it knows
their parts, beside the worlds whose scores tell what was forgotten (recipes/keep_what_was_known.md). No figure shows a pair of
colour and form that is held out. Record `index` of a split depends on (seed, split, index) alone.
"""

# pyright: reportIncompatibleVariableOverride=false
# A record's parts are values to everyone who reads them, whether they were given or are made when asked for.

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from unimm.data.records import Question, Record, Text
from unimm.data.worlds.checker import read_objects
from unimm.data.worlds.scenes import BORDER, SIDE, Scene, Shape, choose, make_generator, render, shuffle
from unimm.runtime.number_checks import check_whole

SPLITS = ("train", "validation", "test")
LANGUAGES = ("en", "zh")

LARGE, NEAR, SMALL = 23, 19, 15
"""Pixels from centre to centre of two large shapes that nearly touch, of a large and a small one, of two small ones."""

Part = tuple[str, int, int]
"""A shape as "size colour form", and its centre in pixels to the right of and below the figure's origin."""


def _column(first: str, second: str, apart: int = NEAR) -> tuple[Part, ...]:
    return (first, 0, 0), (second, 0, apart)


def _three(one: str, other: str, third: str, down: bool) -> tuple[Part, ...]:
    """Small ones in a column or a row."""
    return tuple((name, 0 if down else SMALL * n, SMALL * n if down else 0) for n, name in enumerate((one, other, third)))


FIGURES: dict[str, tuple[str, tuple[Part, ...]]] = {
    "snowman": ("雪人", _column("small white circle", "large white circle")),
    "house": ("房子", _column("large red triangle", "large white square", LARGE)),
    "rocket": ("火箭", _three("small red triangle", "small white square", "small yellow circle", down=True)),
    "traffic light": ("红绿灯", _three("small red circle", "small yellow circle", "small green circle", down=True)),
    "bear": ("熊", (("small purple circle", -8, 0), ("small purple circle", 8, 0), ("large purple circle", 0, NEAR))),
    "car": ("汽车", (("large blue square", 0, 0), ("small white circle", -8, NEAR), ("small white circle", 8, NEAR))),
    "dumbbell": ("哑铃", _three("small blue square", "small white cross", "small blue square", down=False)),
    "flower": ("花", _column("large yellow circle", "small green square")),
    "lamp": ("台灯", _column("large yellow triangle", "small blue square")),
    "church": ("教堂", _column("small white cross", "large blue triangle")),
    "tower": ("塔", _three("small orange square", "small orange square", "small orange square", down=True)),
    "mushroom": ("蘑菇", _column("large red circle", "small white square")),
    "tree": ("树", _column("large cyan triangle", "small orange square")),
    "candle": ("蜡烛", _column("small yellow circle", "small red square", SMALL)),
    "hospital": ("医院", _column("small red cross", "large white square")),
    "train": ("火车", _three("small green square", "small green square", "small green square", down=False)),
    "necklace": ("项链", _three("small cyan circle", "small cyan circle", "small cyan circle", down=False)),
    "robot": ("机器人", _column("small green square", "large green square")),
    "ice cream": ("冰淇淋", _column("large white circle", "small orange triangle")),
    "windmill": ("风车", _column("large cyan cross", "small white triangle")),
}
"""Each by its English name: its Chinese one, and its parts."""

CAPTIONS = {
    "en": ("{A}.", "A picture of {a}.", "You can see {a}.", "This is {a}."),
    "zh": ("{a}。", "一张{a}的图片。", "可以看到{a}。", "这是{a}。"),
}
PROMPTS = {"en": ("{a}", "draw {a}", "a picture of {a}"), "zh": ("{a}", "画{a}", "一张{a}的图片")}
QUESTIONS = {"en": ("What is this?", "What does the picture show?"), "zh": ("这是什么？", "图片里是什么？")}

TOLERANCE = 4.0
"""Pixels that a part may stand away from its place in the figure."""


@dataclass(frozen=True)
class FigureFacts:
    """The figure's English name, and the shapes that make it."""

    name: str
    scene: Scene


class FiguresWorld:
    """Pictures of one figure, 64 x 64 px, with captions, prompts and a question in English and Chinese, `FigureFacts` as facts.

    The figures come in turn, each time at another place and on another ground: 100 records show each of the twenty five times.

    Raises ValueError for an unknown split, IndexError outside the records.
    """

    def __init__(self, split: str = "train", num_records: int = 100, seed: int = 0) -> None:
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")
        self.split, self.num_records, self.seed = split, num_records, seed
        check_whole(self, 0, "num_records", "seed")

    def __len__(self) -> int:
        return self.num_records

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < self.num_records:
            raise IndexError(f"index {index} is outside 0..{self.num_records - 1}")
        return FigureRecord(self.seed, self.split, index)


class FigureRecord(Record):
    """One picture. Every part has a generator of its own, so it is made when it is first asked for, and always the same."""

    def __init__(self, seed: int, split: str, index: int) -> None:
        vars(self).update(key=f"figures/{split}/{index}", _place=(seed, split, index))

    def _generator(self, purpose: str) -> np.random.Generator:
        seed, split, index = vars(self)["_place"]
        return make_generator(seed, split, index, purpose)

    @cached_property
    def facts(self) -> FigureFacts:
        name = name_figure(vars(self)["_place"][2])
        return FigureFacts(name, make_figure(name, self._generator("scene")))

    @cached_property
    def image(self) -> np.ndarray:
        return render(self.facts.scene)

    @cached_property
    def captions(self) -> tuple[Text, ...]:
        return _write(CAPTIONS, self.facts.name, self._generator("captions"))

    @cached_property
    def prompts(self) -> tuple[Text, ...]:
        return _write(PROMPTS, self.facts.name, self._generator("prompts"))

    @cached_property
    def questions(self) -> tuple[Question, ...]:
        rng, name = self._generator("questions"), self.facts.name
        answers = {"en": name, "zh": FIGURES[name][0]}
        return tuple(Question(choose(rng, QUESTIONS[one]), answers[one], "name", one) for one in LANGUAGES)


def name_figure(number: int) -> str:
    """The figures in turn."""
    return tuple(FIGURES)[number % len(FIGURES)]


def make_figure(name: str, rng: np.random.Generator) -> Scene:
    """The figure anywhere in the picture, wholly inside. KeyError: there is no such figure."""
    shapes = _parts(name)
    low, high = (np.array([(one.x, one.y) for one in shapes]).T + sign * _reach(shapes) for sign in (-1, 1))
    x, y = (
        choose(rng, range(BORDER - int(start.min()), SIDE - BORDER - int(end.max())))
        for start, end in zip(low, high, strict=True)
    )
    tone = 12 + 20 * rng.random()
    red, green, blue = (round(tone + 8 * rng.random()) for _ in range(3))
    placed = (Shape(one.size, one.colour, one.form, one.x + x, one.y + y) for one in shapes)
    return Scene(tuple(placed), (red, green, blue))


def describe(name: str, language: str) -> str:
    """ "a snowman", in a language."""
    if language == "zh":
        return FIGURES[name][0]
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def write_prompt(name: str, number: int) -> Text:
    """Drawing prompt `number`: languages alternate, wordings go round."""
    language = LANGUAGES[number % 2]
    patterns = PROMPTS[language]
    return Text(patterns[number // 2 % len(patterns)].format(a=describe(name, language)), language)


def find_problem(image: np.ndarray, name: str) -> str | None:
    """What is wrong with a drawing (64, 64, 3) uint8 of a figure, in words, or None; as the shapes world's checker reads it."""
    found = read_objects(image)
    wanted = _parts(name)
    said = ", ".join(f"{one.size} {one.colour} {one.form}" for one in found) or "nothing"
    if sorted(_looks(found)) != sorted(_looks(wanted)):
        return f"shows {said}"
    found, wanted = (
        sorted(shapes, key=lambda one: (one.size, one.colour, one.form, one.x, one.y)) for shapes in (found, wanted)
    )
    places = [np.array([(one.x, one.y) for one in shapes], dtype=np.float64) for shapes in (found, wanted)]
    offsets = [points - points.mean(0) for points in places]
    if len(found) > 1 and np.abs(offsets[0] - offsets[1]).max() > TOLERANCE:
        # Parts that look alike may have been sorted otherwise, where they stand nearly at one height.
        swapped = sorted(found, key=lambda one: (one.size, one.colour, one.form, one.y, one.x))
        points = np.array([(one.x, one.y) for one in swapped], dtype=np.float64)
        if np.abs(points - points.mean(0) - offsets[1]).max() > TOLERANCE:
            return f"shows {said}, elsewhere"
    return None


def _parts(name: str) -> list[Shape]:
    """A figure's shapes, about its origin."""
    parts = []
    for words, x, y in FIGURES[name][1]:
        size, colour, form = words.split()
        parts.append(Shape(size, colour, form, x, y))
    return parts


def _reach(shapes: list[Shape]) -> np.ndarray:
    """Half the width of each shape's box in whole pixels."""
    return np.array([int(one.radius) for one in shapes])


def _looks(shapes: list[Shape]) -> list[tuple[str, str, str]]:
    return [(one.size, one.colour, one.form) for one in shapes]


def _write(patterns: dict[str, tuple[str, ...]], name: str, rng: np.random.Generator) -> tuple[Text, ...]:
    """Two wordings a language."""
    texts = []
    for language in LANGUAGES:
        phrase = describe(name, language)
        for pattern in shuffle(rng, patterns[language])[:2]:
            texts.append(Text(pattern.format(a=phrase, A=phrase[0].upper() + phrase[1:]), language))
    return tuple(texts)
