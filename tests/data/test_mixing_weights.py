"""Mixing weights by step: what a plain loop over steps and samples gives, from any window on, for any number of processes."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toys import make_config, make_mixture, make_template, make_trainer

from unimm.cli.compose import compose_config
from unimm.cli.mixture import check_sources
from unimm.data import plan, stored_plan
from unimm.data.mixing_weights import MixingWeights, Stretch, Weight, WeightSchedule, interleave, read_weight
from unimm.data.mixture import Mixture, Source
from unimm.data.packing import RowLayout
from unimm.data.plan import Plan, Steps
from unimm.data.plan_windows import PlanCursor
from unimm.data.stored_plan import StoredPlan, store_plan
from unimm.training.logbook import read_numbers

pytestmark = pytest.mark.usefixtures("small_windows")

ROWS, SWITCH, END = 3, 11, 20
"""Windows of 8 steps, but where weights change: 0, 8, 11, 19, 20, 28, ..."""
SHAPE = RowLayout(64, ROWS)


@pytest.fixture(autouse=True)
def _few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples that are measured at a time, of windows that take less than a hundred."""
    for module in (plan, stored_plan):
        monkeypatch.setattr(module, "CHUNK", 32)


def scheduled(weigh_by: str = "samples", ratio: dict[str, Weight] | None = None) -> Mixture:
    """The toy mixture: drawing sets in at a step, talk goes down along a line, text is constant."""
    talk, draw, text = make_mixture().sources
    weights = WeightSchedule(((0, 4.0), (END, 1.0)), "linear"), WeightSchedule(((0, 0.0), (SWITCH, 2.0))), 1.0
    sources = [Source(one.name, one.dataset, one.view, weight) for one, weight in zip((talk, draw, text), weights, strict=True)]
    return Mixture(sources, make_template(), weigh_by=weigh_by, ratio=ratio)


def names(own: Plan, step: int) -> list[list[tuple[int, int]]]:
    return [[one.sample for one in row] for row in own.rows(step)]


WEIGHTS = st.lists(st.just(0.0) | st.floats(0.01, 10), min_size=3, max_size=3).filter(any)


@given(st.lists(st.tuples(WEIGHTS, st.integers(1, 80)), min_size=1, max_size=5))
def test_stretches_are_what_a_plain_loop_gives(stretches: list[tuple[list[float], int]]) -> None:
    """Of the sources with a share, the one comes whose next sample is due first, by what it is owed so far."""
    counts, due_so_far, expected = [0, 0, 0], [0.0, 0.0, 0.0], []
    drawn, owed, found = (0, 0, 0), (0.0, 0.0, 0.0), []
    for weights, length in stretches:
        shares = [weight / sum(weights) for weight in weights]
        begun = list(counts)
        for _ in range(length):
            waits = [
                (counts[one] - begun[one] + 0.5 - (due_so_far[one] - begun[one])) / share if share else np.inf
                for one, share in enumerate(shares)
            ]
            chosen = int(np.argmin(waits))
            expected.append((chosen, counts[chosen]))
            counts[chosen] += 1
        due_so_far = [due + share * length for due, share in zip(due_so_far, shares, strict=True)]
        active = {source: 0 for source, share in enumerate(shares) if share}
        stretch = Stretch(interleave(shares, active, drawn, owed), shares, drawn, owed)
        found += stretch.samples(0, length)
        drawn, owed = stretch.after(length)
        assert max(abs(due - count) for due, count in zip(due_so_far, counts, strict=True)) < 3, (
            "shares are kept across changes"
        )
    assert [source for source, _ in found] == pytest.approx([source for source, _ in expected], abs=2), "but for ties"
    assert sorted(found) == sorted((source, n) for source in range(3) for n in range(drawn[source])), "each sample once"
    assert sum(abs(a - b) for a, b in zip(drawn, counts, strict=True)) <= 2


