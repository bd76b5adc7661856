"""Requests, the jobs they become, and their rows in the decode loop.

A request is one row, or one for each branch of its guidance: from the step where guidance begins to the step where it ends.
"""

import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from unimm.inference.decode.sampling import Sampling
from unimm.runtime.number_checks import real_number, shorten, whole_number
from unimm.sequence import BLANK, Expected, Kind, Segment, Sequence

MAX_TOP_LOGPROBS = 20
"""Of the likeliest elements at every place, at most (as in OpenAI's interface)."""

Likeliest = tuple[tuple[int, float], ...]
"""Elements with their natural log-probabilities, the likeliest first."""

WINDOWED = frozenset({Kind.CODES})
"""Kinds of which several elements may be computed at once, behind guesses: neighbouring codes of an image are often alike."""


class Choice(NamedTuple):
    """What was chosen at one position: the id, its log-probability where that was asked for, and the likeliest ids."""

    token: int
    logprob: float = 0.0
    likeliest: Likeliest = ()


class Estimate(NamedTuple):
    """What a blank that is filled in all at once will hold, as far as is known: elements (n, ...), after this share of the
    passes."""

    elements: np.ndarray
    share: float


@dataclass(frozen=True)
class Branch:
    """One of the prompts that guidance combines: the request's own without some of its conditions.

    drop: names of conditions (`Segment.condition`, such as "text" and "image") that are replaced by pads; none: the prompt as
        it is.
    weight: of its logits in the weighted sum from which elements are chosen.
    """

    drop: frozenset[str] = frozenset()
    weight: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "drop", frozenset([self.drop] if isinstance(self.drop, str) else self.drop))
        object.__setattr__(self, "weight", real_number("weight of a Branch", self.weight))


def classifier_free(scale: float) -> tuple[Branch, ...]:
    """Classifier-free guidance (arXiv 2207.12598), l = u + scale (c - u): the prompt, and the prompt without its text."""
    if scale == 1.0:
        return (Branch(),)
    return Branch(weight=scale), Branch(frozenset({"text"}), 1.0 - scale)


@dataclass(frozen=True)
class Request:
    """An open sequence and how to fill it.

    guidance_scale: of classifier-free guidance; 1.0 is off and costs nothing.
    guidance_interval: the part of the open segment that guidance is for, from 0 to 1 (arXiv 2404.07724); beyond it, it costs
        nothing either.
    logprobs: keep the log-probability of every id, after guidance and before temperature, also where ids are suppressed.
    top_logprobs: keep so many of the likeliest ids at every place, too, with theirs; at most 20.
    filler_settings: of what fills in a blank all at once, such as `num_steps` and `solver` of a flow; none of what is chosen
        element by element.
    is_watched: of what is filled in all at once, whether its caller gets an `Estimate` after each pass, where its port makes
    any: the latest, or, with takes_all_estimates, each, also where passes go on before one is taken.
    first_place: of the blank in what it completes, such as an image of which the first codes are given; noise goes by it.
    expected: what its elements may well be: each is made likelier by a bias, and is the first guess of its place.
    branches: guidance of another form, instead of `guidance_scale`: the prompt itself first, then the prompt without some of
        its conditions, with weights that add up to 1. Guidance by image and text (InstructPix2Pix, arXiv 2211.09800) with
        scales i and t: `Branch(weight=t), Branch(frozenset({"text"}), i - t), Branch(frozenset({"text", "image"}), 1 - i)`.
    """

    sequence: Sequence
    sampling: Sampling = field(default_factory=Sampling)
    guidance_scale: float = 1.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    logprobs: bool = False
    branches: tuple[Branch, ...] = ()
    top_logprobs: int = 0
    first_place: int = 0
    filler_settings: Mapping[str, Any] = field(default_factory=dict)
    is_watched: bool = False
    takes_all_estimates: bool = False
    expected: Expected | None = None

    def __post_init__(self) -> None:
        top_logprobs = whole_number("top_logprobs", self.top_logprobs, 0)
        if top_logprobs > MAX_TOP_LOGPROBS:
            raise ValueError(f"top_logprobs is at most {MAX_TOP_LOGPROBS}, not {top_logprobs}.")
        object.__setattr__(self, "top_logprobs", top_logprobs)
        try:
            begin, end = self.guidance_interval
        except (TypeError, ValueError):
            raise ValueError(f"guidance_interval is two numbers, not {shorten(self.guidance_interval)}.") from None
        interval = real_number("guidance_interval", begin), real_number("guidance_interval", end)
        object.__setattr__(self, "guidance_interval", interval)
        object.__setattr__(self, "guidance_scale", real_number("guidance_scale", self.guidance_scale))
        object.__setattr__(self, "branches", tuple(self.branches))

    @property
    def blank(self) -> Segment:
        """The open segment."""
        return self.sequence.segments[-1]

    @cached_property
    def guidance(self) -> tuple[Branch, ...]:
        """The branches that are combined where it is guided, the prompt itself first."""
        return self.branches or classifier_free(self.guidance_scale)

    @cached_property
    def guided(self) -> range:
        """The elements of the open segment that are guided."""
        if len(self.guidance) == 1 or self.blank.limit is None:
            return range(0)
        begin, end = (round(part * self.blank.limit) for part in self.guidance_interval)
        return range(begin, end)

    @property
    def num_rows(self) -> int:
        """Rows that it takes at most while it is decoded."""
        return len(self.guidance) if self.guided else 1

    def check(self) -> None:
        """ValueError: no model could fill this, and why."""
        if not self.sequence.is_open:
            raise ValueError("This sequence has no open segment: there is nothing to fill.")
        if len(self.sequence.segments) == 1:
            raise ValueError("Something must be given before what is to be filled: begin with the begin-of-sentence id.")
        if not 0 <= self.guidance_scale < math.inf:
            raise ValueError(f"guidance_scale must be 0 or positive, not {self.guidance_scale}.")
        begin, end = self.guidance_interval
        if not 0.0 <= begin <= end <= 1.0:
            raise ValueError(f"guidance_interval is two ascending numbers from 0 to 1, not {begin} and {end}.")
        if (self.logprobs or self.top_logprobs) and any(element != BLANK for element in self.blank.ids):
            raise ValueError("logprobs are of what is chosen: an open segment with known elements has none.")
        if self.sampling.repetition_penalty != 1.0 and self.blank.kind != Kind.TEXT:
            raise ValueError("repetition_penalty is for text: an image repeats its codes all the time.")
        if self.branches:
            self._check_branches()

    def _check_branches(self) -> None:
        if self.guidance_scale != 1.0:
            raise ValueError("Give guidance_scale or branches, not both: a guidance scale is two branches.")
        if self.branches[0].drop:
            raise ValueError("The first branch is the prompt itself and drops nothing: begin with Branch(weight=...).")
        total = math.fsum(branch.weight for branch in self.branches)
        if not abs(total - 1.0) <= 1e-6 * max(1.0, *(abs(branch.weight) for branch in self.branches)):  # also of nan
            raise ValueError(f"The weights of branches must add up to 1, not to {total:g}: to scale logits, set temperature.")
        conditions = {segment.condition for segment in self.sequence.segments} - {None}
        if unknown := {name for branch in self.branches for name in branch.drop} - conditions:
            has = ", ".join(sorted(map(str, conditions))) or "none"
            raise ValueError(f"A branch drops {', '.join(sorted(unknown))}, but the conditions of this sequence are: {has}.")


