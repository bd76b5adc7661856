"""Coupled decoding gives the very codes of one at a time, whatever the window, the schedule, and the company."""

import asyncio
import os
import random
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unimm.bench.windows import NEAR, gap, measure_windows
from unimm.data.template import Turn
from unimm.inference.decode.decoder import Decoder
from unimm.inference.decode.kv_cache import RowCache
from unimm.inference.decode.request import Branch, Choice, Job, Request
from unimm.inference.decode.sampling import Sampling
from unimm.inference.decode.windows import WindowChoice
from unimm.inference.decode.workload import Limits
from unimm.inference.drawing import DrawingProgress
from unimm.inference.engine import Engine, load
from unimm.inference.kernels.llama_decode import DecodeModel
from unimm.inference.kernels.step_inputs import Windows
from unimm.sequence import BLANK, Kind, Segment, Sequence

NUM_SCHEDULES = int(os.environ.get("UNIMM_SCHEDULES", "12"))
"""1,000 by hand."""


def blank(engine: Engine, num_codes: int, known: tuple[int, ...] = (), prompt: str = "a red circle") -> Sequence:
    """A drawing of which some codes are known."""
    given = engine.template.draw(prompt, num_codes=num_codes).segments[:-1]
    return Sequence((*given, Segment.blank(Kind.CODES, num_codes, known)))


def by_three_branches(engine: Engine) -> Request:
    given = engine.template.draw("a cross", num_codes=14).segments
    sequence = Sequence((given[0], Segment.text((5, 6), condition="style"), *given[1:]))
    branches = (Branch(weight=4.0), Branch(frozenset({"style"}), -1.5), Branch(frozenset({"style", "text"}), -1.5))
    return Request(sequence, Sampling(1.0, seed=7), guidance_interval=(0.2, 0.8), branches=branches)


@pytest.fixture(scope="module")
def requests(tiny_engine: Engine) -> list[Request]:
    """Drawings of every kind, and texts beside them."""
    chat, known = tiny_engine.template.chat, (7, BLANK, BLANK, 9, 9, 9, 3, BLANK, BLANK, 1, BLANK, 2)
    return [
        Request(blank(tiny_engine, 20), Sampling(1.0, seed=1), 5.0),
        Request(blank(tiny_engine, 17), Sampling(0.6, top_k=3, seed=2), 2.5),
        Request(blank(tiny_engine, 20), Sampling(1.0, top_p=0.5, seed=3, index=4), 3.0, guidance_interval=(0.3, 0.7)),
        Request(blank(tiny_engine, 16, known), Sampling(1.0, min_p=0.02, seed=4), 5.0, first_place=3),
        Request(blank(tiny_engine, 12), Sampling(), 4.0),
        Request(blank(tiny_engine, 1), Sampling(1.0, seed=5), 5.0),
        by_three_branches(tiny_engine),
        Request(blank(tiny_engine, 9), Sampling(1.0, seed=6), logprobs=True, top_logprobs=2),
        Request(chat([Turn("user", ("How many?",))], 9), Sampling(1.0, seed=2, repetition_penalty=1.7), logprobs=True),
        Request(chat([Turn("user", ("What is it?",))], 6), Sampling()),
    ]


def make_decoder(engine: Engine, window: int | None, deterministic: bool = False, **limits: Any) -> Decoder:
    return Decoder(engine.model, engine.tokenizer.special.pad, Limits(window=window, **limits), deterministic=deterministic)


@pytest.fixture(scope="module")
def plain(tiny_engine: Engine, requests: list[Request]) -> list[list[int]]:
    """What each is filled with alone, one element at a time."""
    return [make_decoder(tiny_engine, 1).fill([request])[0] for request in requests]


def same(engine: Engine, request: Request, expected: list[int], got: list[int]) -> bool:
    """Whether ids are equal; or first differ where two scores are as good as equal, which is said."""
    if expected == got:
        return True
    is_near = len(got) == len(expected) and request.blank.kind == Kind.CODES and gap(engine, request, expected, got) <= NEAR
    if is_near:
        print("\nTwo scores lie within 1e-5 of each other: the ids differ from there on, which is excused.")
    return is_near


