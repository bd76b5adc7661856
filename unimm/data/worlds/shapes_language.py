"""What is said about drawn shapes, in English and Chinese: captions, drawing prompts, and a reader of captions.

Every text is built from groups: how many objects share a look, and the look as (size, colour, form), None where the
text does not say. A full caption names all three for every object, so `parse_caption` can compare it with the scene
exactly; a looser prompt leaves out size, or colour, or both, and is still true of the whole image. Each object is
mentioned once in a text, which is what makes reading back a matter of counting.
"""

import re
from collections import Counter
from dataclasses import dataclass

import numpy as np

from unimm.data.records import Text
from unimm.data.worlds.scenes import (
    COLOURS,
    FORMS,
    OPPOSITE,
    Scene,
    Shape,
    choose,
    find_relation,
)

LANGUAGES = ("en", "zh")

Appearance = tuple[str | None, str | None, str | None]
"""(size, colour, form); None where it is not said."""

DETAILS = {
    "full": (True, True, True),
    "colour": (False, True, True),
    "size": (True, False, True),
    "form": (False, False, True),
    "hue": (False, True, False),
}
"""Which of (size, colour, form) a text names."""


# The first word is the usual one and the only one in questions and answers.
WORDS = {
    "en": {"small": ("small", "little"), "large": ("large", "big")}
    | {colour: (colour,) for colour in COLOURS}
    | {form: (form,) for form in FORMS},
    "zh": {
        "small": ("小",),
        "large": ("大",),
        "red": ("红色",),
        "green": ("绿色",),
        "blue": ("蓝色",),
        "yellow": ("黄色",),
        "purple": ("紫色",),
        "orange": ("橙色",),
        "cyan": ("青色",),
        "white": ("白色",),
        "circle": ("圆形",),
        "square": ("正方形", "方块"),
        "triangle": ("三角形",),
        "cross": ("十字形", "十字"),
    },
}

NUMBERS = {"en": ("no", "one", "two", "three", "four"), "zh": ("零个", "一个", "两个", "三个", "四个")}

RELATION_WORDS = {
    "en": {
        "left": ("to the left of", "left of"),
        "right": ("to the right of", "right of"),
        "above": ("above", "over"),
        "below": ("below", "under"),
    },
    "zh": {"left": ("左边", "左侧"), "right": ("右边", "右侧"), "above": ("上面", "上方"), "below": ("下面", "下方")},
}

PLACE_WORDS = {
    "en": {
        "top left": "at the top left",
        "top": "at the top",
        "top right": "at the top right",
        "left": "on the left",
        "middle": "in the middle",
        "right": "on the right",
        "bottom left": "at the bottom left",
        "bottom": "at the bottom",
        "bottom right": "at the bottom right",
    },
    "zh": {
        "top left": "左上角",
        "top": "顶部",
        "top right": "右上角",
        "left": "左侧",
        "middle": "中间",
        "right": "右侧",
        "bottom left": "左下角",
        "bottom": "底部",
        "bottom right": "右下角",
    },
}

EMPTY = {
    "en": ("An empty picture.", "There is nothing in the picture.", "Nothing but a dark background."),
    "zh": ("空的画面。", "图中什么都没有。", "只有深色的背景，没有图形。"),
}

LIST_FRAMES = {
    "en": ("{}.", "There {be} {}.", "The picture shows {}.", "I can see {}."),
    "zh": ("{}。", "图中有{}。", "画面上有{}。", "可以看到{}。"),
}


@dataclass(frozen=True)
class Group:
    """So many objects of one look."""

    count: int
    look: Appearance


def describe(item: Shape, detail: str = "full") -> Appearance:
    """The look of a shape, with as much detail as asked for."""
    size, colour, form = DETAILS[detail]
    return (item.size if size else None, item.colour if colour else None, item.form if form else None)


def fits(item: Shape, look: Appearance) -> bool:
    """Whether an object has every attribute that a look names."""
    size, colour, form = look  # asked for so often that a generator would be a sixth of a plan's time
    return size in (None, item.size) and colour in (None, item.colour) and form in (None, item.form)