def test_a_weight_holds_from_its_step_on_to_the_step() -> None:
    mixture, own = scheduled(), Plan(scheduled(), 64, ROWS)
    for step in range(SWITCH + 12):
        found = [name for row in names(own, step) for name in row]
        assert any(source == 1 for source, _ in found) == (step >= SWITCH), "no drawing before its step, and some in each after"
    assert [own.origin(step).step for step in (0, 7, 8, 10, 11, 18, 19, 20, 27)] == [0, 0, 8, 8, 11, 11, 19, 20, 20]
    switch = own.origin(SWITCH)
    assert sum(switch.drawn) == switch.sample and switch.drawn[1] == 0
    first = own.origin(8).drawn[0] / own.origin(8).sample
    second = (switch.drawn[0] - own.origin(8).drawn[0]) / (switch.sample - own.origin(8).sample)
    assert first == pytest.approx(mixture.shares_at(3.5)[0], abs=0.03) and second == pytest.approx(
        mixture.shares_at(9)[0], abs=0.03
    )
    assert mixture.shares_at(0) == pytest.approx([0.8, 0, 0.2]) and mixture.shares_at(1000) == pytest.approx([0.25, 0.5, 0.25])


def test_it_is_planned_on_from_any_window_and_from_a_stored_plan(tmp_path: Path) -> None:
    whole = Plan(scheduled(), 64, ROWS)
    store_plan(tmp_path / "plan", scheduled(), SHAPE, 22)
    store_plan(tmp_path / "other", scheduled(), SHAPE, 22, num_workers=1)
    for path in (tmp_path / "plan").glob("*.npy"):
        assert np.array_equal(np.load(path), np.load(tmp_path / "other" / path.name))
    stored = Plan(scheduled(), 64, ROWS, stored=StoredPlan(tmp_path / "plan", scheduled(), SHAPE))
    for step in (0, 9, SWITCH, 20, 30):
        kept = PlanCursor.read(vars(whole.origin(step)))
        later = Plan(scheduled(), 64, ROWS, kept)
        assert names(later, step) == names(whole, step) == names(stored, step)
        assert names(later, step + 9) == names(whole, step + 9) and stored.origin(step) == whole.origin(step)
    with pytest.raises(ValueError, match="planned for another sources"):
        StoredPlan(tmp_path / "plan", make_mixture(), SHAPE)
    with pytest.raises(ValueError, match="Weights that change by step are for trainings"):
        scheduled().samples(0, 1)


def test_ranks_and_workers_see_the_same() -> None:
    whole = Steps(Plan(scheduled(), 64, ROWS))
    for step in (SWITCH, 9):  # each plans by itself from the start, as a process that makes every n-th step does
        parts = [Steps(Plan(scheduled(), 64, ROWS), rank=rank, num_ranks=2)[step] for rank in range(2)]
        assert sorted(name for part in parts for name in part.samples) == sorted(whole[step].samples)
        assert {part.origin for part in parts} == {whole[step].origin}


def test_a_run_goes_on_to_the_bit_and_logs_its_shares(tmp_path: Path) -> None:
    talk, _, text = make_mixture().sources
    two = [Source("talk", talk.dataset, talk.view, WeightSchedule(((0, 1.0), (2, 0.0), (4, 0.0))))]
    two += [Source("text", text.dataset, text.view, WeightSchedule(((0, 0.0), (2, 1.0))))]

    def run(folder: str, steps: int, workers: int = 0, sources: list[Source] = two) -> list[dict]:
        mixture = Mixture(sources, make_template())
        make_trainer(tmp_path / folder, make_config(steps, num_workers=workers), mixture).fit()
        kept = ("loss", "grad_norm", "data/share")
        return [
            {k: v for k, v in line.items() if k.startswith(kept)} for line in read_numbers(tmp_path / folder / "metrics.jsonl")
        ]

    whole = run("whole", 4)
    assert [line["data/share/talk"] for line in whole] == [1, 1, 0, 0] and [line["data/share/text"] for line in whole] == [
        0,
        0,
        1,
        1,
    ]
    run("parts", 1)
    run("parts", 3, workers=1)
    assert run("parts", 4) == whole
    changed = [two[0], Source("text", text.dataset, text.view, WeightSchedule(((0, 0.0), (1, 1.0))))]
    with pytest.raises(ValueError, match=r"weight of (talk|text) \[\[0, .*\], \[2, .*\]\], not"):
        run("parts", 5, sources=changed)


def test_within_a_task_a_ratio_holds_at_every_step() -> None:
    ratio: dict[str, Weight] = {"understanding": 1.0, "text": 1.0, "drawing": WeightSchedule(((0, 0.0), (SWITCH, 2.0)))}
    mixture = scheduled(ratio=ratio)
    assert mixture.shares_at(SWITCH - 1) == [0.5, 0, 0.5] and mixture.shares_at(SWITCH) == [0.25, 0.5, 0.25]
    with pytest.raises(ValueError, match="The ratio asks for drawing, and no source"):
        scheduled(ratio={"understanding": 1.0, "text": 1.0, "drawing": 1.0})
    shares = mixture.mean_shares(2 * SWITCH)
    assert shares == pytest.approx([0.375, 0.25, 0.375]) and "from step 11 on: talk 25.0%" in "\n".join(mixture.tell_shares())