@pytest.mark.parametrize("window", [2, 7, 64])
def test_a_window_gives_the_codes_of_one_at_a_time(
    window: int, tiny_engine: Engine, requests: list[Request], plain: list[list[int]]
) -> None:
    decoder = make_decoder(tiny_engine, window)
    assert decoder.fill(requests) == plain
    assert [decoder.fill([request])[0] for request in requests] == plain
    stats = decoder.stats()
    assert stats.drawing_steps < stats.drawn_codes and 0 < stats.right_guesses < stats.guessed_codes
    assert stats.codes_a_step > 1 and 0 < stats.acceptance < 1


schedules = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.integers(0, 9)),
        st.tuples(st.just("abort"), st.integers(0, 30)),
        st.tuples(st.just("step"), st.integers(1, 4)),
        st.tuples(st.just("window"), st.sampled_from([1, 2, 5, 16])),
    ),
    max_size=25,
)


@settings(max_examples=NUM_SCHEDULES, deadline=None, derandomize=True)
@given(
    schedule=schedules,
    max_rows=st.integers(3, 12),
    window=st.integers(2, 20),
    house=st.sampled_from([{}, {"prefill_positions": 5}, {"deterministic": True, "max_positions": 64}]),
)
def test_no_schedule_changes_anybodys_ids(
    schedule: list[tuple[str, int]],
    max_rows: int,
    window: int,
    house: dict[str, Any],
    tiny_engine: Engine,
    requests: list[Request],
    plain: list[list[int]],
) -> None:
    """Requests come, are aborted in the middle of a window, and the window changes between steps."""
    decoder, asked = make_decoder(tiny_engine, window, max_rows=max_rows, **house), {}
    for action, number in schedule:
        if action == "submit":
            asked[decoder.submit(requests[number])] = number
        elif action == "abort" and number in asked:
            decoder.abort(number)
            del asked[number]
        elif action == "step":
            for _ in range(number):
                decoder.step()
        elif action == "window" and not house.get("deterministic"):
            decoder._running.config = replace(decoder._running.config, window=number)
    for ticket, number in asked.items():
        ids: list[int] = []
        while decoder.wait(ticket):
            new, done = decoder.take(ticket)
            ids += new
            if done:
                break
        assert same(tiny_engine, requests[number], plain[number], ids)
    decoder.release()
    assert (decoder.stats().num_rows, decoder.stats().cache_bytes) == (0, 0)


def test_log_probabilities_are_those_of_one_at_a_time(tiny_engine: Engine, requests: list[Request]) -> None:
    asked, found = [requests[7], replace(requests[0], logprobs=True), requests[8]], []
    for window in (1, 6):
        jobs: list[Job] = []
        list(make_decoder(tiny_engine, window).steps(asked, jobs=jobs))
        found.append(jobs)
    for one, other in zip(*found, strict=True):
        assert one.filled == other.filled and len(other.logprobs) == len(other.filled)
        torch.testing.assert_close(torch.tensor(other.logprobs), torch.tensor(one.logprobs), atol=1e-5, rtol=1e-5)
        assert [[token for token, _ in places] for places in other.likeliest] == [
            [token for token, _ in places] for places in one.likeliest
        ]


@pytest.mark.parametrize("weights", [None, "int8"])
def test_deterministic_windows_are_the_same_in_any_company(weights: str | None, tiny_folder: Path) -> None:
    """In bfloat16, where kernels of other sizes round differently."""
    engine = load(tiny_folder, "cpu", "bfloat16", weights=weights)
    asked = [
        Request(blank(engine, 24), Sampling(1.0, seed=1), 5.0),
        Request(blank(engine, 15), Sampling(0.7, top_k=9, seed=2)),
        Request(blank(engine, 20), Sampling(1.0, seed=3), 2.0, guidance_interval=(0.2, 0.6)),
        Request(engine.template.chat([Turn("user", ("How many?",))], 8), Sampling(1.0, seed=4)),
    ]
    limits = Limits(max_rows=8, max_positions=64, window=4)
    decoder = Decoder(engine.model, engine.tokenizer.special.pad, limits, weights, deterministic=True)
    together = decoder.fill(asked)
    assert [decoder.fill([request])[0] for request in asked] == together
    assert decoder.fill(asked[::-1])[::-1] == together


