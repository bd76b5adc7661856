"""A stored plan is the plan, and is refused where it is another's."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from toys import Squares, make_config, make_mixture, make_template, make_trainer

from unimm.data import stored_plan
from unimm.data.mixture import Mixture, Source
from unimm.data.packing import RowLayout
from unimm.data.plan import Plan, PlanCursor
from unimm.data.stored_plan import StoredPlan, store_plan
from unimm.data.views import Conversation
from unimm.training.logbook import read_numbers

SHAPE = RowLayout(64, 9)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plans") / "plan"
    told: list[int] = []
    fill = store_plan(folder, make_mixture(), SHAPE, 40, progress=told.append)
    assert told == [29, 40] and 0.8 < fill <= 1
    return folder


def samples_of(plan: Plan, step: int, part: slice = slice(None)) -> list:
    return [[one.sample for one in row] for row in plan.rows(step, part)]


def test_it_is_the_plan_and_goes_on_behind_its_end(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mixture = make_mixture()
    stored = StoredPlan(folder, mixture, SHAPE)
    assert stored.num_steps == 58
    measured, read = Plan(mixture, 64, 9), Plan(mixture, 64, 9, stored=stored)
    for step in (0, 1, 28, 29, 57, 58, 90, 3):
        assert samples_of(read, step) == samples_of(measured, step)
        assert samples_of(read, step, slice(1, None, 4)) == samples_of(measured, step)[1::4]
        assert read.origin(step) == measured.origin(step)
    later = Plan(mixture, 64, 9, measured.origin(30), stored)
    assert samples_of(later, 31) == samples_of(measured, 31)
    # From an origin that is no window of it, as after a change of rows, it is of no use.
    assert stored.window(PlanCursor(29, 1)) is None and stored.window(PlanCursor(5, 0)) is None


def test_only_rows_that_are_asked_for_are_made(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mixture = make_mixture()
    plan = Plan(mixture, 64, 9, stored=StoredPlan(folder, mixture, SHAPE))
    made = []
    make = mixture.sample
    monkeypatch.setattr(mixture, "sample", lambda sample, most: made.append(sample) or make(sample, most))
    rows = plan.rows(40, slice(2, None, 3))
    assert made == [one.sample for row in rows for one in row] and len(rows) == 3


def test_workers_make_the_same(folder: Path, tmp_path: Path) -> None:
    store_plan(tmp_path / "plan", make_mixture(), SHAPE, 40, num_workers=2)
    for name in ("samples", "lengths", "ends", "windows"):
        assert np.array_equal(np.load(tmp_path / f"plan/{name}.npy"), np.load(folder / f"{name}.npy"))


def test_a_training_with_it_is_the_same_training(folder: Path, tmp_path: Path) -> None:
    for name, plan in (("without", None), ("with", str(folder))):
        make_trainer(tmp_path / name, make_config(3, plan=plan)).fit()
    make_trainer(tmp_path / "resumed", make_config(2, plan=str(folder))).fit()
    make_trainer(tmp_path / "resumed", make_config(3)).fit()
    expected, *others = (
        [
            {key: value for key, value in line.items() if key.startswith(("loss", "grad_norm"))}
            for line in read_numbers(tmp_path / name / "metrics.jsonl")
        ]
        for name in ("without", "with", "resumed")
    )
    assert others == [expected, expected] and len(expected) == 3 and {"loss/text", "loss/codes"} <= set(expected[0])


def test_a_plan_of_something_else_is_refused(folder: Path, tmp_path: Path) -> None:
    mixture = make_mixture()
    with pytest.raises(ValueError, match="holds no plan: make one with `unimm plan`"):
        StoredPlan(tmp_path, mixture, SHAPE)
    with pytest.raises(ValueError, match=r"planned for another num_rows \(9, here 8\): plan again"):
        StoredPlan(folder, mixture, RowLayout(64, 8))
    with pytest.raises(ValueError, match="planned for another seed"):
        StoredPlan(folder, make_mixture(seed=1), SHAPE)
    with pytest.raises(ValueError, match="planned for another sources"):
        StoredPlan(folder, Mixture(mixture.sources[:2], mixture.template), SHAPE)
    # The same names, sizes and weights, and yet other samples.
    longer = [replace(mixture.sources[0], view=Conversation(num_turns=1)), *mixture.sources[1:]]
    plan = Plan(mixture, 64, 9, stored=StoredPlan(folder, Mixture(longer, mixture.template), SHAPE))
    with pytest.raises(ValueError, match=r"planned for other data: talk \d+ \(squares/\d+\) takes \d+ positions, not \d+"):
        plan.rows(0)


def test_what_is_cut_short_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store_plan(tmp_path / "plan", make_mixture(), SHAPE, 1)
    whole = (tmp_path / "plan/samples.npy").read_bytes()
    (tmp_path / "plan/samples.npy").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"damaged or cut short .*plan again"):
        StoredPlan(tmp_path / "plan", make_mixture(), SHAPE)

    def no_room(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(stored_plan, "write_json", no_room)
    with pytest.raises(OSError, match="No space"):
        store_plan(tmp_path / "other", make_mixture(), SHAPE, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["plan"], "nothing is half there"


def test_too_long_a_sample_is_told_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Record squares/\d+ takes \d+ positions and the text .* there are 20 at most"):
        store_plan(
            tmp_path / "plan", Mixture([Source("talk", Squares(), Conversation(2))], make_template()), RowLayout(20, 9), 1
        )
    assert not list(tmp_path.iterdir())


def test_a_plan_cuts_as_a_training_would_and_says_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    mixture = Mixture([Source("talk", Squares(), Conversation(2))], make_template())
    store_plan(tmp_path / "plan", mixture, RowLayout(40, 9), 1, num_workers=1)
    assert len(caplog.records) == 1 and "samples are longer than there is room for" in caplog.text
    stored = Plan(mixture, 40, 9, stored=StoredPlan(tmp_path / "plan", mixture, RowLayout(40, 9)))
    made, planned = ([[one.sequences for one in row] for row in plan.rows(3)] for plan in (stored, Plan(mixture, 40, 9)))
    assert made == planned
