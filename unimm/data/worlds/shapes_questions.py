"""Questions about drawn shapes with one right answer each, and plain sentences about their world, in two languages.

A question is only asked where its answer cannot be disputed: an object is named by what tells it apart from all others,
a relation only where it is clear. Whether the answer will be yes or no is decided before the question is made, and
what is not there is asked for as if it could be, so a guesser who does not look gains little (CLEVR's and GQA's concern).
"""

import numpy as np

from unimm.data.records import Question, Text
from unimm.data.worlds.scenes import (
    OPPOSITE,
    RELATIONS,
    SIZES,
    TRAINING_PAIRS,
    Scene,
    Shape,
    choose,
    find_place,
    find_relation,
    shuffle,
)
from unimm.data.worlds.shapes_language import (
    LANGUAGES,
    NUMBERS,
    PLACE_WORDS,
    RELATION_WORDS,
    WORDS,
    Appearance,
    Group,
    choose_word,
    describe,
    fits,
    name_group,
)
from unimm.data.worlds.shapes_matches import ask_match

CATEGORIES = ("colour", "shape", "size", "count", "existence", "relation")
"""What benchmarks ask about."""

WITH_PLACES = (*CATEGORIES, "relation", "relation", "place", "find")
"""What training may ask about: who can say where one thing is learns sooner where it is from another."""

FULLY_NAMED = 0.6
"""How often an object that is asked for is named by colour and form where less would do."""


# {} is the object or the kind of object asked about; for relations {a}, {b} and the words between them.
TEMPLATES = {
    "en": {
        "colour": ("What colour is {}?", "What color is {}?", "Which colour is {}?"),
        "shape": ("What shape is {}?", "Which shape is {}?", "What is the shape of {}?"),
        "size": ("Is {} small or large?", "Is {} large or small?", "What size is {}?"),
        "count": ("How many {} are there?", "How many {} are in the picture?", "Count the {}."),
        "existence": ("Is there {}?", "Is there {} in the picture?", "Do you see {}?"),
        "relation": ("Is {a} {words} {b}?",),
        "side": ("On which side of {b} is {a}?", "Where is {a}, seen from {b}?"),
        "place": ("Where is {}?", "Where in the picture is {}?"),
        "find": ("Find {}.", "Point at {}."),
    },
    "zh": {
        "colour": ("{}是什么颜色？", "{}是什么颜色的？", "{}的颜色是什么？"),
        "shape": ("{}是什么形状？", "{}的形状是什么？"),
        "size": ("{}是大还是小？", "{}是小的还是大的？"),
        "count": ("有几个{}？", "图中有几个{}？", "{}有多少个？"),
        "existence": ("有{}吗？", "图中有{}吗？", "能看到{}吗？"),
        "relation": ("{a}在{b}的{words}吗？",),
        "side": ("{a}在{b}的哪一边？", "{a}在{b}的哪个方向？"),
        "place": ("{}在哪里？", "{}在图中的什么位置？"),
        "find": ("找到{}。", "指出{}。"),
    },
}

ANSWERS = {
    "en": {"yes": "yes", "no": "no"} | {relation: relation for relation in RELATIONS},
    "zh": {"yes": "是", "no": "否"} | {relation: RELATION_WORDS["zh"][relation][0] for relation in RELATIONS},
}

SENTENCES = {
    "en": (
        "A triangle has three sides and three corners.",
        "A square has four equal sides and four corners.",
        "A circle is round and has no corners.",
        "A cross has four arms of the same length.",
        "A large shape is bigger than a small shape.",
        "The shapes never overlap.",
        "The background is dark.",
        "There are at most four shapes in a picture.",
        "Every shape has a size, a colour and a form.",
        "A shape is small or large.",
        "A shape is a circle, a square, a triangle or a cross.",
        "The colours are red, green, blue, yellow, purple, orange, cyan and white.",
    ),
    "zh": (
        "三角形有三条边和三个角。",
        "正方形有四条相等的边和四个角。",
        "圆形是圆的，没有角。",
        "十字形有四个一样长的臂。",
        "大图形比小图形大。",
        "图形从不重叠。",
        "背景是深色的。",
        "一幅图里最多有四个图形。",
        "每个图形都有大小、颜色和形状。",
        "图形有小的，也有大的。",
        "图形是圆形、正方形、三角形或十字形。",
        "颜色有红色、绿色、蓝色、黄色、紫色、橙色、青色和白色。",
    ),
}


def find_reference(item: Shape, objects: tuple[Shape, ...], hidden: str, rng: np.random.Generator) -> Appearance | None:
    """A look that fits this object alone and does not give away the attribute asked about, or None."""
    masks = [
        (size, colour, form)
        for size in (False, True)
        for colour in (False, True)
        for form in (False, True)
        if not ((hidden == "size" and size) or (hidden == "colour" and colour) or (hidden == "form" and form))
    ]
    looks = [mask_look(item, mask) for mask in masks]
    unique = [look for look in looks if sum(fits(other, look) for other in objects) == 1]
    shortest = min((count_words(look) for look in unique), default=0)
    # "The object" would do where there is only one, but then the words would teach nothing about looking for it.
    plain = [look for look in unique if count_words(look) <= max(shortest, 1)]
    return choose(rng, plain) if plain else None


