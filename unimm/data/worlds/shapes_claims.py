"""What a text about drawn shapes says is there, as phrases and as questions of that world: for looking again at what was said.

It reads texts as the world's judge does (`shapes_language.parse_caption`), so nothing that the judge would count goes unasked.
"""

from collections import Counter

from unimm.data.worlds.shapes_language import NUMBERS, parse_caption
from unimm.data.worlds.shapes_questions import TEMPLATES, name_look


def name_claims(text: str) -> list[str]:
    """What a caption or a question says is there, a phrase a look, in its language: "two large red circles"."""
    language = "en" if text.isascii() else "zh"
    claims = []
    for look, count in Counter(parse_caption(text)).items():
        named = name_look(look, language, plural=count > 1)
        number = NUMBERS[language][count] if count < len(NUMBERS[language]) else str(count)
        claims.append(_with_article(named, number if count > 1 else None) if language == "en" else number + named)
    return claims


def ask_for_claim(claim: str) -> list[str]:
    """Two questions whether there is what `name_claims` gives; by colour and form, as the world asks."""
    language = "en" if claim.isascii() else "zh"
    (_, colour, form), *_ = parse_caption(claim)
    named = name_look((None, colour, form), language)
    return [text.format(_with_article(named) if language == "en" else named) for text in TEMPLATES[language]["existence"][:2]]


def _with_article(named: str, number: str | None = None) -> str:
    return f"{number or ('an' if named[0] in 'aeiou' else 'a')} {named}"
