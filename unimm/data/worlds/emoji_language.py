"""What is said about scenes of emoji, in English and Chinese: captions, drawing prompts, questions, plain sentences."""

import numpy as np

from unimm.data.records import Question, Text
from unimm.data.worlds.emoji_pictures import Emoji
from unimm.data.worlds.emoji_scenes import OPPOSITE, RELATIONS, EmojiScene

LANGUAGES = ("en", "zh")

CATEGORIES = ("name", "find", "place", "identity", "count")
"""name: what an emoji that is alone is called. find: which of two lies somewhere. place: where one of two is. identity: whether
one is there. count: how many there are."""

CAPTIONS = {
    "one": {
        "en": ("{A}.", "A picture of {a}.", "You can see {a}."),
        "zh": ("{a}。", "一张{a}的图片。", "这是{a}。"),
    },
    "two": {
        "en": ("{A}.", "A picture of {a}.", "You can see {a}."),
        "zh": ("{a}。", "图片里，{a}。", "可以看到{a}。"),
    },
}
PROMPTS = {
    "one": {"en": ("{a}", "draw {a}", "a picture of {a}"), "zh": ("{a}", "画{a}", "一张{a}的图片")},
    "two": {"en": ("{a}", "draw {a}", "a picture of {a}"), "zh": ("{a}", "画{a}", "请画：{a}")},
}
"""Of two, {a} is both with their relation."""

BESIDE = {
    "en": {
        "left": "{a} to the left of {b}",
        "right": "{a} to the right of {b}",
        "above": "{a} above {b}",
        "below": "{a} below {b}",
    },
    "zh": {"left": "{a}在{b}左边", "right": "{a}在{b}右边", "above": "{a}在{b}上面", "below": "{a}在{b}下面"},
}
TOGETHER = {"en": "{a} and {b}", "zh": "{a}和{b}"}
NAME = {
    "en": ("What is this?", "What is in the picture?", "What do you see?"),
    "zh": ("这是什么？", "图片里是什么？", "你看到什么？"),
}
FIND = {
    "en": {
        "left": "What is to the left of {b}?",
        "right": "What is to the right of {b}?",
        "above": "What is above {b}?",
        "below": "What is below {b}?",
    },
    "zh": {"left": "{b}左边是什么？", "right": "{b}右边是什么？", "above": "{b}上面是什么？", "below": "{b}下面是什么？"},
}
PLACE = {"en": ("Where do you see {a}?",), "zh": ("{a}在哪里？",)}
PLACES = {
    "en": {"left": "left", "right": "right", "above": "top", "below": "bottom"},
    "zh": {"left": "左边", "right": "右边", "above": "上面", "below": "下面"},
}
IDENTITY = {"en": ("Do you see {a}?", "Can you see {a}?"), "zh": ("有{a}吗？", "你看到{a}了吗？")}
COUNT = {"en": ("How many things are there?",), "zh": ("有几样东西？",)}
YES_NO = {"en": ("no", "yes"), "zh": ("否", "是")}
SENTENCES = {"en": ("In Chinese, {en} is called {zh}.",), "zh": ("{zh}的英文是 {en}。",)}

List = tuple[Emoji, ...]


def said_name(one: Emoji, language: str) -> str:
    """The name as a sentence has it."""
    return one.a_name if language == "en" else one.chinese_name


def plain_name(one: Emoji, language: str) -> str:
    """The name alone, as an answer."""
    return one.a_name.removeprefix("a ").removeprefix("an ") if language == "en" else one.chinese_name


def describe(scene: EmojiScene, emoji: List, language: str, flipped: bool = False) -> str:
    """The scene as a phrase, for captions and prompts; flipped: of two, the second is named first."""
    names = [said_name(emoji[item.number], language) for item in scene.items]
    if scene.relation is None:
        return names[0]
    relation = OPPOSITE[scene.relation] if flipped else scene.relation
    a, b = reversed(names) if flipped else names
    return BESIDE[language][relation].format(a=a, b=b)


