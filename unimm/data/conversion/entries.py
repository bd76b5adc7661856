"""What a record becomes in a file: named values that JSON holds, and its images as the bytes of image files.

    captions       a list of texts
    questions      two lists of one length, `question` and `answer`: questions that do not lean on each other
    conversation   turns of human, gpt and system, as LLaVA writes them, with `<image>` where an image stands
    text           plain text
    document       two lists of one length, texts and images, with null where the other stands (OBELICS)

An image that is a file, or lies in one, is copied byte by byte; others (arrays, PIL images) are written as PNG, upright.
"""

import io
import json
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from PIL import Image, ImageOps

from unimm.data.bad_records import reason_of
from unimm.data.image import decode_image
from unimm.data.image_forms import plain_form
from unimm.data.inspection.measure import encoded_bytes, format_of
from unimm.data.readers.conversations import IMAGE
from unimm.data.records import Dataset, ImageLike, Question, Record, SeenImage, Video, key_at, unchecked

PARTS = ("captions", "prompts", "questions", "conversation", "system", "text", "document", "codes", "phrases")
"""What a record may have beside images, by the names that messages and `leave_out` use."""

SUFFIXES = {
    **{"JPEG": ".jpg", "MPO": ".jpg", "PNG": ".png", "WEBP": ".webp", "GIF": ".gif", "BMP": ".bmp", "TIFF": ".tif"},
    **{"AVIF": ".avif", "HEIF": ".heic"},
}
"""How an image file is called, by its format."""


class CannotHoldError(ValueError):
    """A format cannot hold what a record holds; the message is one sentence that says what to do."""


class ImageFile(NamedTuple):
    """The bytes of an image file, and how such a file is called (".png")."""

    content: bytes
    suffix: str


@dataclass(frozen=True)
class Entry:
    """A record to write. Empty is what it has not. key: of the record. language: of all its texts."""

    key: str
    images: tuple[ImageFile, ...] = ()
    captions: tuple[str, ...] = ()
    questions: tuple[tuple[str, str], ...] = ()
    conversation: tuple[dict[str, Any], ...] = ()
    text: str = ""
    document: tuple[str | int, ...] = ()
    language: str = ""


class Failed(NamedTuple):
    """A record that cannot be used: its key, and why."""

    key: str
    reason: str


@dataclass(frozen=True)
class EntryReader:
    """Index -> Entry, or Failed where the record cannot be used; for processes that read ahead.

    leave_out: parts (PARTS) that are not written. with_images: read them, and decode each, as training will; else only count.

    Raises CannotHoldError where no file holds what the record holds.
    """

    dataset: Dataset
    leave_out: tuple[str, ...] = ()
    with_images: bool = True

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Entry | Failed:
        key = f"record {index}"
        try:
            record = unchecked(self.dataset, index)
            key = record.key
            entry = entry_of(record, self.leave_out)
            check_texts(entry)
            images = [one.image for one in record.images]
            if any(isinstance(one, Video) for one in images):
                raise CannotHoldError(f"{record.key} has a video, which is not converted: leave its source out.")
            files = [image_file(one) if self.with_images else ImageFile(b"", "") for one in images]
            return replace(entry, key=as_utf8(key), images=tuple(files))
        except CannotHoldError:
            raise
        except (ValueError, OSError) as error:
            return Failed(as_utf8(key_at(self.dataset, index) or key), as_utf8(reason_of(error)))


def as_utf8(text: str) -> str:
    """A text that any file holds: bytes of a file's name that are not UTF-8 are written as `\\udce9`."""
    return text.encode("utf-8", "backslashreplace").decode()


