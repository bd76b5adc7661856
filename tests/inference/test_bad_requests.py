"""Requests that cannot be filled and houses that are too small: one sentence for whom it concerns, and nobody else notices."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from unimm.batch import Batch
from unimm.data.template import Turn
from unimm.inference.decode.cache_memory import CacheMemory
from unimm.inference.decode.decoder import Decoder
from unimm.inference.decode.request import Request
from unimm.inference.decode.sampling import Sampling
from unimm.inference.decode.workload import Limits, QueueFull
from unimm.inference.engine import Engine
from unimm.sequence import Kind, Segment, Sequence


def make_decoder(engine: Engine, deterministic: bool = False, **limits: Any) -> Decoder:
    return Decoder(engine.model, engine.tokenizer.special.pad, Limits(**limits), deterministic=deterministic)


def ask(engine: Engine, words: str = "How many?", length: int = 6, **more: Any) -> Request:
    return Request(engine.template.chat([Turn("user", (words,))], length), **more)


def paint(engine: Engine, length: int = 12, seed: int = 1, **more: Any) -> Request:
    return Request(engine.template.draw("a red circle", num_codes=length), Sampling(1.0, seed=seed), **more)


def open_after(*segments: Segment, known: tuple[int, ...] = (), **more: Any) -> Request:
    return Request(Sequence((*segments, Segment.blank(Kind.CODES, 4, known=known))), **more)


@pytest.mark.parametrize(
    ("setting", "name"),
    [
        ({"seed": None}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"index": None}, "index"),
        ({"top_k": 2**70}, "top_k"),
        ({"top_k": 0.5}, "top_k"),
    ],
)
def test_settings_that_are_none(setting: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} "):
        Sampling(1.0, **setting)
    assert Sampling(1.0, seed=np.int64(3)).seed == 3  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (open_after(Segment.text([0, 10**6])), "no element 1000000 of TEXT"),
        (open_after(Segment.text([0, -5])), "no element -5 of TEXT"),
        (open_after(Segment.codes([10**6])), "no element 1000000 of CODES"),
        (open_after(Segment.text([0]), known=(-1, 10**6)), "no element 1000000 of CODES"),
        (open_after(Segment.text([0]), Segment.look(np.zeros((3, 5, 5), np.float32), 4)), r"not at \(3, 5, 5\)"),
        (open_after(Segment.text([0]), known=(1,), logprobs=True), "known elements has none"),
    ],
)
def test_what_no_model_could_read_is_refused_before_anybody_is_beside_it(
    request_: Request, words: str, tiny_engine: Engine
) -> None:
    decoder = make_decoder(tiny_engine)
    ticket = decoder.submit(ask(tiny_engine))
    with pytest.raises(ValueError, match=words):
        decoder.submit(request_)
    decoder.step()
    assert len(decoder.take(ticket)[0]) == 1


def test_known_elements_that_are_some_are_kept(tiny_engine: Engine) -> None:
    assert make_decoder(tiny_engine).fill([open_after(Segment.text([0]), known=(-1, 3, 2))])[0][1:3] == [3, 2]


def test_who_fails_in_a_prefill_fails_alone(tiny_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three are prefilled together, and one of them is more than the machine can bear."""
    asked = [ask(tiny_engine), ask(tiny_engine, "Why is it so?"), paint(tiny_engine, guidance_scale=3.0)]
    expected = [make_decoder(tiny_engine).fill([request])[0] for request in asked]
    embed, heavy = tiny_engine.model.embed, asked[1].sequence.given.segments[0].ids

    def fail(batch: Batch) -> torch.Tensor:
        if any(tuple(row[: len(heavy)].tolist()) == heavy for row in batch.tokens):
            raise torch.OutOfMemoryError("no more")
        return embed(batch)

    decoder = make_decoder(tiny_engine)
    tickets = [decoder.submit(request) for request in asked]
    monkeypatch.setattr(tiny_engine.model, "embed", fail)
    filled: dict[int, list[int]] = {0: [], 2: []}
    for _ in range(40):
        decoder.step()
        for place in list(filled):
            if tickets[place] in decoder._jobs:
                filled[place] += decoder.take(tickets[place])[0]
    with pytest.raises(torch.OutOfMemoryError):
        decoder.take(tickets[1])
    assert filled == {0: expected[0], 2: expected[2]}
    assert (decoder.stats().num_rows, decoder.stats().num_waiting) == (0, 0)


