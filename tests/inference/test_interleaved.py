"""Answers with images: a chain of open segments, the same in any batch, streamed or not, and as training writes it."""

import asyncio
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_image_tokenizer, tiny_model, tiny_text_tokenizer
from PIL import Image

from unimm.checkpoints.bundle import DEFAULT, ModelBundle
from unimm.checkpoints.drawing_defaults import DrawingDefaults
from unimm.data.template import PromptFormat, Turn
from unimm.inference.assistant_message import AssistantMessage, ChatPiece
from unimm.inference.decode.request import Request
from unimm.inference.decode.sampling import Sampling
from unimm.inference.decode.workload import Limits
from unimm.inference.engine import Engine
from unimm.sequence import Kind, Segment, Sequence

WORDS: dict[str, Any] = {"images": "auto", "temperature": 1.0, "max_new_tokens": 60, "max_images": 2}


def ask(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


CONVERSATIONS = [ask("Draw a red circle."), ask("How many circles are there? Draw them."), ask("一个小的红色圆形")]


def make_engine(prompt_format: PromptFormat | None = None, limits: Limits | None = None, boost: float = 3.0) -> Engine:
    """A model with random weights that often begins an image: the head of that token is a strong one."""
    tokenizer = tiny_text_tokenizer()
    model = tiny_model(len(tokenizer))
    with torch.no_grad():
        weight = model.ports[Kind.TEXT].parts()["text_head"].weight
        weight[tokenizer.special.begin_of_image] *= boost
        weight[tokenizer.special.eos] *= 2
    bundle = ModelBundle(
        model, {DEFAULT: tiny_image_tokenizer()}, tokenizer, prompt_format or PromptFormat(), DrawingDefaults(2.0, 1.0)
    )
    return Engine(bundle, limits)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return make_engine()


@pytest.fixture(scope="module")
def looking() -> Engine:
    return make_engine(PromptFormat(looks_at_drawings=True))


def shape_of(message: AssistantMessage) -> list[Any]:
    return [part if isinstance(part, str) else part.codes for part in message.parts]


def elements(sequence: Sequence) -> list[tuple]:
    """Kind and id of every given position; of an image its number of positions."""
    return [
        (segment.kind, element)
        for segment in sequence.given.segments
        for element in (segment.ids if segment.has_ids else [segment.length])
    ]


@pytest.mark.parametrize("name", ["engine", "looking"])
def test_batched_is_single_and_streamed_is_whole(name: str, request: pytest.FixtureRequest) -> None:
    engine: Engine = request.getfixturevalue(name)
    many = [one for one in CONVERSATIONS for _ in range(2)]
    together = engine.chat(many, seed=1, **WORDS)
    alone = [engine.chat(one, seed=1, **WORDS) for one in CONVERSATIONS]
    assert (
        [shape_of(one) for one in together[::2]]
        == [shape_of(one) for one in alone]
        == [shape_of(one) for one in together[1::2]]
    )
    assert any(one.images and one.text for one in alone), "some answer has words and images"
    for conversation, whole in zip(CONVERSATIONS, alone, strict=True):
        pieces = list(engine.chat(conversation, stream=True, preview_every=2, seed=1, **WORDS))
        assert pieces[-1].message is not None and shape_of(pieces[-1].message) == shape_of(whole)
        assert _joined(pieces) == [part if isinstance(part, str) else part.image.tobytes() for part in whole.parts]
        assert sum(piece.preview is not None for piece in pieces) == len(whole.images)

    async def read(conversation: list[dict[str, Any]]) -> list[ChatPiece]:
        return [piece async for piece in engine.astream_chat(conversation, seed=1, **WORDS)]

    async def read_all() -> list[list[ChatPiece]]:
        return await asyncio.gather(*map(read, CONVERSATIONS))

    for pieces, whole in zip(asyncio.run(read_all()), alone, strict=True):
        assert pieces[-1].message is not None and shape_of(pieces[-1].message) == shape_of(whole)
    engine.decoder.stop()


def _joined(pieces: list[ChatPiece]) -> list[Any]:
    """Texts between images put together, and the images' pixels."""
    found: list[Any] = [""]
    for piece in pieces:
        if piece.image is not None:
            found += [piece.image.tobytes(), ""]
        found[-1] += piece.text
    return [part.strip() if isinstance(part, str) else part for part in found if not isinstance(part, str) or part.strip()]


@pytest.mark.parametrize("name", ["engine", "looking"])
def test_the_engine_fills_what_training_writes(name: str, request: pytest.FixtureRequest) -> None:
    """Link after link the sequence is the closed conversation: same elements, same conditions, same null prompt."""
    template = request.getfixturevalue(name).template
    special, picture = template.tokenizer.special, Image.new("RGB", (16, 16), "red")
    codes = np.array([1, 2, 3, 4])
    turns = [Turn("user", ("Draw it.",))]
    closed = template.chat([*turns, Turn("assistant", ("Here:", template.drawn(codes, picture, learn=True), "One."))])
    first = template.chat(turns, 8, draws=True)
    words = [*template.tokenizer.encode(" Here:"), special.begin_of_image]
    drawn = template.begin_drawing(first, words, 4)
    assert drawn.segments[-1].kind == Kind.CODES and drawn.segments[-1].limit == 4
    last = template.end_drawing(drawn, codes, picture, 8)
    filled = last.fill([*template.tokenizer.encode(" One."), special.eos])
    assert elements(filled) == elements(closed)
    second = template.begin_drawing(last, [*template.tokenizer.encode(" One."), special.begin_of_image], 4)
    drawing = template.drawn(codes, picture, learn=True)
    longer = template.chat([*turns, Turn("assistant", ("Here:", drawing, "One.", drawing))])
    null = elements(second.unconditioned(special.pad))
    assert null == elements(longer.unconditioned(special.pad))[: len(null)]
    learned = [token for segment in closed.segments if segment.learn for token in segment.ids]
    assert learned == [*words, *codes, *template.tokenizer.encode(" One."), special.eos]
    kinds = [segment.kind for segment in closed.segments]
    assert kinds.count(Kind.PIXELS) == (name == "looking")
    with pytest.raises(ValueError, match="looks at no image"):
        template.chat([*turns, Turn("assistant", (template.look(picture),))])


def test_an_answer_that_must_begin_with_an_image_has_the_drawing_of_its_prompt(engine: Engine) -> None:
    prompts = ["a red circle", "two large squares"]
    answers = engine.chat([ask(one) for one in prompts], images="always", max_new_tokens=3, seed=5, max_images=1)
    for prompt, answer in zip(prompts, answers, strict=True):
        (drawn, *_) = answer.parts
        assert not isinstance(drawn, str)
        assert list(drawn.codes) == engine.generate_codes(prompt, seed=5)[0].tolist()
        assert '"seed": 5' in answer.images[0].info["unimm"]


def test_what_was_drawn_is_read_in_the_next_turn(engine: Engine) -> None:
    answer = engine.chat(CONVERSATIONS[0], images="always", max_new_tokens=3, seed=2, max_images=1)
    messages = [*CONVERSATIONS[0], answer.message, *ask("What colour is it?")]
    sequence = engine._chat_request(messages, 8)[0].sequence
    drawn = next(segment for segment in sequence.segments if segment.kind == Kind.CODES)
    assert drawn.ids == answer.parts[0].codes
    again = [{**one, "content": [{**part, "codes": None} for part in one["content"]]} for one in messages[1:2]]
    coded = engine._chat_request([messages[0], *again, messages[2]], 8)[0].sequence
    own = next(segment for segment in coded.segments if segment.kind == Kind.CODES)
    assert own.ids == tuple(engine.encode_image(answer.images[0]).tolist()), "without codes the picture is encoded"
    assert isinstance(engine.chat(messages, max_new_tokens=4), str)


def test_limits_end_an_answer_and_are_said(engine: Engine) -> None:
    eager = make_engine(boost=50.0)  # it begins one image after the other
    answer = eager.chat(ask("a"), **{**WORDS, "max_images": 3}, seed=0)
    assert len(answer.images) == 3 and answer.finish_reason == "length"
    assert eager.chat(ask("a"), images="auto", max_new_tokens=1, seed=0).num_tokens == 1
    small = make_engine(limits=Limits(max_positions=20), boost=50.0)
    answer = small.chat(ask("a"), **WORDS)
    assert answer.finish_reason == "length" and answer.num_prompt_positions + 6 * len(answer.images) <= 20
    with pytest.raises(ValueError, match=r"takes \d+ positions and an answer \d+ or more, but there are 20: leave out"):
        small.chat([*ask("a red circle"), {"role": "assistant", "content": "a"}, *ask("b")], **WORDS)
    with pytest.raises(ValueError, match="images is one of never, auto, always, not 'yes'"):
        engine.chat(ask("a"), images="yes")
    with pytest.raises(ValueError, match="drawing sets guidance_scale"):
        engine.chat(ask("a"), images="auto", drawing={"scale": 1})
    with pytest.raises(ValueError, match="max_images"):
        engine.chat(ask("a"), images="auto", max_images=0)
    with pytest.raises(ValueError, match="One conversation is streamed at a time"):
        engine.chat(CONVERSATIONS, images="auto", stream=True)


def test_what_follows_is_never_refused_for_a_full_queue() -> None:
    full = make_engine(limits=Limits(max_rows=2, max_waiting=0), boost=50.0)
    answers = full.chat(CONVERSATIONS, **WORDS, seed=3)
    alone = [make_engine(boost=50.0).chat(one, **WORDS, seed=3) for one in CONVERSATIONS]
    assert [shape_of(one) for one in answers] == [shape_of(one) for one in alone]
    assert not full.decoder.has_work and full.stats().num_rows == 0


def test_a_stream_that_is_closed_takes_its_request_with_it(engine: Engine) -> None:
    pieces = engine.chat(CONVERSATIONS[0], images="always", stream=True, preview_every=1)
    next(iter(pieces))
    pieces.close()
    assert not engine.decoder.has_work


def test_a_stop_string_ends_the_answer_before_it(engine: Engine) -> None:
    whole = next(one for seed in range(9) if len((one := engine.chat(CONVERSATIONS[0], seed=seed, **WORDS)).text) > 6)
    stop = whole.text.replace("\n", "")[2:4]
    seed = next(seed for seed in range(9) if engine.chat(CONVERSATIONS[0], seed=seed, **WORDS).text == whole.text)
    cut = engine.chat(CONVERSATIONS[0], stop=stop, seed=seed, **WORDS)
    assert stop not in cut.text and cut.finish_reason == "stop" and len(cut.text) < len(whole.text)


@pytest.mark.parametrize("window", [1, 3])
def test_never_means_that_no_answer_begins_an_image(window: int) -> None:
    """Of a model that always would: greedy or sampled, alone, in a batch beside rows that draw, and streamed."""
    engine = make_engine(limits=Limits(window=window), boost=50.0)
    begin, chat = engine.tokenizer.special.begin_of_image, engine.template.chat
    ways = [{}, {"temperature": 1.0}, {"temperature": 2.0, "top_k": 1}, {"temperature": 1.0, "top_p": 0.3, "min_p": 0.2}]
    ways.append({"repetition_penalty": 1.5, "logprobs": True})
    for way in ways:
        together = engine.complete(CONVERSATIONS, 12, seed=3, **way)
        alone = [engine.complete(one, 12, seed=3, **way) for one in CONVERSATIONS]
        assert [one.ids for one in together] == [one.ids for one in alone]
        assert all(one.ids and begin not in one.ids for one in alone)
        chunks = [chunk.text for chunk in engine.stream_complete(CONVERSATIONS[0], max_new_tokens=12, seed=3, **way)]
        assert "".join(chunks) == alone[0].text
    assert isinstance(engine.chat(CONVERSATIONS[0], images="never", max_new_tokens=4), str)
    turn, sampling = [Turn("user", ("Draw it.",))], Sampling(1.0, seed=2)
    words, free = Request(chat(turn, 12), sampling), Request(chat(turn, 12, draws=True), sampling)
    drawing = Request(engine.template.draw("a", num_codes=4), sampling, 2.0)
    beside = engine.decoder.fill([words, free, drawing, words, free])
    assert beside == [engine.decoder.fill([one])[0] for one in (words, free, drawing, words, free)]
    assert begin not in beside[0] and beside[1][-1] == begin and len(beside[2]) == 4


@pytest.mark.parametrize(("suppressed", "words"), [((0, 10**6), "is suppressed, but they go from 0"), (None, "are suppressed")])
def test_what_cannot_be_suppressed_is_refused(suppressed: Any, words: str, engine: Engine) -> None:
    every = tuple(range(engine.model.ports[Kind.TEXT].vocabulary_size))
    blank = Segment.blank(Kind.TEXT, 3, suppressed=suppressed or every)
    with pytest.raises(ValueError, match=words):
        engine.fill([Sequence((Segment.text([1]), blank))])


def test_no_user_text_begins_an_image(engine: Engine) -> None:
    begin = engine.tokenizer.special.begin_of_image
    typed = engine.template.chat([Turn("user", ("<begin_of_image> draw",))], 4, draws=True)
    assert begin not in [token for segment in typed.given.segments for token in segment.ids]
    said = engine.template.chat([Turn("user", ("a",)), Turn("assistant", ("<begin_of_image>",))], 4, draws=True)
    assert begin not in [token for segment in said.given.segments for token in segment.ids]


def test_a_folder_keeps_that_the_model_looks_at_its_drawings(looking: Engine, tmp_path: Any) -> None:
    looking.save(tmp_path / "model")
    assert ModelBundle.load(tmp_path / "model").prompt_format == looking.prompt_format
    assert replace(PromptFormat(), looks_at_drawings=True) == looking.prompt_format
