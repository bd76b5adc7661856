"""Answers in which the model draws where it chooses to: words and images in turns, out of one conversation.

An answer is a chain of open segments. Words are open until the model ends its turn or begins an image (`begin_of_image` is an
element of text like any other, and learned; no user's text becomes it). Then a blank of codes is opened, guided and sampled as
drawings are; when it is full, the codes and, where the prompt format says so, the picture that they make for the model to look
at are given, and words are open again. Each link is a request of the decode loop, so many conversations, some at their words
and some at their images, are decoded in one batch with everything else (`Decoder.steps`, `follow`).

Text is sampled by the call's settings and images by the model's drawing defaults; image i of an answer has the noise of
(seed, i), as image i of `generate_images`. So "auto" of a conversation that is one prompt and begins with an image gives the
codes that `generate_images` gives.

Cost: every link is prefilled with all that came before it, in passes over many positions at once.
"""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, closing
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from unimm.checkpoints.drawing_defaults import DrawingDefaults
from unimm.inference.assistant_message import AssistantMessage, ChatPiece, DrawnImage
from unimm.inference.decode.request import Request
from unimm.inference.decode.sampling import Sampling
from unimm.inference.drawing import preview_of
from unimm.inference.engine_parts import EngineParts
from unimm.inference.input_validation import read_stop
from unimm.inference.messages import Message, continues_answer, list_conversations, read_messages
from unimm.inference.text_stream import TextStream
from unimm.runtime.number_checks import shorten, whole_number, whole_numbers
from unimm.runtime.provenance import attach, describe
from unimm.sequence import Kind, Sequence

IMAGES = ("never", "auto", "always")
"""Whether an answer may hold images: none; where the model begins one; or at its beginning, and then where it begins one."""

MOST_KEPT = 2000
"""Characters of a conversation that its images carry, the last ones: formats have little room for more."""

DRAWN_IN_CHAT = "chat"
"""Of the provenance of an image that is part of an answer."""


@dataclass(frozen=True)
class InterleavedSettings:
    """How answers with images are made.

    max_new_tokens: of all words of an answer. max_images: of an answer. images: one of IMAGES, but "never".
    preview_every: codes between previews; 0: none.
    text: how words are sampled; drawing: how images are.
    """

    text: Sampling
    drawing: DrawingDefaults
    max_new_tokens: int = 256
    stop: tuple[str, ...] = ()
    images: str = "auto"
    max_images: int = 4
    preview_every: int = 0

    def __post_init__(self) -> None:
        check_images(self.images)
        for name, least in (("max_new_tokens", 1), ("max_images", 1), ("preview_every", 0)):
            object.__setattr__(self, name, whole_number(name, getattr(self, name), least))


def check_images(images: Any) -> None:
    """Raises ValueError where that is none of IMAGES."""
    if images not in IMAGES:
        raise ValueError(f'images is one of {", ".join(IMAGES)}, not {shorten(images)}: "auto" lets the model decide.')


def read_drawing(defaults: DrawingDefaults, given: Any) -> DrawingDefaults:
    """The drawing settings of a call, a dict, over those of the model. ValueError: it has another key."""
    given = dict(given or {})
    if unknown := given.keys() - asdict(defaults).keys():
        raise ValueError(f"drawing sets {', '.join(asdict(defaults))}, not {', '.join(sorted(map(str, unknown)))}.")
    return replace(defaults, **{name: value for name, value in given.items() if value is not None})


def read_answers(
    engine: EngineParts,
    messages: list[Message] | list[list[Message]],
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    stop: str | list[str] | None = None,
    images: str = "auto",
    **more: Any,
) -> tuple[list["InterleavedAnswer"], bool]:
    """Answers to be made, of one conversation or of a list of them, with arguments as `Engine.chat` has them; and whether a
    list goes back."""
    conversations, is_list = list_conversations(messages)
    own = {name: more.pop(name) for name in ("max_images", "preview_every") if name in more}
    drawing = read_drawing(engine.drawing, more.pop("drawing", None))
    stops, seeds = read_stop(stop), whole_numbers("seed", more.pop("seed", 0), len(conversations))
    if len(seeds) != len(conversations):
        raise ValueError(f"Give one seed, or one for each of the {len(conversations)} conversations, not {len(seeds)}.")
    answers = []
    for one, seed in zip(conversations, seeds, strict=True):
        text = Sampling(temperature, seed=seed, **more)
        settings = InterleavedSettings(text, drawing, max_new_tokens, stops, images, **own)
        turns, system_prompt = read_messages(one, engine.template, engine.decoder.max_positions)
        sequence = engine.template.chat(turns, 1, system_prompt, draws=True).opened()
        answers.append(InterleavedAnswer(engine, sequence, settings, continues_answer(one)))
    return answers, is_list


