"""Questions about scenes that are compared, and their answers, in English and Chinese.

A scene that was made for one question allows others: which holds more of something else. These are asked for an answer that was
chosen first, too, and about another look each time, so that no answer follows from another one.
"""

from dataclasses import replace

import numpy as np

from unimm.data.records import Question
from unimm.data.worlds.comparisons_scenes import (
    COUNTED,
    NOTHING,
    ORDINALS,
    SINGLE,
    Comparison,
    Edit,
    answers_to,
    count_fitting,
    find_winner,
)
from unimm.data.worlds.scenes import COLOURS, FORMS, TRAINING_PAIRS, choose
from unimm.data.worlds.shapes_language import LANGUAGES, WORDS, Appearance, describe
from unimm.data.worlds.shapes_questions import ANSWERS as YES_AND_NO
from unimm.data.worlds.shapes_questions import CATEGORIES, name_look, name_reference
from unimm.data.worlds.shapes_questions import ask as ask_of_scene

TEMPLATES = {
    ("en", 2): {
        "more": ("Which has more {}, the first or the second?", "Are there more {} in the first or the second picture?"),
        "fewer": ("Which has fewer {}, the first or the second?", "Are there fewer {} in the first or the second picture?"),
        "which": ("In which picture is {}?", "Which of the two shows {}?", "Where is {}, in the first or the second?"),
        "same": ("Are the two pictures the same?", "Are they the same?", "Do both pictures show the same?"),
        "differs": ("What differs?", "What is different in the second picture?", "What has changed?"),
    },
    ("en", 3): {
        "more": ("Which picture has the most {}?", "Where are the most {}?"),
        "fewer": ("Which picture has the fewest {}?", "Where are the fewest {}?"),
        "which": ("In which picture is {}?", "Which of the three shows {}?"),
        "same": ("Are the three pictures the same?", "Are they all the same?"),
        "odd": ("Which picture differs from the other two?", "Which is the odd one out?"),
    },
    ("zh", 2): {
        "more": ("第一张和第二张，哪张的{}更多？", "哪张图的{}更多？"),
        "fewer": ("第一张和第二张，哪张的{}更少？", "哪张图的{}更少？"),
        "which": ("{}在哪张图里？", "哪张图里有{}？"),
        "same": ("两张图一样吗？", "这两张图相同吗？"),
        "differs": ("有什么不同？", "第二张图有什么变化？", "哪里不一样？"),
    },
    ("zh", 3): {
        "more": ("哪张图的{}最多？", "三张图里哪张的{}最多？"),
        "fewer": ("哪张图的{}最少？", "三张图里哪张的{}最少？"),
        "which": ("{}在哪张图里？", "哪张图里有{}？"),
        "same": ("三张图一样吗？", "这三张图都相同吗？"),
        "odd": ("哪张图和另外两张不一样？", "哪张图与众不同？"),
    },
}
"""By language and number of pictures; {} is what is counted or looked for."""

ANSWERS = {
    "en": {"first": "first", "second": "second", "third": "third", "equal": "equal", **YES_AND_NO["en"]},
    "zh": {"first": "第一张", "second": "第二张", "third": "第三张", "equal": "一样多", **YES_AND_NO["zh"]},
}

OF_ONE = {"en": "In the {picture} picture, {question}", "zh": "{picture}图里，{question}"}
"""A question about one of the pictures."""

DIFFERENCES = {
    "en": {
        "colour": "the {before} turned {colour}",
        "form": "the {before} turned into a {form}",
        "size": "the {before} became {size}",
        "added": "{a} {after} was added",
        "removed": "the {before} is gone",
        "moved": "the {before} moved",
        NOTHING: "nothing",
    },
    "zh": {
        "colour": "{before}变成了{colour}",
        "form": "{before}变成了{form}",
        "size": "{before}变{size}了",
        "added": "多了一个{after}",
        "removed": "少了一个{before}",
        "moved": "{before}移动了",
        NOTHING: "没有不同",
    },
}

CANDIDATES: tuple[Appearance, ...] = (
    *((None, None, form) for form in FORMS),
    *((None, colour, None) for colour in COLOURS),
)
"""What may be counted in scenes that were made for another question."""


TRIES = 3
"""For each further question: not all scenes allow one."""


