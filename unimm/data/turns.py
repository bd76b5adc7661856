"""A conversation's turns: texts, images and videos in their order, before a template writes them as a sequence."""

from dataclasses import dataclass

from unimm.data.video.choosing import Frames
from unimm.sequence import Segment

ImageSegments = tuple[Segment, ...]
"""An image inside a conversation: its pixels, its codes, or both; or the pixels of its tiles with numbers between them."""


Part = str | ImageSegments | Frames
"""Of a turn: a text, an image, or a video."""


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation: texts, images and videos in order. An assistant's turn is learned unless `learn` is false."""

    role: str
    content: tuple[Part, ...]
    learn: bool = True


def trimmed(content: tuple[Part, ...]) -> list[Part]:
    """The parts of a turn, without white space before the first word and behind the last, as in Janus."""
    parts = list(content)
    if parts and isinstance(parts[0], str):
        parts[0] = parts[0].lstrip()
    if parts and isinstance(parts[-1], str):
        parts[-1] = parts[-1].rstrip()
    return parts
