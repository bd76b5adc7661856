"""Conversations as LLaVA writes them -> questions with their answers, in order.

    [{"from": "human", "value": "<image>\\nWhat is it?"}, {"from": "gpt", "value": "A cat."}, ...]

The chat form of others, {"role": "user", "content": "..."}, is read as well. `<image>` stands once, in the first human turn;
as in LLaVA's own training the image comes before the words, wherever it stands among them. As there, too, a first turn of gpt
is left out (nobody asked), and so is a last human turn (nobody answered). Source: haotian-liu/LLaVA,
docs/Finetune_Custom_Data.md and llava/train/train.py.
"""

from typing import Any

from unimm.data.readers.paths import short
from unimm.data.records import Question

IMAGE = "<image>"
_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}


def questions_of(turns: Any, has_image: bool, where: str, language: str = "en") -> tuple[Question, ...]:
    """The questions and answers of a conversation.

    Raises:
        ValueError: turns do not take turns, one is empty, or `<image>` and the image do not agree; `where` is said first.
    """
    said = [_turn(turn, where) for turn in turns] if isinstance(turns, list) and turns else []
    if said and said[0][0] == "assistant":
        said = said[1:]
    if any(role != ("user", "assistant")[number % 2] for number, (role, _) in enumerate(said)):
        raise ValueError(f"{where}: human and gpt do not take turns: merge neighbouring turns of one of them.")
    if len(said) < 2:
        raise ValueError(f"{where}: the conversation holds no question with an answer: take the entry out.")
    _check_image([text for role, text in said if role == "user"], has_image, where)
    pairs = [
        (ask.replace(IMAGE, "").strip(), answer.strip()) for (_, ask), (_, answer) in zip(said[::2], said[1::2], strict=False)
    ]
    for number, (ask, answer) in enumerate(pairs):
        looks = has_image and number == 0  # the image alone may be the question
        if not answer or not (ask or looks):
            raise ValueError(f"{where}: turn {2 * number + (2 if not answer else 1)} of the conversation is empty.")
    return tuple(Question(ask, answer, language=language) for ask, answer in pairs)


def _turn(turn: Any, where: str) -> tuple[str, str]:
    if not isinstance(turn, dict):
        raise ValueError(f'{where}: a turn is {{"from": ..., "value": ...}}, not {short(turn)}.')
    role, text = turn.get("from", turn.get("role")), turn.get("value", turn.get("content"))
    if not isinstance(role, str) or role not in _ROLES:
        raise ValueError(f"{where}: a turn is human's or gpt's, not {short(role)}'s.")
    if not isinstance(text, str):
        raise ValueError(f"{where}: what {role} says is text, not {short(text)}.")
    return _ROLES[role], text


def _check_image(asked: list[str], has_image: bool, where: str) -> None:
    count = sum(text.count(IMAGE) for text in asked)
    if count and not has_image:
        raise ValueError(f"{where}: the conversation speaks of {IMAGE}, and the entry names no image.")
    if count > 1 or (count == 1 and IMAGE not in asked[0]):
        raise ValueError(
            f"{where}: {IMAGE} stands once, in the first human turn; entries with several images are not read yet."
        )
