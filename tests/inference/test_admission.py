"""Requests come and go between steps; whoever comes, goes or fails, everybody else gets the same ids."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unimm.data.template import Turn
from unimm.inference.decode import Decoder
from unimm.inference.engine import Engine
from unimm.inference.rows import Request
from unimm.inference.sampling import Sampling

NUM_REQUESTS = 6


@pytest.fixture(scope="module")
def requests(tiny_engine: Engine) -> list[Request]:
    """Texts and drawings, with and without guidance, of different lengths."""
    template = tiny_engine.template
    return [
        Request(template.draw("a red circle", num_codes=7), Sampling(1.0, seed=1), 5.0),
        Request(template.chat([Turn("user", ("How many?",))], 9), Sampling(1.0, seed=2)),
        Request(template.draw("two large blue squares left of a cross", num_codes=3), Sampling(1.0, seed=3), 2.0),
        Request(template.draw("a", num_codes=12), Sampling(1.0, seed=4)),
        Request(template.chat([Turn("user", ("一个小的红色圆形",))], 4), Sampling()),
        Request(template.draw("a red circle", num_codes=7), Sampling(1.0, seed=1, index=1), 5.0),
    ]


@pytest.fixture(scope="module")
def alone(tiny_engine: Engine, requests: list[Request]) -> list[list[int]]:
    """What each is filled with when nobody else is there."""
    return [make_decoder(tiny_engine, 2).fill([request])[0] for request in requests]


def make_decoder(engine: Engine, max_rows: int) -> Decoder:
    return Decoder(engine.model, engine.tokenizer.special.pad, max_rows)


def finish(decoder: Decoder, tickets: list[int]) -> dict[int, list[int]]:
    """Step until all of them are done."""
    filled: dict[int, list[int]] = {ticket: [] for ticket in tickets}
    left = set(tickets)
    while left:
        decoder.step()
        for ticket in list(left):
            new, done = decoder.take(ticket)
            filled[ticket] += new
            if done:
                left.remove(ticket)
    return filled


@pytest.mark.parametrize("max_rows", [2, 3, 5, 128])
def test_a_queue_fills_what_each_request_fills_alone(
    max_rows: int, tiny_engine: Engine, requests: list[Request], alone: list[list[int]]
) -> None:
    decoder = make_decoder(tiny_engine, max_rows)
    assert decoder.fill(requests) == alone
    assert decoder.fill(requests[::-1]) == alone[::-1]
    stats = decoder.stats()
    assert (stats.num_waiting, stats.num_running, stats.num_rows, stats.cache_bytes) == (0, 0, 0, 0)


schedules = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.integers(0, NUM_REQUESTS - 1)),
        st.tuples(st.just("abort"), st.integers(0, 30)),
        st.tuples(st.just("step"), st.integers(1, 4)),
    ),
    max_size=25,
)


@settings(max_examples=150, deadline=None)
@given(schedule=schedules, max_rows=st.integers(2, 7))
def test_no_schedule_of_comings_and_goings_changes_anybodys_ids(
    schedule: list[tuple[str, int]], max_rows: int, tiny_engine: Engine, requests: list[Request], alone: list[list[int]]
) -> None:
    decoder = make_decoder(tiny_engine, max_rows)
    asked: dict[int, int] = {}
    for action, number in schedule:
        if action == "submit":
            asked[decoder.submit(requests[number])] = number
        elif action == "abort" and number in asked:
            decoder.abort(number)
            del asked[number]
        elif action == "step":
            for _ in range(number):
                decoder.step()
                assert decoder.stats().num_rows <= max_rows
    filled = finish(decoder, list(asked))
    assert {ticket: filled[ticket] for ticket in asked} == {ticket: alone[number] for ticket, number in asked.items()}
    stats = decoder.stats()
    assert (stats.num_waiting, stats.num_running, stats.num_rows, stats.cache_bytes) == (0, 0, 0, 0)


def test_two_streams_are_read_in_any_order(tiny_engine: Engine, requests: list[Request], alone: list[list[int]]) -> None:
    decoder = make_decoder(tiny_engine, 4)
    one, other = decoder.steps([requests[0]]), decoder.steps([requests[3]])
    first = [next(one)[0] for _ in range(3)]
    second = [new[0] for new in other]
    assert first + [new[0] for new in one] == alone[0]
    assert second == alone[3]


def test_a_stream_that_is_dropped_frees_its_rows(tiny_engine: Engine, requests: list[Request], alone: list[list[int]]) -> None:
    decoder = make_decoder(tiny_engine, 4)
    stream: Iterator[dict[int, int]] = decoder.steps([requests[3]])
    next(stream)
    assert decoder.stats().num_rows == 1
    stream.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert decoder.stats().num_rows == 0
    assert decoder.fill([requests[1]]) == [alone[1]]


def test_what_begins_alike_is_prefilled_once(tiny_engine: Engine) -> None:
    prompt = tiny_engine.template.draw("a red circle", num_codes=4)
    for scale, rows in ((1.0, 1), (3.0, 2)):
        decoder = make_decoder(tiny_engine, 128)
        together = decoder.fill([Request(prompt, Sampling(1.0, index=index), scale) for index in range(5)])
        assert decoder.stats().prefilled_positions == rows * prompt.given.length
        single = make_decoder(tiny_engine, 128)
        assert together == [single.fill([Request(prompt, Sampling(1.0, index=index), scale)])[0] for index in range(5)]


def test_without_guidance_there_is_half_of_everything(tiny_engine: Engine) -> None:
    prompt = tiny_engine.template.draw("a red circle", num_codes=4)
    counted = []
    for scale in (1.0, 5.0):
        decoder = make_decoder(tiny_engine, 128)
        stream = decoder.steps([Request(prompt, Sampling(1.0), scale)])
        next(stream)
        next(stream)
        stats = decoder.stats()
        counted.append((stats.num_rows, stats.prefilled_positions, stats.decoded_rows, stats.cache_bytes))
        stream.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert [2 * number for number in counted[0]] == list(counted[1])


def test_a_request_larger_than_the_engine_is_refused_alone(tiny_engine: Engine, requests: list[Request]) -> None:
    decoder = make_decoder(tiny_engine, 1)
    with pytest.raises(ValueError, match="max_rows=2"):
        decoder.submit(requests[0])
    assert len(decoder.fill([requests[3]])[0]) == 12


def test_a_step_that_fails_leaves_a_decoder_that_works(
    tiny_engine: Engine, requests: list[Request], alone: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = make_decoder(tiny_engine, 8)
    stream, other = decoder.steps(requests[:2]), decoder.steps([requests[3]])
    next(stream)
    next(other)

    def fail(*_, **__):
        raise torch.OutOfMemoryError("no more")

    with monkeypatch.context() as patch:
        patch.setattr(decoder, "_advance", fail)
        with pytest.raises(torch.OutOfMemoryError):
            list(stream)
    with pytest.raises(RuntimeError, match="ask again"):
        list(other)
    assert decoder.fill(requests) == alone


def test_the_queue_is_served_in_its_order(tiny_engine: Engine, requests: list[Request]) -> None:
    decoder = make_decoder(tiny_engine, 2)
    tickets = [decoder.submit(request) for request in (requests[3], requests[0], requests[4])]
    decoder.step()
    # The first takes one row of two; the second wants both, and is not overtaken by the third.
    assert [len(decoder.take(ticket)[0]) for ticket in tickets] == [1, 0, 0]
