"""Near misses: a prompt changed so little that a picture of it is nearly right for the prompt as it was (OSPO, 2506.02015).

    replace    "a red circle and a blue cross"     a word by another of its class:   "a green circle and a blue cross"
    swap                                           two words of one class:           "a blue circle and a red cross"
    drop                                           a word that may be left out:      "a circle and a blue cross"

Classes are colours, sizes, numbers, forms and how things lie to each other, in English and Chinese. A rule over words, without
a parser: a prompt that names none of them has no near miss. No near miss asks for a pair of colour and form of the shapes world
that is held out.
"""

import re
from collections import Counter

import numpy as np

from unimm.data.worlds.scenes import HELD_OUT_PAIRS
from unimm.data.worlds.shapes_language import parse_caption

CLASSES = {
    "en": (
        ("red", "green", "blue", "yellow", "purple", "orange", "cyan", "white", "black", "brown", "pink"),
        ("small", "large"),
        ("little", "big"),
        ("two", "three", "four"),
        ("circle", "square", "triangle"),
        ("circles", "squares", "triangles"),
        ("to the left of", "to the right of"),
        ("left of", "right of"),
        ("above", "below"),
        ("over", "under"),
    ),
    "zh": (
        ("红色", "绿色", "蓝色", "黄色", "紫色", "橙色", "青色", "白色"),
        ("两个", "三个", "四个"),
        ("圆形", "正方形", "三角形", "十字形"),
        ("左边", "右边"),
        ("左侧", "右侧"),
        ("上面", "下面"),
        ("上方", "下方"),
    ),
}
"""Words of one class stand for each other. Longer ones come first: each word is read once."""

MAY_BE_DROPPED = {"en": (0, 1, 2), "zh": (0,)}
"""Classes whose words can be left out."""

EDITS = ("replace", "swap", "drop")


def near_misses(prompt: str, language: str, rng: np.random.Generator, num_each: int = 1) -> list[str]:
    """Up to `num_each` near misses by each of the three edits, in random order, none twice."""
    found = _words(prompt, language)
    made: list[str] = []
    for edit in EDITS:
        options = [one for one in dict.fromkeys(_edited(prompt, found, edit, language)) if _is_fit(one, prompt)]
        made += [options[place] for place in rng.permutation(len(options))[:num_each]]
    made = list(dict.fromkeys(made))
    return [made[place] for place in rng.permutation(len(made))]


def says_less(edited: str, prompt: str, language: str) -> bool:
    """Whether an edited prompt only leaves words out: what shows the prompt then shows it, too."""
    own, before = (Counter(text[begin:end] for _, begin, end in _words(text, language)) for text in (edited, prompt))
    return own < before


def asks_for_held_out(prompt: str) -> bool:
    """Whether a prompt names a pair of colour and form that the shapes world holds out."""
    return any((colour, form) in HELD_OUT_PAIRS for _, colour, form in parse_caption(prompt))


def _words(prompt: str, language: str) -> list[tuple[int, int, int]]:
    """Class, begin and end of each word that has a class, in reading order."""
    classes = CLASSES.get(language, ())
    known = {word: number for number, words in enumerate(classes) for word in words}
    pattern = "|".join(map(re.escape, sorted(known, key=len, reverse=True)))
    if not pattern:
        return []
    bounded = rf"\b(?:{pattern})\b" if language == "en" else pattern
    return [(known[one[0]], one.start(), one.end()) for one in re.finditer(bounded, prompt)]


def _edited(prompt: str, found: list[tuple[int, int, int]], edit: str, language: str) -> list[str]:
    """All ways to edit a prompt so."""
    if edit == "drop":
        droppable = [one for one in found if one[0] in MAY_BE_DROPPED[language]]
        return [_tidied(prompt[:begin] + prompt[end:].lstrip(), language) for _, begin, end in droppable]
    if edit == "swap":
        pairs = [(a, b) for place, a in enumerate(found) for b in found[place + 1 :] if a[0] == b[0]]
        return [
            _tidied(prompt[:i] + prompt[k:m] + prompt[j:k] + prompt[i:j] + prompt[m:], language)
            for (_, i, j), (_, k, m) in pairs
        ]
    return [
        _tidied(prompt[:begin] + other + prompt[end:], language)
        for number, begin, end in found
        for other in CLASSES[language][number]
        if other != prompt[begin:end]
    ]


def _is_fit(edited: str, prompt: str) -> bool:
    return edited != prompt and not asks_for_held_out(edited)


def _tidied(text: str, language: str) -> str:
    """The articles that go with what follows."""
    if language != "en":
        return text
    return re.sub(r"\b([Aa])n? (?=([a-z]))", lambda one: f"{one[1]}{'n' if one[2] in 'aeiou' else ''} ", text)
