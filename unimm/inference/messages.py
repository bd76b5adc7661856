"""Chat messages as `transformers`, OpenAI and DeepSeek write them, read into the turns of a conversation.

    transformers  {"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "What is this?"}]}
    OpenAI        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,..."}}, ...]}
    videos        {"type": "video", "video": "clip.mp4"}, {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,"}}
    DeepSeek      {"role": "<|User|>", "content": "<image_placeholder>\\nWhat is this?", "images": [picture]}

    a drawing     {"role": "assistant", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "Here."}]}

An image in an assistant's message is one that it drew: it is read as codes, those that the part holds beside it ("codes", as
`AssistantMessage.message` has them), or those that the image tokenizer makes of it.

A last message of the assistant's is what its answer begins with; an empty one, as DeepSeek ends its conversations, is the place
to answer. Whatever a message says that is not followed is refused: an answer to an image that was ignored would not show it.
"""

from dataclasses import dataclass
from typing import Any

from unimm.data.image_forms import check_keys, held_in_part, read_once
from unimm.data.records import ImageLike, Video
from unimm.data.template import Part, Template, Turn
from unimm.data.text import SPECIAL_NAMES
from unimm.data.video.choosing import Frames, segments_of
from unimm.data.video.sources import PARTS as VIDEO_PARTS
from unimm.data.video.sources import open_video
from unimm.inference.examples import check_num_images
from unimm.inference.input_validation import MAX_PROMPT_CHARACTERS, check_text
from unimm.runtime.number_checks import shorten

Message = dict[str, Any]
"""A chat message: {"role": ..., "content": text or a list of parts}, and with DeepSeek "images"."""

ROLES = {"user": "user", "assistant": "assistant", "system": "system", "developer": "system"}
ROLES |= {name: role for role in ("user", "assistant") for name in (SPECIAL_NAMES[role], role.capitalize())}
"""Whose message it is, by what it may be called: DeepSeek writes "<|User|>" or "User"."""

PLACEHOLDER = SPECIAL_NAMES["image_placeholder"]
"""Where an image of "images" belongs in the content."""

_SHAPE = '{"role": "user" or "assistant", "content": text or a list of parts}; "system" comes first'


@dataclass(frozen=True)
class _Shown:
    """An image or video of a message, unread; or frames of a video that were chosen before."""

    image: ImageLike | Frames
    codes: tuple[int, ...] | None = None


def read_messages(messages: list[Message], template: Template, max_positions: int) -> tuple[list[Turn], str | None]:
    """Messages as turns, their images prepared, and what a first message of the role "system" says.

    The last turn is the assistant's where the last message is, and says something: it is to be continued.

    Raises:
        ValueError: an invalid role, key, part or image, no message to answer, or more than `max_positions` could hold; before
            any image is read.
    """
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise ValueError(f"Messages are a list of {_SHAPE}.")
    read = [(_role(message), _read_content(message)) for message in messages]
    if sum(len(text) for _, parts in read for text in parts if isinstance(text, str)) > MAX_PROMPT_CHARACTERS:
        raise ValueError(f"The messages have more than {MAX_PROMPT_CHARACTERS:,} characters: no more are read.")
    check_num_images(sum(not isinstance(part, str) for _, parts in read for part in parts), template, max_positions)
    system_prompt = None
    if read and read[0][0] == "system":
        if any(not isinstance(part, str) for part in read[0][1]):
            raise ValueError("A system message is text: show images in a user's message.")
        system_prompt = " ".join(str(part) for part in read[0][1])
        read = read[1:]
    if read and read[-1][0] == "assistant" and not _says_something(read[-1][1]):
        read = read[:-1]
    if not any(role == "user" for role, _ in read):
        raise ValueError('There is no message to answer: give at least one of role "user".')
    turns = [_read_turn(role, parts, template) for role, parts in read]
    shown = [part for turn in turns for part in turn.content if not isinstance(part, str)]
    if (taken := sum(segment.length for image in shown for segment in segments_of(image))) > max_positions:
        raise ValueError(
            f"The images of the messages take {taken} positions, and there are {max_positions}: show fewer, or smaller ones."
        )
    return turns, system_prompt


def list_conversations(messages: Any) -> tuple[list[Any], bool]:
    """One conversation, or a list of them, as a list; and whether it was one."""
    is_list = isinstance(messages, list) and bool(messages) and all(isinstance(one, list) for one in messages)
    return (messages if is_list else [messages]), is_list


