"""Texts as they are written: ids in, pieces of text out, ended by an id or by a stop string."""

from collections.abc import AsyncGenerator, Generator, Iterator
from contextlib import aclosing, closing
from dataclasses import dataclass

from unimm.data.text import StreamDecoder, TextTokenizer
from unimm.inference.decode.decoder import Decoder
from unimm.inference.decode.request import Job, Request


@dataclass(frozen=True)
class Completion:
    """A text that was written, and how.

    ids: its tokens, the one that ended it included.
    finish_reason: "stop", at a stop string or where the model ends its turn, or "length", at max_new_tokens.
    logprobs: natural log-probability of every id, where it was asked for.
    num_prompt_positions: positions that prompt and images took.
    """

    text: str
    ids: tuple[int, ...]
    finish_reason: str
    logprobs: tuple[float, ...] | None
    num_prompt_positions: int


class TextStream:
    """One text: `push` its ids, one after the other. Pieces never hold a part of what may become a stop string.

    continues: it continues a text, so leading white space counts.
    """

    def __init__(self, tokenizer: TextTokenizer, stop: tuple[str, ...] = (), continues: bool = False) -> None:
        self.stop, self.continues = stop, continues
        self.is_over = False
        self.pieces: list[str] = []
        self._decoder = StreamDecoder(tokenizer)
        self._held = ""

    def push(self, token: int) -> str:
        """The next piece that can be shown; perhaps nothing yet."""
        return self._show(self._decoder.push(token))

    def finish(self) -> str:
        """What was still held back."""
        return "" if self.is_over else self._show(self._decoder.finish(), is_last=True)

    @property
    def text(self) -> str:
        """All pieces together, without white space around (behind, where it continues another)."""
        text = "".join(self.pieces)
        return text.rstrip() if self.continues else text.strip()

    def _show(self, new: str, is_last: bool = False) -> str:
        self._held += new
        if not self.pieces and not self.continues:
            self._held = self._held.lstrip()
        found = min((place for stop in self.stop if (place := self._held.find(stop)) >= 0), default=None)
        if found is not None:
            self.is_over = True
            piece, self._held = self._held[:found], ""
        else:
            cut = len(self._held) - (0 if is_last else self._num_doubtful())
            piece, self._held = self._held[:cut], self._held[cut:]
        if piece:
            self.pieces.append(piece)
        return piece

    def _num_doubtful(self) -> int:
        """How many characters at the end may be the beginning of a stop string."""
        longest = max((len(stop) for stop in self.stop), default=1) - 1
        for size in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-size:]) for stop in self.stop):
                return size
        return 0


def write(
    decoder: Decoder, tokenizer: TextTokenizer, requests: list[Request], stop: tuple[str, ...] = (), continues: bool = False
) -> list[Completion]:
    """Fill the open texts of requests; `continues` as in `TextStream`."""
    writing = _Writing(tokenizer, len(requests), stop, continues)
    with closing(decoder.steps(requests, writing.is_over, writing.jobs)) as steps:
        for _ in steps:
            pass
    return writing.finish()


async def awrite(
    decoder: Decoder, tokenizer: TextTokenizer, requests: list[Request], stop: tuple[str, ...] = (), continues: bool = False
) -> list[Completion]:
    """As `write`, for coroutines."""
    writing = _Writing(tokenizer, len(requests), stop, continues)
    async with aclosing(decoder.asteps(requests, writing.is_over, writing.jobs)) as steps:
        async for _ in steps:
            pass
    return writing.finish()


class _Writing:
    """The texts of one call, while they are written."""

    def __init__(self, tokenizer: TextTokenizer, count: int, stop: tuple[str, ...], continues: bool) -> None:
        self.jobs: list[Job] = []
        self._streams = [TextStream(tokenizer, stop, continues) for _ in range(count)]

    def is_over(self, index: int, token: int) -> bool:
        self._streams[index].push(token)
        return self._streams[index].is_over

    def finish(self) -> list[Completion]:
        return [_complete(job, stream) for job, stream in zip(self.jobs, self._streams, strict=True)]


def stream(
    decoder: Decoder, tokenizer: TextTokenizer, request: Request, stop: tuple[str, ...] = (), continues: bool = False
) -> Iterator[str]:
    """The pieces of one text. A request that cannot be filled is refused before the first is asked for."""
    text = TextStream(tokenizer, stop, continues)
    return _pieces(text, decoder.steps([request], lambda _, token: text.is_over))


async def astream(
    decoder: Decoder, tokenizer: TextTokenizer, request: Request, stop: tuple[str, ...] = (), continues: bool = False
) -> AsyncGenerator[str]:
    """As `stream`, for coroutines."""
    text = TextStream(tokenizer, stop, continues)
    async with aclosing(decoder.asteps([request])) as steps:
        async for new in steps:
            if piece := text.push(new[0]):
                yield piece
            if text.is_over:
                return
    if rest := text.finish():
        yield rest


def _pieces(text: TextStream, steps: Generator[dict[int, int]]) -> Iterator[str]:
    with closing(steps):
        for new in steps:
            if piece := text.push(new[0]):
                yield piece
            if text.is_over:
                return
    if rest := text.finish():
        yield rest


def _complete(job: Job, text: TextStream) -> Completion:
    text.finish()
    ended_itself = text.is_over or job.filled[-1] in job.request.blank.stop
    size = job.num_taken
    return Completion(
        text=text.text,
        ids=tuple(job.filled[:size]),
        finish_reason="stop" if ended_itself else "length",
        logprobs=tuple(job.logprobs[:size]) if job.request.logprobs else None,
        num_prompt_positions=job.request.sequence.given.length,
    )