@pytest.mark.parametrize("is_rounded", [False, True])
def test_a_cache_never_grows_beyond_its_limit(is_rounded: bool, tiny_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where null rows come late, rows arrive one after another, and steps are rounded up as on a GPU."""

    class Plain:
        def run(self, _shape: object, work: Any, _changed: object) -> Any:
            return work()

    if is_rounded:
        monkeypatch.setattr("unimm.inference.decode.step.make_graphs", lambda fast: Plain())
        monkeypatch.setattr(CacheMemory, "has_ragged_rows", False)  # as on a GPU, too
    probe = make_decoder(tiny_engine)
    stream = probe.steps([paint(tiny_engine)])
    next(stream)
    one_row = probe.stats().cache_bytes
    stream.close()
    requests = [paint(tiny_engine, seed=seed) for seed in range(5)]
    requests += [paint(tiny_engine, guidance_scale=5.0, guidance_interval=(0.5, 1.0)), ask(tiny_engine)]
    expected = [make_decoder(tiny_engine).fill([request])[0] for request in requests]
    for most in (2, 3, 5, 7):
        decoder = make_decoder(tiny_engine, max_cache_bytes=most * one_row)
        filled: list[list[int]] = [[] for _ in requests]
        for new in decoder.steps(requests):
            for index, token in new.items():
                filled[index].append(token)
            assert decoder.stats().cache_bytes <= most * one_row
        assert filled == expected


def test_a_full_house_has_to_fit(tiny_engine: Engine) -> None:
    with pytest.raises(ValueError, match=r"deterministic step takes .* fewer max_rows"):
        make_decoder(tiny_engine, deterministic=True, max_cache_bytes=10_000)


@pytest.mark.parametrize("limits", [{"max_rows": 0}, {"max_waiting": -1}, {"max_positions": 1.5}, {"prefill_positions": 0}])
def test_limits_that_are_none(limits: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(limits))} is a whole number of at least"):
        Limits(**limits)


def test_who_finds_room_does_not_wait(tiny_engine: Engine) -> None:
    """Nobody may wait: an empty house lets in whom it has room for, and sends the next away. One call may bring any number."""
    decoder = make_decoder(tiny_engine, max_rows=2, max_waiting=0)
    requests = [paint(tiny_engine, seed=seed) for seed in range(5)]
    assert decoder.fill(requests) == make_decoder(tiny_engine).fill(requests)
    for request in requests[:2]:
        decoder.submit(request)
    with pytest.raises(QueueFull):
        decoder.submit(requests[2])
    with pytest.raises(QueueFull):
        decoder.fill(requests[2:])


def test_a_house_is_empty_when_nobody_waits_any_more(tiny_engine: Engine) -> None:
    """Also where a step was launched before it was known that the one before it was the last."""
    decoder = make_decoder(tiny_engine)
    decoder._running.reads_one_step_late = True
    first = decoder.fill([ask(tiny_engine, length=20)])[0]
    stopped = Segment.blank(Kind.TEXT, 20, stop=(first[6],))
    given = ask(tiny_engine).sequence.given.segments
    assert len(decoder.fill([Request(Sequence((*given, stopped)))])[0]) <= 7
    assert (decoder.stats().num_running, decoder.stats().num_rows) == (0, 0)
    decoder.release()
    assert decoder.stats().cache_bytes == 0


def test_a_callback_that_raises_ends_the_drawing(tiny_engine: Engine) -> None:
    """However long what it raised is kept, as a notebook does."""

    def stop(progress: object) -> None:
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough") as kept:
        tiny_engine.generate_images("a red circle", num_images=2, callback=stop)
    assert kept.value is not None and tiny_engine.decoder.stats().num_rows == 0


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        (["hi"], "Messages are a list"),
        ({"role": "user"}, "Messages are a list"),
        ([{"role": "user", "content": 5}], "A message is"),
        ([{"role": "user", "content": []}], "is empty"),
        ([{"role": "user", "content": ["hi"]}], "text, image or image_url, not 'hi'"),
        ([{"role": "system", "content": 5}, {"role": "user", "content": "a"}], "A message is"),
        ([{"role": "system", "content": [{"type": "text"}]}, {"role": "user", "content": "a"}], "needs its text"),
        ([{"role": "system", "content": "word " * 11_000}, {"role": "user", "content": "a"}], "more than 50,000 characters"),
        ([{"role": "user", "content": [{"type": "text", "text": "word " * 6_000}] * 2}], "more than 50,000 characters"),
        ([{"role": "user", "content": [{"type": "image", "image": "nothere.png"}] * 40_000}], "images take .* show fewer"),
    ],
)
def test_messages_are_measured_before_they_are_read(messages: Any, words: str, tiny_engine: Engine) -> None:
    with pytest.raises(ValueError, match=words):
        tiny_engine.complete(messages, max_new_tokens=2)


def test_an_assistant_may_have_said_nothing(tiny_engine: Engine, picture: Image.Image) -> None:
    """As an engine says itself, where a stop string comes first."""
    question = {"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "What?"}]}
    messages = [question, {"role": "assistant", "content": ""}, {"role": "user", "content": "Well?"}]
    assert tiny_engine.complete(messages, max_new_tokens=3).num_prompt_positions > 0


@pytest.mark.parametrize(("words", "count"), [({"num_images": -1, "best_of": 3}, "-1"), ({"num_images": 1.5}, "1.5")])
def test_numbers_of_images_that_are_none(words: dict[str, Any], count: str, tiny_engine: Engine) -> None:
    with pytest.raises(ValueError, match=f"num_images is a whole number of at least 1, not {count}"):
        tiny_engine.generate_images("a", **words)


@pytest.mark.parametrize("seed", [None, "1", [None], [1, 2]])
def test_seeds_that_are_none(seed: Any, tiny_engine: Engine) -> None:
    with pytest.raises(ValueError, match="seed"):
        tiny_engine.generate_codes("a", seed=seed)