def test_a_drawing_that_is_half_known_takes_few_steps(tiny_engine: Engine) -> None:
    """Known codes need no guess, and none of them counts as one that was right."""
    known = tuple(5 + place % 7 for place in range(23))
    decoder = make_decoder(tiny_engine, 12)
    assert decoder.fill([Request(blank(tiny_engine, 24, known), Sampling(1.0), 5.0)])[0][:23] == list(known)
    stats = decoder.stats()
    assert stats.drawing_steps == 2 and (stats.guessed_codes, stats.right_guesses) == (0, 0) and stats.codes_a_step == 1.0
    half = tuple(BLANK if place % 2 else 5 for place in range(16))
    decoder = make_decoder(tiny_engine, 16)
    decoder.fill([Request(blank(tiny_engine, 16, half), Sampling(1.0), 5.0)])
    # Of the first step's 14 guesses 7 are of unknown codes; each of them is right once at most.
    stats = decoder.stats()
    assert 7 <= stats.guessed_codes < 15 * stats.drawing_steps / 2 + 1 and stats.right_guesses <= 7
    assert stats.drawn_codes == stats.drawing_steps + stats.right_guesses


def test_a_window_that_stays_of_one_code_costs_nothing_more(tiny_engine: Engine, requests: list[Request]) -> None:
    one, other = make_decoder(tiny_engine, 1), make_decoder(tiny_engine, 8)
    for decoder in (one, other):
        decoder.fill(requests[8:])
    assert one.stats() == other.stats() and one.stats().window == 1  # texts have no windows
    one.fill(requests[:1])
    assert one.stats().codes_a_step == 1.0 and one.stats().acceptance == 0.0


def test_previews_and_callbacks_see_every_code(tiny_engine: Engine) -> None:
    engine = Engine(tiny_engine.bundle, limits=Limits(window=3))
    expected = tiny_engine.generate_codes("a red circle", 2, seed=5)
    told = list(engine.stream_images("a red circle", 2, seed=5, preview_every=1))

    async def draw() -> list[DrawingProgress]:
        return [progress async for progress in engine.astream_images("a red circle", 2, seed=5, preview_every=1)]

    for states in (told, asyncio.run(draw())):
        assert [one.step for one in states] == [1, 2, 3, 4] and [one.is_final for one in states] == [False] * 3 + [True]
        assert torch.equal(states[-1].codes, expected)
        assert states[-2].images, "whole pictures wait for a preview that is under way: so it is shown"
    engine.decoder.stop()
    assert torch.equal(engine.generate_codes("a red circle", 2, seed=5), expected)
    assert engine.stats().guessed_codes > 0


def test_what_was_chosen_behind_a_wrong_guess_is_the_next_guess(tiny_engine: Engine) -> None:
    job = Job(0, Request(blank(tiny_engine, 9, (BLANK, BLANK, BLANK, 4))))
    job.accept(2, 0.0)
    job.guess(4)
    assert job.guesses == [2, 2, 4, 4] and job.width(5) == 5 and job.width(20) == 8
    assert job.accept_window([Choice(2), Choice(7), Choice(8), Choice(1), Choice(6)]) == 2
    assert job.filled == [2, 2, 7] and job.guesses == [8, 1, 6]
    job.guess(4)
    assert job.guesses == [4, 1, 6, 6]
    assert job.accept_window([Choice(3), Choice(1), Choice(6), Choice(5)]) == 4
    assert job.filled == [2, 2, 7, 4, 1, 6, 5] and job.guesses == []


@torch.inference_mode()
def test_positions_of_a_window_are_those_of_steps_one_by_one(tiny_engine: Engine) -> None:
    """Rows with other numbers of new positions; by our forward and by that of transformers, over keys that are overwritten."""
    model, widths = tiny_engine.model, [3, 1, 2]
    fast = DecodeModel(model)
    given, rows = torch.randn(3, 4, model.width), torch.arange(3)
    expected = RowCache(len(model.trunk.layers))
    steps = [fast.advance(given[:, step], torch.full((3,), step), step + 1, expected) for step in range(4)]
    windows = Windows.of(widths, torch.device("cpu"))
    positions = torch.tensor([1, 2, 3, 1, 1, 2])
    for layers in (fast.layers, None):
        fast.layers, cache = layers, RowCache(len(model.trunk.layers))
        fast.advance(given[:, 0], torch.zeros(3, dtype=torch.long), 1, cache)
        fast.advance(torch.randn(6, model.width), positions, 4, cache, windows)
        hidden = fast.advance(given[windows.rows_P, positions], positions, 4, cache, windows)
        reached = torch.stack([steps[position][row] for row, position in zip(windows.rows_P, positions, strict=True)])
        torch.testing.assert_close(hidden, reached, atol=1e-5, rtol=1e-5)
        last = fast.advance(given[rows, [3, 2, 3]], torch.tensor([3, 2, 3]), 4, cache)
        torch.testing.assert_close(last, torch.stack([steps[3][0], steps[2][1], steps[3][2]]), atol=1e-5, rtol=1e-5)


