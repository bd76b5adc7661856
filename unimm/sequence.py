"""A sequence of segments (text, image, codes), the last of which may be open, that is, still to be generated: the one idea of
the project.

Captioning, question answering, drawing, chat, editing and plain text are all the same thing: some segments are given, and
the last one is learned (training) or left open to be filled (inference, evaluation). The tasks as sequences:

    caption, training     PIXELS . TEXT("describe") . TEXT("a cat", learn)
    caption, inference    PIXELS . TEXT("describe") . TEXT(open)
    drawing, training     TEXT("a cat", condition="text") . CODES(learn)
    drawing, inference    TEXT("a cat", condition="text") . CODES(open)

A segment holds elements of one kind: ids, an image, or, of a kind from outside, an array of numbers. Nothing here knows
strings, tensors' devices or models.
"""

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from unimm.segment import BLANK, Expected, Image, Kind, Segment, read_only

__all__ = ["BLANK", "Expected", "Image", "Kind", "Sample", "Segment", "Sequence", "Span"]


class Span(NamedTuple):
    """Where a segment lies in its sequence: positions [start, stop)."""

    segment: Segment
    start: int
    stop: int


@dataclass(frozen=True)
class Sequence:
    """An ordered tuple of segments; only the last may be open.

    full_length: positions that it had before its end was cut off, for want of room; None where nothing was cut.
    """

    segments: tuple[Segment, ...]
    full_length: int | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "segments", tuple(self.segments))
        if not self.segments:
            raise ValueError("A sequence needs at least one segment.")
        for segment in self.segments[:-1]:
            if segment.is_open:
                raise ValueError("Only the last segment of a sequence may be open.")

    @cached_property
    def length(self) -> int:
        """Positions of all segments together; an open segment counts its limit."""
        return sum(segment.length for segment in self.segments)

    @cached_property
    def num_learned_codes(self) -> int:
        """How many of its positions are learned and are not text: codes, and what else is predicted."""
        return sum(segment.length for segment in self.segments if segment.kind != Kind.TEXT and segment.learn)

    @property
    def is_open(self) -> bool:
        """Whether the last segment is left to fill."""
        return self.segments[-1].is_open

    @property
    def given(self) -> "Sequence":
        """The closed part: the sequence without its open segment."""
        return replace(self, segments=self.segments[:-1]) if self.is_open else self

    def spans(self) -> list[Span]:
        """Every segment with the positions it takes."""
        spans, start = [], 0
        for segment in self.segments:
            spans.append(Span(segment, start, start + segment.length))
            start += segment.length
        return spans

    def opened(self) -> "Sequence":
        """The same sequence, its images open: what cannot be read is noticed now.

        Raises:
            ValueError: an image cannot be read.
        """
        return replace(self, segments=tuple(segment.opened() for segment in self.segments))

    def unconditioned(self, pad_id: int, drop: frozenset[str] | set[str] = frozenset({"text"})) -> "Sequence":
        """The same sequence with the named conditions replaced by pads: the only definition of the null prompt.

        Positions stay where they are, and the pads are attended: this is how Janus is trained (with probability 0.1) and
        how guidance asks it. Segments that belong to no condition (begin of sequence, begin of image) stay.
        """

        def dropped(segment: Segment) -> Segment:
            if segment.condition is None or segment.condition not in drop:
                return segment
            return Segment.text(np.full(segment.length, pad_id), condition=segment.condition)

        return replace(self, segments=tuple(dropped(segment) for segment in self.segments))

    def with_corrupted(self, codes: np.ndarray) -> "Sequence":
        """The same sequence, in which these (num_codes,) are read in place of the codes that are learned."""

        def corrupted(segment: Segment) -> Segment:
            return replace(segment, corrupted=codes) if segment.kind == Kind.CODES and segment.learn else segment

        return replace(self, segments=tuple(corrupted(segment) for segment in self.segments))

    def fill(self, ids: Any, learn: bool = False) -> "Sequence":
        """The sequence with its open segment closed by `ids` (n,), which must agree with what was known of it; or, of a kind
        whose elements are no ids, by an array (n, ...). learn: what closes it is learned, or its likelihood asked for."""
        last = self.segments[-1]
        if last.limit is None:
            raise ValueError("This sequence has no open segment to fill.")
        if len(ids) > last.limit:
            raise ValueError(f"The open segment takes at most {last.limit} elements, not {len(ids)}.")
        closed = replace(last, content=read_only(ids), limit=None, stop=(), suppressed=(), weight=1.0 if learn else last.weight)
        for position, (known, given) in enumerate(zip(last.ids, closed.ids, strict=False)):
            if known not in (BLANK, given):
                raise ValueError(f"Element {position} of the open segment is known to be {known}, not {given}.")
        return replace(self, segments=(*self.segments[:-1], closed))

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


@dataclass(frozen=True)
class Sample:
    """Sequences that are learned together: as a rule one; an image and its text, a chosen and a rejected answer, a group of
    rollouts. They lie in one row where they fit into it, else in rows of one micro-batch, and never attend to each other.

    Raises ValueError where there is none, or one is open.
    """

    sequences: tuple[Sequence, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "sequences", tuple(self.sequences))
        if not self.sequences or any(sequence.is_open for sequence in self.sequences):
            raise ValueError("A sample holds at least one sequence, and none that is open.")

    @property
    def length(self) -> int:
        """Positions of all its sequences."""
        return sum(sequence.length for sequence in self.sequences)

    @property
    def full_length(self) -> int | None:
        """Positions that it had before an end was cut off; None where nothing was cut."""
        if all(sequence.full_length is None for sequence in self.sequences):
            return None
        return sum(sequence.full_length or sequence.length for sequence in self.sequences)
