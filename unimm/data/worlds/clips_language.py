"""What is said about clips, in English and Chinese: captions, and questions of one right answer.

| category | example |
|---|---|
| direction | Which way does the red circle move? up left |
| order | Which appears first, the red circle or the blue square? the blue square |
| count | How many times does the red circle blink? 3 |
| passing | How many red circles pass? 2 |
| speed | Which moves faster, the red circle or the blue square? the red circle |
| look | What colour is the shape that moves? red; What shape blinks? circle |
| place | Where is the red circle at first? at the top left |
| time | When does the red circle appear? 1.8s |
| way | Which way do the circles pass? left |

The last four are for training: steps on the way to an answer. A time is that of the first frame which shows it, as it stands
before that frame where all frames are shown (the middle of the time that the frame is shown).
"""

import numpy as np

from unimm.data.records import Question, Text
from unimm.data.worlds.clip_scenes import DIRECTIONS, FRAME_RATE, ClipFacts
from unimm.data.worlds.scenes import Shape, choose, find_place
from unimm.data.worlds.shapes_language import LANGUAGES, PLACE_WORDS, WORDS

DIRECTION_WORDS = {
    "en": {name: name for name in ("left", "right", "up", "down", "up left", "up right", "down left", "down right")},
    "zh": {
        "left": "左",
        "right": "右",
        "up": "上",
        "down": "下",
        "up left": "左上",
        "up right": "右上",
        "down left": "左下",
        "down right": "右下",
    },
}

EVENT_WORDS = {
    "en": {"appear": "appears", "disappear": "disappears", "change colour": "changes its colour"},
    "zh": {"appear": "出现", "disappear": "消失", "change colour": "变色"},
}

ASKED = {
    "direction": {
        "en": ("Which way does {a} move?", "In which direction does {a} move?", "Where is {a} going?"),
        "zh": ("{a}往哪个方向移动？", "{a}朝哪边移动？"),
    },
    "order": {
        "en": ("Which {event} first, {a} or {b}?", "What {event} first: {a} or {b}?"),
        "zh": ("哪个先{event}，{a}还是{b}？", "{a}和{b}，哪个先{event}？"),
    },
    "count": {
        "en": ("How many times does {a} blink?", "How often does {a} blink?"),
        "zh": ("{a}闪烁了几次？", "{a}一共闪了几次？"),
    },
    "passing": {
        "en": ("How many {many} pass?", "How many {many} go by?"),
        "zh": ("有几个{bare}经过？", "一共经过了几个{bare}？"),
    },
    "speed": {
        "en": ("Which moves faster, {a} or {b}?", "Which is faster: {a} or {b}?"),
        "zh": ("哪个移动得更快，{a}还是{b}？", "{a}和{b}，哪个更快？"),
    },
}
"""Questions of each kind. {a}, {b}: shapes by colour and form."""

LOOKS = {
    "direction": {"en": "moves", "zh": "移动"},
    "count": {"en": "blinks", "zh": "闪烁"},
    "passing": {"en": "passes", "zh": "经过"},
}
"""What the one shape does, for questions about its colour and form."""

WHERE = {
    "en": ("Where is {a} at first?", "Where is {a} at the end?"),
    "zh": ("{a}开始时在哪里？", "{a}最后在哪里？"),
}
WHEN = {
    "en": {"order": "When does {a} {verb}?", "count": "When does {a} blink first?"},
    "zh": {"order": "{a}什么时候{verb}？", "count": "{a}什么时候第一次闪烁？"},
}
VERBS = {
    "en": {"appear": "appear", "disappear": "disappear", "change colour": "change its colour"},
    "zh": EVENT_WORDS["zh"],
}
WAY = {
    "en": {"speed": "Which way does {a} move?", "passing": "Which way do the {many} pass?"},
    "zh": {"speed": "{a}往哪个方向移动？", "passing": "{bare}往哪个方向经过？"},
}

CAPTIONS = {
    "direction": {"en": ("A {bare} moves {answer}.",), "zh": ("一个{bare}往{answer}移动。",)},
    "order": {"en": ("First {a} {event}, then {b}.",), "zh": ("{a}先{event}，然后是{b}。",)},
    "count": {"en": ("A {bare} blinks {answer} times.",), "zh": ("一个{bare}闪烁了{answer}次。",)},
    "passing": {"en": ("{answer} {many} pass.",), "zh": ("{answer}个{bare}经过。",)},
    "speed": {"en": ("{a} moves faster than {b}.",), "zh": ("{a}比{b}移动得快。",)},
}
"""Of {a} before {b}: the first, or the faster one."""


