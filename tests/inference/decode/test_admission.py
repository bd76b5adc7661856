"""Requests come and go between steps; whoever comes, goes or fails, everybody else gets the same ids."""

import os
from collections.abc import Callable, Hashable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unimm.batch import collate
from unimm.data.template import Turn
from unimm.inference.decode.cache_memory import CacheMemory
from unimm.inference.decode.decoder import Decoder
from unimm.inference.decode.kv_cache import RowCacheLayer
from unimm.inference.decode.request import Branch, Job, Request
from unimm.inference.decode.running_batch import RunningBatch
from unimm.inference.decode.sampling import Sampler, Sampling, guide
from unimm.inference.decode.step import DecodeStep
from unimm.inference.decode.workload import Limits, QueueFull
from unimm.inference.engine import Engine, load
from unimm.sequence import Kind, Segment, Sequence

NUM_REQUESTS = 9


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
        Request(template.draw("a red circle", num_codes=9), Sampling(1.0, seed=6), 3.0, guidance_interval=(0.3, 0.7)),
        Request(template.chat([Turn("user", ("How many?",))], 9), Sampling(1.0, seed=2, repetition_penalty=1.7), logprobs=True),
    ]


@pytest.fixture(scope="module")
def alone(tiny_engine: Engine, requests: list[Request]) -> list[list[int]]:
    """What each is filled with when nobody else is there."""
    return [make_decoder(tiny_engine, 2).fill([request])[0] for request in requests]


class Replay:
    """A CUDA graph as a CPU can have it: what was recorded for a shape runs again, whatever is asked for later.

    buffers: what steps read beside what they change, keys and values that is, as they lie now.
    """

    def __init__(self, buffers: Callable[[], list[torch.Tensor]]) -> None:
        self.buffers = buffers
        self.recorded: dict[Hashable, Callable[[], Any]] = {}
        self.places: dict[Hashable, list[int]] = {}

    def run(self, shape: Hashable, work: Callable[[], Any], changed: list[torch.Tensor]) -> Any:
        result = self.recorded.setdefault(shape, work)()
        places = [tensor.data_ptr() for tensor in changed + self.buffers()]
        assert self.places.setdefault(shape, places) == places, "a captured step would read what is no longer there"
        return result


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps are captured, numbers of rows and slots rounded up, as on a GPU."""
    made: list[DecodeStep] = []
    whole = DecodeStep.__init__

    def remember(step: DecodeStep, *args: Any, **kwargs: Any) -> None:
        made.append(step)
        whole(step, *args, **kwargs)

    def buffers(step: DecodeStep) -> list[torch.Tensor]:
        layers = [layer for layer in step.cache.layers if isinstance(layer, RowCacheLayer)]
        return [buffer for layer in layers for buffer in (layer.keys, layer.values) if buffer is not None]

    monkeypatch.setattr(DecodeStep, "__init__", remember)
    monkeypatch.setattr(RunningBatch, "_may_choose_windows", False)
    monkeypatch.setattr(CacheMemory, "has_ragged_rows", False)
    monkeypatch.setattr("unimm.inference.decode.step.make_graphs", lambda fast: Replay(lambda step=made[-1]: buffers(step)))


def with_three_branches(engine: Engine) -> Request:
    """Guided by more than one prompt: it takes three rows, from its third element to its seventh."""
    given = engine.template.draw("a red circle", num_codes=9).segments
    sequence = Sequence((given[0], Segment.text((5, 6), condition="style"), *given[1:]))
    branches = (Branch(weight=4.0), Branch(frozenset({"style"}), -1.5), Branch(frozenset({"style", "text"}), -1.5))
    return Request(sequence, Sampling(1.0, seed=7), guidance_interval=(0.2, 0.8), branches=branches)


def make_decoder(engine: Engine, max_rows: int) -> Decoder:
    return Decoder(engine.model, engine.tokenizer.special.pad, Limits(max_rows, window=1))


def make_limited(engine: Engine, lags: bool = False, deterministic: bool = False, **limits: Any) -> Decoder:
    if lags:
        limits = {"window": 1, **limits}  # as on a GPU
    decoder = Decoder(engine.model, engine.tokenizer.special.pad, Limits(**limits), deterministic=deterministic)
    decoder._running.reads_one_step_late = lags
    return decoder


def is_empty(decoder: Decoder) -> bool:
    decoder.release()
    stats = decoder.stats()
    return (stats.num_waiting, stats.num_running, stats.num_rows, stats.cache_bytes) == (0, 0, 0, 0)


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
    assert is_empty(decoder)


schedules = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.integers(0, NUM_REQUESTS - 1)),
        st.tuples(st.just("abort"), st.integers(0, 30)),
        st.tuples(st.just("step"), st.integers(1, 4)),
    ),
    max_size=25,
)

HOUSES = {
    "plain": {},
    "prefill in pieces": {"prefill_positions": 5},
    "reading a step late": {"lags": True},
    "a full house": {"deterministic": True, "max_positions": 64},
    "all at once": {"deterministic": True, "max_positions": 64, "lags": True, "prefill_positions": 7},
    "windows": {"window": 3},
}


Schedule = list[tuple[str, int]]


@pytest.fixture(scope="module")
def keep_to(tiny_engine: Engine, requests: list[Request], alone: list[list[int]]) -> Callable[[str, Schedule, int], None]:
    """Runs a schedule in a house of so many rows; nobody's ids may change, and at the end all rows are free."""

    everything = [*requests, with_three_branches(tiny_engine)]
    expected = [*alone, *make_decoder(tiny_engine, 3).fill(everything[-1:])]

    def run(house: str, schedule: Schedule, max_rows: int) -> None:
        decoder = make_limited(tiny_engine, max_rows=max_rows, **HOUSES[house])
        asked: dict[int, int] = {}
        for action, number in schedule:
            if action == "submit" and everything[number].num_rows <= max_rows:
                asked[decoder.submit(everything[number])] = number
            elif action == "abort" and number in asked:
                decoder.abort(number)
                del asked[number]
            elif action == "step":
                for _ in range(number):
                    decoder.step()
                    assert decoder.stats().num_rows <= max_rows
        filled = finish(decoder, list(asked))
        assert {ticket: filled[ticket] for ticket in asked} == {ticket: expected[number] for ticket, number in asked.items()}
        assert is_empty(decoder)

    return run


