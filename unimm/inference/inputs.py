"""What users give, checked and put in order: texts, messages, images with their questions."""

from typing import Any

from unimm.data.records import ImageLike
from unimm.data.template import Look, Template, Turn

MAX_PROMPT_CHARACTERS = 50_000
"""Longer texts are refused before they reach the tokenizer: no model here could read them."""

Message = dict[str, Any]
"""A chat message as `transformers` has it: {"role": ..., "content": str or a list of {"type": "text" | "image", ...}}."""


def read_messages(messages: list[Message], template: Template) -> tuple[list[Turn], str | None]:
    """Messages as turns, their images prepared, and what a first message of the role "system" says.

    Raises:
        ValueError: a role, part or image that is none, or nobody to answer.
    """
    system_prompt = None
    if messages and messages[0].get("role") == "system":
        first, *messages = messages
        content = first.get("content")
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content or []
        if any(part.get("type") != "text" for part in parts):
            raise ValueError("A system message is text: show images in a user's message.")
        system_prompt = " ".join(part["text"] for part in parts)
    if not messages:
        raise ValueError('There is no message to answer: give at least one of role "user".')
    return [_read_turn(message, template) for message in messages], system_prompt


def _read_turn(message: Message, template: Template) -> Turn:
    role, content = message.get("role"), message.get("content")
    if role not in ("user", "assistant") or content is None:
        raise ValueError(
            'A message is {"role": "user" or "assistant", "content": text or a list of parts}; "system" comes first.'
        )
    parts: list[str | Look] = []
    for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
        if part.get("type") == "text":
            check_text(part.get("text"), "message")
            parts.append(part["text"])
        elif part.get("type") == "image":
            image = next((part[key] for key in ("image", "path", "url") if part.get(key) is not None), None)
            if image is None:
                raise ValueError('An image part needs an "image", "path" or "url".')
            parts.append(template.look(image))
        else:
            raise ValueError(f"A part of a message is of type text or image, not {part.get('type')!r}.")
    return Turn(role, tuple(parts), learn=False)


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
