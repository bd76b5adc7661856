"""Scores of answers about documents and charts: how near a text comes to the right one, and a number.

    character error rate    edits / characters of the right text
    ANLS                    1 - edits / length of the longer text where that is at least a half, else 0 (arXiv 1907.00490)
    relaxed accuracy        a number may be 5 % off, any other answer has to be the same (ChartQA, arXiv 2203.10244)

Edits are characters that are changed, added or left out (Levenshtein's distance, of torchmetrics).
"""

from collections.abc import Iterable

LEAST_SIMILARITY = 0.5
"""What is less like the right answer counts nothing in ANLS."""

TOLERANCE = 0.05
"""So far a number may be off, as a share of the right one."""


def character_error_rate(answer: str, expected: str) -> float:
    """Edits as a share of the characters expected; white space counts as one blank, another case as another character."""
    from torchmetrics.functional.text import char_error_rate  # slow to import

    return float(char_error_rate([" ".join(answer.split())], [" ".join(expected.split())]))


def anls(answer: str, expected: Iterable[str]) -> float:
    """How like an answer is to the likest of those that are right, from 0 to 1; apart from case and the space around it."""
    from torchmetrics.functional.text import edit_distance

    def similarity(right: str) -> float:
        said, right = (" ".join(text.lower().split()) for text in (answer, right))
        longest = max(len(said), len(right))
        return 1.0 if not longest else 1.0 - float(edit_distance([said], [right])) / longest

    found = max((similarity(right) for right in expected), default=0.0)
    return found if found >= LEAST_SIMILARITY else 0.0


def is_relaxed_match(answer: str, expected: str, tolerance: float = TOLERANCE) -> bool:
    """Whether an answer is right by ChartQA's relaxed accuracy: 42 % is 0.42, and 0 has to be said as it is written."""
    said, right = (_number(text.strip()) for text in (answer, expected))
    if said is not None and right:
        return abs(said - right) <= tolerance * abs(right)
    return answer.strip().lower() == expected.strip().lower()


def _number(text: str) -> float | None:
    if "_" in text:  # which Python reads in a number
        return None
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None
