"""The prefix cache: ids are the same with and without it, what was looked at is not looked at again, and bounds hold."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_engine_on_a_gpu import make_engine

import unimm.inference.decode.cache_memory as cache_memory_module
from unimm.data.template import Turn
from unimm.inference.decode.decoder import Decoder
from unimm.inference.decode.prefix_cache import BLOCK, PrefixCache, behind, blocks_of
from unimm.inference.decode.request import Request
from unimm.inference.decode.sampling import Sampling
from unimm.inference.decode.workload import Limits
from unimm.inference.engine import Engine
from unimm.models.ports.pixels import PixelsPort
from unimm.sequence import Kind, Segment, Sequence

SYSTEM = "You are a careful assistant who counts shapes and names their colours, one after another."


QUESTION = (5, 6, 7, 8, 9)
"""Of a later turn, as ids."""


def picture(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (40, 40, 3), dtype=np.uint8)


def asked(engine: Engine, question: str, number: int | None = None, seed: int = 0) -> Request:
    """A question with the same system prompt, about a picture of its own or none."""
    look = () if number is None else (engine.template.look(picture(number)),)
    sequence = engine.template.chat([Turn("user", (*look, question))], 6, system_prompt=SYSTEM)
    return Request(sequence.opened(), Sampling(1.0, seed=seed))


def drawn(engine: Engine, prompt: str, seed: int = 0) -> Request:
    return Request(engine.template.draw(prompt, num_codes=6), Sampling(1.0, seed=seed), 3.0, guidance_interval=(0.0, 0.6))


def make_decoder(engine: Engine, num_bytes: int = 10**7, **limits: Any) -> Decoder:
    return Decoder(engine.model, engine.tokenizer.special.pad, Limits(prefix_cache_bytes=num_bytes, **limits))


@contextmanager
def images_seen() -> Iterator[list[int]]:
    """How many images each call of the vision tower was given."""
    seen, features = [], PixelsPort.features

    def count(port: PixelsPort, pixels: torch.Tensor) -> torch.Tensor:
        seen.append(len(pixels))
        return features(port, pixels)

    with mock.patch.object(PixelsPort, "features", count):
        yield seen


@pytest.fixture(scope="module")
def requests(tiny_engine: Engine) -> list[Request]:
    questions = ("How many?", "What colour is the largest of all of these shapes?", "How many?")
    texts = [asked(tiny_engine, question, number, seed) for number in (0, 1, None) for seed, question in enumerate(questions)]
    prompt = "two large blue squares left of a small green triangle and a red cross"
    return [*texts, drawn(tiny_engine, prompt), drawn(tiny_engine, prompt, 1), drawn(tiny_engine, prompt + " above it", 2)]


@pytest.fixture(scope="module")
def expected(tiny_engine: Engine, requests: list[Request]) -> list[list[int]]:
    return make_decoder(tiny_engine, 0).fill(requests)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    waves=st.lists(st.lists(st.integers(0, 11), min_size=1, max_size=5), min_size=1, max_size=4),
    num_bytes=st.sampled_from([1, 20_000, 100_000, 10**7]),
    prefill_positions=st.sampled_from([3, 40, 1024]),
)
def test_ids_are_those_without_it(
    tiny_engine: Engine,
    requests: list[Request],
    expected: list[list[int]],
    waves: list[list[int]],
    num_bytes: int,
    prefill_positions: int,
) -> None:
    decoder = make_decoder(tiny_engine, num_bytes, prefill_positions=prefill_positions, max_rows=6)
    for wave in waves:
        assert decoder.fill([requests[one] for one in wave]) == [expected[one] for one in wave]
        stats = decoder.stats()
        assert stats.prefix_cache_bytes <= num_bytes
        assert stats.prefilled_positions + stats.prefix_cache_hits <= stats.prefix_cache_queries


def test_what_was_looked_at_is_not_looked_at_again(tiny_engine: Engine) -> None:
    decoder = make_decoder(tiny_engine)
    first, second = asked(tiny_engine, "How many?", 0), asked(tiny_engine, "What colour?", 0)
    with images_seen() as seen:
        decoder.fill([first])
        before = decoder.stats()
        decoder.fill([second])
    after = decoder.stats()
    assert sum(seen) == 1
    assert before.prefix_cache_hits == 0 < before.prefix_cache_bytes
    hits, length = after.prefix_cache_hits, second.sequence.given.length
    assert after.prefilled_positions - before.prefilled_positions == length - hits
    image_end = next(stop for segment, _, stop in second.sequence.given.spans() if segment.kind == Kind.PIXELS)
    assert image_end <= hits < length and 0 < after.prefix_cache_hit_rate < 1
    with images_seen() as seen:
        decoder.fill([asked(tiny_engine, "How many?", 1)])
    assert sum(seen) == 1, "another picture is looked at"


@pytest.mark.parametrize("has_ragged_rows", [True, False], ids=["rows of own length", "rows of one length"])
def test_a_chat_goes_on_behind_its_last_answer(
    has_ragged_rows: bool, tiny_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three turns beside another chat: answers are the same, and of the earlier turns next to nothing is computed again."""
    if not has_ragged_rows:
        monkeypatch.setattr(cache_memory_module, "has_cpu_decode", lambda model: False)
    plain, decoder = make_decoder(tiny_engine, 0), make_decoder(tiny_engine)
    other = asked(tiny_engine, "Which one is red, and which is not?", 1, seed=3)
    given: tuple[Segment, ...] = asked(tiny_engine, "How many?", 0).sequence.given.segments
    for turn in range(3):
        sequence = Sequence((*given, Segment.blank(Kind.TEXT, 3 * BLOCK)))
        requests, before = [Request(sequence, Sampling(1.0, seed=turn)), other], decoder.stats()
        answer, *_ = expected = plain.fill(requests)
        assert decoder.fill(requests) == expected
        known = decoder.stats().prefix_cache_hits - before.prefix_cache_hits - (other.sequence.given.length - 1) * bool(turn)
        assert not turn or sequence.given.length - known <= 2 * BLOCK + len(QUESTION)
        given = (*given, Segment.text(answer), Segment.text(QUESTION))