def write_captions(scene: EmojiScene, emoji: List, rng: np.random.Generator) -> tuple[Text, ...]:
    """Two wordings a language."""
    captions = []
    for language in LANGUAGES:
        first = bool(rng.integers(2))
        patterns = CAPTIONS[_number(scene)][language]
        for choice, flipped in zip(rng.permutation(len(patterns))[:2], (first, not first), strict=True):
            phrase = describe(scene, emoji, language, flipped)
            text = patterns[choice].format(a=phrase, A=phrase[0].upper() + phrase[1:])
            captions.append(Text(text, language))
    return tuple(captions)


def write_prompts(scene: EmojiScene, emoji: List, rng: np.random.Generator) -> tuple[Text, ...]:
    """A full prompt a language; one by a keyword where an emoji that is alone has any; of two also one without a relation."""
    prompts = []
    for language in LANGUAGES:
        prompts.append(write_prompt(scene, emoji, language, rng, bool(rng.integers(2))))
        if scene.relation is not None:
            a, b = (said_name(emoji[item.number], language) for item in scene.items)
            prompts.append(Text(TOGETHER[language].format(a=a, b=b), language))
    keywords = emoji[scene.items[0].number].keywords if scene.relation is None else ()
    return (*prompts, Text(_choose(keywords, rng), "en")) if keywords else tuple(prompts)


def write_prompt(scene: EmojiScene, emoji: List, language: str, rng: np.random.Generator, flipped: bool = False) -> Text:
    """A prompt that says all that is in a scene."""
    pattern = _choose(PROMPTS[_number(scene)][language], rng)
    return Text(pattern.format(a=describe(scene, emoji, language, flipped)), language)


def write_questions(
    scene: EmojiScene, emoji: List, rng: np.random.Generator, categories: tuple[str, ...] = CATEGORIES
) -> tuple[Question, ...]:
    """A question a language about each of these that the scene has an answer to."""
    questions = []
    for language in LANGUAGES:
        for category in categories:
            made = _ask(category, scene, emoji, language, rng)
            if made is not None:
                questions.append(Question(*made, category, language))
    return tuple(questions)


def write_text(emoji: List, rng: np.random.Generator) -> Text:
    """What one is called in the other language."""
    language, one = LANGUAGES[rng.integers(2)], emoji[rng.integers(len(emoji))]
    names = {name: said_name(one, name) for name in LANGUAGES}
    return Text(_choose(SENTENCES[language], rng).format(**names), language)


def _ask(category: str, scene: EmojiScene, emoji: List, language: str, rng: np.random.Generator) -> tuple[str, str] | None:
    shown = [emoji[item.number] for item in scene.items]
    if category == "name":
        return (_choose(NAME[language], rng), plain_name(shown[0], language)) if scene.relation is None else None
    if category == "count":
        return _choose(COUNT[language], rng), str(len(shown))
    if category == "identity":
        is_there = rng.random() < 0.5
        asked = shown[rng.integers(len(shown))] if is_there else emoji[rng.integers(len(emoji))]
        question = _choose(IDENTITY[language], rng).format(a=said_name(asked, language))
        return question, YES_NO[language][asked in shown]
    if scene.relation is None:
        return None
    turned = bool(rng.integers(2))
    a, b = reversed(shown) if turned else shown
    relation = OPPOSITE[scene.relation] if turned else scene.relation
    assert relation in RELATIONS
    if category == "find":
        return FIND[language][relation].format(b=said_name(b, language)), plain_name(a, language)
    return _choose(PLACE[language], rng).format(a=said_name(a, language)), PLACES[language][relation]


def _number(scene: EmojiScene) -> str:
    return "one" if scene.relation is None else "two"


def _choose(options: tuple[str, ...], rng: np.random.Generator) -> str:
    return options[rng.integers(len(options))]