any_house, any_rows = st.sampled_from(list(HOUSES)), st.integers(2, 7)


def test_newcomers_who_are_all_aborted_leave_at_once(
    tiny_engine: Engine, requests: list[Request], alone: list[list[int]]
) -> None:
    decoder = make_limited(tiny_engine, max_rows=4, prefill_positions=5)
    tickets = [decoder.submit(requests[0]), decoder.submit(requests[1])]
    decoder.step()
    assert decoder.stats().num_running > 0, "somebody should be on the way in"
    decoder.abort(tickets[0])
    assert finish(decoder, tickets[1:]) == {tickets[1]: alone[1]}
    ticket = decoder.submit(requests[0])
    decoder.step()
    decoder.abort(ticket)
    assert is_empty(decoder)


@pytest.mark.parametrize("house", [house for house in HOUSES if house != "windows"])  # those are in test_windows
@settings(max_examples=40, deadline=None)
@given(schedule=schedules, max_rows=any_rows)
def test_no_schedule_changes_anybodys_ids(house: str, schedule: Schedule, max_rows: int, keep_to: Callable) -> None:
    keep_to(house, schedule, max_rows)


@pytest.mark.usefixtures("captured")
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(house=any_house, schedule=schedules, max_rows=any_rows)
def test_nor_where_steps_are_captured(house: str, schedule: Schedule, max_rows: int, keep_to: Callable) -> None:
    keep_to(house, schedule, max_rows)


@pytest.mark.slow(seconds=20)
@settings(max_examples=int(os.environ.get("SCHEDULES", "300")), deadline=None)
@given(house=any_house, schedule=schedules, max_rows=any_rows)
def test_nor_do_hundreds(house: str, schedule: Schedule, max_rows: int, keep_to: Callable) -> None:
    """Others every time; `SCHEDULES=1000 pytest -m slow tests/inference/decode/test_admission.py` tries a thousand."""
    keep_to(house, schedule, max_rows)


@pytest.mark.usefixtures("captured")
def test_a_captured_step_serves_others_later(tiny_engine: Engine, requests: list[Request], alone: list[list[int]]) -> None:
    decoder = make_limited(tiny_engine, lags=True)
    running = decoder.submit(requests[3])  # somebody stays, so that the cache does, too
    decoder.step()
    for _ in range(3):
        assert decoder.fill([requests[4]]) == [alone[4]]
        assert decoder.fill([requests[0]]) == [alone[0]]
        if decoder.stats().num_running == 0:
            running = decoder.submit(requests[3])
            decoder.step()
    decoder.abort(running)


@pytest.mark.usefixtures("captured")
def test_a_captured_step_is_recorded_again_where_a_prefill_moved_the_cache(tiny_engine: Engine) -> None:
    prompt = tiny_engine.template.draw("a red circle", num_codes=7)
    decoder = make_limited(tiny_engine, lags=True)
    for count in (1, 4, 1):
        images = [Request(prompt, Sampling(1.0, seed=1, index=index), 5.0) for index in range(count)]
        assert decoder.fill(images) == make_limited(tiny_engine).fill(images)


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


