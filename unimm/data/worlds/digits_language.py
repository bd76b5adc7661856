"""What is said about a handwritten digit: captions, drawing prompts, questions and plain sentences, in two languages.

Every wording is written once, with {word} for the digit's name ("seven", "7", "七") and {one} for the name with its
article ("a seven"). Answers of yes and no are equally likely, so that a guesser who does not look gains nothing.
"""

import re
import unicodedata

import numpy as np

from unimm.data.records import Question, Text

LANGUAGES = ("en", "zh")

WORDS = {
    "en": ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    "zh": tuple("零一二三四五六七八九"),
}

CAPTIONS = {
    "en": (
        "A handwritten digit {word}.",
        "A handwritten {word}.",
        "The digit {word}, written by hand.",
        "This is the digit {word}.",
        "A picture of the handwritten number {word}.",
        "Somebody wrote {one}.",
    ),
    "zh": (
        "手写数字{word}。",
        "手写的数字{word}。",
        "这是手写的{word}。",
        "图中是数字{word}。",
        "图片上写着数字{word}。",
        "有人写了数字{word}。",
    ),
}

PROMPTS = {
    "en": ("a handwritten digit {word}", "draw the digit {word}", "{one}, written by hand", "write {one}"),
    "zh": ("手写数字{word}", "画一个手写的数字{word}", "写一个数字{word}", "手写的{word}"),
}

QUESTIONS = {
    "en": {
        "digit": ("Which digit is this?", "What digit is it?", "Which number is written here?", "What number do you see?"),
        "even": ("Is the digit even?", "Is this an even number?", "Is the number even?"),
        "odd": ("Is the digit odd?", "Is this an odd number?", "Is the number odd?"),
        "larger": ("Is the digit larger than {word}?", "Is it more than {word}?", "Is the number greater than {word}?"),
        "smaller": ("Is the digit less than {word}?", "Is it less than {word}?", "Is the number smaller than {word}?"),
        "identity": ("Is it {one}?", "Is this {one}?", "Is this the digit {word}?"),
    },
    "zh": {
        "digit": ("这是数字几？", "图中是哪个数字？", "写的是什么数字？", "你看到什么数字？"),
        "even": ("这个数字是偶数吗？", "这是偶数吗？", "图中的数字是偶数吗？"),
        "odd": ("这个数字是奇数吗？", "这是奇数吗？", "图中的数字是奇数吗？"),
        "larger": ("这个数字比{word}大吗？", "它大于{word}吗？", "图中的数字大于{word}吗？"),
        "smaller": ("这个数字比{word}小吗？", "它小于{word}吗？", "图中的数字小于{word}吗？"),
        "identity": ("这是{word}吗？", "这是数字{word}吗？", "写的是{word}吗？"),
    },
}

COMPARISONS = (("larger", 4), ("larger", 5), ("smaller", 5), ("smaller", 6))
"""What a digit is compared with: yes for five, four, five and six of the ten digits, so half of the time."""

YES_NO = {"en": ("no", "yes"), "zh": ("否", "是")}

SENTENCES = {
    "en": ("{Word} is larger than {less}.", "{Less} is less than {word}.", "{Word} comes after {before}."),
    "zh": ("{word}比{less}大。", "{less}小于{word}。", "{before}的后面是{word}。"),
}

_MEASURED = re.compile("一(?=[个张幅位种笔])")  # "a picture", "a digit": no digit one


def write_captions(digit: int, rng: np.random.Generator, num_wordings: int = 3) -> tuple[Text, ...]:
    """num_wordings different captions a language."""
    return _write(CAPTIONS, digit, rng, num_wordings)


def write_prompts(digit: int, rng: np.random.Generator, num_wordings: int = 2) -> tuple[Text, ...]:
    """num_wordings different drawing prompts a language."""
    return _write(PROMPTS, digit, rng, num_wordings)


def drawing_prompt(digit: int, index: int) -> Text:
    """Prompt number `index` for a digit: languages alternate, wordings go round."""
    language = LANGUAGES[index % 2]
    patterns = PROMPTS[language]
    numeral = bool(index // (2 * len(patterns)) % 2)
    return Text(_fill(patterns[index // 2 % len(patterns)], digit, language, numeral), language)


def write_questions(digit: int, rng: np.random.Generator) -> tuple[Question, ...]:
    """A question a language about each of: the digit, its parity, a comparison, its identity."""
    questions = []
    for language in LANGUAGES:
        parity = ("even", "odd")[rng.integers(2)]
        relation, bound = COMPARISONS[rng.integers(len(COMPARISONS))]
        named = digit if rng.random() < 0.5 else int(digit + rng.integers(1, 10)) % 10
        asked = (
            ("digit", "digit", digit, None),
            ("parity", parity, digit, (digit % 2 == 0) == (parity == "even")),
            ("comparison", relation, bound, digit > bound if relation == "larger" else digit < bound),
            ("identity", "identity", named, named == digit),
        )
        for category, kind, word, truth in asked:
            patterns = QUESTIONS[language][kind]
            text = _fill(patterns[rng.integers(len(patterns))], word, language, rng.random() < 0.5)
            answer = str(digit) if truth is None else YES_NO[language][truth]
            questions.append(Question(text, answer, category, language))
    return tuple(questions)


def write_text(rng: np.random.Generator) -> Text:
    """A true sentence about two digits, without an image."""
    language = LANGUAGES[rng.integers(2)]
    words, patterns = WORDS[language], SENTENCES[language]
    digit = int(rng.integers(1, 10))
    word, less, before = words[digit], words[rng.integers(digit)], words[digit - 1]
    pattern = patterns[rng.integers(len(patterns))]
    names = {"word": word, "less": less, "before": before, "Word": word.capitalize(), "Less": less.capitalize()}
    return Text(pattern.format(**names), language)


def parse_caption(text: str) -> int | None:
    """The one digit that a text names, as a word or numeral in either language; None if it names none or several."""
    text = _MEASURED.sub("", unicodedata.normalize("NFKC", text).lower())
    named = {int(number) for number in re.findall(r"\d+", text)}
    named |= {WORDS["en"].index(word) for word in re.findall("[a-z]+", text) if word in WORDS["en"]}
    named |= {WORDS["zh"].index(character) for character in text if character in WORDS["zh"]}
    return named.pop() if len(named) == 1 and max(named) <= 9 else None


def _write(patterns: dict[str, tuple[str, ...]], digit: int, rng: np.random.Generator, count: int) -> tuple[Text, ...]:
    texts = []
    for language in LANGUAGES:
        for choice in rng.permutation(len(patterns[language]))[:count]:
            texts.append(Text(_fill(patterns[language][choice], digit, language, rng.random() < 0.5), language))
    return tuple(texts)


def _fill(pattern: str, digit: int, language: str, numeral: bool) -> str:
    word = str(digit) if numeral else WORDS[language][digit]
    return pattern.format(word=word, one=f"an {word}" if digit == 8 else f"a {word}")
