"""Claims: what a text says is in an image, as phrases of which it can be asked whether they are there.

    "Two dogs chase a red ball on the grass."     two dogs | a red ball | the grass
    "一个红色圆形在两个小正方形的左边。"              一个红色圆形 | 两个小正方形

`find_claims` is a rule without a parser, so it is the same everywhere and costs nothing. In English a claim begins with an
article or a number and ends before the next preposition, verb form or punctuation mark; what is named without either ("dogs
play") is not found. In Chinese it begins with a number and a measure word, and ends before a mark or a word such as 在, 有,
和. Whoever knows more of their texts gives a function of their own (`Verification.claims`); the built-in worlds have parsers.
"""

import re
import string
import unicodedata
from collections.abc import Callable, Iterable
from typing import Any

AROUND = string.punctuation + string.whitespace + "。、·"
"""What may stand around an answer; full-width marks are first made half-width."""

FindClaims = Callable[[str], list[str]]
"""A text -> the phrases of which it can be asked whether the image shows them."""

Questions = tuple[str, ...] | Callable[[str], str | list[str]]
"""How it is asked whether a claim is there: patterns, {a} for the claim and {Be} for "Is" or "Are"; or a function of it, which
gives one question or several."""

QUESTIONS = {
    "en": ("{Be} there {a} in the picture?", "Do you see {a}?"),
    "zh": ("图中有{a}吗？", "能看到{a}吗？"),
}
"""How it is asked whether something is there: the answers to all of them count alike."""


def _words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"\S+", text))


_NUMBERS = _words("two three four five six seven eight nine ten eleven twelve several some many few both")
_BEGIN = _NUMBERS | {"a", "an", "the", "one", "another"}
_END = _words(
    "about above across after against along among and are around as at be been behind being below beneath beside "
    "besides between but by can contains contain could depicts did do does down eat eats each feature features for "
    "from had hang hangs has have he her his holds hold i if in inside into is it its lie lies like look looks made "
    "may my near next no nor not of off on onto or our out outside over play plays rest rests ride rides run runs "
    "seems shall she should show shows sit sits so stand stands that their them there these they this those through "
    "to toward towards under underneath until up upon very walk walks was wear wears we were what when where which "
    "while who whose will with within without would you your"
)
_JOINING = _words(
    "array bottle bouquet bowl bunch couple crowd cup dozen field flock glass group herd kind line lot number pack "
    "pair piece pile plate row series set slice stack type variety"
)
"""Of these a claim goes on behind "of": a group of people."""

_ABOUT_THE_PICTURE = _words(
    "background bottom camera center centre close-up corner distance drawing edge figure foreground front image "
    "left middle photo photograph picture right scene screenshot shot side sides top view way"
)
_NOUNS_IN_ING = _words(
    "awning bedding building ceiling clothing covering crossing drawing dressing earring evening icing king "
    "lightning morning painting pudding railing ring siding spring string swing wedding wing"
)
_MOST_WORDS = 7

_WORD = re.compile(r"[A-Za-z][A-Za-z'’-]*|\d+|[^\sA-Za-z0-9]")
_SENTENCE = re.compile(r"[^.!?。！？\n]*(?:[.!?。！？]+|\n|$)")
_CHINESE = re.compile(r"[\u4e00-\u9fff]")
_CHINESE_CLAIM = re.compile(
    r"(?:[一二两三四五六七八九十几\d]+|许多|一些|好几)[个只条张辆座棵朵头匹位名把台架块幅片颗群对双]?"
    r"(?:(?!的?(?:左|右|前|后|里)[边侧面方]|的?[上下][边面方]|的?(?:旁边|中间)|的里)[^，。、；：！？,.;:!?\s和与及在有是或坐站躺趴骑穿戴拿])+"
)
_EXISTENCE = re.compile(
    r"^(?:(?:is|are|was|were)\s+there\b|(?:do|can|could)\s+you\s+(?:see|find|spot)\b"
    r"|do(?:es)?\s+(?:the|this)\s+(?:picture|image|photo|photograph|figure|scene)\s+(?:show|contain|have)\b)",
    re.IGNORECASE,
)
_CHINESE_EXISTENCE = re.compile(
    r"^(?:请问)?(?:这张)?(?:图中|图里|图片中|图片里|画面中|画面上)?"
    r"(?:有没有(?P<one>[^吗？?]+?)[？?]?|(?:有|能看到|看得到|你看到)(?P<two>.+?)了?吗[？?]?)$"
)
_IN_THE_PICTURE = re.compile(r"\s(?:in|on)\s+(?:the|this)\s+(?:image|picture|photo|photograph|figure|scene)\W*$", re.IGNORECASE)
_HOW_TO_ANSWER = re.compile(
    r"^(?:please\s+)?(?:answer|reply|respond)\b(?!.*\b(?:if|when|where|unless)\b)|^请?(?:直接|只|仅)?(?:用|以|回答)",
    re.IGNORECASE,
)
"""A sentence behind a question that asks for a form of the answer, and nothing about the image."""