@pytest.mark.parametrize(("scale", "num_entering"), [(1.0, 5), (3.0, 2)])
def test_a_step_prefills_no_more_than_was_promised(tiny_engine: Engine, scale: float, num_entering: int) -> None:
    """The null prompts of guidance are positions, too."""
    prompts = [tiny_engine.template.draw(f"{number} circles", num_codes=4) for number in range(8)]
    (length,) = {prompt.given.length for prompt in prompts}
    decoder = make_limited(tiny_engine, prefill_positions=5 * length)
    for prompt in prompts:
        decoder.submit(Request(prompt, Sampling(1.0), scale))
    decoder.step()
    stats = decoder.stats()
    assert len(prompts) - stats.num_waiting == num_entering
    assert 0 < stats.prefilled_positions <= 5 * length


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
        patch.setattr(decoder._running, "_launch", fail)
        with pytest.raises(torch.OutOfMemoryError):
            list(stream)
    with pytest.raises(RuntimeError, match="ask again"):
        list(other)
    assert decoder.fill(requests) == alone


def test_kinds_are_served_in_turns_and_each_in_its_order(tiny_engine: Engine, requests: list[Request]) -> None:
    decoder = make_decoder(tiny_engine, 2)
    tickets = [decoder.submit(request) for request in (requests[3], requests[0], requests[3], requests[4])]
    decoder.step()
    # The first drawing takes one row of two. The second wants both and is not overtaken by the third; the text comes before.
    assert [len(decoder.take(ticket)[0]) for ticket in tickets] == [1, 0, 0, 1]


