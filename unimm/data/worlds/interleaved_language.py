"""What is said in conversations about drawings, in English and Chinese: requests, answers, changes, checks."""

import numpy as np

from unimm.data.records import Question
from unimm.data.worlds.comparisons_scenes import Edit
from unimm.data.worlds.interleaved_scenes import Asked, Exchange, Story, answer_to
from unimm.data.worlds.scenes import choose
from unimm.data.worlds.shapes_language import WORDS, Appearance, Group, describe, name_group, write_list
from unimm.data.worlds.shapes_questions import ANSWERS, TEMPLATES, name_look, name_reference

REQUESTS = {
    "en": ("{}", "draw {}", "Draw {}.", "a picture of {}", "Please draw {}."),
    "zh": ("{}", "画{}", "画{}。", "一幅画：{}", "请画{}。"),
}
ASKING = {
    "en": ("Draw {}. {question}", "Draw {}, then answer: {question}", "Please draw {}. {question}"),
    "zh": ("画{}。{question}", "先画{}，再回答：{question}", "请画{}。{question}"),
}
TELLING = {
    "en": ("Say what you will draw, then draw it: {}.", "First tell, then draw: {}."),
    "zh": ("先说要画什么，再画：{}。", "先说再画：{}。"),
}
CHECKING = {
    "en": ("Draw {}, and check it.", "Draw {}, look at it, and draw it again if it is wrong."),
    "zh": ("画{}，并检查。", "画{}，看一看，如果错了就重画。"),
}
CHANGING = {
    "en": {
        "added": ("Now add {after}.", "Add {after}."),
        "removed": ("Take {before} away.", "Remove {before}."),
        "colour": ("Make {before} {word}.", "Now make {before} {word}."),
        "form": ("Turn {before} into a {word}.", "Make {before} a {word}."),
        "size": ("Make {before} {word}.", "Now make {before} {word}."),
    },
    "zh": {
        "added": ("再加{after}。", "加上{after}。"),
        "removed": ("去掉{before}。", "把{before}拿走。"),
        "colour": ("把{before}变成{word}。", "现在把{before}变成{word}。"),
        "form": ("把{before}变成{word}。", "现在把{before}变成{word}。"),
        "size": ("把{before}变{word}。", "现在把{before}变{word}。"),
    },
}

RIGHT = {"en": "That is right.", "zh": "画对了。"}
WRONG = {"en": "No, that is {}. Again:", "zh": "不对，这是{}。重画："}
"""What is said of one's own drawing; behind the second one it is drawn again."""


def write_story(story: Story, language: str, rng: np.random.Generator) -> tuple[Question, ...]:
    """Its turns as questions and answers with pictures: images of an answer by the numbers of their scenes."""
    return tuple(_write(exchange, story, language, rng) for exchange in story.exchanges)


def _write(exchange: Exchange, story: Story, language: str, rng: np.random.Generator) -> Question:
    request, parts = _request(exchange, language, rng), []
    if exchange.before and exchange.picture is not None:
        parts.append(_sentence([describe(item) for item in story.scenes[exchange.picture].objects], language, rng))
    if exchange.wrong is not None:
        shown = [describe(item, "colour") for item in story.scenes[exchange.wrong].objects]
        parts += [exchange.wrong, WRONG[language].format(_listed(shown, language, rng))]
    if exchange.picture is not None:
        parts.append(exchange.picture)
    if exchange.checks and exchange.wrong is None:
        parts.append(RIGHT[language])
    if exchange.asked is not None:
        last = story.exchanges[-1].picture if exchange.picture is None else exchange.picture
        scene = story.scenes[-1 if last is None else last]
        parts.append(write_answer(exchange.asked, answer_to(exchange.asked, scene.objects) or "", language))
    answer = "\n".join(part for part in parts if isinstance(part, str))
    given = () if exchange.wrong is None else (exchange.wrong,)
    return Question(request, answer, story.kind, language, answer_parts=tuple(parts), given_images=given)


def _request(exchange: Exchange, language: str, rng: np.random.Generator) -> str:
    if exchange.edit is not None:
        return write_change(exchange.edit, language, rng)
    question = "" if exchange.asked is None else write_question(exchange.asked, language, rng)
    if exchange.picture is None:
        return question
    named = _listed(list(exchange.looks), language, rng)
    frames = TELLING if exchange.before else CHECKING if exchange.checks else ASKING if question else REQUESTS
    text = choose(rng, frames[language]).format(named, question=question)
    return text[0].upper() + text[1:] if text[-1] in ".?" else text


def _listed(looks: list[Appearance], language: str, rng: np.random.Generator) -> str:
    return write_list([Group(1, look) for look in looks], language, rng) if looks else {"en": "nothing", "zh": "空的"}[language]


def _sentence(looks: list[Appearance], language: str, rng: np.random.Generator) -> str:
    text = _listed(looks, language, rng)
    return text[0].upper() + text[1:] + ("." if language == "en" else "。")


def write_change(edit: Edit, language: str, rng: np.random.Generator) -> str:
    """A change as it is asked for: "Make the red circle blue."; an object is called by its colour and form."""
    before, after = edit.before, edit.after
    words = {}
    if before is not None:
        words["before"] = name_reference(describe(before, "colour"), language)
    if after is not None:
        words["after"] = name_group(Group(1, describe(after, "colour")), language, rng)
        words["word"] = WORDS[language][getattr(after, edit.kind)][0] if edit.kind in ("colour", "form", "size") else ""
    return choose(rng, CHANGING[language][edit.kind]).format(**words)


def write_question(asked: Asked, language: str, rng: np.random.Generator) -> str:
    """A question about a picture, in the words of the shapes world."""
    if asked.category == "count":
        named = name_look(asked.look, language, plural=True)
    elif asked.category == "size":
        named = name_reference(asked.look, language)
    else:
        named = name_look(asked.look, language)
        named = f"{'an' if named[0] in 'aeiou' else 'a'} {named}" if language == "en" else named
    text = choose(rng, TEMPLATES[language][asked.category]).format(named)
    return text[0].upper() + text[1:]


def write_answer(asked: Asked, answer: str, language: str) -> str:
    """The answer of `answer_to` in words: a digit, yes or no, a size."""
    if asked.category == "existence":
        return ANSWERS[language][answer]
    return WORDS[language][answer][0] if asked.category == "size" else answer
