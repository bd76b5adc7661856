"""Many threads at one engine: everybody gets what is theirs, and nobody waits for one who never lets go."""

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import tiny_model

from unimm.inference.decode import running_batch
from unimm.inference.decode.decoder import Decoder
from unimm.inference.decode.fair_lock import FairRLock
from unimm.inference.decode.limits import Limits
from unimm.inference.decode.request import Request
from unimm.inference.decode.sampling import Sampling
from unimm.inference.engine import Engine
from unimm.inference.kernels import llama_decode
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
    ("where", "name"), [(UnifiedModel, "hidden"), (llama_decode._Layer, "__call__")], ids=["prefill", "step"]
)
def test_weights_do_not_change_in_the_middle_of_a_step(
    where: type, name: str, tiny_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(replace(tiny_engine.bundle, model=tiny_model(len(tiny_engine.tokenizer))))
    expected = engine.generate_codes("a red circle", seed=3)
    engine.decoder.release()
    is_inside, is_asked, seen = threading.Event(), threading.Event(), []
    plain, name_of_bias = getattr(where, name), "codes.head.2.bias"
    bias = engine.model.get_parameter(name_of_bias)
    old, new = bias.detach().clone(), torch.full_like(bias, -50.0).index_fill(0, torch.tensor([9]), 50.0)

    def compute(self: Any, *words: Any, **more: Any) -> Any:
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

    monkeypatch.setattr(where, name, compute)
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
