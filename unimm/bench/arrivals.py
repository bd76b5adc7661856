"""Mixed requests that come at random, as users send them: how long each waits for its first piece, and for all of it.

Captions, questions, chats and drawings arrive as a Poisson process; the decoder's own thread makes the steps. The first piece
of a text is its first token; of a drawing, a quarter of its codes, from which a first preview is made. A drawing is over when
its codes are pixels. All of it follows from the seed but the seconds.
"""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from unimm.data.template import Turn
from unimm.inference.decode.request import Job, Request
from unimm.inference.decode.sampling import Sampling
from unimm.inference.engine import Engine
from unimm.sequence import Kind

KINDS = ("caption", "question", "chat", "drawing")
PERCENTILES = (50, 90, 99)
QUESTIONS = ("How many shapes are there?", "What colour is the largest shape?", "Is there a circle?", "What is at the top?")
PROMPTS = (
    "a red circle",
    "three small green triangles left of a large blue square",
    "two yellow crosses",
    "four orange circles",
)
TOKENS = 32
"""Of a text at most."""


@dataclass
class Arrival:
    """One request: when it came, when its first piece was there and when all of it, in seconds of `time.perf_counter`."""

    kind: str
    came: float = 0.0
    first: float = 0.0
    done: float = 0.0
    num_ids: int = 0


def measure_arrivals(
    engine: Engine, num_requests: int, rate: float, seed: int = 0, report: Callable[[int], None] = lambda number: None
) -> list[dict[str, Any]]:
    """Send requests, on average `rate` a second, and wait for all of them.

    report: called with the number of each request when it is sent.

    Returns:
        For all of them ("all") and for each kind that came: `kind`, `requests`, `first_p50` and so on, `total_p50` and so on,
        in seconds; and, of all, `seconds`, `ids_a_second`, `codes_a_step`, `acceptance` and `prefix_cache_hit_rate`.

    Raises:
        Exception: what ended a request with an error.
    """
    noise = np.random.default_rng(seed)
    kinds = [KINDS[number % len(KINDS)] for number in range(num_requests)]
    noise.shuffle(kinds)
    asked = [make_request(engine, kind, noise, number) for number, kind in enumerate(kinds)]
    engine.decoder.fill([make_request(engine, kind, np.random.default_rng(seed + 1), 0) for kind in KINDS])
    waits = noise.exponential(1.0 / rate, num_requests)
    before, arrivals = engine.stats(), [Arrival(kind) for kind in kinds]
    was_started = engine.decoder.is_started
    engine.decoder.start()
    try:
        with ThreadPoolExecutor(1) as decoding:
            ended = [Future() for _ in arrivals]
            started = time.perf_counter()
            for number, (arrival, request, due) in enumerate(zip(arrivals, asked, started + waits.cumsum(), strict=True)):
                time.sleep(max(0.0, due - time.perf_counter()))
                report(number)
                arrival.came = time.perf_counter()
                engine.decoder.submit(request, _listener(engine, arrival, ended[number], decoding))
            for one in ended:
                one.result()
        seconds = time.perf_counter() - started
    finally:
        if not was_started:
            engine.decoder.stop()
    stats = engine.stats()
    steps, drawn = stats.drawing_steps - before.drawing_steps, stats.drawn_codes - before.drawn_codes
    guessed, right = stats.guessed_codes - before.guessed_codes, stats.right_guesses - before.right_guesses
    queries, hits = stats.prefix_cache_queries - before.prefix_cache_queries, stats.prefix_cache_hits - before.prefix_cache_hits
    together = {
        "seconds": seconds,
        "ids_a_second": sum(one.num_ids for one in arrivals) / seconds,
        "codes_a_step": drawn / steps if steps else 0.0,
        "acceptance": right / guessed if guessed else 0.0,
        "prefix_cache_hit_rate": hits / queries if queries else 0.0,
    }
    own = [summarize(kind, [one for one in arrivals if one.kind == kind]) for kind in KINDS if kind in kinds]
    return [summarize("all", arrivals) | together, *own]


def summarize(kind: str, arrivals: list[Arrival]) -> dict[str, Any]:
    """Percentiles of the seconds until the first piece and until all of it."""
    found: dict[str, Any] = {"kind": kind, "requests": len(arrivals)}
    for name in ("first", "done"):
        seconds = [getattr(one, name) - one.came for one in arrivals]
        for percent in PERCENTILES:
            found[f"{'total' if name == 'done' else name}_p{percent}"] = float(np.percentile(seconds, percent))
    return found


def make_request(engine: Engine, kind: str, noise: np.random.Generator, number: int) -> Request:
    """A request of a kind; pictures, questions and prompts are chosen by `noise`."""
    question = QUESTIONS[noise.integers(len(QUESTIONS))]
    prompt = PROMPTS[noise.integers(len(PROMPTS))]
    picture = noise.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    if kind == "drawing":
        settings = engine.drawing
        sampling = Sampling(settings.temperature, settings.top_k, settings.top_p, seed=number)
        drawing = engine.template.draw(prompt, num_codes=engine.image_tokenizer.num_codes)
        return Request(drawing, sampling, settings.guidance_scale)
    turns = [Turn("user", (question,)), Turn("assistant", ("Two.",)), Turn("user", (question,))]
    if kind != "chat":
        turns = [Turn("user", (engine.template.look(picture), "Describe it." if kind == "caption" else question))]
    return Request(engine.template.chat(turns, TOKENS).opened())


@contextmanager
def busy(num_loops: int) -> Iterator[None]:
    """So many processes that compute all the time, each with one thread, run beside this block."""
    loops = [subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) for _ in range(num_loops)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
        for loop in loops:
            loop.wait()


def _listener(engine: Engine, arrival: Arrival, ended: Future, decoding: ThreadPoolExecutor) -> Callable[[Job], None]:
    """Notes times; called behind every step, by the thread that makes it."""

    def finish(job: Job) -> None:
        try:
            if job.error is not None:
                raise job.error
            ids, _ = engine.decoder.take(job.ticket)
            if job.request.blank.kind == Kind.CODES:
                engine.decode_codes(torch.tensor(ids))
            arrival.done, arrival.num_ids = time.perf_counter(), len(ids)
            ended.set_result(None)
        except Exception as error:
            ended.set_exception(error)

    def hear(job: Job) -> None:
        if ended.done() or arrival.num_ids:
            return
        blank = job.request.blank
        needed = max((blank.limit or 4) // 4, 1) if blank.kind == Kind.CODES else 1
        if not arrival.first and (len(job.filled) >= needed or job.done):
            arrival.first = time.perf_counter()
        if job.done:
            arrival.num_ids = len(job.filled)  # once
            decoding.submit(finish, job)

    return hear
