"""VQA accuracy: an answer is as right as three of ten annotators make it (Antol et al. 2015, arXiv 1505.00468).

Answers are first brought into one form, by the rules of the challenge's own evaluation: punctuation, numbers up to ten as
digits, articles, apostrophes of contractions. As in lmms-eval, that is done to all answers; the challenge's script leaves it
out where all annotators agree.
"""

import re
from collections import Counter

_WITH_APOSTROPHE = re.findall(
    r"\S+",
    """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
    how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock
    oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
    someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's
    they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's
    where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've
    y'all y'all'd've y'all'll you'd you'd've you'll you're you've
    """,
)

CONTRACTIONS = {
    word[:place] + word[place + 1 :]: word for word in _WITH_APOSTROPHE for place, letter in enumerate(word) if letter == "'"
} | {"somebody'd": "somebodyd"}
"""Contractions that lack one of their apostrophes, and how they are written; the last is the challenge's own slip."""

NUMBERS = {"none": "0"} | {
    word: str(number)
    for number, word in enumerate(("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"))
}
ARTICLES = ("a", "an", "the")
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'

_COMMA_IN_NUMBER = re.compile(r"(?<=\d),+(?=\d)")
_LONE_PERIOD = re.compile(r"\.(?!\d)")
_MOST_PERIODS = int(re.UNICODE)
"""So many periods are taken out: the challenge's script hands a flag to `re.sub` in the place of the count."""


def normalize_answer(answer: str) -> str:
    """An answer in the form in which answers are compared."""
    answer = re.sub(r"[\n\t]", " ", answer).strip()
    # A mark beside a space is taken away, one between letters is a space; a comma inside a number takes all marks away.
    has_number = bool(_COMMA_IN_NUMBER.search(answer))
    plain = answer
    for mark in PUNCTUATION:
        stands_apart = has_number or f"{mark} " in answer or f" {mark}" in answer
        plain = plain.replace(mark, "" if stands_apart else " ")
    plain = _LONE_PERIOD.sub("", plain, count=_MOST_PERIODS)
    words = (NUMBERS.get(word, word) for word in plain.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def vqa_accuracy(answer: str, answers: list[str]) -> float:
    """How right an answer is, from 0 to 1: min(n / 3, 1), the mean over all sets of annotators but one.

    answers: of the annotators, ten as a rule. ValueError: there are none.
    """
    if not answers:
        raise ValueError("A question without annotators' answers cannot be scored.")
    given = normalize_answer(answer)
    same = Counter(normalize_answer(other) == given for other in answers)
    left_out = same[True] * min((same[True] - 1) / 3, 1) + same[False] * min(same[True] / 3, 1)
    return left_out / len(answers)