def write_questions(
    comparison: Comparison, rng: np.random.Generator, subjects: tuple[str, ...], num_questions: int
) -> tuple[Question, ...]:
    """The question that the scenes were made for; where things are counted or looked for, up to so many in all. Whether two are
    the same is asked with what differs, where both are asked for. Languages in turn."""
    turn, pictures = int(rng.random() * 2), len(comparison.scenes)
    if comparison.subject == SINGLE:
        return _ask_of_each(comparison, rng, num_questions)
    questions = [ask(comparison, LANGUAGES[turn], rng)]
    if comparison.subject == "same" and "differs" in subjects:
        kind = comparison.edit.kind if comparison.edit else NOTHING
        questions.append(ask(replace(comparison, subject="differs", answer=kind), LANGUAGES[1 - turn], rng))
    further = [subject for subject in subjects if subject in (*COUNTED, "which")]
    if comparison.subject not in further:
        return tuple(questions)
    asked = {comparison.look}
    for _ in range(TRIES * (num_questions - 1)):
        subject = choose(rng, further)
        looks = {answer: _looks_for(comparison, subject, answer) - asked for answer in answers_to(subject, pictures)}
        if all(looks.values()) and len(questions) < num_questions:  # else some answer would come more often than others
            look = choose(rng, sorted(looks[answer := choose(rng, tuple(looks))], key=str))
            asked.add(look)
            other = Comparison(comparison.scenes, subject, answer, look)
            questions.append(ask(other, LANGUAGES[(turn + len(questions)) % len(LANGUAGES)], rng))
    return tuple(questions)


def _ask_of_each(comparison: Comparison, rng: np.random.Generator, num_questions: int) -> tuple[Question, ...]:
    """So many of the shapes world's questions, each about one of the scenes."""
    questions: dict[str, Question] = {}
    for _ in range(20 * num_questions):
        if len(questions) == num_questions:
            break
        number, language = int(rng.random() * len(comparison.scenes)), choose(rng, LANGUAGES)
        asked = ask_of_scene(choose(rng, CATEGORIES), comparison.scenes[number], language, rng)
        if asked:
            text = asked.text[0].lower() + asked.text[1:]
            text = OF_ONE[language].format(picture=ANSWERS[language][ORDINALS[number]], question=text)
            questions[text] = Question(text, asked.answer, SINGLE, language)
    return tuple(questions.values())


def ask(comparison: Comparison, language: str, rng: np.random.Generator) -> Question:
    """The question of a comparison. Its category is the subject; of what differs, the kind of the change."""
    subject = comparison.subject
    named = name_look(comparison.look, language, plural=True) if subject in COUNTED else ""
    if subject == "which":
        named = name_reference(comparison.look, language)
    text = choose(rng, TEMPLATES[language, len(comparison.scenes)][subject]).format(named)
    if subject == "differs":
        return Question(text, tell_difference(comparison.edit, language), comparison.answer, language)
    return Question(text, ANSWERS[language][comparison.answer], subject, language)


def tell_difference(edit: Edit | None, language: str) -> str:
    """What is changed, in words: "the red circle turned blue". An object is called by its colour and form before the change."""
    if edit is None:
        return DIFFERENCES[language][NOTHING]
    before, after = edit.before, edit.after
    names = {
        name: name_look(describe(item, "colour"), language) for name, item in (("before", before), ("after", after)) if item
    }
    words = {name: WORDS[language][getattr(after, name)][0] for name in ("size", "colour", "form")} if after else {}
    article = "an" if names.get("after", "")[:1] in tuple("aeiou") else "a"
    return DIFFERENCES[language][edit.kind].format(a=article, **names, **words)


def _looks_for(comparison: Comparison, subject: str, answer: str) -> set[Appearance]:
    """The looks for which this is the answer, among those that scenes may be asked about."""
    scenes = comparison.scenes
    if subject == "which":
        pairs: list[Appearance] = [(None, colour, form) for colour, form in TRAINING_PAIRS]
        counts = {look: count_fitting(scenes, look) for look in pairs}
        return {look for look, count in counts.items() if sum(count) == 1 and find_winner(count, "more") == answer}
    return {look for look in CANDIDATES if find_winner(count_fitting(scenes, look), subject) == answer}
