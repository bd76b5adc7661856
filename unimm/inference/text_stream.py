"""Texts as they are written: ids in, pieces of text out, ended by an id or by a stop string."""

from collections.abc import AsyncGenerator, Generator, Iterator
from contextlib import aclosing, closing
from dataclasses import dataclass

from unimm.data.text import StreamDecoder, TextTokenizer
from unimm.inference.decode.decoder import Decoder
from unimm.inference.decode.request import Job, Request
from unimm.sequence import Kind


@dataclass(frozen=True)
class TokenLogprob:
    """A token with its natural log-probability.

    text: of this token alone; where it is a part of a character, with U+FFFD for it. bytes: the same in UTF-8, exactly.
    top: the likeliest tokens of its place, the likeliest first, where they were asked for.
    """

    id: int
    text: str
    bytes: bytes
    logprob: float
    top: "tuple[TokenLogprob, ...]" = ()


@dataclass(frozen=True)
class Completion:
    """A text that was written, and how.

    ids: its tokens, the one that ended it included.
    finish_reason: "stop", at a stop string or where the model ends its turn, or "length", at max_new_tokens.
    logprobs: natural log-probability of every id, where it was asked for.
    num_prompt_positions: positions that prompt and images took; num_image_positions: those of the images among them.
    tokens: of every id its text, log-probability and likeliest alternatives, where they were asked for.
    """

    text: str
    ids: tuple[int, ...]
    finish_reason: str
    logprobs: tuple[float, ...] | None
    num_prompt_positions: int
    num_image_positions: int = 0
    tokens: tuple[TokenLogprob, ...] | None = None

    @property
    def top_logprobs(self) -> tuple[tuple[TokenLogprob, ...], ...] | None:
        """The likeliest tokens of every place, where they were asked for."""
        return (
            None
            if self.tokens is None or not all(token.top for token in self.tokens)
            else tuple(token.top for token in self.tokens)
        )


@dataclass(frozen=True)
class TextChunk:
    """A piece of a text as it is written.

    text: the piece. tokens: those that were chosen since the last one, where log-probabilities were asked for.
    completion: with the last chunk, whose piece may be empty: all of it.
    """

    text: str
    tokens: tuple[TokenLogprob, ...] = ()
    completion: Completion | None = None


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
    decoder: Decoder,
    tokenizer: TextTokenizer,
    requests: list[Request],
    stop: tuple[str, ...] = (),
    continues: list[bool] | None = None,
) -> list[Completion]:
    """Fill the open texts of requests; `continues` of each as in `TextStream`, by default of none."""
    writing = _Writing(tokenizer, stop, continues or [False] * len(requests))
    with closing(decoder.steps(requests, writing.is_over, writing.jobs)) as steps:
        for _ in steps:
            pass
    return writing.finish()


async def awrite(
    decoder: Decoder,
    tokenizer: TextTokenizer,
    requests: list[Request],
    stop: tuple[str, ...] = (),
    continues: list[bool] | None = None,
) -> list[Completion]:
    """As `write`, for coroutines."""
    writing = _Writing(tokenizer, stop, continues or [False] * len(requests))
    async with aclosing(decoder.asteps(requests, writing.is_over, writing.jobs)) as steps:
        async for _ in steps:
            pass
    return writing.finish()


class _Writing:
    """The texts of one call, while they are written."""

    def __init__(self, tokenizer: TextTokenizer, stop: tuple[str, ...], continues: list[bool]) -> None:
        self.jobs: list[Job] = []
        self._tokenizer = tokenizer
        self._streams = [TextStream(tokenizer, stop, one) for one in continues]

    def is_over(self, index: int, token: int) -> bool:
        self._streams[index].push(token)
        return self._streams[index].is_over

    def finish(self) -> list[Completion]:
        return [_complete(job, stream, self._tokenizer) for job, stream in zip(self.jobs, self._streams, strict=True)]


def stream(
    decoder: Decoder, tokenizer: TextTokenizer, request: Request, stop: tuple[str, ...] = (), continues: bool = False
) -> Iterator[TextChunk]:
    """One text, chunk by chunk. A request that cannot be filled is refused before the first is asked for."""
    chunks = _Chunks(tokenizer, stop, continues)
    return _read(chunks, decoder.steps([request], chunks.is_over, chunks.jobs))


def _read(chunks: "_Chunks", steps: Generator[dict[int, int]]) -> Iterator[TextChunk]:
    with closing(steps):
        for _ in steps:
            if (chunk := chunks.next()) is not None:
                yield chunk
    yield chunks.last()


async def astream(
    decoder: Decoder, tokenizer: TextTokenizer, request: Request, stop: tuple[str, ...] = (), continues: bool = False
) -> AsyncGenerator[TextChunk]:
    """As `stream`, for coroutines."""
    chunks = _Chunks(tokenizer, stop, continues)
    async with aclosing(decoder.asteps([request], chunks.is_over, chunks.jobs)) as steps:
        async for _ in steps:
            if (chunk := chunks.next()) is not None:
                yield chunk
    yield chunks.last()


class _Chunks:
    """One text while it is written, cut into chunks."""

    def __init__(self, tokenizer: TextTokenizer, stop: tuple[str, ...], continues: bool) -> None:
        self.jobs: list[Job] = []
        self._tokenizer, self._text = tokenizer, TextStream(tokenizer, stop, continues)
        self._piece, self._num_told = "", 0

    def is_over(self, index: int, token: int) -> bool:
        """Take the next id; returns whether the text is over."""
        self._piece += self._text.push(token)
        return self._text.is_over

    def next(self) -> TextChunk | None:
        """What was written since the last chunk, where it can be shown."""
        return self._chunk() if self._piece else None

    def last(self) -> TextChunk:
        """What is left, and the whole."""
        self._piece += self._text.finish()
        return self._chunk(_complete(self.jobs[0], self._text, self._tokenizer))

    def _chunk(self, completion: Completion | None = None) -> TextChunk:
        piece, self._piece = self._piece, ""
        tokens = _tokens(self.jobs[0], self._tokenizer, self._num_told) or ()
        self._num_told += len(tokens)
        return TextChunk(piece, tokens, completion)


def _tokens(job: Job, tokenizer: TextTokenizer, first: int = 0) -> tuple[TokenLogprob, ...] | None:
    """The tokens that were taken of a request, from the `first` on; None where no log-probabilities were asked for."""

    def token(token_id: int, logprob: float, top: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
        content = tokenizer.token_bytes(token_id)
        return TokenLogprob(token_id, content.decode(errors="replace"), content, logprob, top)

    request, last = job.request, job.num_taken
    if not request.logprobs:
        return None
    tops = [tuple(token(*one) for one in likeliest) for likeliest in job.likeliest[first:last]] or [()] * (last - first)
    return tuple(token(*one) for one in zip(job.filled[first:last], job.logprobs[first:last], tops, strict=True))


def _complete(job: Job, text: TextStream, tokenizer: TextTokenizer) -> Completion:
    text.finish()
    ended_itself = text.is_over or job.filled[-1] in job.request.blank.stop
    size, given = job.num_taken, job.request.sequence.given
    return Completion(
        text=text.text,
        ids=tuple(job.filled[:size]),
        finish_reason="stop" if ended_itself else "length",
        logprobs=tuple(job.logprobs[:size]) if job.request.logprobs else None,
        num_prompt_positions=given.length,
        num_image_positions=sum(segment.length for segment in given.segments if segment.kind != Kind.TEXT),
        tokens=_tokens(job, tokenizer),
    )