def test_a_prefill_that_fails_is_nobody_elses_trouble(
    tiny_engine: Engine, requests: list[Request], alone: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = make_decoder(tiny_engine, 4)
    running = decoder.submit(requests[0])
    decoder.step()
    failing = decoder.submit(requests[1])

    def fail(*_):
        raise torch.OutOfMemoryError("no more")

    with monkeypatch.context() as patch:
        patch.setattr(tiny_engine.model, "embed", fail)
        decoder.step()
    with pytest.raises(torch.OutOfMemoryError):
        decoder.take(failing)
    with pytest.raises(KeyError):
        decoder.take(failing)
    later = decoder.submit(requests[1])
    assert finish(decoder, [running, later]) == {running: alone[0], later: alone[1]}
    with monkeypatch.context() as patch:
        patch.setattr(tiny_engine.model, "embed", fail)
        with pytest.raises(torch.OutOfMemoryError):
            decoder.fill(requests[:2])
    assert is_empty(decoder)


def test_a_full_queue_refuses(tiny_engine: Engine, requests: list[Request], alone: list[list[int]]) -> None:
    decoder = Decoder(tiny_engine.model, tiny_engine.tokenizer.special.pad, Limits(max_rows=2, max_waiting=2))
    tickets = [decoder.submit(requests[number]) for number in (0, 1)]
    with pytest.raises(QueueFull, match="2 requests wait already"):
        decoder.submit(requests[2])
    decoder.step()
    tickets.append(decoder.submit(requests[2]))
    assert list(finish(decoder, tickets).values()) == alone[:3]


def test_a_cache_that_is_full_makes_them_wait(tiny_engine: Engine, requests: list[Request], alone: list[list[int]]) -> None:
    probe = make_decoder(tiny_engine, 128)
    stream = probe.steps(requests[:1])
    next(stream)
    two_rows = probe.stats().cache_bytes
    limited = Decoder(tiny_engine.model, tiny_engine.tokenizer.special.pad, Limits(max_cache_bytes=two_rows))
    assert limited.fill(requests) == alone
    assert limited.fill(requests[::-1]) == alone[::-1]
    small = Decoder(tiny_engine.model, tiny_engine.tokenizer.special.pad, Limits(max_cache_bytes=two_rows - 1))
    with pytest.raises(ValueError, match="bytes of keys and values, but the engine has max_cache_bytes"):
        small.submit(requests[0])
    assert small.fill([requests[3]]) == [alone[3]]


def test_positions_can_be_limited(tiny_engine: Engine, requests: list[Request]) -> None:
    length = requests[0].sequence.length
    assert make_limited(tiny_engine, max_positions=length).fill(requests[:1])
    with pytest.raises(ValueError, match=f"takes {length} positions .* but the engine takes {length - 1}"):
        make_limited(tiny_engine, max_positions=length - 1).fill(requests[:1])


def test_guidance_for_a_part_costs_a_part(tiny_engine: Engine) -> None:
    prompt = tiny_engine.template.draw("a red circle", num_codes=20)
    spent = {}
    for interval in ((0.0, 1.0), (0.0, 0.5), (0.25, 0.75), (0.5, 1.0), (0.3, 0.3)):
        request = Request(prompt, Sampling(1.0, seed=4), 5.0, interval)
        decoder = make_decoder(tiny_engine, 4)
        ids = decoder.fill([request])[0]
        assert decoder.fill([requests_of_others(tiny_engine), request])[1] == ids
        begin, end = (round(20 * part) for part in interval)
        spent[interval] = end - begin
        expected = decode_by_hand(tiny_engine, prompt, request, range(begin, end))
        assert ids == expected, interval
        decoder = make_decoder(tiny_engine, 4)
        decoder.fill([request])
        # The first element comes from the prefill; so does the first that is guided late, but for its last given one.
        assert decoder.stats().decoded_rows == 19 + max(end - max(begin, 1), 0)


def test_guidance_that_begins_during_another_ones_prefill(tiny_engine: Engine, requests: list[Request]) -> None:
    late = Request(tiny_engine.template.draw("a red circle", num_codes=8), Sampling(1.0, seed=4), 5.0, (0.5, 1.0))
    ids = make_decoder(tiny_engine, 8).fill([late])[0]
    decoder = make_limited(tiny_engine, prefill_positions=2)
    first = decoder.submit(late)
    while not decoder.take(first)[0]:
        decoder.step()
    others = [decoder.submit(request) for request in requests]
    filled = finish(decoder, [first, *others])
    assert filled[first] == ids[1:]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_deterministic_decoding_is_the_same_in_any_company(dtype: torch.dtype, tiny_folder: Path) -> None:
    engine = load(tiny_folder, "cpu", dtype)
    requests = [
        Request(engine.template.draw("a red circle", num_codes=30), Sampling(1.0, seed=seed), scale)
        for seed, scale in ((1, 5.0), (2, 1.0), (3, 2.0))
    ]
    question = Request(engine.template.chat([Turn("user", ("How many?",))], 12), Sampling(1.0, seed=5))
    decoder = Decoder(engine.model, engine.tokenizer.special.pad, Limits(max_rows=8, max_positions=96), deterministic=True)
    together = decoder.fill([*requests, question])
    assert [decoder.fill([request])[0] for request in [*requests, question]] == together
    assert decoder.fill([question, *requests]) == [together[3], *together[:3]]


def test_log_probabilities_are_those_of_the_model(tiny_engine: Engine, requests: list[Request]) -> None:
    asked = [replace(request, logprobs=True) for request in requests[:2]]
    jobs: list[Job] = []
    list(make_decoder(tiny_engine, 8).steps([*asked, requests[2]], jobs=jobs))
    for request, job in zip(asked, jobs, strict=False):
        sequence, size = request.sequence.fill(job.filled), len(job.filled)
        logits = logits_of(tiny_engine, sequence, request.blank.kind, size)
        if request.guidance_scale != 1.0:
            null = sequence.unconditioned(tiny_engine.tokenizer.special.pad)
            scale = torch.full((size,), request.guidance_scale)
            logits = guide(logits, logits_of(tiny_engine, null, request.blank.kind, size), scale)
        expected = logits.log_softmax(-1).gather(1, torch.tensor(job.filled)[:, None])[:, 0]
        assert torch.allclose(torch.tensor(job.logprobs), expected, atol=1e-4)
    assert jobs[2].logprobs == []


def requests_of_others(engine: Engine) -> Request:
    return Request(engine.template.chat([Turn("user", ("Which one?",))], 15), Sampling(1.0, seed=8))


def logits_of(engine: Engine, sequence: Sequence, kind: Kind, num_filled: int) -> torch.Tensor:
    batch = collate([[sequence]])
    with torch.inference_mode():
        hidden = engine.model.hidden(engine.model.embed(batch), batch.attention_mask(), batch.positions)
        return engine.model.vocabulary_ports[kind].logits(hidden[0, -num_filled - 1 : -1])


def decode_by_hand(engine: Engine, prompt: Sequence, request: Request, guided: range) -> list[int]:
    """One element after another, each from a forward over everything, guided where it should be."""
    ids: list[int] = []
    for place in range(request.blank.limit or 0):
        closed = prompt.fill([*ids, 0])
        logits = logits_of(engine, closed, request.blank.kind, 1)
        if place in guided:
            null = closed.unconditioned(engine.tokenizer.special.pad)
            logits = guide(logits, logits_of(engine, null, request.blank.kind, 1), torch.tensor([request.guidance_scale]))
        ids.append(int(Sampler([request.sampling], torch.device("cpu"))(logits, torch.tensor([place]))))
    return ids