def test_the_bench_compares_windows_with_one_at_a_time(tiny_engine: Engine) -> None:
    (one,) = measure_windows(tiny_engine, 2, [4], (5.0, 1.0, 3), repeats=2)
    assert (one["images"], one["different"], one["near"]) == (4, 0, 0)
    assert 1 <= one["codes_a_step"] <= 4 and 0 <= one["acceptance"] <= 1 and one["least"] <= one["ratio"] <= one["most"]


@pytest.mark.parametrize(("weights", "scale", "tolerance"), [(None, 3.0, 1e-5), ("int8", 1.0, 1e-5), ("int8", 3.0, 0.05)])
def test_a_gap_is_that_of_the_weights_that_decode(
    weights: str | None, scale: float, tolerance: float, tiny_folder: Path
) -> None:
    engine = load(tiny_folder, "cpu", "bfloat16" if weights else "float32", weights=weights)
    request = Request(blank(engine, 12), Sampling(), scale, guidance_interval=(0.3, 1.0), logprobs=True, top_logprobs=2)
    jobs: list[Job] = []
    decoder = Decoder(engine.model, engine.tokenizer.special.pad, Limits(window=1), weights)
    list(decoder.steps([request], jobs=jobs))
    filled, likeliest = jobs[0].filled, jobs[0].likeliest
    for place in (0, 2, 4, 11):
        (best, high), (other, low) = likeliest[place]
        assert filled[place] == best
        got = [*filled[:place], other, *filled[place + 1 :]]
        assert gap(engine, request, filled, got) == pytest.approx(high - low, abs=tolerance)


def test_the_bench_times_no_choice_where_there_is_none(tiny_folder: Path, tiny_engine: Engine) -> None:
    engine = load(tiny_folder, "cpu", "bfloat16")
    with pytest.raises(ValueError, match="chosen in float32 on a CPU alone"):
        measure_windows(engine, 1, [None], (5.0, 1.0, 3), repeats=1)