def group(objects: tuple[Shape, ...], looks: list[Appearance]) -> list[Group]:
    """Objects of one look put together, from left to right by the first of each group."""
    counts = Counter(look for _, look in from_left(objects, looks))
    return [Group(count, look) for look, count in counts.items()]


def from_left(objects: tuple[Shape, ...], looks: list[Appearance]) -> list[tuple[Shape, Appearance]]:
    """Objects and what is said of them, from left to right."""
    return sorted(zip(objects, looks, strict=True), key=lambda told: (told[0].x, told[0].y))


def find_pair(objects: tuple[Shape, ...], rng: np.random.Generator) -> tuple[Shape, str, Shape] | None:
    """Two objects that look like no others and the relation between them, where there are such."""
    counts = Counter(map(describe, objects))
    alone = [item for item in objects if counts[describe(item)] == 1]
    pairs = [(a, find_relation(a, b), b) for a in alone for b in alone if a != b]
    clear = [(a, relation, b) for a, relation, b in pairs if relation]
    return choose(rng, clear) if clear else None


def choose_word(meaning: str, language: str, rng: np.random.Generator | None) -> str:
    """A word for a size, colour or form: mostly the usual one, and always that without a generator."""
    words = WORDS[language][meaning]
    return words[0] if rng is None or len(words) == 1 or rng.random() < 0.7 else words[1]


def name_group(named: Group, language: str, rng: np.random.Generator) -> str:
    """A noun phrase: "two small red circles", "一个红色的小圆形"."""
    size, colour, form = (choose_word(word, language, rng) if word else "" for word in named.look)
    number = NUMBERS[language][named.count]
    if language == "en":
        plural = "" if named.count == 1 else "es" if form == "cross" else "s"
        adjectives = " ".join(word for word in (size, colour) if word)
        form = form or "object"
        first = adjectives or form
        article = ("an" if first[0] in "aeiou" else "a") if named.count == 1 else number
        return " ".join(word for word in (article, adjectives, form + plural) if word)
    form = form or "图形"
    if size and colour:
        return f"{number}{colour}的{size}{form}" if rng.random() < 0.5 else f"{number}{size}的{colour}{form}"
    return f"{number}{size}{colour}{form}"


def write_list(groups: list[Group], language: str, rng: np.random.Generator) -> str:
    """The groups in order: "a red circle, two blue squares and a cross"."""
    phrases = [name_group(named, language, rng) for named in groups]
    head, last = phrases[:-1], phrases[-1]
    if not head:
        return last
    return f"{', '.join(head)} and {last}" if language == "en" else f"{'、'.join(head)}和{last}"


def write_relation(
    a: Appearance, relation: str, b: Appearance, language: str, rng: np.random.Generator, verb: bool = False
) -> str:
    """Where a is, seen from b: "a red circle to the left of a blue cross"; with `verb`, as a sentence."""
    first, second = (name_group(Group(1, look), language, rng) for look in (a, b))
    words = choose(rng, RELATION_WORDS[language][relation])
    if language == "en":
        return f"{first} {'is ' if verb else ''}{words} {second}"
    return f"{second}的{words}有{first}" if verb else f"{first}在{second}的{words}"


def write_pair(a: Appearance, relation: str, b: Appearance, language: str, rng: np.random.Generator, verb: bool = False) -> str:
    """How two objects lie to each other, from the side of either."""
    if rng.random() < 0.5:
        a, relation, b = b, OPPOSITE[relation], a
    return write_relation(a, relation, b, language, rng, verb)


def choose_be(groups: list[Group]) -> str:
    """The verb after "there": it agrees with the first group."""
    return "is" if groups[0].count == 1 else "are"


