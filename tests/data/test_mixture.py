"""The mixture: a pure function of (seed, step) that holds every source in every step, however it is cut into ranks."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toys import Squares, make_mixture, make_template

from unimm.batch import Batch
from unimm.data.mixture import Mixture, Source, StepBatches, apportion
from unimm.data.records import Record
from unimm.data.template import Template
from unimm.sequence import Segment, Sequence

WEIGHTS = st.lists(st.just(0.0) | st.floats(0.01, 10), min_size=1, max_size=6).filter(any)


@given(WEIGHTS, st.integers(0, 200))
def test_apportion_adds_up_and_leaves_nobody_out(weights: list[float], more: int) -> None:
    positive = sum(weight > 0 for weight in weights)
    total = positive + more
    counts = apportion(weights, total)
    assert sum(counts) == total
    assert all((count >= 1) == (weight > 0) for count, weight in zip(counts, weights, strict=True))
    shares = [weight / sum(weights) * total for weight in weights]
    if all(share >= 1 for share in shares if share):
        assert all(abs(count - share) < 1 for count, share in zip(counts, shares, strict=True))


@pytest.mark.parametrize(("weights", "total"), [([0.0, 0.0], 4), ([1.0, -1.0], 4), ([1.0, 1.0, 1.0], 2)])
def test_apportion_refuses(weights: list[float], total: int) -> None:
    with pytest.raises(ValueError):
        apportion(weights, total)


def test_every_step_holds_every_source() -> None:
    mixture = make_mixture(batch_size=8)
    for step in range(20):
        assert [source for source, _ in mixture.samples(step)] == [0] * 5 + [1] * 2 + [2]


def indexed() -> Mixture:
    """A mixture whose sequences tell which record they are of, and what their generator said."""

    def view(record: Record, template: Template, rng: np.random.Generator) -> Sequence:
        return Sequence((Segment.text([int(record.key.split("/")[1]), *rng.integers(0, 2**40, 64)]),))

    return Mixture([Source("one", Squares(), view, 3.0), Source("two", Squares(), view, 1.0)], make_template(), 8)


def test_every_epoch_visits_every_record_once_in_another_order() -> None:
    mixture, length = indexed(), len(Squares())
    orders = []
    for epoch in range(4):
        order = [mixture.sequence(0, epoch * length + place).segments[0].ids[0] for place in range(length)]
        assert sorted(order) == list(range(length))
        orders.append(order)
    orders.append([mixture.sequence(1, place).segments[0].ids[0] for place in range(length)])
    assert len({tuple(order) for order in orders}) == 5, "epochs and sources are shuffled differently"


def test_no_two_samples_share_random_numbers() -> None:
    mixture = indexed()
    drawn = [number for source in (0, 1) for n in range(50) for number in mixture.sequence(source, n).segments[0].ids[1:]]
    assert len(set(drawn)) == len(drawn) == 2 * 50 * 64


def test_samples_of_all_steps_are_consecutive() -> None:
    mixture = make_mixture(batch_size=8)
    numbers = [number for step in range(7) for source, number in mixture.samples(step) if source == 0]
    assert numbers == list(range(35))


def documents(batches: list[Batch]) -> list[tuple]:
    """Every document of the batches as comparable values, in no order."""
    found = []
    for batch in batches:
        for row in range(len(batch.tokens)):
            for number in range(1, int(batch.documents[row].max()) + 1):
                here = batch.documents[row] == number
                columns = (batch.tokens, batch.kinds, batch.targets, batch.target_kinds, batch.weights, batch.positions)
                found.append(tuple(tuple(column[row][here].tolist()) for column in columns))
    return sorted(found)


@pytest.mark.parametrize(("ranks", "micro_batches"), [(1, 1), (2, 1), (4, 1), (1, 3), (2, 2)])
def test_the_global_batch_does_not_depend_on_how_it_is_cut(ranks: int, micro_batches: int) -> None:
    mixture = make_mixture(batch_size=11)
    for step in (0, 5):
        (whole,) = StepBatches(mixture, 128)[step]
        parts = [StepBatches(mixture, 128, micro_batches, rank, ranks)[step] for rank in range(ranks)]
        together = [batch for part in parts for batch in part]
        assert len(together) == ranks * micro_batches and len(documents([whole])) == 11
        assert documents(together) == documents([whole])
        pixels = torch.cat([batch.pixels for batch in together if len(batch.pixels)])
        assert torch.equal(pixels.sum((1, 2, 3)).sort().values, whole.pixels.sum((1, 2, 3)).sort().values)


def test_a_step_is_the_same_in_any_process_and_order() -> None:
    batches = StepBatches(make_mixture(), 128)
    there = pickle.loads(pickle.dumps(batches))
    assert documents(there[9]) == documents(batches[9])
    assert documents(batches[3]) != documents(batches[9])


def test_what_cannot_be_cut_is_refused_with_its_numbers() -> None:
    with pytest.raises(ValueError, match=r"\b8\b.*\b3\b.*\b4\b"):
        StepBatches(make_mixture(batch_size=8), 128, num_micro_batches=3, num_ranks=4)
    with pytest.raises(ValueError, match="at least one source"):
        Mixture([], make_template(), 8)
    with pytest.raises(ValueError, match="'none'"):
        Mixture([Source("none", [], lambda *_: Sequence(()))], make_template(), 8)  # pyright: ignore[reportArgumentType]
