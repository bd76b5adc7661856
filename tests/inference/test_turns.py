"""Many threads at one engine: everybody gets what is theirs, and nobody waits for one who never lets go."""

import threading
import time
from collections.abc import Callable

from unimm.inference.engine import Engine
from unimm.inference.turns import Turns


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


def test_a_thread_that_comes_back_at_once_lets_others_in() -> None:
    """The one takes the lock again as soon as it is out of it; the other wants it three times."""
    turns, is_over = Turns(), threading.Event()
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
    turns = Turns()
    with turns, turns:
        other = threading.Thread(target=turns.__enter__, daemon=True)
        other.start()
        other.join(0.05)
        assert other.is_alive()
    other.join(10)
    assert not other.is_alive()