def test_answers_in_fewer_bits_or_of_older_weights_are_not_kept(tiny_engine: Engine) -> None:
    def positions(decoder: Decoder, between: Callable[[Decoder], object] = lambda decoder: None) -> int:
        """That are kept of a prompt and its answer."""
        sequence = Sequence((Segment.text(range(BLOCK)), Segment.blank(Kind.TEXT, 3 * BLOCK)))
        ticket = decoder.submit(Request(sequence))
        for _ in range(5):
            decoder.step()
        between(decoder)
        decoder.wait(ticket)
        while not decoder.take(ticket)[1]:
            decoder.wait(ticket)
        cache = decoder.running._cache
        return decoder.stats().prefix_cache_bytes // cache.bytes_a_position

    assert positions(make_decoder(tiny_engine)) == 3 * BLOCK
    assert positions(make_decoder(tiny_engine), lambda decoder: decoder.swap_weights(lambda: None)) == 0
    model = make_engine("cpu", None, torch.bfloat16).model
    assert positions(Decoder(model, 0, Limits(prefix_cache_bytes=10**7), weights="int8")) == BLOCK
    assert positions(Decoder(model, 0, Limits(prefix_cache_bytes=10**7))) == 3 * BLOCK


def test_of_questions_that_come_together_one_goes_first(tiny_engine: Engine) -> None:
    decoder = make_decoder(tiny_engine)
    together = [asked(tiny_engine, question, 0) for question in ("How many?", "What colour?", "Where is it?", "Is it red?")]
    with images_seen() as seen:
        filled = decoder.fill(together)
    assert sum(seen) == 1 and filled == make_decoder(tiny_engine, 0).fill(together)


