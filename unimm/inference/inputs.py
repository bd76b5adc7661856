"""What users give, checked and put in order: texts, messages, images with their questions."""

from dataclasses import dataclass
from typing import Any

from unimm.data.records import ImageLike
from unimm.data.template import Template, Turn
from unimm.models.unified import UnifiedModel
from unimm.sequence import BLANK, Kind, Sequence

MAX_PROMPT_CHARACTERS = 50_000
"""Longer texts are refused before they reach the tokenizer: no model here could read them."""

Message = dict[str, Any]
"""A chat message as `transformers` has it: {"role": ..., "content": str or a list of {"type": "text" | "image", ...}}."""


def read_messages(messages: list[Message], template: Template, max_positions: int) -> tuple[list[Turn], str | None]:
    """Messages as turns, their images prepared, and what a first message of the role "system" says.

    Raises:
        ValueError: a role, part or image that is none, nobody to answer, or more than `max_positions` could hold; before any
            image is read.
    """
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise ValueError(f"Messages are a list of {_SHAPE}.")
    told = [_read_parts(message) for message in messages]
    if sum(len(text) for parts in told for text in parts if isinstance(text, str)) > MAX_PROMPT_CHARACTERS:
        raise ValueError(f"The messages have more than {MAX_PROMPT_CHARACTERS:,} characters: no more are read.")
    num_images = sum(not isinstance(part, str) for parts in told for part in parts)
    each = 0 if template.prompt_format.sees == "codes" else template.num_positions
    if num_images * each > max_positions:
        raise ValueError(f"{num_images} images take {num_images * each} positions, and there are {max_positions}: show fewer.")
    system_prompt = None
    if messages and messages[0].get("role") == "system":
        if any(not isinstance(part, str) for part in told[0]):
            raise ValueError("A system message is text: show images in a user's message.")
        system_prompt = " ".join(str(part) for part in told[0])
        messages, told = messages[1:], told[1:]
    if not messages:
        raise ValueError('There is no message to answer: give at least one of role "user".')
    return [_read_turn(message, parts, template) for message, parts in zip(messages, told, strict=True)], system_prompt


_SHAPE = '{"role": "user" or "assistant", "content": text or a list of parts}; "system" comes first'


@dataclass(frozen=True)
class _Shown:
    """An image of a message, unread."""

    image: ImageLike


def _read_parts(message: Message) -> list[str | _Shown]:
    content = message.get("content")
    if not isinstance(content, str | list):
        raise ValueError(f"A message is {_SHAPE}.")
    parts: list[str | _Shown] = []
    for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text":
            if not isinstance(part.get("text"), str):
                raise ValueError(f"A text part needs its text as a string, not {type(part.get('text')).__name__}.")
            parts.append(part["text"])
        elif kind == "image":
            image = next((part[key] for key in ("image", "path", "url") if part.get(key) is not None), None)
            if image is None:
                raise ValueError('An image part needs an "image", "path" or "url".')
            parts.append(_Shown(image))
        else:
            raise ValueError(f"A part of a message is of type text or image, not {kind!r}.")
    return parts


def _read_turn(message: Message, parts: list[str | _Shown], template: Template) -> Turn:
    role = message.get("role")
    if role not in ("user", "assistant"):
        raise ValueError(f"A message is {_SHAPE}.")
    if role == "user":  # an assistant may have said nothing, where a stop string came first
        for part in parts or [""]:
            if isinstance(part, str):
                check_text(part, "message")
    return Turn(role, tuple(part if isinstance(part, str) else template.look(part.image) for part in parts), learn=False)


def check_text(text: Any, name: str) -> None:
    """ValueError: the text is no string, empty, or longer than anything here could read. name: what to call it."""
    if not isinstance(text, str):
        raise ValueError(f"A {name} is a string, not {type(text).__name__}.")
    if not text.strip():
        raise ValueError(f"The {name} is empty: say something.")
    if len(text) > MAX_PROMPT_CHARACTERS:
        raise ValueError(f"The {name} has {len(text):,} characters; at most {MAX_PROMPT_CHARACTERS:,} are read.")


def read_stop(stop: str | list[str] | None) -> tuple[str, ...]:
    """Stop strings as a tuple. ValueError: one of them is empty or none."""
    strings = (stop,) if isinstance(stop, str) else tuple(stop or ())
    for one in strings:
        if not isinstance(one, str) or not one:
            raise ValueError(f"stop is a string or a list of strings, none of them empty, not {stop!r}.")
    return strings


def pair(image: ImageLike | list, question: str | list[str]) -> tuple[list, list[str], bool]:
    """Images and questions as two lists of one length, and whether a list goes back."""
    is_list = isinstance(image, list) or isinstance(question, list)
    images = image if isinstance(image, list) else [image]
    questions = question if isinstance(question, list) else [question]
    count = max(len(images), len(questions)) if images and questions else 0
    images = images * count if len(images) == 1 else images
    questions = questions * count if len(questions) == 1 else questions
    if len(images) != len(questions) and count:
        raise ValueError(f"{len(images)} images do not pair with {len(questions)} questions.")
    return images[:count], questions[:count], is_list


def check_elements(sequence: Sequence, model: UnifiedModel) -> None:
    """ValueError: an element is none that the model knows. Prefilled beside others it would be their trouble, too."""
    size = model.config.vision.image_size
    for segment in sequence.segments:
        if segment.kind == Kind.PIXELS:
            if segment.pixels is not None and segment.pixels.shape != (3, size, size):
                raise ValueError(f"The vision tower looks at (3, {size}, {size}), not at {segment.pixels.shape}.")
            continue
        most = model.vocabulary_ports[segment.kind].vocabulary_size
        known = [one for one in segment.ids if one != BLANK]  # which closed segments do not hold
        if known and not (min(known) >= 0 and max(known) < most):
            strange = next(one for one in known if not 0 <= one < most)
            raise ValueError(f"The model has no element {strange} of {segment.kind.name}: they go from 0 to {most - 1}.")
