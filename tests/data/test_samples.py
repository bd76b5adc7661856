"""Samples of several sequences stay together: in a row, a step, a stored plan, a micro-batch; all others are as they were."""

import hashlib
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pairs import PairView, make_pairs
from toys import Squares, make_mixture, make_template

from unimm.batch import Batch, collate
from unimm.data.mixture import Mixture, Source
from unimm.data.packing import WHOLE, RowLayout, SampleSize, num_placed, row_groups, share_out, split_sample
from unimm.data.plan import Plan, Planned, Steps
from unimm.data.stored_plan import StoredPlan, store_plan
from unimm.sequence import Kind, Sample, Segment, Sequence

ROW, NUM_ROWS = 40, 7
TEXT = Sequence((Segment.text([5, 6, 7], learn=True),))


def places_of(rows: list[list[Planned]]) -> Counter:
    return Counter((one.sample, place) for row in rows for one in row for place in one.places)


def test_every_sequence_of_a_sample_is_in_its_step_once() -> None:
    """Rows of 40 hold some pairs as a whole, and others only in two rows."""
    mixture = make_pairs()
    plan = Plan(mixture, ROW, NUM_ROWS)
    found: Counter = Counter()
    num_split = 0
    for step in range(2 * plan.shape.num_steps):
        rows = plan.rows(step)
        assert len(rows) == NUM_ROWS and all(sum(one.length for one in row) <= ROW for row in rows)
        places = places_of(rows)
        assert set(places.values()) == {1}
        for sample in {sample for sample, _ in places}:
            num_sequences = len(mixture.sample(sample, ROW).sequences)
            assert {place for name, place in places if name == sample} == set(range(num_sequences))
            in_rows = [number for number, row in enumerate(rows) if any(one.sample == sample for one in row)]
            group = next(group for group in plan.groups(step) if in_rows[0] in group)
            assert set(in_rows) <= set(group) and (len(in_rows) > 1) == (mixture.sample(sample, ROW).length > ROW)
            num_split += len(in_rows) > 1
        assert sorted(row for group in plan.groups(step) for row in group) == list(range(NUM_ROWS))
        found |= Counter(sample for sample, _ in places)
    assert sorted(found) == sorted(mixture.samples(0, len(found))) and num_split > 20
    lengths = {mixture.sample(sample, ROW).length > ROW for sample in found if len(mixture.sample(sample).sequences) > 1}
    assert lengths == {True, False}


@pytest.mark.parametrize(("ranks", "micro_batches"), [(1, 1), (2, 1), (2, 2), (1, 4)])
def test_a_micro_batch_has_all_of_a_sample_or_none_of_it(ranks: int, micro_batches: int) -> None:
    mixture = make_pairs()
    for step in (0, 9):
        whole = documents(Steps(Plan(mixture, ROW, NUM_ROWS))[step].batches)
        parts = [Steps(Plan(mixture, ROW, NUM_ROWS), micro_batches, rank, ranks)[step] for rank in range(ranks)]
        together = [batch for part in parts for batch in part.batches]
        assert len(together) == ranks * micro_batches and all(len(batch.tokens) for batch in together)
        num_rows = sum(len(batch.tokens) for batch in together)
        assert NUM_ROWS <= num_rows <= NUM_ROWS + sum(not batch.documents.any() for batch in together)
        assert documents(together) == whole
        for batch in together:
            in_batch = defaultdict(set)
            for sample, place in batch.samples.tolist():
                in_batch[sample].add(place)
            assert sorted(in_batch) == list(range(len(in_batch)))
            assert all(places == set(range(len(places))) for places in in_batch.values())
        names = Counter(sample for part in parts for sample in part.samples)
        assert set(names.values()) == {1} and sum(names.values()) == len({tuple(one[-1]) for one in whole})


def documents(batches: list[Batch]) -> list[tuple]:
    """Every document of the batches with what lies beside it in its sample, in no order."""
    found = []
    for batch in batches:
        texts = []
        for row in range(len(batch.tokens)):
            for number in range(1, int(batch.documents[row].max()) + 1):
                here = batch.documents[row] == number
                texts.append((tuple(batch.tokens[row][here].tolist()), tuple(batch.weights[row][here].tolist())))
        samples = batch.samples.tolist()
        assert len(samples) == len(texts)
        for text, (sample, place) in zip(texts, samples, strict=True):
            together = sorted((one[1], other) for one, other in zip(samples, texts, strict=True) if one[0] == sample)
            found.append((place, text, together))
    return sorted(found)


def test_sequences_of_a_sample_do_not_attend_to_each_other() -> None:
    batch = collate([[TEXT, TEXT], [TEXT]], samples=[[("a", 0), ("a", 1)], [("b", 0)]])
    assert batch.samples.tolist() == [[0, 0], [0, 1], [1, 0]]
    mask = batch.attention_mask()[0, 0]
    assert not mask[3:6, :3].any() and mask[4, 3] and batch.positions[0].tolist() == [0, 1, 2, 0, 1, 2]
    assert collate([[TEXT, TEXT], [TEXT]]).samples.tolist() == [[0, 0], [1, 0], [2, 0]]
    with pytest.raises(ValueError, match="1 samples are named for 2 sequences"):
        collate([[TEXT, TEXT]], samples=[[("a", 0)]])