def test_the_bench_draws_images_of_one_code(tiny_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    one_code = lambda engine, num_images, settings, seed: [Request(blank(engine, 1), Sampling(1.0, seed=seed))]  # noqa: E731
    monkeypatch.setattr("unimm.bench.windows._requests", one_code)
    (one,) = measure_windows(tiny_engine, 1, [4], (1.0, 1.0, 3), repeats=1)
    assert (one["steps"], one["codes_a_step"], one["acceptance"], one["different"]) == (1, 0, 0, 0)


def test_a_window_needs_no_more_keys_and_values(tiny_engine: Engine) -> None:
    most = []
    for window in (1, 64):
        decoder = make_decoder(tiny_engine, window)
        stream = decoder.steps([Request(blank(tiny_engine, 20), Sampling(1.0, seed=1), 5.0)])
        most.append(max(decoder.stats().cache_bytes for _ in stream))
    assert most[0] == most[1] > 0


@pytest.mark.parametrize("window", [0, -1, 1.5, "8", 65])
def test_a_window_is_a_whole_number(window: Any) -> None:
    with pytest.raises(ValueError, match="window"):
        Limits(window=window)


def chosen_windows(cost: Callable[[int], float], right: float, num_rows: int = 2, num_steps: int = 300) -> list[int]:
    """What is chosen for one drawing where a step with a window costs so much, and a guess is right with that probability."""
    choice, noise, chosen = WindowChoice(), random.Random(0), []
    for _ in range(num_steps):
        window, count = choice.choose(1, num_rows, 0), 1
        while count < window and noise.random() < right:
            count += 1
        choice.measured(window, num_rows, 0, cost(window))
        if window > 1:
            choice.guessed(window, count)
        chosen.append(window)
    return chosen


def test_the_window_that_gives_most_is_chosen() -> None:
    assert chosen_windows(lambda window: 1 + 0.02 * window, 0.8)[-1] in (8, 16)
    assert statistics.mode(chosen_windows(lambda window: 1 + 0.6 * window, 0.7)) == 2
    for never_pays in (
        chosen_windows(lambda window: window, 0.7),
        chosen_windows(lambda window: 1 + 0.05 * window, 0.01),
    ):
        assert sum(window > 1 for window in never_pays) <= 60
    assert set(chosen_windows(lambda window: 1.0, 0.9, num_rows=200)) == {1}, "a full batch has no windows"


def test_windows_that_are_always_cut_short_are_given_up() -> None:
    """No step with a window can be measured: what is known is chosen, and a window is tried now and then."""
    choice, chosen = WindowChoice(), []
    for _ in range(300):
        chosen.append(choice.choose(1, 2, 0))
        if chosen[-1] == 1:
            choice.measured(1, 2, 0, 1.0)
    assert chosen[2] == 4 and sum(window > 1 for window in chosen) <= 20 and set(chosen[30:90]) == {1}
    assert choice.choose(1, 2, 0) == 1
    for _ in range(2):  # now they can be
        choice.measured(4, 2, 0, 1.0)
    assert choice.choose(1, 2, 0) > 1


def test_known_codes_teach_a_choice_nothing(tiny_engine: Engine) -> None:
    taught = []
    for known in ((5,) * 39, ()):
        decoder = make_decoder(tiny_engine, None)
        decoder.fill([Request(blank(tiny_engine, 40, known), Sampling(1.0))])
        taught.append(decoder._running._choice._codes(4))  # pyright: ignore[reportOptionalMemberAccess]
    assert taught[0] == WindowChoice()._codes(4) != taught[1]


def test_drawings_with_logprobs_do_not_hide_what_windows_of_others_take(tiny_engine: Engine) -> None:
    asked = [Request(blank(tiny_engine, 40), Sampling(0.6, seed=seed), logprobs=seed > 0) for seed in range(3)]
    decoder = make_decoder(tiny_engine, None)
    decoder.fill(asked)
    measured = decoder._running._choice._seconds  # pyright: ignore[reportOptionalMemberAccess]
    assert {1, 4} <= set(measured[2, 1]) and all(num_rows <= 1 for _, num_rows in measured)


def test_steps_of_other_loads_are_reckoned_from_those_that_were_measured() -> None:
    choice = WindowChoice()
    assert [choice.choose(2, 4, 0), choice.choose(3, 6, 0)] == [1, 1], "nothing is known yet"
    for window, seconds in ((1, 1.0), (4, 1.2), (8, 1.6), (4, 1.2), (1, 1.0), (8, 1.7)):
        choice.measured(window, 4, 0, seconds)
    assert choice.choose(3, 6, 0) > 1 and choice.choose(1, 1, 0) == 1
    assert choice.choose(3, 6, 2) == 1, "texts beside them change what a step takes"


def test_a_choice_that_another_process_spoiled_is_mended() -> None:
    slow = iter([50.0] * 2)
    chosen = chosen_windows(lambda window: next(slow, 1.0) if window == 1 else 0.9 * window, 0.5, num_steps=400)
    assert chosen[10] > 1 and chosen[-1] == 1


def test_windows_are_chosen_only_where_ids_do_not_depend_on_them(tiny_folder: Path, tiny_engine: Engine) -> None:
    asked = [Request(blank(tiny_engine, 40), Sampling(0.6, seed=seed), 3.0) for seed in range(2)]
    decoder = make_decoder(tiny_engine, None)
    assert decoder.fill(asked) == make_decoder(tiny_engine, 1).fill(asked)
    assert decoder.stats().guessed_codes > 0
    for engine, deterministic in ((load(tiny_folder, "cpu", "bfloat16"), False), (tiny_engine, True)):
        decoder = make_decoder(engine, None, deterministic, max_rows=4, max_positions=64)
        decoder.fill(asked[:1])
        assert decoder.stats().guessed_codes == 0
    with_logprobs = [replace(request, logprobs=True) for request in asked]
    decoder = make_decoder(tiny_engine, None)
    decoder.fill(with_logprobs)
    assert decoder.stats().guessed_codes == 0