_ONE_IN_CHINESE = re.compile(r"^一[个只条张辆座棵朵头匹位名把台架块幅片颗]")
_SAMPLE_CLAIM = "a dog"

OPPOSITE = {"yes": "no", "no": "yes", "是": "否", "否": "是", "有": "没有", "没有": "有"}
"""Answers of yes and no, and what the other one is."""

YES = ("yes", "是", "有")


def language_of(text: str) -> str:
    """ "zh" where a text has Chinese characters, else "en"."""
    return "zh" if _CHINESE.search(text) else "en"


def plain(text: str) -> str:
    """A text without case, width, and the punctuation and space around it: two answers that agree in it are the same one."""
    return unicodedata.normalize("NFKC", text).casefold().strip(AROUND)


def vote_of(text: str) -> str:
    """What an answer votes for: `plain`, with single spaces and without an article before it."""
    return re.sub(r"^(?:an?|the) (?=\S)", "", " ".join(plain(text).split()))


def most_voted(texts: list[str]) -> tuple[int, float]:
    """Which of some answers says what most of them say, the first where they tie, and the share of those that do."""
    votes = [vote_of(text) for text in texts]
    place = max(range(len(votes)), key=lambda one: (votes.count(votes[one]), votes[one] == votes[0], -one))
    return place, votes.count(votes[place]) / len(votes)


def alike(one: str, other: str) -> float:
    """How much of two claims, as `vote_of` has them, is the same, from 0 to 1: words, or Chinese characters, in any order."""
    words = [set(text) - {"的"} if language_of(text) == "zh" else set(text.split()) for text in (one, other)]
    return len(words[0] & words[1]) / max(len(words[0] | words[1]), 1)


def agreement_of(made: list[dict[str, str]], place: int) -> float:
    """How much of what one draft and each of the others claim is claimed by both, from 0 to 1; the mean over the others."""
    own, others = made[place], made[:place] + made[place + 1 :]
    shares = []
    for other in others:
        both = sum(support_of(claim, other) for claim in own) + sum(support_of(claim, own) for claim in other)
        shares.append(both / (len(own) + len(other)) if own or other else 1.0)
    return sum(shares) / len(shares)


def support_of(claim: str, others: Iterable[str]) -> float:
    """How much the nearest of other claims says the same, from 0 to 1: "large red circle" and "big red circle" 0.5."""
    return max((alike(claim, other) for other in others), default=0.0)


def split_sentences(text: str) -> list[str]:
    """The sentences of a text, their marks with them."""
    return [found.strip() for found in _SENTENCE.findall(text) if found.strip()]


def find_claims(text: str) -> list[str]:
    """What a text says is there, each phrase once, in order; as it stands in the text, but for its first letter's case."""
    found: list[str] = []
    for sentence in split_sentences(text):
        found += _CHINESE_CLAIM.findall(sentence) if language_of(sentence) == "zh" else _english_claims(sentence)
    return list(dict.fromkeys(found))


def find_asked(question: str, find: FindClaims = find_claims) -> str | None:
    """The one thing of which a question asks whether it is there, and nothing else ("Is there a dog in the image?"); None: it
    asks otherwise, or says more than the claim ("... on the left?", "more than two dogs")."""
    first, *others = split_sentences(question) or [""]
    if not all(_HOW_TO_ANSWER.match(one) for one in others):
        return None
    if language_of(first) == "zh":
        asked = _CHINESE_EXISTENCE.match(first)
        thing = (asked["one"] or asked["two"]) if asked else ""
        found = find(thing) or [thing] if thing else []
    else:
        asked = _EXISTENCE.match(first)
        thing = _IN_THE_PICTURE.sub("", first[asked.end() :]) if asked else ""
        found = find(first) if asked else []
    return found[0] if len(found) == 1 and _bare(found[0]) == _bare(thing) else None


def read_questions(questions: Any) -> Any:
    """How it is asked whether a claim is there (`Questions`), as a user gives it; None is left, for the usual questions.

    Raises:
        ValueError: there is none, or a pattern has no {a}, or something else in braces than {a} and {Be}.
    """
    if questions is None or callable(questions):
        return questions
    patterns = (questions,) if isinstance(questions, str) else questions
    if not isinstance(patterns, list | tuple) or not patterns:
        raise ValueError(f"questions are patterns such as 'Is there {{a}}?', or a function of a claim, not {questions!r:.80}.")
    for one in patterns:
        try:
            asked = one.format(a=_SAMPLE_CLAIM, Be="Is") if isinstance(one, str) else ""
        except (AttributeError, LookupError, ValueError):
            asked = ""
        if _SAMPLE_CLAIM not in asked:
            raise ValueError(
                f"A question of a Verification has {{a}} where the claim stands, and nothing else in braces but {{Be}}, "
                f"not {one!r:.80}."
            )
    return tuple(patterns)


