"""A sequence of segments, the last of which may be open: the one idea of the project.

Captioning, question answering, drawing, chat, editing and plain text are all the same thing: some segments are given, and
the last one is learned (training) or left open to be filled (inference, evaluation). The tasks as sequences:

    caption, training     PIXELS . TEXT("describe") . TEXT("a cat", learn)
    caption, inference    PIXELS . TEXT("describe") . TEXT(open)
    drawing, training     TEXT("a cat", condition="text") . CODES(learn)
    drawing, inference    TEXT("a cat", condition="text") . CODES(open)

Nothing here knows strings, tensors' devices or models; the file imports nothing of the package.
"""

from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import NamedTuple

import numpy as np

BLANK = -1
"""Inside the ids of an open segment: an element that is not known yet."""


class Kind(IntEnum):
    """What an element of a sequence is, and thus which port reads and writes it."""

    TEXT = 0
    """Token ids of the text tokenizer; predicted one by one."""
    PIXELS = 1
    """An image looked at: continuous features, several positions an image; never predicted."""
    CODES = 2
    """An image written: codes of the image tokenizer; predicted one by one."""


@dataclass(frozen=True)
class Segment:
    """A run of elements of one kind. Use the constructors `text`, `look`, `codes` and `blank`.

    ids: the elements of TEXT and CODES (in an open segment: those already known, `BLANK` where unknown).
    pixels: (3, H, W) float32 in [-1, 1], of PIXELS only.
    features: (P, C) float32, of PIXELS only, instead of pixels: what a frozen vision tower made of them before.
    num_positions: how many positions the image takes in the sequence.
    learn: whether the loss looks at it.
    condition: the name of the condition it belongs to ("text", "image"), which guidance drops; None for what always stays.
    limit: at most so many elements are to be filled in; None means closed.
    stop: ids that end an open TEXT segment early.
    decoys: ids that are read in the place of `ids`, which are learned all the same: one learns to go on from what is wrong.
    """

    kind: Kind
    ids: tuple[int, ...] = ()
    pixels: np.ndarray | None = field(default=None, compare=False)
    features: np.ndarray | None = field(default=None, compare=False)
    num_positions: int = 0
    learn: bool = False
    condition: str | None = None
    limit: int | None = None
    stop: tuple[int, ...] = ()
    decoys: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.kind == Kind.PIXELS:
            has_one = (self.pixels is None) != (self.features is None)
            if not has_one or self.num_positions < 1 or self.ids or self.is_open or self.learn:
                raise ValueError(
                    "A PIXELS segment takes pixels, or their features, and a positive number of positions, and is neither open "
                    "nor learned."
                )
        elif self.pixels is not None or self.features is not None or self.num_positions:
            raise ValueError(f"A {self.kind.name} segment takes ids, not pixels.")
        if self.decoys and (not self.learn or len(self.decoys) != len(self.ids)):
            raise ValueError(
                f"Decoys stand in the place of ids that are learned: {len(self.decoys)} of them for {len(self.ids)}."
            )
        if self.is_open:
            if self.limit is None or self.limit < 1:
                raise ValueError(f"An open segment needs a limit of at least 1 element, not {self.limit}.")
            if len(self.ids) > self.limit:
                raise ValueError(f"An open segment of {self.limit} elements cannot hold {len(self.ids)} known ones.")
        elif BLANK in self.ids:
            raise ValueError("A closed segment cannot hold blanks: give it a limit to leave it open.")

    @classmethod
    def text(cls, ids: list[int] | tuple[int, ...], learn: bool = False, condition: str | None = None) -> "Segment":
        """Given or learned text: ids of the text tokenizer."""
        return cls(Kind.TEXT, tuple(int(i) for i in ids), learn=learn, condition=condition)

    @classmethod
    def look(cls, pixels: np.ndarray, num_positions: int, condition: str | None = None) -> "Segment":
        """An image to look at: pixels (3, H, W) in [-1, 1] that take `num_positions` positions."""
        return cls(Kind.PIXELS, pixels=pixels, num_positions=num_positions, condition=condition)

    @classmethod
    def seen(cls, features: np.ndarray, num_positions: int, condition: str | None = None) -> "Segment":
        """An image that was looked at before: its features (P, C), in the place of its pixels."""
        return cls(Kind.PIXELS, features=features, num_positions=num_positions, condition=condition)

    @classmethod
    def codes(cls, ids: list[int] | np.ndarray, learn: bool = False, condition: str | None = None) -> "Segment":
        """Given or learned image codes, in raster order."""
        return cls(Kind.CODES, tuple(int(i) for i in ids), learn=learn, condition=condition)

    @classmethod
    def blank(cls, kind: Kind, limit: int, known: tuple[int, ...] = (), stop: tuple[int, ...] = ()) -> "Segment":
        """An open segment: up to `limit` elements to fill, some of them perhaps known already."""
        return cls(kind, tuple(known), limit=limit, stop=tuple(stop))

    @property
    def is_open(self) -> bool:
        """Whether there is something left to fill."""
        return self.limit is not None

    def known(self, place: int, otherwise: int) -> int:
        """The element at a place of an open segment where it is known, else `otherwise`."""
        return self.ids[place] if place < len(self.ids) and self.ids[place] != BLANK else otherwise

    @property
    def length(self) -> int:
        """How many positions it takes; an open segment counts its limit."""
        if self.limit is not None:
            return self.limit
        return self.num_positions if self.kind == Kind.PIXELS else len(self.ids)


