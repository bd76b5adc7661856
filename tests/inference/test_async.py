"""Coroutines of one engine: what each gets is what a plain call gets, all of it from one batch; who is cancelled leaves."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import torch

from unimm.inference.decode.decoder import Decoder
from unimm.inference.decode.request import Job, Request
from unimm.inference.decode.sampling import Sampling
from unimm.inference.decode.scheduler import EngineDead
from unimm.inference.decode.workload import Limits, QueueFull
from unimm.inference.drawing import DrawingProgress
from unimm.inference.engine import Engine

QUESTIONS = [[{"role": "user", "content": text}] for text in ("How many?", "Which one?", "What colour is it?", "Is it red?")]


@pytest.fixture
def engine(tiny_engine: Engine) -> Iterator[Engine]:
    """With a decoder of its own, whose thread ends with the test."""
    engine = Engine(tiny_engine.bundle)
    yield engine
    engine.decoder.stop()


def until(is_so: Callable[[], bool]) -> None:
    """Wait for it, a minute at most."""
    end = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.002)


def is_empty(decoder: Decoder) -> bool:
    stats = decoder.stats()
    return (stats.num_waiting, stats.num_running, stats.num_rows) == (0, 0, 0)


def test_many_tasks_are_one_batch(engine: Engine, tiny_engine: Engine) -> None:
    """Eight answers of 24 tokens at most take hardly more steps than one, and each is what it is alone."""
    words = [{"max_new_tokens": 24, "temperature": 1.0, "seed": seed} for seed in range(2)]
    expected = [tiny_engine.complete(question, **one) for question in QUESTIONS for one in words]

    async def ask() -> list:
        return await asyncio.gather(*[engine.acomplete(question, **one) for question in QUESTIONS for one in words])

    assert asyncio.run(ask()) == expected
    steps, tokens = engine.decoder.stats().decoded_steps, sum(len(one.ids) for one in expected)
    assert steps < tokens / 2
    assert asyncio.run(ask()) == expected, "a second event loop is served, too"
    until(lambda: is_empty(engine.decoder))


def test_streams_give_what_plain_streams_give(engine: Engine, tiny_engine: Engine) -> None:
    async def read() -> tuple[list[str], list[DrawingProgress]]:
        async def pieces() -> list[str]:
            return [piece async for piece in engine.astream_chat(QUESTIONS[0], max_new_tokens=20, temperature=1.0, seed=3)]

        async def states() -> list[DrawingProgress]:
            return [state async for state in engine.astream_images(["a red circle", "a"], 2, seed=5, preview_every=1)]

        return await asyncio.gather(pieces(), states())

    pieces, states = asyncio.run(read())
    assert pieces == list(tiny_engine.chat(QUESTIONS[0], stream=True, max_new_tokens=20, temperature=1.0, seed=3))
    assert [(state.step, state.is_final) for state in states][-2:] == [(3, False), (4, True)]
    expected = list(tiny_engine.stream_images(["a red circle", "a"], 2, seed=5))[-1]
    assert torch.equal(states[-1].codes, expected.codes)
    assert [one.tobytes() for one in states[-1].images or []] == [one.tobytes() for one in expected.images or []]


def test_stop_strings_and_logprobs_are_those_of_complete(engine: Engine, tiny_engine: Engine) -> None:
    whole = tiny_engine.complete(QUESTIONS[1], max_new_tokens=30)
    words = {"stop": whole.text[4:6], "logprobs": True, "max_new_tokens": 30}
    assert asyncio.run(engine.acomplete(QUESTIONS[1], **words)) == tiny_engine.complete(QUESTIONS[1], **words)
    until(lambda: is_empty(engine.decoder))


def test_a_cancelled_task_takes_its_request_with_it(engine: Engine, tiny_engine: Engine) -> None:
    """Others go on, and get what they get alone."""
    drawing = Request(tiny_engine.template.draw("a red circle", num_codes=200), Sampling(1.0), 3.0)
    expected = tiny_engine.complete(QUESTIONS[0], max_new_tokens=16)

    async def cancel() -> object:
        async def draw() -> None:
            async for _ in engine.decoder.asteps([drawing]):
                pass

        async def read_one_piece() -> None:
            async for _ in engine.astream_images("a"):
                return  # an iterator that is left is closed by the event loop

        task = asyncio.create_task(draw())
        await asyncio.to_thread(until, lambda: engine.decoder.stats().num_rows == 2)
        task.cancel()
        _, answer = await asyncio.gather(read_one_piece(), engine.acomplete(QUESTIONS[0], max_new_tokens=16))
        with pytest.raises(asyncio.CancelledError):
            await task
        return answer

    assert asyncio.run(cancel()) == expected
    until(lambda: is_empty(engine.decoder))
    assert engine.decoder.stats().decoded_steps < 150
    assert not engine.decoder._jobs


def test_a_timeout_is_a_cancellation(engine: Engine, tiny_engine: Engine) -> None:
    requests = [Request(tiny_engine.template.draw("a", num_codes=200), Sampling(1.0, seed=seed)) for seed in range(3)]

    async def draw() -> None:
        async with asyncio.timeout(0.1):
            async for _ in engine.decoder.asteps(requests * 20):
                pass

    with pytest.raises(TimeoutError):
        asyncio.run(draw())
    until(lambda: is_empty(engine.decoder) and not engine.decoder._jobs)


def test_errors_reach_the_task_they_concern(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="positions"):
        asyncio.run(engine.acomplete(QUESTIONS[0], max_new_tokens=5000))
    with pytest.raises(ValueError, match="A message is"):
        asyncio.run(engine.acomplete([{"role": "king", "content": "king"}]))

    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("no more")

    with monkeypatch.context() as patch:
        patch.setattr(engine.decoder._running, "_launch", fail)
        with pytest.raises(RuntimeError, match=r"\(OutOfMemoryError: no more\): ask again"):
            asyncio.run(engine.acomplete(QUESTIONS[0], max_new_tokens=8))
    assert asyncio.run(engine.acomplete(QUESTIONS[0], max_new_tokens=8)).ids


def test_one_call_may_bring_more_than_may_wait(tiny_engine: Engine) -> None:
    decoder = Decoder(tiny_engine.model, tiny_engine.tokenizer.special.pad, Limits(max_rows=2, max_waiting=0))
    drawn = tiny_engine.template.draw("a red circle", num_codes=5)
    requests = [Request(drawn, Sampling(1.0, seed=seed)) for seed in range(5)]
    jobs: list[Job] = []

    async def fill(jobs: list[Job]) -> list[list[int]]:
        async for _ in decoder.asteps(requests, jobs=jobs):
            pass
        return [job.filled for job in jobs]

    assert asyncio.run(fill(jobs)) == tiny_engine.decoder.fill(requests)
    for request in requests[:2]:
        decoder.submit(request)
    until(lambda: all(job.done for job in decoder._jobs.values()))
    decoder.stop()
    decoder.submit(Request(tiny_engine.template.draw("a", num_codes=9)))
    decoder.submit(Request(tiny_engine.template.draw("a", num_codes=9)))
    with pytest.raises(QueueFull):
        decoder.submit(requests[0])


def test_when_the_thread_dies_nobody_waits_for_ever(
    engine: Engine, tiny_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Coroutines, threads that wait and requests in the queue get an error that says why; a new start serves again."""
    decoder, expected = engine.decoder, tiny_engine.complete(QUESTIONS[0], max_new_tokens=8)

    def end(*_: object) -> None:
        if len(decoder._jobs) == 6:
            raise SystemExit("killed")
        plain()

    plain = decoder._work.step
    drawn = tiny_engine.template.draw("a red circle", num_codes=100)
    monkeypatch.setattr(decoder._work, "step", end)
    decoder.start()
    ticket = decoder.submit(Request(drawn))

    async def ask() -> list:
        async def draw() -> None:
            async for _ in engine.astream_images("a"):
                pass

        asked = [engine.acomplete(question, max_new_tokens=100) for question in QUESTIONS]
        return await asyncio.wait_for(asyncio.gather(*asked, draw(), return_exceptions=True), 60)

    assert [type(error) for error in asyncio.run(ask())] == [EngineDead] * 5
    assert not decoder.is_alive and not decoder.is_started and not decoder.has_work and decoder.stalled_seconds == 0.0
    with pytest.raises(EngineDead, match=r"thread has died \(SystemExit: killed\)"):
        assert decoder.wait(ticket, timeout=60)
        decoder.take(ticket)
    with pytest.raises(EngineDead, match=r"start it again with engine.decoder.start\(\)"):
        engine.complete(QUESTIONS[0], max_new_tokens=8)
    with pytest.raises(EngineDead):
        asyncio.run(engine.acomplete(QUESTIONS[0], max_new_tokens=8))
    monkeypatch.undo()
    decoder.start()
    assert decoder.is_alive and asyncio.run(engine.acomplete(QUESTIONS[0], max_new_tokens=8)) == expected
    until(lambda: is_empty(decoder))


def test_a_step_that_hangs_is_seen_from_outside(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the lock, which the hanging step holds."""
    decoder, hangs = engine.decoder, threading.Event()
    decoder.start()
    assert decoder.stalled_seconds == 0.0
    plain = decoder._work.step

    def hang() -> None:
        assert hangs.wait(60)
        plain()

    monkeypatch.setattr(decoder._work, "step", hang)

    async def ask() -> None:
        answer = asyncio.create_task(engine.acomplete(QUESTIONS[0], max_new_tokens=4))
        await asyncio.to_thread(until, lambda: decoder.stalled_seconds > 0.1)
        assert decoder.is_alive and decoder.has_work and time.monotonic() - decoder.last_step > 0.1
        another = asyncio.create_task(engine.acomplete(QUESTIONS[1], max_new_tokens=4))
        await asyncio.sleep(0.1)  # the event loop goes on, also where more is asked for
        assert decoder.stalled_seconds > 0.15
        hangs.set()
        await asyncio.gather(answer, another)

    asyncio.run(ask())
    assert not decoder.has_work and decoder.stalled_seconds == 0.0