class InterleavedAnswer:
    """One answer while it is made.

    Args:
        sequence: the conversation, open for words that may end in the begin of an image.
        continues: the words go on with what the assistant has begun to say.

    Raises:
        ValueError: the model draws nothing, or has no room for an answer.
    """

    def __init__(self, engine: EngineParts, sequence: Sequence, settings: InterleavedSettings, continues: bool = False) -> None:
        self._engine, self._settings = engine, settings
        self._special = engine.tokenizer.special
        if Kind.CODES not in engine.model.predicted_ports:
            raise ValueError('This model draws nothing: ask it with images="never".')
        self._num_codes = engine.image_tokenizer.num_codes
        self._num_prompt_positions = sequence.given.length
        self._room = engine.decoder.max_positions
        self._parts: list[str | DrawnImage] = []
        self._pieces: list[ChatPiece] = []
        self._ids: list[int] = []
        self._num_tokens = self._num_elements = self._num_images = self._last_preview = 0
        self._reason = "length"
        self._stream = TextStream(engine.tokenizer, settings.stop, continues)
        first = self._begin(sequence)
        if first is None:
            needed = self._num_codes + 2 if settings.images == "always" else 1
            raise ValueError(
                f"The conversation takes {self._num_prompt_positions} positions and an answer {needed} or more, but there are "
                f"{self._room}: leave out its first turns."
            )
        self.request: Request = first

    def _begin(self, sequence: Sequence) -> Request | None:
        """What is asked for first; None where there is no room for it."""
        if self._settings.images == "always":
            return self._draw(self._engine.template.begin_drawing(sequence, [], self._num_codes))
        return self._write(sequence)

    # -- requests ------------------------------------------------------------------------------------------------------------

    @property
    def _draws(self) -> bool:
        return self.request.blank.kind == Kind.CODES

    def _write(self, sequence: Sequence) -> Request | None:
        """Words, as many as there is room for and may still come."""
        limit = min(self._settings.max_new_tokens - self._num_tokens, self._room - sequence.given.length)
        if limit < 1:
            return None
        blank = replace(sequence.segments[-1], limit=limit)
        opened = replace(sequence, segments=(*sequence.given.segments, blank))
        return Request(opened, self._settings.text, first_place=self._num_elements)

    def _draw(self, sequence: Sequence) -> Request | None:
        """An image, where there is room for it and its end."""
        if self._num_images >= self._settings.max_images or sequence.length + 1 > self._room:
            return None
        drawing, text = self._settings.drawing, self._settings.text
        sampling = Sampling(drawing.temperature, drawing.top_k, drawing.top_p, text.seed, text.index + self._num_images)
        self._num_images, self._last_preview = self._num_images + 1, 0
        return Request(sequence, sampling, drawing.guidance_scale)

    # -- what comes ----------------------------------------------------------------------------------------------------------

    def push(self, token: int) -> bool:
        """The next element of the open segment; returns whether a stop string ends the answer."""
        self._ids.append(token)
        if self._draws:
            return False
        self._num_tokens += 1
        if piece := self._stream.push(token):
            self._pieces.append(ChatPiece(piece))
        return self._stream.is_over

    def follow(self) -> Request | None:
        """The open segment was filled: what follows, or None where the answer is over. Turns codes into a picture."""
        filled, self._ids = self._ids, []
        following = self._after_image(filled) if self._draws else self._after_words(filled)
        if following is not None:
            self.request = following
        return following

    def _after_words(self, ids: list[int]) -> Request | None:
        begins_image = ids[-1] == self._special.begin_of_image
        self._end_text()
        self._num_elements += len(ids)
        if self._stream.is_over or ids[-1] == self._special.eos:
            self._reason = "stop"
            return None
        if not begins_image:
            return None
        return self._draw(self._engine.template.begin_drawing(self.request.sequence, ids, self._num_codes))

    def _after_image(self, codes: list[int]) -> Request | None:
        (image,) = self._engine.coder.decode(torch.tensor(codes))
        attach(image, self._provenance())
        self._parts.append(DrawnImage(image, tuple(codes)))
        self._pieces.append(ChatPiece(image=image))
        self._num_elements += len(codes)
        self._stream = TextStream(self._engine.tokenizer, self._settings.stop)
        return self._write(self._engine.template.end_drawing(self.request.sequence, codes, image, 1).opened())

    def _end_text(self) -> None:
        if piece := self._stream.finish():
            self._pieces.append(ChatPiece(piece))
        if self._stream.text:
            self._parts.append(self._stream.text)

    def _provenance(self) -> dict[str, Any]:
        sampling, engine = self.request.sampling, self._engine
        own: dict[str, Any] = {name: getattr(sampling, name) for name in ("temperature", "top_k", "top_p")}
        said = engine.tokenizer.decode(i for segment in self.request.sequence.given.segments for i in segment.ids)
        dtype = str(next(engine.model.parameters()).dtype).removeprefix("torch.")
        told = {"task": DRAWN_IN_CHAT, "dtype": dtype, "weights": engine.weights}
        own["guidance_scale"] = self.request.guidance_scale
        return describe(said[-MOST_KEPT:], sampling.seed, sampling.index, own, engine.model_hash, **told)

    # -- pieces --------------------------------------------------------------------------------------------------------------

    def take_pieces(self) -> list[ChatPiece]:
        """What came since the last call, a preview perhaps."""
        pieces, self._pieces = self._pieces, []
        every, num_drawn = self._settings.preview_every, len(self._ids) if self._draws else 0
        if every and num_drawn - self._last_preview >= every and num_drawn < self._num_codes:
            self._last_preview = num_drawn
            preview = preview_of(self._engine.coder, self._ids, self._num_codes)
            pieces.append(ChatPiece(preview=preview, step=num_drawn, num_steps=self._num_codes))
        return pieces

    @property
    def has_preview(self) -> bool:
        """Whether `take_pieces` would make a preview, which takes time."""
        every = self._settings.preview_every
        return bool(every) and self._draws and len(self._ids) - self._last_preview >= every

    def message(self) -> AssistantMessage:
        """All of it."""
        return AssistantMessage(tuple(self._parts), self._reason, self._num_prompt_positions, self._num_tokens)