def test_as_configurations_say_it() -> None:
    assert read_weight("w", 0.5) == 0.5 and read_weight("w", 2) == 2
    steps = WeightSchedule(((0, 1.0), (120, 0.0)))
    for value in ({0: 1.0, 120: 0.0}, {"0": 1.0, "120": 0.0}, [[0, 1.0], [120, 0.0]]):
        assert read_weight("w", value) == steps
    assert read_weight("w", {"0%": 1.0, "66.67%": 0.0}, 180) == steps
    line = read_weight("w", {0: 1.0, 100: 0.2, "interpolation": "linear"})
    assert read_weight("w", [["0%", 1.0], ["50%", 0.2], "linear"], 200) == line
    assert isinstance(line, WeightSchedule) and [line.at(step) for step in (0, 50, 100, 900)] == pytest.approx(
        [1, 0.6, 0.2, 0.2]
    )
    assert [steps.at(step) for step in (0, 119, 119.5, 120)] == [1, 1, 1, 0]


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (-1, "data.sources.a.weight is a number of at least 0, or such by step, .*, not -1"),
        ("much", "a number of at least 0, or such by step, .*, not 'much'"),
        ({0: 1.0, 5: -2}, "data.sources.a.weight is no schedule of weights: at 5 there is a number of at least 0, not -2"),
        ({5: 1.0}, "it begins with step 0, not with 5"),
        ([[0, 1.0], [9, 0.5], [9, 0.2]], "its steps ascend, and these do not: 0, 9, 9"),
        ([[0, 1.0], [9, 0.5], [4, 0.2]], "its steps ascend, and these do not: 0, 9, 4"),
        ({0: 1.0, "half": 0.0}, "a step is a whole number, or a share of the run such as 66%, not 'half'"),
        ({0: 1.0, "50%": 0.0}, "50% of a run is not known in steps: set trainer.budget.max_steps"),
        ({0: 1.0, "150%": 0.0}, "a share of the run lies from 0% to 100%, not at '150%'"),
        ({0: 1.0, 5: 0.0, "interpolation": "cubic"}, "interpolation is constant or linear, not 'cubic'"),
        ([1.0, 2.0], "is a number, or weights by step"),
        ({}, "it begins with step 0, not with nothing"),
    ],
)
def test_what_is_no_weight_is_told(value: object, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        read_weight("data.sources.a.weight", value)


def test_a_source_that_is_not_there_is_told() -> None:
    config = compose_config("train", ["image_tokenizer=x", "codes=x", "+data.sources.shapes_dram.weight=1"])
    with pytest.raises(ValueError, match=r"'shapes_dram' has no dataset and no view: .*; there is shapes_talk, shapes_draw, "):
        check_sources(config)


def test_a_step_without_any_weight_is_told() -> None:
    with pytest.raises(ValueError, match=r"From step 7 on the weights of all sources \(a, b\) are 0: give one a weight there"):
        MixingWeights(["a", "b"], ["text", "text"], [WeightSchedule(((0, 1.0), (7, 0.0))), 0.0])
    ratio: dict[str, Weight] = {"understanding": 0.0, "text": 1.0, "drawing": 0.0}
    with pytest.raises(ValueError, match="asks for text, and from step 7 on all its sources have the weight 0"):
        MixingWeights(["a", "b"], ["text", "drawing"], [WeightSchedule(((0, 1.0), (7, 0.0))), 1.0], ratio)


def test_shares_of_a_short_run_may_be_one_step() -> None:
    """The last one holds, so that a run that is tried for two steps is not refused."""
    given = [["0%", 0.2], ["20%", 0.3], ["50%", 0.8], "linear"]
    assert read_weight("weight", given, 2) == WeightSchedule(((0, 0.3), (1, 0.8)), "linear")
    assert read_weight("weight", given, 100) == WeightSchedule(((0, 0.2), (20, 0.3), (50, 0.8)), "linear")
    with pytest.raises(ValueError, match="its steps ascend"):
        read_weight("weight", [["0%", 0.2], ["50%", 0.3], ["20%", 0.8]], 100)
