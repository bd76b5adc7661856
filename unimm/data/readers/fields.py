"""Which field of an entry is what: the one mapping from named values (a JSON object, a row of a table) to a record.

Readers know where entries are; this file knows what they mean. A field that is named has to be there and to hold something,
in every entry, unless it is called optional: what is missing is an error, never passed over.

A conversation is read as LLaVA writes it:

    [{"from": "human", "value": "<image>\\nWhat is it?"}, {"from": "gpt", "value": "A cat."}, ...]

The chat form of others, {"role": "user", "content": "..."}, is read as well. `<image>` stands once, in the first human turn;
as in LLaVA's own training the image comes before the words, wherever it stands among them. As there, too, a first turn of gpt
is left out, which answers nothing, and so is a last human turn, which is not answered. Source: haotian-liu/LLaVA,
docs/Finetune_Custom_Data.md and llava/train/train.py.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from unimm.data.readers.paths import short
from unimm.data.records import ImageLike, Question, Record, Text

IMAGE = "<image>"
_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}


@dataclass(frozen=True)
class Fields:
    """Names of fields, those that the entries have; the others stay null.

    image: how the image is held, is the reader's matter.
    caption: a text, or a list of texts for the same image.
    question, answer: two texts, or two lists of one length: questions that do not lean on each other.
    conversation: turns as LLaVA writes them, see `questions_of`; they keep their order. Instead of question and answer.
    text: plain text, for the language task.
    language: "en", "zh"; for entries of several languages. default_language: for all others.
    optional: names of fields that may be missing, or null.

    Raises ValueError where nothing is named, or a question without its answer.
    """

    image: str | None = None
    caption: str | None = None
    question: str | None = None
    answer: str | None = None
    conversation: str | None = None
    text: str | None = None
    language: str | None = None
    default_language: str = "en"
    optional: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.names - {self.language}:
            raise ValueError("The fields of the entries are not named: give fields.caption=NAME, fields.image=NAME and so on.")
        if (self.question is None) != (self.answer is None):
            raise ValueError("A question is learned with its answer: name both fields, fields.question and fields.answer.")
        if self.question is not None and self.conversation is not None:
            raise ValueError("Name fields.conversation, or fields.question and fields.answer, not all of them.")

    @property
    def names(self) -> set[str]:
        """All names, each one a field that is read."""
        own = (self.image, self.caption, self.question, self.answer, self.conversation, self.text, self.language)
        return {name for name in own if name is not None}

    def record(self, item: Mapping[str, Any], key: str, where: str, open_image: Callable[[Any], ImageLike]) -> Record:
        """The record of an entry.

        Args:
            where: file and line, for messages. open_image: from what the image field holds to an image, not decoded.

        Raises:
            ValueError: a field is missing or holds something else than it should.
        """
        values = {name: _value(item, name, name in self.optional, where) for name in self.names}

        def get(name: str | None) -> Any:
            return None if name is None else values[name]

        language = get(self.language) or self.default_language
        if not isinstance(language, str):
            raise ValueError(f"{where}: the field '{self.language}' holds {short(language)}, not a language such as 'en'.")
        image, plain = get(self.image), get(self.text)
        return Record(
            key,
            image=None if image is None else open_image(image),
            captions=tuple(Text(text, language) for text in _texts(get(self.caption), self.caption, where)),
            questions=self._questions(get, image is not None, where, language),
            text=None if plain is None else Text(_one_text(plain, self.text, where), language),
            is_dialogue=self.conversation is not None,
        )

    def _questions(self, get: Callable[[str | None], Any], has_image: bool, where: str, language: str) -> tuple[Question, ...]:
        if self.conversation is not None:
            turns = get(self.conversation)
            return () if turns is None else questions_of(turns, has_image, where, language)
        questions = _texts(get(self.question), self.question, where)
        answers = _texts(get(self.answer), self.answer, where)
        if len(questions) != len(answers):
            raise ValueError(f"{where} has {len(questions)} questions and {len(answers)} answers: give each its own.")
        return tuple(Question(q, a, language=language) for q, a in zip(questions, answers, strict=True))


def _value(item: Mapping[str, Any], name: str, is_optional: bool, where: str) -> Any:
    value = item.get(name)
    if value is None and not is_optional:
        if name in item:
            raise ValueError(f"{where}: the field '{name}' is null: fill it, or list it in fields.optional.")
        raise missing(name, list(item), where)
    return value


def missing(name: str, there: list[str], where: str) -> ValueError:
    """What to say of a field or column that is not there."""
    return ValueError(f"{where} has no '{name}', there is {', '.join(sorted(there)) or 'nothing'}: name one of these.")


def _texts(value: Any, name: str | None, where: str) -> list[str]:
    if value is None:
        return []
    return [_one_text(text, name, where) for text in (value if isinstance(value, list | tuple) else [value])]


def _one_text(value: Any, name: str | None, where: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{where}: the field '{name}' holds {short(value)}, which is no text.")
    if not value.strip():
        raise ValueError(f"{where}: the field '{name}' is empty: write something, or take the entry out.")
    return value.strip()


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
