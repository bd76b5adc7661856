"""Many threads at one engine: everybody gets what is theirs, and nobody waits for one who never lets go."""

import gc
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import tiny_model

from unimm.inference.decode import running_batch
from unimm.inference.decode.decoder import Decoder
from unimm.inference.decode.request import Request
from unimm.inference.decode.sampling import Sampling
from unimm.inference.decode.scheduler import Stopped
from unimm.inference.decode.threads import FairRLock
from unimm.inference.decode.workload import Limits
from unimm.inference.engine import Engine
from unimm.inference.kernels import llama_decode
from unimm.inference.kernels.cpu_decode import CpuDecode
from unimm.models.unified import UnifiedModel


def at_once(*works: Callable[[], object]) -> list[object]:
    """What each gives, all of them run by threads of their own; what one raises is raised."""
    given: list[object] = [None] * len(works)

    def run(place: int) -> None:
        try:
            given[place] = works[place]()
        except Exception as error:
            given[place] = error

    threads = [threading.Thread(target=run, args=(place,)) for place in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    for one in given:
        if isinstance(one, Exception):
            raise one
    return given


def test_threads_get_what_they_get_alone(tiny_engine: Engine) -> None:
    def say(words: str) -> Callable[[], list[str]]:
        messages = [{"role": "user", "content": words}]
        return lambda: [tiny_engine.chat(messages, max_new_tokens=12, temperature=1.0, seed=seed) for seed in range(4)]

    def draw(prompt: str) -> Callable[[], list[list[int]]]:
        return lambda: [tiny_engine.generate_codes(prompt, 2, seed=seed).tolist() for seed in range(4)]

    works = [say("How many?"), draw("a red circle"), say("Which one?"), draw("two blue squares")]
    assert at_once(*works) == [work() for work in works]
    assert (tiny_engine.decoder.stats().num_rows, tiny_engine.decoder.stats().num_waiting) == (0, 0)


def test_threads_that_all_come_first_arrange_the_model_once(tiny_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit of memory asks, before a request is taken on, how large its step will be; nobody has made one yet."""
    pad, made = tiny_engine.tokenizer.special.pad, []
    requests = [Request(tiny_engine.template.draw("a red circle", num_codes=9), Sampling(1.0, seed=seed)) for seed in range(4)]
    alone = [Decoder(tiny_engine.model, pad).fill([request]) for request in requests]
    decoder = Decoder(tiny_engine.model, pad, Limits(max_cache_bytes=10**9))
    plain = running_batch.DecodeModel.__init__

    def slow(self: Any, *words: Any) -> None:
        made.append(decoder._lock.is_mine)
        time.sleep(0.05)  # a real model takes seconds
        plain(self, *words)

    monkeypatch.setattr(running_batch.DecodeModel, "__init__", slow)
    assert at_once(*[lambda request=request: decoder.fill([request]) for request in requests]) == alone
    assert made == [True]


@pytest.mark.parametrize(
    "places",
    [[(UnifiedModel, "hidden")], [(llama_decode._Layer, "__call__"), (CpuDecode, "_attend")]],  # layers, by either kernels
    ids=["prefill", "step"],
)
def test_weights_do_not_change_in_the_middle_of_a_step(
    places: list[tuple[type, str]], tiny_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(replace(tiny_engine.bundle, model=tiny_model(len(tiny_engine.tokenizer))))
    expected = engine.generate_codes("a red circle", seed=3)
    engine.decoder.release()
    is_inside, is_asked, seen = threading.Event(), threading.Event(), []
    name_of_bias = "codes.head.2.bias"
    bias = engine.model.get_parameter(name_of_bias)
    old, new = bias.detach().clone(), torch.full_like(bias, -50.0).index_fill(0, torch.tensor([9]), 50.0)

    def compute(plain: Callable[..., Any], self: Any, *words: Any, **more: Any) -> Any:
        if not is_inside.is_set():
            is_inside.set()
            assert is_asked.wait(60)
            time.sleep(0.05)  # time for the other thread to do what it must not
            seen.append(bias.detach().clone())
        return plain(self, *words, **more)

    def update() -> None:
        assert is_inside.wait(60)
        is_asked.set()
        engine.update_weights([(name_of_bias, new)])

    for where, name in places:
        plain = getattr(where, name)
        monkeypatch.setattr(where, name, lambda self, *words, _plain=plain, **more: compute(_plain, self, *words, **more))
    codes, _ = at_once(lambda: engine.generate_codes("a red circle", seed=3), update)
    assert torch.equal(seen[0], old) and torch.equal(bias, new)
    assert isinstance(codes, torch.Tensor)
    num_old = int((codes[0] == expected[0]).cumprod(0).sum())
    assert (codes[0, num_old:] == 9).all(), "each code is of the old weights or of the new, first the old"
    assert engine.generate_codes("a red circle", seed=3).tolist() == [[9, 9, 9, 9]]


def test_a_thread_that_comes_back_at_once_lets_others_in() -> None:
    """The one takes the lock again as soon as it is out of it; the other wants it three times."""
    turns, is_over = FairRLock(), threading.Event()
    taken = 0

    def greedy() -> None:
        nonlocal taken
        while not is_over.is_set() and taken < 2_000:
            with turns:
                taken += 1
                time.sleep(0.001)

    def modest() -> None:
        for _ in range(3):
            with turns:
                time.sleep(0.001)
        is_over.set()

    at_once(greedy, modest)
    assert taken < 2_000


def test_one_may_be_in_twice() -> None:
    turns = FairRLock()
    with turns, turns:
        other = threading.Thread(target=turns.__enter__, daemon=True)
        other.start()
        other.join(0.05)
        assert other.is_alive()
    other.join(10)
    assert not other.is_alive()


# -- a decoder that makes its own steps ----------------------------------------------------------------------------------


def requests_of(engine: Engine) -> list[Request]:
    drawn = [Request(engine.template.draw("a red circle", num_codes=9), Sampling(1.0, seed=seed), 3.0) for seed in range(3)]
    return [*drawn, Request(engine.template.draw("a", num_codes=14), Sampling(1.0, seed=7))]


def make_decoder(engine: Engine, **more: Any) -> Decoder:
    return Decoder(engine.model, engine.tokenizer.special.pad, **more)


def wait_and_take(decoder: Decoder, ticket: int) -> list[int]:
    """All ids of a request, by `wait` and `take`."""
    ids, done = [], False
    while not done:
        assert decoder.wait(ticket, 60)
        new, done = decoder.take(ticket)
        ids += new
    return ids


@pytest.mark.parametrize("is_started", [True, False], ids=["thread", "caller"])
def test_whoever_makes_the_steps_a_request_is_waited_for(is_started: bool, tiny_engine: Engine) -> None:
    requests = requests_of(tiny_engine)
    decoder = make_decoder(tiny_engine)
    expected = [make_decoder(tiny_engine).fill([request])[0] for request in requests]
    if is_started:
        decoder.start()
        decoder.start()
    assert decoder.is_started == is_started
    tickets = [decoder.submit(request) for request in requests]
    assert at_once(*[lambda ticket=ticket: wait_and_take(decoder, ticket) for ticket in tickets]) == expected
    assert decoder.fill(requests) == expected
    assert at_once(*[lambda request=request: decoder.fill([request])[0] for request in requests]) == expected
    assert (decoder.stats().num_rows, decoder.stats().num_waiting) == (0, 0)
    with pytest.raises(KeyError):
        decoder.wait(tickets[0])
    decoder.stop()
    decoder.stop()
    assert not decoder.is_started
    assert decoder.fill(requests) == expected


def test_a_wait_ends_in_time_and_a_stopped_thread_can_be_started_again(
    tiny_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder, may_step = make_decoder(tiny_engine), threading.Event()
    plain = decoder._work.step
    monkeypatch.setattr(decoder._work, "step", lambda: may_step.is_set() and plain())
    ticket = decoder.submit(requests_of(tiny_engine)[0])
    assert not decoder.wait(ticket, 0.02), "no step of the caller's fills anything"
    decoder.start()
    assert not decoder.wait(ticket, 0.02)
    decoder.stop()
    may_step.set()
    decoder.start()
    (expected,) = make_decoder(tiny_engine).fill(requests_of(tiny_engine)[:1])
    assert wait_and_take(decoder, ticket) == expected
    decoder.stop()


def test_listeners_hear_of_every_step(tiny_engine: Engine) -> None:
    decoder, heard, is_done = make_decoder(tiny_engine, limits=Limits(window=1)), [], threading.Event()

    def listen(job: Any) -> None:
        heard.append(job.take())
        if job.done:
            is_done.set()

    decoder.start()
    request = requests_of(tiny_engine)[3]
    ticket = decoder.submit(request, listen)
    assert is_done.wait(60)
    decoder.stop()
    assert [[token] for token in make_decoder(tiny_engine).fill([request])[0]] == heard
    assert decoder.take(ticket) == ([], True)


def test_a_thread_ends_with_its_decoder(tiny_engine: Engine) -> None:
    decoder = make_decoder(tiny_engine)
    decoder.start()
    assert len(decoder.fill(requests_of(tiny_engine))) == 4
    threads, gone = threading.active_count(), weakref.ref(decoder)
    del decoder
    gc.collect()
    end = time.monotonic() + 60
    while (gone() is not None or threading.active_count() >= threads) and time.monotonic() < end:
        time.sleep(0.002)
        gc.collect()
    assert gone() is None and threading.active_count() < threads


@pytest.mark.parametrize("is_started", [True, False], ids=["thread", "caller"])
def test_a_decoder_that_is_stopped_ends_its_requests_and_nothing_else(is_started: bool, tiny_engine: Engine) -> None:
    answers = iter([False] * 4 + [True])
    decoder = make_decoder(tiny_engine, is_stopped=lambda: next(answers, False))
    if is_started:
        decoder.start()
    with pytest.raises(Stopped):
        decoder.fill(requests_of(tiny_engine))
    stats = decoder.stats()
    assert (stats.num_running, stats.num_waiting, stats.num_rows) == (0, 0, 0)
    assert decoder.fill(requests_of(tiny_engine)) == make_decoder(tiny_engine).fill(requests_of(tiny_engine))
    decoder.stop()


def test_a_step_that_fails_in_the_thread_is_an_error_of_its_requests(
    tiny_engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    decoder = make_decoder(tiny_engine)

    def fail() -> None:
        raise torch.OutOfMemoryError("no more")

    with monkeypatch.context() as patch:
        patch.setattr(decoder._running, "_launch", fail)
        decoder.start()
        ticket = decoder.submit(requests_of(tiny_engine)[0])
        with pytest.raises(RuntimeError, match=r"a step of the engine failed \(OutOfMemoryError: no more\): ask again"):
            wait_and_take(decoder, ticket)
    assert decoder.fill(requests_of(tiny_engine)) == make_decoder(tiny_engine).fill(requests_of(tiny_engine))
    decoder.stop()
    assert "no more" in caplog.text


def test_weights_are_swapped_between_the_steps_of_the_thread(tiny_engine: Engine) -> None:
    model = tiny_model(len(tiny_engine.tokenizer))
    engine = Engine(replace(tiny_engine.bundle, model=model))
    bias = model.get_parameter("codes.head.2.bias")
    new = torch.full_like(bias, -50.0).index_fill(0, torch.tensor([9]), 50.0)
    engine.decoder.start()
    ticket = engine.decoder.submit(Request(engine.template.draw("a red circle", num_codes=150), Sampling(1.0, seed=3)))
    assert engine.decoder.wait(ticket, 60)
    engine.update_weights([("codes.head.2.bias", new)])
    num_old = len(engine.decoder._jobs[ticket].filled)
    ids = wait_and_take(engine.decoder, ticket)
    engine.decoder.stop()
    assert num_old < 150 and set(ids[num_old + 1 :]) == {9} and set(ids[:3]) != {9}
