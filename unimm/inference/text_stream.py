"""Texts as they are written: ids in, pieces of text out, ended by an id or by a stop string."""

from collections.abc import Generator, Iterator
from contextlib import closing
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

    continues: it goes on with a text that is there already, so white space at its beginning counts.
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
    writers = [TextStream(tokenizer, stop, continues) for _ in requests]
    jobs: list[Job] = []

    def is_over(index: int, token: int) -> bool:
        writers[index].push(token)
        return writers[index].is_over

    with closing(decoder.steps(requests, is_over, jobs)) as steps:
        for _ in steps:
            pass
    return [_complete(job, writer) for job, writer in zip(jobs, writers, strict=True)]


def stream(
    decoder: Decoder, tokenizer: TextTokenizer, request: Request, stop: tuple[str, ...] = (), continues: bool = False
) -> Iterator[str]:
    """The pieces of one text. A request that cannot be filled is refused before the first is asked for."""
    writer = TextStream(tokenizer, stop, continues)
    steps = decoder.steps([request], lambda _, token: writer.is_over)
    return _pieces(writer, steps)


def _pieces(writer: TextStream, steps: Generator[dict[int, int]]) -> Iterator[str]:
    with closing(steps):
        for new in steps:
            if piece := writer.push(new[0]):
                yield piece
            if writer.is_over:
                return
    if rest := writer.finish():
        yield rest


def _complete(job: Job, writer: TextStream) -> Completion:
    writer.finish()
    ended_itself = writer.is_over or job.filled[-1] in job.request.blank.stop
    size = job.num_taken
    return Completion(
        text=writer.text,
        ids=tuple(job.filled[:size]),
        finish_reason="stop" if ended_itself else "length",
        logprobs=tuple(job.logprobs[:size]) if job.request.logprobs else None,
        num_prompt_positions=job.request.sequence.given.length,
    )