def continues_answer(messages: list[Message]) -> bool:
    """Whether messages that were read end with what the assistant has begun to say."""
    return _role(messages[-1]) == "assistant" and _says_something(_read_content(messages[-1]))


def _says_something(parts: list[str | _Shown]) -> bool:
    return any(not isinstance(part, str) or part.strip() for part in parts)


def _role(message: Message) -> str:
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise ValueError(f"A message is {_SHAPE}.")
    return ROLES[role]


def _read_content(message: Message) -> list[str | _Shown]:
    check_keys("message", message, ("role", "content", "images"))
    content, images = message.get("content"), message.get("images")
    if content is None and ROLES[message["role"]] == "assistant":
        content = ""
    if not isinstance(content, str | list):
        raise ValueError(f"A message is {_SHAPE}.")
    if images is not None:
        return _with_images(content, images)
    return [content] if isinstance(content, str) else [_read_part(part) for part in content]


def _with_images(content: str | list, images: Any) -> list[str | _Shown]:
    """DeepSeek's form: each placeholder is an image. One line end beside it is the one that the template writes anyhow."""
    if not isinstance(images, list | tuple) or not isinstance(content, str):
        raise ValueError(f'A message with "images" holds a list of them and {PLACEHOLDER} in its text for each, or use parts.')
    pieces = content.split(PLACEHOLDER)
    if len(pieces) - 1 != len(images):
        raise ValueError(
            f'A message has {len(images)} "images", but {len(pieces) - 1} {PLACEHOLDER} in its text: write one for each image.'
        )
    parts: list[str | _Shown] = []
    for index, piece in enumerate(pieces):
        piece = piece.removeprefix("\n") if index else piece
        piece = piece.removesuffix("\n") if index < len(images) else piece
        parts += [piece] if piece.strip() else []
        parts += [_Shown(read_once(images[index]))] if index < len(images) else []
    return parts or [content]


def _read_part(part: Any) -> str | _Shown:
    kind = part.get("type") if isinstance(part, dict) else part
    if not isinstance(part, dict) or kind not in ("text", "image", "image_url", *VIDEO_PARTS):
        video = "a video is of type video or video_url"
        raise ValueError(f"A part of a message is a dict of type text, image or image_url, not {shorten(kind)}; {video}.")
    if kind in VIDEO_PARTS:
        chosen = part.get("video")
        return _Shown(chosen if isinstance(chosen, Frames) else open_video(part))
    if kind != "text":
        held = read_once(held_in_part({name: own for name, own in part.items() if name != "codes"}))
        return _Shown(held, _read_codes(part.get("codes")))
    check_keys("part of type text", part, ("type", "text"))
    if not isinstance(part.get("text"), str):
        raise ValueError(f"A text part needs its text as a string, not {type(part.get('text')).__name__}.")
    return part["text"]


def _read_codes(codes: Any) -> tuple[int, ...] | None:
    """The codes of a part, where it has some."""
    if codes is None:
        return None
    if not isinstance(codes, list | tuple) or not codes or not all(type(code) is int for code in codes):
        raise ValueError(f"The codes of an image are a list of whole numbers, not {shorten(codes)}.")
    return tuple(codes)


def _read_turn(role: str, parts: list[str | _Shown], template: Template) -> Turn:
    if role == "system":
        raise ValueError(f"A message is {_SHAPE}.")
    if role == "user":  # an assistant may have said nothing, where a stop string came first
        for part in parts or [""]:
            if isinstance(part, str):
                check_text(part, "message")
    shown = tuple(part if isinstance(part, str) else _show(part, role, template) for part in parts)
    return Turn(role, shown, learn=False)


def _show(shown: _Shown, role: str, template: Template) -> Part:
    """An image or video as it is looked at; of the assistant's, as it was drawn."""
    if role == "user":
        if shown.codes is not None:
            raise ValueError("Codes belong to a drawing, in a message of the assistant's: leave them out of a user's image.")
        return template.show(shown.image)
    if isinstance(shown.image, Frames | Video):
        raise ValueError("An assistant's message holds texts and images that it drew, no videos.")
    if shown.codes is None and template.encode is None:
        raise ValueError("The image of an assistant's message needs its codes, since there is no image tokenizer here.")
    codes = template.encode(shown.image) if shown.codes is None and template.encode is not None else shown.codes
    return template.drawn(codes, shown.image)