def name_shape(shape: Shape, language: str, article: bool = True) -> str:
    """A shape by colour and form: "the red circle", "红色圆形"."""
    words = [WORDS[language][word][0] for word in (shape.colour, shape.form)]
    if language == "zh":
        return "".join(words)
    return " ".join((["the"] if article else []) + words)


def write_answer(facts: ClipFacts, language: str) -> str:
    """The answer to what a clip's own question asks."""
    if facts.kind == "direction":
        return DIRECTION_WORDS[language][str(facts.answer)]
    if facts.kind in ("order", "speed"):
        return name_shape(facts.shapes[int(facts.answer)], language)
    return str(facts.answer)


def write_questions(facts: ClipFacts, rng: np.random.Generator) -> tuple[Question, ...]:
    """The clip's own question, and where one shape does something those about its colour and form; in each language. The first
    of each language is its own."""
    first, others = [], []
    for language in LANGUAGES:
        shown = list(facts.shapes)
        is_swapped = len(shown) > 1 and rng.random() < 0.5  # the answer is named first half of the time
        text = choose(rng, ASKED[facts.kind][language]).format(**_words(facts, shown[::-1] if is_swapped else shown, language))
        first.append(Question(text, write_answer(facts, language), facts.kind, language))
        if facts.kind in LOOKS:
            does, shape = LOOKS[facts.kind][language], facts.shapes[0]
            colour, form = (WORDS[language][word][0] for word in (shape.colour, shape.form))
            ask = (
                (f"What colour is the shape that {does}?", f"What shape {does}?")
                if language == "en"
                else (f"{does}的图形是什么颜色？", f"{does}的是什么图形？")
            )
            others += [Question(ask[0], colour, "look", language), Question(ask[1], form, "look", language)]
        others += _steps(facts, language)
    return (*first, *others)


def _steps(facts: ClipFacts, language: str) -> list[Question]:
    """Questions on the way to the clip's own."""
    found: list[Question] = []
    for shape in facts.shapes:
        words = _words(facts, [shape], language)
        seen = [next((one for one in scene.objects if one.form == shape.form), None) for scene in facts.frames]
        first, last = seen[0], seen[-1]
        if facts.kind in ("direction", "speed") and first is not None and last is not None:
            for ask, one in zip(WHERE[language], (first, last), strict=True):
                found.append(Question(ask.format(**words), PLACE_WORDS[language][find_place(one)], "place", language))
        if facts.kind in WAY[language]:
            shown = [one for one in seen if one is not None]
            way = name_direction(shown[0], shown[1 if facts.kind == "passing" else -1])
            ask = WAY[language][facts.kind].format(**words)
            found.append(Question(ask, DIRECTION_WORDS[language][way], "way", language))
        if facts.kind in WHEN[language]:
            changed = next(number for number, one in enumerate(seen) if one != seen[0])
            ask = WHEN[language][facts.kind].format(**words, verb=VERBS[language].get(facts.event, ""))
            found.append(Question(ask, f"{(changed + 0.5) / FRAME_RATE:.1f}s", "time", language))
    return found


def name_direction(before: Shape, after: Shape) -> str:
    """Which of DIRECTIONS leads from one place to another."""
    way = tuple(int(np.sign(step)) for step in (after.x - before.x, after.y - before.y))
    return next(name for name, direction in DIRECTIONS.items() if direction == way)


def write_captions(facts: ClipFacts, rng: np.random.Generator) -> tuple[Text, ...]:
    """One caption in each language, which says all that happens."""
    texts = []
    for language in LANGUAGES:
        shown = list(facts.shapes)
        if facts.kind in ("order", "speed") and facts.answer == 1:
            shown = shown[::-1]
        said = choose(rng, CAPTIONS[facts.kind][language])
        text = said.format(**_words(facts, shown, language), answer=write_answer(facts, language))
        text = text.replace(" 1 times", " 1 time")
        if language == "en" and facts.kind == "passing" and facts.answer == 1:
            text = f"1 {name_shape(shown[0], language, article=False)} passes."
        if language == "en" and text.startswith("A orange"):
            text = f"An{text[1:]}"
        texts.append(Text(text[0].upper() + text[1:], language))
    return tuple(texts)


def _words(facts: ClipFacts, shapes: list[Shape], language: str) -> dict[str, str]:
    """What stands in the patterns."""
    bare = name_shape(shapes[0], language, article=False)
    words = {"a": name_shape(shapes[0], language), "bare": bare, "many": bare + ("es" if bare.endswith("s") else "s")}
    words["b"] = name_shape(shapes[-1], language)
    words["event"] = EVENT_WORDS[language].get(facts.event, "")
    return words
