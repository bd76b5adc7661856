"""Conversations as users hold them -> questions and answers in their order, with images wherever they stand.

    LLaVA, ShareGPT        [{"from": "human", "value": "<image>\\nWhat is it?"}, {"from": "gpt", "value": "A cat."}, ...]
    OpenAI, ms-swift       [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}, ...]
    The Cauldron           [{"user": "...", "assistant": "..."}, ...]
    content as parts       {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}

Each `<image>`, and each part of type image that holds none itself, is the next image of the entry; a part may hold its own
(`image`, `image_url`, `path`, `url`, `base64`). Videos stand among the images, `{"video": ...}` each: `<video>` is the next one
of them, and so is `<image>` where the entry has no other (LLaVA-Video). Where nothing in a conversation says where they stand,
they come before its first words, as in ms-swift. So does a single `<image>` of the first turn, wherever it stands there, as in
LLaVA's own training; all others stay where they are. A first turn of the system is kept. As in LLaVA, a first turn of gpt is
left out, which answers nothing, and so is a last turn of the user, which is not answered.
Source: haotian-liu/LLaVA, llava/train/train.py; modelscope/ms-swift and hiyouga/LLaMA-Factory, their pages on custom data.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from unimm.data.image_forms import HELD, ImageError, held_in_part
from unimm.data.readers.paths import short
from unimm.data.records import Parts, Question

IMAGE, VIDEO = "<image>", "<video>"
VIDEO_PARTS = ("video", "video_url")
SYSTEM, USER, ASSISTANT = "system", "user", "assistant"
_ROLES = {
    "human": USER, "user": USER, "gpt": ASSISTANT, "assistant": ASSISTANT, "model": ASSISTANT,
    "chatgpt": ASSISTANT, "bing": ASSISTANT, "bard": ASSISTANT, "system": SYSTEM, "developer": SYSTEM,
}  # fmt: skip


@dataclass(frozen=True)
class Talk:
    """A conversation that was read.

    images: what its images are held as, in reading order; the numbers in the questions' parts count them.
    system: what the system says before it; empty: nothing.
    """

    questions: tuple[Question, ...]
    images: tuple[Any, ...] = ()
    system: str = ""


@dataclass
class _Images:
    """The images of an entry, as a conversation comes to them. given: those beside it. found: all in reading order."""

    given: list[Any]
    found: list[Any] = field(default_factory=list)
    num_taken: int = 0

    def __post_init__(self) -> None:
        self._left = list(self.given)
        self._has_pictures = not all(map(_is_video, self.given))
        self.marks = re.compile(f"({IMAGE}|{VIDEO})" if any(map(_is_video, self.given)) else f"({IMAGE})")

    def take(self, own: Any = None, mark: str = IMAGE) -> int:
        """The number of the next image: one that its part holds, or the next of the entry, a video where it is marked so."""
        if own is None:
            wants_video = mark == VIDEO or not self._has_pictures
            place = next((n for n, one in enumerate(self._left) if _is_video(one) == wants_video), None)
            own = None if place is None else self._left.pop(place)
            self.num_taken += 1
        self.found.append(own)
        return len(self.found) - 1


def _is_video(held: Any) -> bool:
    return isinstance(held, Mapping) and held.get("video") is not None


def read_talk(turns: Any, images: Iterable[Any], where: str, language: str = "en") -> Talk:
    """The questions and answers of a conversation about an entry's images.

    Raises:
        ValueError: turns do not take turns, one is empty, or what is said of images does not agree with those that there are;
            `where` is said first.
    """
    said = [_turn(turn, where) for pair in turns for turn in _of_pair(pair)] if isinstance(turns, list | tuple) else []
    system = ""
    if said and said[0][0] == SYSTEM:
        system = _system(said[0][1], where)
        said = said[1:]
    if said and said[0][0] == ASSISTANT:
        said = said[1:]
    if any(role != (USER, ASSISTANT)[number % 2] for number, (role, _) in enumerate(said)):
        raise ValueError(f"{where}: human and gpt do not take turns: merge neighbouring turns of one of them.")
    if len(said) < 2:
        raise ValueError(f"{where}: the conversation holds no question with an answer: take the entry out.")
    said = said[: len(said) - len(said) % 2]
    return Talk(*_questions(said, list(images), where, language), system=system)


def _questions(said: list[tuple[str, Any]], given: list[Any], where: str, language: str) -> tuple[tuple, tuple]:
    """Questions, and all images in reading order."""
    images = _Images(given)
    asked = [_count(content, images) for role, content in said if role == USER]
    # What gpt writes is text, unless the user's turns leave images over.
    answered = sum(_count(content, images) for role, content in said if role != USER)
    in_answers = sum(asked) < len(given) and sum(asked) + answered == len(given)
    parts = [_parts(content, images, role == USER or in_answers, where) for role, content in said]
    if images.num_taken not in (0, len(given)) or (images.num_taken == 0 and given and images.found):
        named = f"{images.num_taken} time{'s' * (images.num_taken != 1)}"
        mark, noun = (VIDEO, "video") if given and all(map(_is_video, given)) else (IMAGE, "image")
        there = f"{len(given) or 'no'} {noun}{'s' * (len(given) > 1)}"
        raise ValueError(
            f"{where}: the conversation speaks of {mark} {named}, and the entry names {there}: write one for each."
        )
    is_told = bool(images.found)
    comes_first = len(images.found) == 1 and asked[0] == 1 and not isinstance(said[0][1], list | tuple)
    if not is_told:
        images.found.extend(given)
    questions = []
    if comes_first:
        alone = images.marks.sub("", str(said[0][1])).strip()
        parts[0] = [alone] if alone else []
    for number in range(0, len(parts), 2):
        ask, answer = parts[number : number + 2]
        shows = number == 0 and bool(images.found) and (comes_first or not is_told)
        for place, one in ((1, ask), (2, answer)):
            if not one and not (place == 1 and shows):  # the image alone may be the question
                raise ValueError(f"{where}: turn {number + place} of the conversation is empty.")
        own, its = _plain(ask), _plain(answer)
        questions.append(Question(_text(ask), _text(answer), "", language, own, its))
    return tuple(questions), tuple(images.found)


def _plain(parts: list[str | int]) -> Parts:
    """The parts, if there is an image among them: text alone needs none."""
    return tuple(parts) if any(isinstance(part, int) for part in parts) else ()


def _text(parts: list[str | int]) -> str:
    return "\n".join(part for part in parts if isinstance(part, str))


def _count(content: Any, images: _Images) -> int:
    """How often a turn speaks of an image of the entry."""
    if isinstance(content, str):
        return len(images.marks.findall(content))
    return sum(_count(part["text"], images) if part["type"] == "text" else _is_blank(part) for part in content)


def _parts(content: Any, images: _Images, shows: bool, where: str) -> list[str | int]:
    """A turn as texts without white space around them, and numbers of images. shows: whether `<image>` is one here."""
    found: list[str | int] = []
    for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
        if part["type"] != "text":
            mark = VIDEO if part["type"] in VIDEO_PARTS else IMAGE
            found.append(images.take(None if _is_blank(part) else _held(part, where), mark))
            continue
        for number, piece in enumerate(images.marks.split(part["text"]) if shows else [part["text"]]):
            if number % 2:  # a mark
                found.append(images.take(mark=piece))
            elif piece.strip():
                found.append(piece.strip())
    return found


def _is_blank(part: Mapping[str, Any]) -> bool:
    """Whether a part of type image stands for the next image of the entry."""
    return part["type"] in ("image", "video") and all(part.get(key) is None for key in (*HELD, "bytes", "video"))


def _held(part: Mapping[str, Any], where: str) -> Any:
    """The image or video that a part holds itself."""
    if part["type"] in VIDEO_PARTS:
        url = part.get("video_url")
        names = (part.get("video"), part.get("path"), part.get("url"), url.get("url") if isinstance(url, Mapping) else url)
        settings = {name: part[name] for name in ("num_frames", "fps") if part.get(name) is not None}
        return {"video": next((name for name in names if name is not None), part.get("base64")), **settings}
    if part["type"] == "image" and part.get("bytes") is not None:  # as Hugging Face's tables have it
        return part["bytes"]
    try:
        return held_in_part({key: value for key, value in part.items() if key in ("type", "image_url", *HELD)})
    except ImageError as error:
        raise ValueError(f"{where}: {error}") from None


def _system(content: Any, where: str) -> str:
    texts = [content] if isinstance(content, str) else [part.get("text") for part in content]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{where}: what the system says is text: move its images into the user's first turn.")
    return "\n".join(texts).strip()


def _of_pair(turn: Any) -> list[Any]:
    """{"user": ..., "assistant": ...}, as The Cauldron and ms-swift have it, as two turns; any other turn by itself."""
    asker = next((name for name in ("user", "human") if isinstance(turn, Mapping) and {name, ASSISTANT} <= turn.keys()), None)
    if asker is None:
        return [turn]
    system = [{"role": SYSTEM, "content": turn["system"]}] if turn.get("system") else []
    return [*system, {"role": USER, "content": turn[asker]}, {"role": ASSISTANT, "content": turn[ASSISTANT]}]


def _turn(turn: Any, where: str) -> tuple[str, Any]:
    """The role, and the content: a text, or parts {"type": "text" | "image" | "image_url", ...}."""
    if not isinstance(turn, Mapping):
        raise ValueError(f'{where}: a turn is {{"from": ..., "value": ...}}, not {short(turn)}.')
    role, content = turn.get("from", turn.get("role")), turn.get("value", turn.get("content"))
    if not isinstance(role, str) or role not in _ROLES:
        raise ValueError(f"{where}: a turn is human's or gpt's, not {short(role)}'s.")
    if isinstance(content, str):
        return _ROLES[role], content
    if isinstance(content, Mapping) or not isinstance(content, list | tuple) or not all(map(_is_part, content)):
        first = (
            next((part for part in content if not _is_part(part)), content) if isinstance(content, list | tuple) else content
        )
        raise ValueError(f"{where}: what {role} says is text, or parts of type text and image, not {short(first)}.")
    return _ROLES[role], [{key: value for key, value in part.items() if value is not None} for part in content]


def _is_part(part: Any) -> bool:
    if not isinstance(part, Mapping) or part.get("type") not in ("text", "image", "image_url", *VIDEO_PARTS):
        return False
    return (
        isinstance(part.get("text"), str) if part["type"] == "text" else part["type"] not in VIDEO_PARTS or "text" not in part
    )