def check_texts(entry: Entry) -> None:
    """Raises ValueError where a text of an entry cannot be written as UTF-8: JSON may hold half of an emoji."""
    said = (entry.captions, entry.questions, entry.conversation, entry.text, entry.document, entry.language)
    try:
        json.dumps(said, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = as_utf8(error.object[error.start])
        raise ValueError(f"A text holds half of a character ({half}), such as an emoji that was cut: mend the text.") from None


def entry_of(record: Record, leave_out: tuple[str, ...] = ()) -> Entry:
    """The entry of a record, without its images.

    Raises:
        CannotHoldError: it holds something that no format here has a place for.
    """

    def given(name: str, value: Any) -> Any:
        return () if name in leave_out else value

    questions = given("conversation" if record.is_dialogue else "questions", record.questions)
    system = record.system if "system" not in leave_out else ""
    for name, is_there in (
        ("prompts", bool(given("prompts", record.prompts))),
        ("codes", bool(given("codes", record.codes is not None))),
        ("phrases", bool(given("phrases", vars(record).get("phrases")))),  # not those that a world makes of its scenes
        ("system", bool(system and not record.is_dialogue)),
    ):
        if is_there:
            raise CannotHoldError(f"{record.key} has {_NAMED[name]}, which no file holds: leave it out, leave_out=[{name}].")
    texts = [*record.captions] if "captions" not in leave_out else []
    texts += [record.text] if record.text is not None and "text" not in leave_out else []
    languages = {one.language for one in [*texts, *questions]}
    if len(languages) > 1:
        raise CannotHoldError(f"{record.key} has texts in {' and '.join(sorted(languages))}: an entry is in one language.")
    entry = Entry(
        record.key,
        captions=tuple(one.text for one in given("captions", record.captions)),
        text=record.text.text if record.text is not None and "text" not in leave_out else "",
        document=given("document", record.document),
        language=next(iter(languages), ""),
    )
    if [one for one in entry.document if isinstance(one, int)] != list(range(record.num_images if entry.document else 0)):
        raise CannotHoldError(f"{record.key} is a document whose images are not in order: list them as they are shown.")
    if record.is_dialogue:
        return replace(
            entry, conversation=tuple(turns_of(record.key, questions, record.num_images, system)) if questions else ()
        )
    if any(one.parts or one.answer_parts for one in questions):
        raise CannotHoldError(f"{record.key} has questions with images among their words, and is no conversation.")
    return replace(entry, questions=tuple((one.text, one.answer) for one in questions))


_NAMED = {
    "prompts": "prompts beside its captions",
    "codes": "codes of its image",
    "phrases": "phrases with boxes",
    "system": "a system's words without a conversation",
}


def turns_of(key: str, questions: tuple[Question, ...], num_images: int, system: str = "") -> list[dict[str, Any]]:
    """A conversation as LLaVA writes it; turns with parts where LLaVA's form would move an image to the beginning.

    Raises:
        CannotHoldError: `<image>` stands in it as plain text, or it shows its images in another order.
    """
    texts = [
        text for one in questions for text in (one.text, one.answer, *one.parts, *one.answer_parts) if isinstance(text, str)
    ]
    if any(IMAGE in text for text in texts):
        raise CannotHoldError(f"{key} says {IMAGE} as plain text, which would be read as an image: write it otherwise.")
    shown = [part for one in questions for part in (*one.parts, *one.answer_parts) if isinstance(part, int)]
    if shown and shown != list(range(num_images)):
        raise CannotHoldError(f"{key} does not show each of its images once and in order: no conversation in a file says so.")
    turns: list[dict[str, Any]] = [{"from": "system", "value": system}] if system else []
    for one in questions:
        turns.append({"from": "human", "value": _marked(one.parts) if one.parts else one.text})
        turns.append({"from": "gpt", "value": _marked(one.answer_parts) if one.answer_parts else one.answer})
    first = turns[bool(system)]
    if num_images == 1 and not shown:
        first["value"] = f"{IMAGE}\n{first['value']}".strip()
    elif num_images == 1 and questions[0].parts:  # as a text it would be read with its image at the beginning
        first["value"] = [{"type": "text", "text": p} if isinstance(p, str) else {"type": "image"} for p in questions[0].parts]
    return turns


def _marked(parts: tuple[str | int, ...]) -> str:
    return "\n".join(IMAGE if isinstance(part, int) else part for part in parts)


def image_file(image: ImageLike) -> ImageFile:
    """An image as a file: its own bytes where it is one, else a PNG. It is decoded once, as training will.

    Raises:
        ValueError: it cannot be read.
    """
    if isinstance(image, SeenImage):
        image = image.original()
    plain = plain_form(image)
    content = encoded_bytes(plain)
    picture = decode_image(plain if content is None else content)
    if content is None:
        file = io.BytesIO()
        if isinstance(plain, Image.Image) and plain.mode in ("L", "RGB", "RGBA"):
            picture = ImageOps.exif_transpose(plain)  # its EXIF is not written
        picture.save(file, "PNG")
        return ImageFile(file.getvalue(), ".png")
    return ImageFile(content, SUFFIXES.get(format_of(content)[0], ".png"))