def test_new_weights_drop_it(tiny_engine: Engine) -> None:
    decoder, request = make_decoder(tiny_engine), asked(tiny_engine, "How many?", 0)
    parameter = tiny_engine.model.text.embedding.weight
    kept = parameter.detach().clone()
    decoder.fill([request])
    try:
        with torch.no_grad():
            parameter.mul_(-1)  # nobody says so, and it is noticed
        changed = decoder.fill([request])
        assert decoder.stats().prefix_cache_hits == 0
        assert changed == make_decoder(tiny_engine, 0).fill([request])
    finally:
        with torch.no_grad():
            decoder.swap_weights(lambda: parameter.copy_(kept))
    assert decoder.stats().prefix_cache_bytes == 0
    assert decoder.fill([request]) == make_decoder(tiny_engine, 0).fill([request])
    assert decoder.stats().prefix_cache_bytes > 0
    decoder.release()
    assert decoder.stats().prefix_cache_bytes == 0


def test_weights_that_change_within_a_prefill_leave_nothing(tiny_engine: Engine) -> None:
    decoder = make_decoder(tiny_engine, prefill_positions=5)
    decoder.submit(asked(tiny_engine, "How many?", 0))
    decoder.step()
    decoder.swap_weights(lambda: None)
    for _ in range(40):
        decoder.step()
    assert decoder.stats().prefix_cache_bytes == 0


def test_blocks_follow_content_and_all_before_it() -> None:
    pixels = np.zeros((3, 4, 4), np.float32)

    def blocks(ids: list[int], shade: float = 0.0, is_cut: bool = False) -> list[tuple[int, int]]:
        texts = [Segment.text(ids)] if not is_cut else [Segment.text(ids[:5]), Segment.text(ids[5:], condition="text")]
        found = blocks_of(Sequence((*texts, Segment.look(pixels + shade, 4), Segment.text(range(BLOCK + 3)))))
        keys.append([block.key for block in found])
        return [(block.start, block.stop) for block in found]

    keys: list[list[bytes]] = []
    ids = list(range(BLOCK + 2))
    assert blocks(ids) == [(0, BLOCK), (BLOCK, BLOCK + 2), (BLOCK + 2, BLOCK + 6), (BLOCK + 6, 2 * BLOCK + 6)]
    blocks(ids, is_cut=True)
    blocks(ids, shade=0.5)
    blocks([*ids[:-1], 99])
    plain, cut, shaded, other = keys
    assert cut == plain and len({*plain, *shaded}) == 6 and shaded[:2] == plain[:2]
    assert other[0] == plain[0] and not {*other[1:]} & {*plain[1:]}


def test_a_sequence_behind_its_first_positions() -> None:
    whole = Sequence((Segment.text(range(20)), Segment.look(np.zeros((3, 4, 4), np.float32), 4), Segment.text([7, 8, 9])))
    assert behind(whole, 0).length == 27 and behind(whole, 16).segments[0].ids == (16, 17, 18, 19)
    assert [segment.kind for segment in behind(whole, 20).segments] == [Kind.PIXELS, Kind.TEXT]
    assert behind(whole, 24).segments == (Segment.text([7, 8, 9]),)


def test_the_least_recently_used_goes_first(tiny_engine: Engine) -> None:
    decoder, requests = make_decoder(tiny_engine), [asked(tiny_engine, "How many?", number) for number in range(3)]
    sizes = []
    for request in requests[:2]:
        decoder.fill([request])
        sizes.append(decoder.stats().prefix_cache_bytes)
    decoder = make_decoder(tiny_engine, sizes[1])  # there is room for the system prompt and two pictures
    for number in (0, 1, 0, 2):
        decoder.fill([requests[number]])
    with images_seen() as seen:
        decoder.fill([requests[0]])
        assert sum(seen) == 0
        decoder.fill([requests[1]])
    assert sum(seen) == 1 and decoder.stats().prefix_cache_bytes <= sizes[1]


def test_sums_that_must_not_depend_on_the_past_refuse_it(tiny_engine: Engine) -> None:
    with pytest.raises(ValueError, match="leave out deterministic, or prefix_cache_bytes"):
        Decoder(tiny_engine.model, 0, Limits(prefix_cache_bytes=1), deterministic=True)
    with pytest.raises(ValueError, match="prefix_cache_bytes"):
        Limits(prefix_cache_bytes=-1)
    assert PrefixCache(tiny_engine.model, 5).match([], 3).num_positions == 0