@dataclass
class _Answers:
    """The answers of one call."""

    answers: list[InterleavedAnswer]
    requests: list[Request] = field(init=False)

    def __post_init__(self) -> None:
        self.requests = [answer.request for answer in self.answers]

    def is_over(self, index: int, token: int) -> bool:
        return self.answers[index].push(token)

    def follow(self, index: int) -> Request | None:
        return self.answers[index].follow()


def converse(engine: EngineParts, answers: list[InterleavedAnswer]) -> list[AssistantMessage]:
    """Make answers, in one batch."""
    call = _Answers(answers)
    with closing(engine.decoder.steps(call.requests, call.is_over, follow=call.follow)) as steps:
        for _ in steps:
            pass
    return [answer.message() for answer in answers]


def stream_answer(engine: EngineParts, answers: list[InterleavedAnswer]) -> Iterator[ChatPiece]:
    """Make an answer, piece by piece. What cannot be answered is refused before the first is asked for."""
    call = _Answers(_one(answers))
    return _read(call.answers[0], engine.decoder.steps(call.requests, call.is_over, follow=call.follow))


def _read(answer: InterleavedAnswer, steps: Any) -> Iterator[ChatPiece]:
    with closing(steps):
        for _ in steps:
            yield from answer.take_pieces()
    yield from answer.take_pieces()
    yield ChatPiece(message=answer.message())


async def astream_answer(engine: EngineParts, answers: list[InterleavedAnswer]) -> AsyncGenerator[ChatPiece]:
    """As `stream_answer`, for coroutines."""
    call = _Answers(_one(answers))
    (answer,) = call.answers
    async with aclosing(engine.decoder.asteps(call.requests, call.is_over, follow=call.follow)) as steps:
        async for _ in steps:
            pieces = await asyncio.to_thread(answer.take_pieces) if answer.has_preview else answer.take_pieces()
            for piece in pieces:
                yield piece
    for piece in answer.take_pieces():
        yield piece
    yield ChatPiece(message=answer.message())


def _one(answers: list[InterleavedAnswer]) -> list[InterleavedAnswer]:
    if len(answers) != 1:
        raise ValueError("One conversation is streamed at a time: ask for each, or leave stream out.")
    return answers
