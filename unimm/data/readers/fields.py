"""Which field of an entry is what: the one mapping from named values (a JSON object, a row of a table) to a record.

Readers know where entries are; this file knows what they mean. A field that is named has to be there and to hold something,
in every entry, unless it is called optional: what is missing is an error, never passed over.

Conversations are read in the forms of `unimm.data.readers.conversations`. An interleaved document is a list of texts beside one
of images, as long, each with null where the other holds something (OBELICS).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from unimm.data.readers.conversations import read_talk
from unimm.data.readers.paths import IMAGE_SUFFIXES, short
from unimm.data.records import ImageLike, Parts, Question, Record, RecordImage, Text


@dataclass(frozen=True)
class Fields:
    """Names of fields, those that the entries have; the others stay null.

    image: an image, or a list of them; how they are held, is the reader's matter.
    video: a video, or a list of them, behind the images: a path, or a folder of frames (recipes/video.md). A list of names of
        images is one video's frames.
    caption: a text, or a list of texts for the same image.
    question, answer: two texts, or two lists of one length: questions that do not lean on each other.
    conversation: turns as LLaVA, ShareGPT or OpenAI write them; they keep their order. Instead of question and answer.
    system: what the system says before the conversation.
    text: plain text, for the language task.
    texts: of an interleaved document: a list as long as that of images, with null where an image stands.
    language: "en", "zh"; for entries of several languages. default_language: for all others.
    optional: names of fields that may be missing, or null.

    Raises ValueError where nothing is named, or a question without its answer.
    """

    image: str | None = None
    caption: str | None = None
    question: str | None = None
    answer: str | None = None
    conversation: str | None = None
    system: str | None = None
    text: str | None = None
    texts: str | None = None
    language: str | None = None
    default_language: str = "en"
    optional: tuple[str, ...] = ()
    video: str | None = None

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
        own = (self.image, self.caption, self.question, self.answer, self.conversation, self.system, self.text, self.texts)
        return {name for name in (*own, self.language, self.video) if name is not None}

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
        image, plain, system = get(self.image), get(self.text), get(self.system) or ""
        images: list[Any] = [*_listed(image), *listed_videos(get(self.video))]
        document: Parts = ()
        questions: tuple[Question, ...] = ()
        if get(self.texts) is not None:
            document, images = _document(get(self.texts), images, where)
        if self.conversation is None:
            questions = self._questions(get, where, language)
        elif get(self.conversation) is not None:
            talk = read_talk(get(self.conversation), images, where, language)
            questions, images, system = talk.questions, list(talk.images), system or talk.system
        if any(one is None for one in images):
            raise ValueError(f"{where}: the field '{self.image}' has a null among its images: leave it out, or name a file.")
        opened = [open_image(one) for one in images]
        return Record(
            key,
            image=opened[0] if opened else None,
            captions=tuple(Text(text, language) for text in self._texts(get, self.caption, where)),
            questions=questions,
            text=None if plain is None else Text(_one_text(plain, self.text, where), language),
            is_dialogue=self.conversation is not None,
            others=tuple(RecordImage(one) for one in opened[1:]),
            system=_one_text(system, self.system, where) if system else "",
            document=document,
        )

    def _questions(self, get: Callable[[str | None], Any], where: str, language: str) -> tuple[Question, ...]:
        questions = self._texts(get, self.question, where)
        answers = self._texts(get, self.answer, where, may_be_empty=bool(questions))
        if len(questions) != len(answers):
            raise ValueError(f"{where} has {len(questions)} questions and {len(answers)} answers: give each its own.")
        return tuple(Question(q, a, language=language) for q, a in zip(questions, answers, strict=True))

    def _texts(self, get: Callable[[str | None], Any], name: str | None, where: str, may_be_empty: bool = False) -> list[str]:
        """The texts of a field, none where it is missing. ValueError: an empty list, in a field that is not optional."""
        value = get(name)
        if value is None:
            return []
        texts = list(value) if isinstance(value, list | tuple) else [value]
        if not texts and not may_be_empty and name not in self.optional:
            raise ValueError(f"{where}: the field '{name}' is an empty list: fill it, or list it in fields.optional.")
        return [_one_text(text, name, where) for text in texts]


def listed_videos(value: Any) -> list[dict[str, Any]]:
    """The videos that a field holds, as `image_at` knows them: one, or several in a list; a list of names of images is one."""
    listed = _listed(value)
    if isinstance(value, list | tuple) and value and all(map(_is_frame, listed)):
        may_move = len(listed) == 1 and listed[0].lower().endswith((".webp", ".png"))
        return [{"video": listed[0] if may_move else listed}]
    return [{"video": one} for one in listed]


def _is_frame(held: Any) -> bool:
    """Whether something is named as an image that does not move."""
    return isinstance(held, str) and held.lower().endswith(IMAGE_SUFFIXES) and not held.lower().endswith(".gif")


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [] if value is None else [value]


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


def _one_text(value: Any, name: str | None, where: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{where}: the field '{name}' holds {short(value)}, which is no text.")
    if not value.strip():
        raise ValueError(f"{where}: the field '{name}' is empty: write something, or take the entry out.")
    return value.strip()


def _document(texts: Any, images: list[Any], where: str) -> tuple[Parts, list[Any]]:
    """An interleaved document, and its images without the gaps."""
    if not isinstance(texts, list | tuple) or len(texts) != len(images):
        held = f"{len(texts)} texts" if isinstance(texts, list | tuple) else short(texts)
        raise ValueError(f"{where}: a document has as many texts as images, null where the other stands, not {held}.")
    parts: list[str | int] = []
    found: list[Any] = []
    for text, image in zip(texts, images, strict=True):
        if isinstance(text, str) and text.strip() and image is None:
            parts.append(text.strip())
        elif image is not None and text in (None, ""):
            parts.append(len(found))
            found.append(image)
        elif text not in (None, "") or image is not None:
            raise ValueError(f"{where}: a place of the document holds a text or an image, not {short((text, image))}.")
    if not any(isinstance(part, str) for part in parts):
        raise ValueError(f"{where}: the document holds no text: take the entry out.")
    return tuple(parts), found