def write_related(scene: Scene, language: str, rng: np.random.Generator) -> str | None:
    """A full caption that states a relation, and a second one or a list of what is left; None where none is clear."""
    pair = find_pair(scene.objects, rng)
    if pair is None:
        return None
    verb = rng.random() < 0.5
    a, relation, b = pair
    parts = [write_pair(describe(a), relation, describe(b), language, rng, verb)]
    rest = tuple(item for item in scene.objects if item not in (a, b))
    other = find_pair(rest, rng) if len(rest) == 2 and rng.random() < 0.5 else None
    if other:
        a, relation, b = other
        parts.append(write_pair(describe(a), relation, describe(b), language, rng, verb))
    elif rest:
        groups = group(rest, [describe(item) for item in rest])
        listed = write_list(groups, language, rng)
        there = f"there {choose_be(groups)} " if verb else ""
        parts.append(there + listed if language == "en" else f"还有{listed}")
    return (", and ".join(parts) + ".") if language == "en" else ("，".join(parts) + "。")


def write_caption(scene: Scene, language: str, rng: np.random.Generator) -> str:
    """One full caption: every object's size, colour and form, often with a relation where several are shown."""
    if not scene.objects:
        return choose(rng, EMPTY[language])
    related = write_related(scene, language, rng) if rng.random() < 0.6 else None
    if related is None:
        groups = group(scene.objects, [describe(item) for item in scene.objects])
        frame = choose(rng, LIST_FRAMES[language])
        related = frame.format(write_list(groups, language, rng), be=choose_be(groups))
    return related[0].upper() + related[1:]


def write_captions(scene: Scene, rng: np.random.Generator, num_each: int = 3) -> tuple[Text, ...]:
    """`num_each` full captions in each language; two of them may turn out the same."""
    return tuple(Text(write_caption(scene, lang, rng), lang) for lang in LANGUAGES for _ in range(num_each))


def compile_reader() -> tuple[re.Pattern, dict[str, tuple[str, str | int]]]:
    """The pattern of all words that count when a caption is read, and what each means: (slot, meaning)."""
    meanings: dict[str, tuple[str, str | int]] = {"a": ("count", 1), "an": ("count", 1)}
    for language, words in WORDS.items():
        for meaning, spellings in words.items():
            slot = "form" if meaning in FORMS else "colour" if meaning in COLOURS else "size"
            meanings |= dict.fromkeys(spellings, (slot, meaning))
        meanings |= {number: ("count", count) for count, number in enumerate(NUMBERS[language])}
    meanings |= {form + ("es" if form == "cross" else "s"): ("form", form) for form in FORMS}
    english = sorted((word for word in meanings if word.isascii()), key=len, reverse=True)
    chinese = sorted((word for word in meanings if not word.isascii()), key=len, reverse=True)
    return re.compile(rf"\b(?:{'|'.join(english)})\b|{'|'.join(chinese)}"), meanings


READER, MEANINGS = compile_reader()


def parse_caption(text: str) -> list[Appearance]:
    """The look of every object that a text mentions, in either language; two red circles are two entries.

    A size or colour that belongs to no form gives an entry without a form, so half a mention never goes unnoticed.
    """
    found: list[Appearance] = []
    pending: dict = {}

    def close(form: str | None) -> None:
        if form or "size" in pending or "colour" in pending:
            found.extend([(pending.get("size"), pending.get("colour"), form)] * pending.get("count", 1))
        pending.clear()

    for word in READER.findall(text.lower()):
        slot, meaning = MEANINGS[word]
        if slot == "form":
            close(str(meaning))
            continue
        if slot in pending or slot == "count":
            close(None)
        pending[slot] = meaning
    close(None)
    return found


def caption_is_exact(text: str, scene: Scene) -> bool:
    """Whether a caption names every object with its size, colour and form, invents none, and is not silent."""
    if not scene.objects:
        # Saying nothing at all must not pass for saying that there is nothing.
        says_so = re.search(r"\b(?:empty|nothing)\b|空|没有", text.lower())
        return bool(says_so) and not parse_caption(text)
    return Counter(parse_caption(text)) == Counter(describe(item) for item in scene.objects)
