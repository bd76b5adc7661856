"""Requests and their rows in the decode loop.

A request is one row, or two where guidance asks for the null prompt as well: from the step where guidance begins to the step
where it ends.
"""

import math
from dataclasses import dataclass, field
from functools import cached_property

from unimm.inference.decode.sampling import Sampling
from unimm.inference.scalars import real_number, shorten
from unimm.sequence import BLANK, Kind, Segment, Sequence


@dataclass(frozen=True)
class Request:
    """An open sequence and how to fill it.

    guidance_scale: 1.0 is off and costs nothing.
    guidance_interval: the part of the open segment that guidance is for, from 0 to 1 (arXiv 2404.07724); beyond it, it costs
        nothing either.
    logprobs: keep the log-probability of every id, after guidance and before temperature.
    """

    sequence: Sequence
    sampling: Sampling = field(default_factory=Sampling)
    guidance_scale: float = 1.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    logprobs: bool = False

    def __post_init__(self) -> None:
        try:
            begin, end = self.guidance_interval
        except (TypeError, ValueError):
            raise ValueError(f"guidance_interval is two numbers, not {shorten(self.guidance_interval)}.") from None
        interval = real_number("guidance_interval", begin), real_number("guidance_interval", end)
        object.__setattr__(self, "guidance_interval", interval)
        object.__setattr__(self, "guidance_scale", real_number("guidance_scale", self.guidance_scale))

    @property
    def blank(self) -> Segment:
        """The open segment."""
        return self.sequence.segments[-1]

    @cached_property
    def guided(self) -> range:
        """The elements of the open segment that are guided."""
        if self.guidance_scale == 1.0 or self.blank.limit is None:
            return range(0)
        begin, end = (round(part * self.blank.limit) for part in self.guidance_interval)
        return range(begin, end)

    @property
    def num_rows(self) -> int:
        """Rows that it takes at most while it is decoded."""
        return 2 if self.guided else 1

    def check(self) -> None:
        """ValueError: nobody could fill this, and why."""
        if not self.sequence.is_open:
            raise ValueError("This sequence has no open segment: there is nothing to fill.")
        if len(self.sequence.segments) == 1:
            raise ValueError("Something must be given before what is to be filled: begin with the begin-of-sentence id.")
        if not 0 <= self.guidance_scale < math.inf:
            raise ValueError(f"guidance_scale must be 0 or positive, not {self.guidance_scale}.")
        begin, end = self.guidance_interval
        if not 0.0 <= begin <= end <= 1.0:
            raise ValueError(f"guidance_interval is two ascending numbers from 0 to 1, not {begin} and {end}.")
        if self.logprobs and any(element != BLANK for element in self.blank.ids):
            raise ValueError("logprobs are of what is chosen: an open segment with known elements has none.")
        if self.sampling.repetition_penalty != 1.0 and self.blank.kind != Kind.TEXT:
            raise ValueError("repetition_penalty is for text: an image repeats its codes all the time.")


@dataclass(eq=False)
class Job:
    """A request on its way.

    filled: its ids so far, `logprobs` beside them where they are asked for. num_taken: how many of them somebody has.
    error: why it cannot go on. enters_alone: its prefill failed beside others'.
    """

    ticket: int
    request: Request
    filled: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    num_taken: int = 0
    done: bool = False
    error: Exception | None = None
    enters_alone: bool = False

    @property
    def num_prefilled(self) -> int:
        """Positions that are computed before its first id, those of the null prompt too."""
        return self.request.sequence.given.length * (2 if 0 in self.request.guided else 1)

    def accept(self, token: int, logprob: float) -> int:
        """Take the next id, or the one that is known of that place; gives which."""
        blank = self.request.blank
        place = len(self.filled)
        token = blank.known(place, token)
        self.filled.append(token)
        if self.request.logprobs:
            self.logprobs.append(logprob)
        self.done = len(self.filled) == blank.limit or token in blank.stop
        return token

    def take(self) -> list[int]:
        """The ids that came since it was last asked."""
        new = self.filled[self.num_taken :]
        self.num_taken = len(self.filled)
        return new

    def take_one(self) -> int | None:
        """The first of these, if there is one."""
        if not self.has_news:
            return None
        self.num_taken += 1
        return self.filled[self.num_taken - 1]

    @property
    def has_news(self) -> bool:
        """Whether there are ids that nobody has taken."""
        return self.num_taken < len(self.filled)

    @property
    def begins_guidance(self) -> bool:
        """Whether its null row must join now; one that is guided from the first element on has it from the beginning."""
        guided = self.request.guided
        return bool(guided) and len(self.filled) == guided.start and guided.start > 0 and not self.done

    @property
    def is_near_a_turn(self) -> bool:
        """Whether one of its next two elements is known, is its last, or begins or ends guidance."""
        blank, guided, place = self.request.blank, self.request.guided, len(self.filled)
        assert blank.limit is not None
        turns = {blank.limit, guided.start, guided.stop}
        return len(blank.ids) > place or any(place <= turn <= place + 2 for turn in turns)


@dataclass(eq=False)
class Row:
    """A row of the cache. sequence: what it begins with. length: positions of it that are written."""

    job: Job
    sequence: Sequence
    is_null: bool
    length: int = 0

    @cached_property
    def beginning(self) -> tuple:
        """What two rows that begin alike have in common: their given elements, images by identity."""
        return tuple(
            (segment.kind, segment.ids, id(segment.pixels), id(segment.features)) for segment in self.sequence.segments
        )

    @property
    def is_over(self) -> bool:
        """Whether its request is done, or its guidance."""
        return self.job.done or (self.is_null and len(self.job.filled) >= self.job.request.guided.stop)

    @property
    def num_slots(self) -> int:
        """Positions that it will have written at the end."""
        return self.job.request.sequence.length