class Span(NamedTuple):
    """Where a segment lies in its sequence: positions [start, stop)."""

    segment: Segment
    start: int
    stop: int


@dataclass(frozen=True)
class Sequence:
    """An ordered tuple of segments; only the last may be open."""

    segments: tuple[Segment, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "segments", tuple(self.segments))
        if not self.segments:
            raise ValueError("A sequence needs at least one segment.")
        for segment in self.segments[:-1]:
            if segment.is_open:
                raise ValueError("Only the last segment of a sequence may be open.")

    @property
    def length(self) -> int:
        """Positions of all segments together; an open segment counts its limit."""
        return sum(segment.length for segment in self.segments)

    @property
    def num_learned_codes(self) -> int:
        """How many of its positions are codes that the loss looks at."""
        return sum(segment.length for segment in self.segments if segment.kind == Kind.CODES and segment.learn)

    @property
    def is_open(self) -> bool:
        """Whether the last segment is left to fill."""
        return self.segments[-1].is_open

    @property
    def given(self) -> "Sequence":
        """The closed part: the sequence without its open segment."""
        return Sequence(self.segments[:-1]) if self.is_open else self

    def spans(self) -> list[Span]:
        """Every segment with the positions it takes."""
        spans, start = [], 0
        for segment in self.segments:
            spans.append(Span(segment, start, start + segment.length))
            start += segment.length
        return spans

    def unconditioned(self, pad_id: int, drop: frozenset[str] | set[str] = frozenset({"text"})) -> "Sequence":
        """The same sequence with the named conditions replaced by pads: the only definition of the null prompt.

        Positions stay where they are, and the pads are attended: this is how Janus is trained (with probability 0.1) and
        how guidance asks it. Segments that belong to no condition (begin of sequence, begin of image) stay.
        """

        def dropped(segment: Segment) -> Segment:
            if segment.condition is None or segment.condition not in drop:
                return segment
            return Segment.text((pad_id,) * segment.length, condition=segment.condition)

        return Sequence(tuple(dropped(segment) for segment in self.segments))

    def with_decoys(self, codes: np.ndarray) -> "Sequence":
        """The same sequence, in which the codes that are learned are read as these (num_codes,)."""

        def disguised(segment: Segment) -> Segment:
            if segment.kind != Kind.CODES or not segment.learn:
                return segment
            return replace(segment, decoys=tuple(int(code) for code in codes))

        return Sequence(tuple(disguised(segment) for segment in self.segments))

    def fill(self, ids: list[int] | tuple[int, ...]) -> "Sequence":
        """The sequence with its open segment closed by `ids`, which must agree with what was known of it."""
        last = self.segments[-1]
        if last.limit is None:
            raise ValueError("This sequence has no open segment to fill.")
        if len(ids) > last.limit:
            raise ValueError(f"The open segment takes at most {last.limit} elements, not {len(ids)}.")
        for position, (known, given) in enumerate(zip(last.ids, ids, strict=False)):
            if known not in (BLANK, given):
                raise ValueError(f"Element {position} of the open segment is known to be {known}, not {given}.")
        closed = replace(last, ids=tuple(int(i) for i in ids), limit=None, stop=())
        return Sequence((*self.segments[:-1], closed))

    def show(self) -> str:
        """One line for a human: every segment's kind, length and role."""

        def word(segment: Segment) -> str:
            marks = [
                mark
                for mark, is_set in (("learn", segment.learn), ("open", segment.is_open), (segment.condition, True))
                if is_set and mark
            ]
            return f"{segment.kind.name}({', '.join([str(segment.length), *marks])})"

        return " · ".join(word(segment) for segment in self.segments)