def existence_questions(claim: str, patterns: Questions | None = None) -> list[str]:
    """The questions whether a claim is there, in its language. patterns: instead of `QUESTIONS`. ValueError: a function gives
    none."""
    if callable(patterns):
        given = patterns(claim)
        asked = [given] if isinstance(given, str) else list(given or [])
        if not asked or not all(isinstance(one, str) and one.strip() for one in asked):
            raise ValueError(f"questions gives one question or several for each claim, not {given!r:.80} for {claim!r:.80}.")
        return asked
    language = language_of(claim)
    phrase = _ONE_IN_CHINESE.sub("", claim) if language == "zh" else _indefinite(claim)
    first = phrase.split()[0].lower() if phrase.split() else ""
    plural = first in _NUMBERS or (first.isdigit() and first != "1")
    return [pattern.format(a=phrase, Be="Are" if plural else "Is") for pattern in patterns or QUESTIONS[language]]


def first_word(text: str) -> str:
    """The first word of an answer, as `plain` has it."""
    return re.split(r"[\s,.;:!，。；：！]", plain(text), maxsplit=1)[0]


def keep_claims(text: str, failed: set[str], find: FindClaims = find_claims) -> str:
    """The text without claims that failed: a sentence that makes one becomes the list of those it makes besides, or is left
    out. The text as it is where nothing would be left.

    failed: as `vote_of` has them.
    """
    kept: list[str] = []
    for sentence in split_sentences(text):
        claims = find(sentence)
        good = [claim for claim in claims if vote_of(claim) not in failed]
        if len(good) == len(claims):
            kept.append(sentence)
        elif good:
            kept.append(list_claims(good))
    spaced = language_of(text) != "zh"
    return (" " if spaced else "").join(kept) or text


def list_claims(claims: list[str]) -> str:
    """A sentence that names these and no more."""
    *head, last = claims
    if language_of(" ".join(claims)) == "zh":
        return ("、".join(head) + "和" if head else "") + last + "。"
    listed = f"{', '.join(head)} and {last}" if head else last
    return listed[0].upper() + listed[1:] + "."


def _bare(claim: str) -> str:
    """A claim without what says no more than that it is one."""
    return _ONE_IN_CHINESE.sub("", vote_of(claim))


def _english_claims(sentence: str) -> list[str]:
    words = _WORD.findall(sentence)
    found, place = [], 0
    while place < len(words):
        if words[place].lower() not in _BEGIN and not words[place].isdigit():
            place += 1
            continue
        phrase = _phrase(words, place)
        if len(phrase) > 1 and phrase[-1].lower() not in _ABOUT_THE_PICTURE:
            first = phrase[0].lower() if phrase[0].lower() in _BEGIN else phrase[0]
            found.append(" ".join([first, *phrase[1:]]))
        place += max(len(phrase), 1)
    return found


def _phrase(words: list[str], start: int) -> list[str]:
    """The words of the noun phrase that begins here; one of no nouns is its first word alone."""
    phrase = [words[start]]
    for place in range(start + 1, min(len(words), start + _MOST_WORDS)):
        word, following = words[place].lower(), words[place + 1].lower() if place + 1 < len(words) else "."
        goes_on = word == "of" and not _JOINING.isdisjoint({phrase[-1].lower(), phrase[-1].lower().removesuffix("s")})
        if phrase[-1].lower() == "of" and word in _BEGIN:
            goes_on = True
        is_place = word in ("left", "right", "front", "top") and following == "of"
        if not goes_on and (word in _END or word in _BEGIN or is_place or not word[0].isalnum()):
            break
        if len(phrase) > 1 and not goes_on and _is_participle(word, following):
            break
        phrase.append(words[place])
    return phrase[:-1] if phrase[-1].lower() == "of" else phrase


def _is_participle(word: str, following: str) -> bool:
    """Whether a word behind a noun tells what the noun does: "riding" of "a man riding a horse", "dressed" of "dressed in"."""
    ends = following in _END or following in _BEGIN or not following[0].isalnum()
    return (word.endswith("ing") and word not in _NOUNS_IN_ING and ends) or (word.endswith("ed") and following in _END)


def _indefinite(claim: str) -> str:
    """ "the dog" as "a dog", since it is asked whether there is one."""
    article, _, rest = claim.partition(" ")
    if article.lower() != "the" or not rest:
        return claim
    return rest if rest.endswith("s") and not rest.endswith("ss") else f"{'an' if rest[0].lower() in 'aeiou' else 'a'} {rest}"
