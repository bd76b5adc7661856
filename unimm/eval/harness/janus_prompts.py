"""The prompts that Janus' published numbers were asked with: those of VLMEvalKit (vlmeval/vlm/janus.py), for lmms-eval's tasks.

Prompts move scores by points, so the numbers of a paper are comparable only under its own. VLMEvalKit asks Janus without a
system prompt, takes the likeliest tokens, 2,048 at most, and has its own words for three kinds of benchmark (/ is a line end):

    POPE, MME, HallusionBench  QUESTION / Answer the question using a single word or phrase.
    multiple choice            [Hint: HINT /] QUESTION / A. ... / B. ... / / Answer with the option's letter from the given
                               choices directly.
    MM-Vet                     QUESTION, behind a system prompt of its own

All others keep the task's own words. What a question is, is read from the item's fields, not from its answer.
"""

import string
from collections.abc import Mapping
from typing import Any

MAX_NEW_TOKENS = 2048

YES_NO_TASKS = ("pope", "mme", "hallusion", "amber")
"""How the names of such tasks begin; "mmerealworld" and "mme_cot" are others."""

SINGLE_WORD = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."
STEP_BY_STEP = (
    "You are a helpful assistant. Please answer truthfully and write out your thinking step by step "
    "to be sure you get the right answer."
)

_PLEASE = " Please answer yes or no."


def system_prompt(task: str) -> str:
    """What is said first: nothing, but for MM-Vet."""
    return STEP_BY_STEP if _is_of(task, "mmvet") else ""


def rewrite(task: str, item: Mapping[str, Any], text: str) -> str:
    """A question as VLMEvalKit asks Janus.

    Args:
        task: its name in lmms-eval. item: the item's fields. text: as the task writes it.
    """
    question = str(item.get("question") or "").strip()
    if question and any(_is_of(task, name) for name in YES_NO_TASKS):
        return f"{question.replace(_PLEASE, '')}\n{SINGLE_WORD}"
    if question and _is_of(task, "mmvet"):
        return question
    options = _options(item)
    if not question or not options:
        return text
    hint = item.get("hint")
    first = "" if _is_empty(hint) else f"Hint: {hint}\n"
    listed = "".join(f"{letter}. {option}\n" for letter, option in options.items())
    return f"{first}{question}\n{listed}\n{LETTER}"


def _is_of(task: str, name: str) -> bool:
    """Whether a task is this benchmark, or a part of it: "pope", "pope_adv", "mme", but not "mmerealworld"."""
    rest = task.lower().removeprefix(name)
    return rest != task.lower() and (not rest or rest[0] in "_-") and not rest.startswith("_cot")


def _options(item: Mapping[str, Any]) -> dict[str, Any]:
    """The choices of an item, by letter: its fields A, B, ... (MMBench) or choice_a, choice_b, ... (SEED-Bench)."""
    for pattern in ("{}", "choice_{}"):
        letters = string.ascii_uppercase if pattern == "{}" else string.ascii_lowercase
        found = {letter.upper(): item.get(pattern.format(letter)) for letter in letters}
        options = {letter: option for letter, option in found.items() if not _is_empty(option)}
        if len(options) > 1:
            return options
    return {}


def _is_empty(value: Any) -> bool:
    """Nothing, or what tables write for it."""
    return value is None or value != value or str(value).strip().lower() in ("", "nan")