def test_a_stored_plan_keeps_them_together(tmp_path: Path) -> None:
    mixture, shape = make_pairs(), RowLayout(ROW, NUM_ROWS)
    store_plan(tmp_path / "plan", mixture, shape, 40, num_workers=0)
    stored = StoredPlan(tmp_path / "plan", mixture, shape)
    measured, read = Plan(mixture, ROW, NUM_ROWS), Plan(mixture, ROW, NUM_ROWS, stored=stored)
    for step in (0, 1, 36, 37, 73, 74, 2):
        assert read.groups(step) == measured.groups(step) and read.origin(step) == measured.origin(step)
        assert read.rows(step) == measured.rows(step)
        assert read.rows(step, [4, 1]) == [measured.rows(step)[number] for number in (4, 1)]
    assert any(len(group) > 1 for step in range(37) for group in read.groups(step))
    store_plan(tmp_path / "plain", make_mixture(), shape, 1)
    assert (tmp_path / "plan/parts.npy").is_file() and not (tmp_path / "plain/parts.npy").exists()
    # Of longer sequences than it was planned for.
    other = Plan(
        make_pairs(second="talk"), ROW, NUM_ROWS, stored=StoredPlan(tmp_path / "plan", make_pairs(second="talk"), shape)
    )
    with pytest.raises(ValueError, match="was planned for other data"):
        for step in range(20):
            other.rows(step)


@pytest.mark.parametrize(
    ("num_positions", "num_rows", "steps", "digest"),
    [
        (64, 9, (0, 1, 28, 29), "4019ca3090362cdf"),
        (40, 9, (0, 28), "6237ed8facd5d74e"),
        (64, 300, (0, 1), "47cf5bc0634d024d"),
        (200, 4, (0, 63), "0e674cf4402ed7b0"),
    ],
)
def test_samples_of_one_sequence_have_the_rows_that_they_always_had(
    num_positions: int, num_rows: int, steps: tuple[int, ...], digest: str
) -> None:
    """As commit f548366 planned them: runs and stored plans of then go on."""
    plan = Plan(make_mixture(), num_positions, num_rows)
    told = hashlib.sha256()
    for step in steps:
        assert plan.groups(step) == [[number] for number in range(num_rows)]
        told.update(repr([[one.sample for one in row] for row in plan.rows(step)]).encode())
    assert told.hexdigest()[:16] == digest
    for ranks, micro_batches in ((1, 1), (3, 1), (2, 4)):
        shares = share_out([[number] for number in range(num_rows)], ranks * micro_batches)
        for rank in range(ranks):
            rows = list(range(num_rows))[rank::ranks]
            assert [shares[rank + micro * ranks] for micro in range(micro_batches)] == [
                rows[micro::micro_batches] for micro in range(micro_batches)
            ]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 20), min_size=1, max_size=5), min_size=30, max_size=120),
    st.integers(3, 70),
    st.integers(0, 9),
)
def test_any_sizes_fill_a_window(lengths: list[list[int]], num_rows: int, seed: int) -> None:
    layout = RowLayout(20, num_rows)
    sizes = [SampleSize(tuple(one), 0) for one in lengths if len(split_sample(tuple(one), 20)) <= num_rows]
    steps = layout.assign_rows(sizes, seed, 0)
    placed = Counter(piece for rows in steps for row in rows for piece in row)
    assert len(steps) == layout.num_steps and all(len(rows) == num_rows for rows in steps)
    expected = Counter()
    for sample, size in enumerate(sizes[: num_placed(steps)]):
        parts = range(len(split_sample(size.lengths, 20))) or [WHOLE]
        expected.update((sample, part) for part in parts)
        at = {
            (step, row)
            for step, rows in enumerate(steps)
            for row, held in enumerate(rows)
            for one in held
            if one.sample == sample
        }
        assert len({step for step, _ in at}) == 1 and len(at) == len(parts)
    assert placed == expected
    for rows in steps:
        assert all(sum(sizes[one.sample].length_of(one.part, 20) for one in row) <= 20 for row in rows)
        split = [next((one.sample for one in row if one.part != WHOLE), None) for row in rows]
        groups = row_groups(split)
        assert all(len({split[number] for number in group}) == 1 for group in groups)
        assert all(len(group) == 1 for group in groups if split[group[0]] is None)
        assert len([group for group in groups if split[group[0]] is not None]) == len({one for one in split if one is not None})
        shares = share_out(groups, 3)
        assert sorted(number for share in shares for number in share) == list(range(num_rows))
        assert max(map(len, shares)) - min(map(len, shares)) <= max(map(len, groups))


def test_mistakes_are_told() -> None:
    mixture = make_pairs()
    with pytest.raises(ValueError, match=r"pairs 0 \(squares/\d+\) has 2 sequences: Mixture.sample gives them"):
        mixture.sequence((0, 0))
    with pytest.raises(ValueError, match=r"has 4 sequences that are learned together, which take \d+ rows, and a step has 1"):
        Plan(Mixture([Source("many", Squares(), PairView(2))], make_template()), ROW, 1).rows(0)
    for wrong in ((), (TEXT, Sequence((Segment.blank(Kind.TEXT, 3),)))):
        with pytest.raises(ValueError, match="at least one sequence, and none that is open"):
            Sample(wrong)


def test_what_is_cut_of_a_sample_is_told() -> None:
    cut = Sample((TEXT, Sequence((Segment.text([5]),), full_length=9)))
    assert cut.full_length == 3 + 9 and cut.length == 4 and Sample((TEXT, TEXT)).full_length is None
    assert np.isclose(make_pairs().shares, [0.75, 0.25]).all()
    assert len(list(zip(make_pairs().images(), range(20), strict=False))) == 20
