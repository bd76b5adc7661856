"""Requests as rows of the decode loop: who they are, which kind they fill, which of them begin alike.

A request is one row, or two with guidance: the prompt's and the null prompt's.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import torch

from unimm.inference.sampling import Sampler, Sampling
from unimm.sequence import Segment, Sequence

PADDING = 1.3
"""Sequences are prefilled together when the longest is at most so many times the shortest."""


@dataclass(frozen=True)
class Request:
    """An open sequence and how to fill it. guidance_scale: 1.0 is off and costs nothing."""

    sequence: Sequence
    sampling: Sampling = field(default_factory=Sampling)
    guidance_scale: float = 1.0

    @property
    def blank(self) -> Segment:
        """The open segment."""
        return self.sequence.segments[-1]

    @property
    def num_rows(self) -> int:
        """Rows that it takes while it is decoded."""
        return 1 if self.guidance_scale == 1.0 else 2


@dataclass(eq=False)
class Job:
    """A request on its way. pending: ids that nobody has taken yet."""

    ticket: int
    request: Request
    num_filled: int = 0
    token: int = 0
    pending: deque[int] = field(default_factory=deque)
    done: bool = False


@dataclass(eq=False)
class Row:
    """A row of the cache. length: positions of it that are written. is_null: it belongs to the null prompt."""

    job: Job
    sequence: Sequence
    is_null: bool
    length: int = 0

    @cached_property
    def beginning(self) -> tuple:
        """What two rows that begin alike have in common: their given elements, images by identity."""
        return tuple((segment.kind, segment.ids, id(segment.pixels)) for segment in self.sequence.given.segments)


@dataclass
class Group:
    """The rows that fill one kind. all_rows: first one a request, then its null rows; guided: which requests have one."""

    jobs: list[Job]
    all_rows: torch.Tensor
    num_null: int
    guided: torch.Tensor
    scales: torch.Tensor
    sampler: Sampler

    @classmethod
    def of(cls, places: list[int], rows: list[Row], device: torch.device) -> "Group":
        conditional = [place for place in places if not rows[place].is_null]
        null = [place for place in places if rows[place].is_null]
        jobs = [rows[place].job for place in conditional]
        number = {job.ticket: index for index, job in enumerate(jobs)}
        guided = [number[rows[place].job.ticket] for place in null]
        return cls(
            jobs=jobs,
            all_rows=torch.tensor(conditional + null, dtype=torch.long, device=device),
            num_null=len(null),
            guided=torch.tensor(guided, dtype=torch.long, device=device),
            scales=torch.tensor([jobs[index].request.guidance_scale for index in guided], device=device),
            sampler=Sampler([job.request.sampling for job in jobs], device),
        )


def alike(lengths: list[int]) -> Iterator[tuple[int, int]]:
    """Ranges of ascending lengths that are near enough to be padded to their longest."""
    start = 0
    for stop in range(1, len(lengths) + 1):
        if stop == len(lengths) or lengths[stop] > PADDING * lengths[start]:
            yield start, stop
            start = stop