def requests_for(
    sequences: list[Sequence],
    sampling: Sampling | list[Sampling] | None,
    guidance_scale: float,
    branches: tuple[Branch, ...] | list[tuple[Branch, ...]],
) -> list[Request]:
    """A request for each sequence; sampling and branches are one for all, or a list with one for each."""
    settings = sampling if isinstance(sampling, list) else [sampling or Sampling()] * len(sequences)
    guidance = branches if isinstance(branches, list) else [branches] * len(sequences)
    return [
        Request(sequence, one, guidance_scale, branches=own)
        for sequence, one, own in zip(sequences, settings, guidance, strict=True)
    ]


@dataclass(eq=False)
class Job:
    """A request that was submitted, and how far it is.

    on_news: called after a step that filled an element of it, or ended it.
    filled: its ids so far, `logprobs` and `likeliest` beside them where they are asked for; or, of a kind that is filled in all
        at once, its content as the only element. num_taken: how many of them its caller has.
    guesses: what the elements behind those may be. estimate: of its content, which its caller does not have.
    error: why it cannot go on. prefills_alone: its prefill failed together with others.
    """

    ticket: int
    request: Request
    on_news: "Callable[[Job], None] | None" = None
    filled: list[Any] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    likeliest: list[Likeliest] = field(default_factory=list)
    guesses: list[int] = field(default_factory=list)
    num_taken: int = 0
    estimates: list[Estimate] = field(default_factory=list)
    done: bool = False
    error: Exception | None = None
    prefills_alone: bool = False

    @property
    def num_prefilled(self) -> int:
        """Positions that are computed before its first id, in all branches."""
        return self.request.sequence.given.length * (self.request.num_rows if 0 in self.request.guided else 1)

    def rows(self, pad_id: int) -> "list[Row]":
        """The rows that it begins with: its prompt, and the other branches where it is guided from the first element on."""
        return [Row(self, self.request.sequence.given, 0), *(self.guiding_rows(pad_id) if 0 in self.request.guided else [])]

    def guiding_rows(self, pad_id: int) -> "list[Row]":
        """The rows of its branches but the first: what is given, and all that is filled but the last element."""
        sequence = self.request.sequence.fill(self.filled[:-1]) if self.filled else self.request.sequence.given
        others = enumerate(self.request.guidance[1:], start=1)
        return [Row(self, sequence.unconditioned(pad_id, branch.drop), number) for number, branch in others]

    def accept(self, token: int, logprob: float, likeliest: Likeliest = ()) -> int:
        """Append the next id, or the one that is known of that place; returns which."""
        blank = self.request.blank
        place = len(self.filled)
        token = blank.known(place, token)
        if self.request.logprobs:
            self.logprobs.append(logprob)
        if self.request.top_logprobs:
            self.likeliest.append(likeliest[: self.request.top_logprobs])
        self.filled.append(token)  # after what belongs to it: others read without a lock
        self.done = len(self.filled) == blank.limit or token in blank.stop
        return token

    def width(self, window: int) -> int:
        """Elements that may be computed at once now, of `window` at most: all of them are guided, or none is."""
        blank, guided, place = self.request.blank, self.request.guided, len(self.filled)
        if window == 1 or blank.kind not in WINDOWED or blank.limit is None:
            return 1
        turns = [turn for turn in (guided.start, guided.stop, blank.limit) if turn > place]
        return min(window, *(turn - place for turn in turns)) if turns else 1

    def guess(self, count: int) -> None:
        """Have `count` guesses, or more: elements that are known, what was chosen there behind another guess, what the request
        expects there, or copies of the neighbour on the left."""
        blank, place, guesses = self.request.blank, len(self.filled), []
        expected = self.request.expected.ids if self.request.expected else ()
        for index in range(max(count, len(self.guesses))):
            if index < len(self.guesses):
                guess = self.guesses[index]
            elif place + index < len(expected):
                guess = expected[place + index]
            else:
                guess = guesses[-1] if guesses else self.filled[-1]
            guesses.append(blank.known(place + index, guess))
        self.guesses = guesses

    def accept_window(self, choices: list[Choice]) -> int:
        """Append what was chosen at its next positions, up to the first one behind which the guess was another; returns how
        many. What was chosen further on becomes the next guess."""
        guesses, count = self.guesses, 0
        for choice in choices:
            token = self.accept(*choice)
            count += 1
            if self.done or (count < len(choices) and token != guesses[count - 1]):
                break
        self.guesses = [choice.token for choice in choices[count:]] + guesses[len(choices) :]
        return count

    def finish(self, content: Any) -> None:
        """What fills its blank, of a kind that is filled in all at once."""
        self.filled.append(content)
        self.done = True

    def fail(self, error: Exception) -> None:
        """It cannot go on."""
        self.error = error
        self.done = True  # last: others read both without a lock

    def take(self) -> list[Any]:
        """The ids since the last call."""
        new = self.filled[self.num_taken :]
        self.num_taken = len(self.filled)
        return new

    def take_one(self) -> Any:
        """The first of these, if there is one, else the latest estimate; where all estimates are taken, the first of those."""
        if self.estimates and self.request.takes_all_estimates:
            return self.estimates.pop(0)
        taken, self.estimates = self.estimates, []
        if self.num_taken < len(self.filled):
            self.num_taken += 1
            return self.filled[self.num_taken - 1]
        return taken[-1] if taken else None

    @property
    def has_news(self) -> bool:
        """Whether there are ids, or an estimate, that were not taken."""
        return self.num_taken < len(self.filled) or bool(self.estimates)

    @property
    def starts_guidance(self) -> bool:
        """Whether the rows of its other branches must join now: later than its first row, where guidance begins later."""
        guided = self.request.guided
        return bool(guided) and len(self.filled) == guided.start and guided.start > 0 and not self.done

    @property
    def changes_soon(self) -> bool:
        """Whether one of its next two elements is known, is its last, or begins or ends guidance."""
        blank, guided, place = self.request.blank, self.request.guided, len(self.filled)
        assert blank.limit is not None
        turns = {blank.limit, guided.start, guided.stop}
        return len(blank.ids) > place or any(place <= turn <= place + 2 for turn in turns)


@dataclass(eq=False)
class Row:
    """A row of the cache. sequence: what it begins with. branch: of its request's guidance; 0 is the prompt itself.

    length: positions of it that are written. generation: of the prefix cache, when its prefill began.
    """

    job: Job
    sequence: Sequence
    branch: int
    length: int = 0
    generation: int = -1

    @cached_property
    def prefix_key(self) -> tuple:
        """Equal for rows with the same prefix: their given elements, images by identity."""
        return tuple((segment.kind, _content_key(segment)) for segment in self.sequence.segments)

    @property
    def is_over(self) -> bool:
        """Whether its request is done, or its guidance."""
        return self.job.done or (self.branch > 0 and len(self.job.filled) >= self.job.request.guided.stop)

    @property
    def num_slots(self) -> int:
        """Positions that it will have written at the end."""
        return self.job.request.sequence.length


def _content_key(segment: Segment) -> Hashable:
    if isinstance(segment.content, np.ndarray):
        return segment.ids if segment.has_ids else segment.content.tobytes()
    return id(segment.content)