def find_name(item: Shape, objects: tuple[Shape, ...]) -> Appearance | None:
    """Colour and form of an object, and its size where it takes that to tell it apart; None where nothing does."""
    looks = [describe(item, "colour"), describe(item)]
    return next((look for look in looks if sum(fits(other, look) for other in objects) == 1), None)


def mask_look(item: Shape, mask: tuple[bool, bool, bool]) -> Appearance:
    """The look of an object with only the attributes that the mask (size, colour, form) lets through."""
    size, colour, form = mask
    return (item.size if size else None, item.colour if colour else None, item.form if form else None)


def count_words(look: Appearance) -> int:
    """How many attributes a look names."""
    return sum(word is not None for word in look)


def name_look(look: Appearance, language: str, plural: bool = False) -> str:
    """The bare noun of a look, its form or "object": "small red circle", "小的红色图形"."""
    size, colour, form = (choose_word(word, language, None) if word else "" for word in look)
    if language == "en":
        noun = form or "object"
        noun += ("es" if noun == "cross" else "s") if plural else ""
        return " ".join(word for word in (size, colour, noun) if word)
    return f"{size}{'的' if size and colour else ''}{colour}{form or '图形'}"


def name_reference(look: Appearance, language: str) -> str:
    """The object that a look fits: "the red circle"."""
    return f"the {name_look(look, language)}" if language == "en" else name_look(look, language)


def ask_attribute(category: str, scene: Scene, language: str, rng: np.random.Generator) -> Question | None:
    """What is the colour, shape or size of one object that the question can single out?"""
    hidden = "form" if category == "shape" else category
    for item in shuffle(rng, scene.objects):
        look = find_reference(item, scene.objects, hidden, rng)
        if look:
            text = choose(rng, TEMPLATES[language][category]).format(name_reference(look, language))
            answer = WORDS[language][getattr(item, hidden)][0]
            return Question(text[0].upper() + text[1:], answer, category, language)
    return None


def ask_count(scene: Scene, language: str, rng: np.random.Generator) -> Question:
    """How many objects are there, of a form, a colour, or both? The answer is a digit."""
    look: Appearance = (None, None, None)
    count = 0
    for _ in range(2):
        kind = choose(rng, ("all", "form", "form", "colour", "pair"))
        shown = choose(rng, scene.objects) if scene.objects and rng.random() < 0.75 else None
        colour, form = (shown.colour, shown.form) if shown else choose(rng, TRAINING_PAIRS)
        look = (None, colour if kind in ("colour", "pair") else None, form if kind in ("form", "pair") else None)
        count = sum(fits(item, look) for item in scene.objects)
        if count != 1:  # one is what most attributes of most scenes count to: asked for half as often
            break
    text = choose(rng, TEMPLATES[language]["count"]).format(name_look(look, language, plural=True))
    return Question(text, str(count), "count", language)


def ask_existence(scene: Scene, language: str, rng: np.random.Generator) -> Question | None:
    """Is there such an object? Half the answers are no; half of what is not there differs in one attribute only."""
    mask = choose(rng, ((False, True, True), (False, True, True), (False, True, False), (False, False, True)))
    wanted = bool(scene.objects) and rng.random() < 0.515  # empty scenes can only answer no; this evens it out
    if wanted:
        look = mask_look(choose(rng, scene.objects), mask)
    else:
        pairs = list(TRAINING_PAIRS)
        if scene.objects and rng.random() < 0.5:
            near = choose(rng, scene.objects)
            pairs = [pair for pair in pairs if (pair[0] == near.colour) != (pair[1] == near.form)]
        looks = [mask_look(Shape("small", colour, form, 0, 0), mask) for colour, form in pairs]
        absent = [look for look in looks if not any(fits(item, look) for item in scene.objects)]
        if not absent:
            return None
        look = choose(rng, absent)
    named = name_look(look, language)
    if language == "en":
        named = f"{'an' if named[0] in 'aeiou' else 'a'} {named}"
    answer = ANSWERS[language]["yes" if wanted else "no"]
    return Question(choose(rng, TEMPLATES[language]["existence"]).format(named), answer, "existence", language)


def ask_relation(scene: Scene, language: str, rng: np.random.Generator) -> Question | None:
    """Is a to the left of b (yes, or no where it is opposite), or: on which side of b is a?"""
    pairs = [(a, b) for a in scene.objects for b in scene.objects if a != b and find_relation(a, b)]
    for a, b in shuffle(rng, pairs)[:4]:
        looks = [find_reference(item, scene.objects, "", rng) for item in (a, b)]
        relation = find_relation(a, b)
        if looks[0] is None or looks[1] is None or relation is None:
            continue
        names = {"a": name_reference(looks[0], language), "b": name_reference(looks[1], language)}
        if rng.random() < 0.35:
            text = choose(rng, TEMPLATES[language]["side"]).format(**names)
            return Question(text, ANSWERS[language][relation], "relation", language)
        answer = choose(rng, ("yes", "no"))
        words = choose(rng, RELATION_WORDS[language][relation if answer == "yes" else OPPOSITE[relation]])
        text = choose(rng, TEMPLATES[language]["relation"]).format(words=words, **names)
        return Question(text, ANSWERS[language][answer], "relation", language)
    return None


