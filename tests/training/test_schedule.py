"""Budgets and schedules: from 0 to 1, up and down, by steps, by minutes, or by whichever ends first."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unimm.training.optimizers import Budget, Schedule

SCHEDULES = st.builds(
    Schedule,
    kind=st.sampled_from(["constant", "cosine", "linear"]),
    warmup_steps=st.integers(0, 50),
    decay_from=st.floats(0, 0.9),
    final=st.floats(0, 1),
)


@pytest.mark.parametrize(
    ("budget", "step", "seconds", "progress"),
    [
        (Budget(max_steps=100), 25, 1e9, 0.25),
        (Budget(max_minutes=2), 10**9, 30, 0.25),
        (Budget(100, 2), 50, 30, 0.5),
        (Budget(100, 2), 25, 60, 0.5),
        (Budget(max_steps=100), 100, 0, 1.0),
        (Budget(max_steps=100), 120, 0, 1.0),
    ],
)
def test_progress(budget: Budget, step: int, seconds: float, progress: float) -> None:
    assert budget.progress(step, seconds) == progress


@given(SCHEDULES, st.integers(1, 300))
def test_a_factor_is_between_0_and_1_and_falls_after_the_warm_up(schedule: Schedule, num_steps: int) -> None:
    factors = [schedule.factor(step, step / num_steps) for step in range(num_steps)]
    assert all(0 <= factor <= 1 for factor in factors)
    after = factors[schedule.warmup_steps :]
    assert after == sorted(after, reverse=True)
    flat = [f for step, f in enumerate(factors) if step >= schedule.warmup_steps and step / num_steps <= schedule.decay_from]
    assert flat == pytest.approx([1.0] * len(flat))


@pytest.mark.parametrize("kind", ["cosine", "linear"])
@pytest.mark.parametrize("final", [0.0, 0.1])
def test_a_decay_ends_where_it_should(kind: str, final: float) -> None:
    schedule = Schedule(kind, warmup_steps=10, decay_from=0.5, final=final)
    assert schedule.factor(100, 1.0) == pytest.approx(final)
    assert schedule.factor(100, 0.75) == pytest.approx((1 + final) / 2)
    assert schedule.factor(100, 0.5) == 1.0


def test_the_warm_up_is_linear_and_never_zero() -> None:
    schedule = Schedule("constant", warmup_steps=4)
    assert [schedule.factor(step, 0.0) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Budget(), "max_steps, max_minutes"),
        (lambda: Budget(max_steps=0), "max_steps is a whole number of at least 1, not 0"),
        (lambda: Budget(max_minutes=-1.0), "max_minutes is a number above 0, not -1"),
        (lambda: Schedule("zigzag"), "zigzag"),
        (lambda: Schedule(decay_from=1.0), "1.0"),
    ],
)
def test_mistakes_are_told(make, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        make()