def ask_place(category: str, scene: Scene, language: str, rng: np.random.Generator) -> Question | None:
    """In which third of the picture, across and down, is one object that the question can single out?

    category: "place" is answered by the place alone; "find" and "find_by_name" by the object's name and, right after it, the
        place. Objects are named by colour and form more often than they need be, by "find_by_name" always.
    """
    fully = 1.0 if category == "find_by_name" else FULLY_NAMED
    kind = "place" if category == "place" else "find"
    for item in shuffle(rng, scene.objects):
        named = find_name(item, scene.objects) if rng.random() < fully else None
        look = named or find_reference(item, scene.objects, "", rng)
        if look is None:
            continue
        text = choose(rng, TEMPLATES[language][kind]).format(name_reference(look, language))
        place, name = find_place(item), name_look(look, language)
        answer = words = PLACE_WORDS[language][place]
        if kind == "find":
            answer = f"{name} {place}" if language == "en" else name + words
        return Question(text, answer, kind, language)
    return None


def ask(category: str, scene: Scene, language: str, rng: np.random.Generator) -> Question | None:
    """A question of one category, or None where the scene allows no clear one."""
    if category == "count":
        return ask_count(scene, language, rng)
    if category == "existence":
        return ask_existence(scene, language, rng)
    if category == "relation":
        return ask_relation(scene, language, rng)
    if category == "match":
        return ask_match(scene, language, rng)
    if category in ("place", "find", "find_by_name"):
        return ask_place(category, scene, language, rng)
    return ask_attribute(category, scene, language, rng)


def write_questions(
    scene: Scene,
    rng: np.random.Generator,
    categories: tuple[str, ...] = CATEGORIES,
    languages: tuple[str, ...] = LANGUAGES,
) -> tuple[Question, ...]:
    """Up to four more questions than categories: one of each that the scene allows, languages in turn."""
    wanted = list(categories) + [choose(rng, categories) for _ in range(4)]
    first = int(rng.random() * 2)
    ways = [(category, languages[(first + n) % len(languages)]) for n, category in enumerate(shuffle(rng, wanted))]
    asked = [ask(category, scene, language, rng) for category, language in ways]
    return tuple({question.text: question for question in asked if question}.values())


def write_text(rng: np.random.Generator) -> Text:
    """A plain sentence about the world of shapes; it needs no picture."""
    language = choose(rng, LANGUAGES)
    kind = choose(rng, ("fact", "relation", "size", "sum"))
    (colour, form), (other_colour, other_form) = choose(rng, TRAINING_PAIRS), choose(rng, TRAINING_PAIRS)
    if kind == "fact":
        return Text(choose(rng, SENTENCES[language]), language)
    if kind == "relation" and (colour, form) != (other_colour, other_form):
        return Text(write_inverse((None, colour, form), (None, other_colour, other_form), language, rng), language)
    if kind == "sum":
        return Text(write_sum((None, colour, form), language, rng), language)
    small, large = (name_group(Group(1, (size, colour, form)), language, rng) for size in SIZES)
    sentence = f"{large} is bigger than {small}." if language == "en" else f"{large}比{small}大。"
    return Text(sentence[0].upper() + sentence[1:], language)


def write_inverse(a: Appearance, b: Appearance, language: str, rng: np.random.Generator) -> str:
    """What a relation means from the other side."""
    first, second = name_reference(a, language), name_reference(b, language)
    relation = choose(rng, RELATIONS)
    words, inverse = (RELATION_WORDS[language][which][0] for which in (relation, OPPOSITE[relation]))
    if language == "en":
        return f"If {first} is {words} {second}, then {second} is {inverse} {first}."
    return f"如果{first}在{second}的{words}，那么{second}在{first}的{inverse}。"


def write_sum(look: Appearance, language: str, rng: np.random.Generator) -> str:
    """A sum of objects: "One red circle and two red circles are three red circles"."""
    first = 1 + int(rng.random() * 3)
    second = 1 + int(rng.random() * (4 - first))
    one, two, total = (count_objects(look, count, language) for count in (first, second, first + second))
    if language == "en":
        return f"{one[0].upper() + one[1:]} and {two} are {total}."
    return f"{one}加{two}是{total}。"


def count_objects(look: Appearance, count: int, language: str) -> str:
    """A number and a noun: "two red circles", "两个红色圆形"."""
    space = " " if language == "en" else ""
    return NUMBERS[language][count] + space + name_look(look, language, plural=count > 1)
