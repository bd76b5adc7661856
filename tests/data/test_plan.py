"""The plan: every sample once, in rows that are nearly full; and steps of ranks that are the plan, however it is cut."""

import pickle
import re
from collections import Counter

import pytest
import torch
from toys import Squares, make_mixture, make_steps, make_template

from unimm.batch import Batch
from unimm.cli.compose import build, compose_config
from unimm.data import packing
from unimm.data.mixture import Mixture, Source
from unimm.data.plan import Plan, PlanCursor, Planned
from unimm.data.template import PromptFormat, Template
from unimm.data.text import train_byte_bpe
from unimm.data.views import Conversation
from unimm.data.worlds.digits import DigitsWorld
from unimm.data.worlds.shapes import ShapesWorld
from unimm.sequence import Kind, Sequence


def samples_of(rows: list[list[Planned]]) -> list[tuple[int, int]]:
    return [one.sample for row in rows for one in row]


@pytest.mark.parametrize(("num_rows", "num_positions"), [(1, 64), (9, 64), (4, 200), (300, 64)])
def test_every_sample_is_learned_once_and_rows_do_not_overflow(num_rows: int, num_positions: int) -> None:
    mixture = make_mixture()
    plan = Plan(mixture, num_positions, num_rows)
    steps = [plan.rows(step) for step in range(3 * plan.shape.num_steps)]
    assert all(len(rows) == num_rows for rows in steps)
    found = [sample for rows in steps for sample in samples_of(rows)]
    assert sorted(found) == sorted(mixture.samples(0, len(found)))
    for rows in steps:
        assert all(sum(one.length for one in row) <= num_positions for row in rows)


def test_every_step_and_every_rank_has_every_kind() -> None:
    plan = Plan(make_mixture(), 64, 16)
    for step in range(40):
        rows = plan.rows(step)
        for rank in range(2):
            assert {source for source, _ in samples_of(rows[rank::2])} >= {0, 1}, "talk and drawings"


def test_it_can_be_planned_on_from_any_window() -> None:
    whole = Plan(make_mixture(), 64, 9)
    for step in (0, 17, whole.shape.num_steps, 5 * whole.shape.num_steps + 3):
        origin = whole.origin(step)
        assert origin.step <= step < origin.step + whole.shape.num_steps
        later = Plan(make_mixture(), 64, 9, origin)
        for ahead in (step, step + 1, step + whole.shape.num_steps):
            assert samples_of(later.rows(ahead)) == samples_of(whole.rows(ahead))
    assert samples_of(whole.rows(0)) == samples_of(Plan(make_mixture(), 64, 9).rows(0)), "and backwards"
    with pytest.raises(IndexError, match="before the plan's first, 29"):
        Plan(make_mixture(), 64, 9, PlanCursor(29, 100)).rows(28)


class Uncut:
    """A conversation by a view from outside, which cuts nothing."""

    task = "understanding"

    def __call__(self, record, template, rng) -> Sequence:
        template.max_positions = None
        return Conversation(2, 0.0)(record, template, rng)


def test_too_long_or_no_rows_are_refused() -> None:
    mixture = Mixture([Source("talk", Squares(), Uncut())], make_template())
    told = r"The sample talk 0 \(squares/\d+\) takes \d+ positions.*a row of 40: raise the row length \(trainer.num_positions\)"
    with pytest.raises(ValueError, match=told):
        Plan(mixture, 40, 9).rows(0)
    with pytest.raises(ValueError, match="num_rows is a whole number of at least 1, not 0"):
        Plan(make_mixture(), 64, 0)


def test_what_is_too_long_is_cut_counted_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    """A row of 40 has room for a question or two, as its view would cut; who has the room hears nothing."""
    plan = Plan(make_mixture(), 40, 9)
    rows = [plan.rows(step) for step in range(2 * plan.shape.num_steps)]
    planned = [one for step in rows for row in step for one in row]
    cut = [one for one in planned if one.sequences[0].full_length is not None]
    assert cut and all(one.length <= 40 < one.sequences[0].full_length for one in cut)
    assert {make_mixture().sources[one.sample[0]].name for one in cut} == {"talk"}
    (record,) = caplog.records
    told = re.search(
        r"([\d,]+) of [\d,]+ samples are longer .* talk \d+ \(squares/\d+\) with (\d+) positions", record.getMessage()
    )
    assert told and 0 < int(told[1].replace(",", "")) <= len(cut)
    assert int(told[2]) == max(one.sequences[0].full_length for one in cut)
    whole = Plan(make_mixture(), 64, 9)
    assert {one.sequences[0].full_length for row in whole.rows(0) for one in row} == {None} and len(caplog.records) == 1


def test_the_built_in_mixture_fills_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """At least 97 of 100 positions, whoever trains, in both languages and with all tasks."""
    config = compose_config("train", ["image_tokenizer=x", "codes=x"])
    worlds = {"shapes": ShapesWorld(num_records=2000), "digits": DigitsWorld(num_records=500)}
    texts = [text.text for world in worlds.values() for index in range(300) for text in world[index].captions]
    tokenizer = train_byte_bpe(texts, config.text_vocabulary)
    sources = []
    for name, source in config.data.sources.items():
        view = build(source.view)
        if str(name).endswith("draw"):
            view = Coded(view)
        sources.append(Source(str(name), worlds[str(name).split("_")[0]], view, source.weight))
    mixture = Mixture(sources, Template(tokenizer, PromptFormat(), 64, 64))
    filled = {}
    for trainer in ("default", "cpu", "gpu"):
        rows = compose_config("train", ["image_tokenizer=x", "codes=x", f"trainer={trainer}"]).trainer
        num_positions, num_rows = rows.num_positions, rows.num_rows
        if num_positions > 2000:  # eight thousand samples a window: a quarter of it, one step, is harder to fill
            monkeypatch.setattr(packing, "WINDOW_ROWS", num_rows)
        num_steps = min(4, packing.WINDOW_ROWS // num_rows)
        plan = Plan(mixture, num_positions, num_rows)
        lengths = [one.length for step in range(num_steps) for row in plan.rows(step) for one in row]
        filled[trainer] = sum(lengths) / (num_steps * num_rows * num_positions)
        print(f"trainer={trainer}, {num_rows} rows of {num_positions}: {filled[trainer]:.1%} of positions")
    assert min(filled.values()) >= 0.97


class Coded:
    """A view of records whose codes are all 0."""

    def __init__(self, view) -> None:
        self.view = view

    def __call__(self, record, template, rng) -> Sequence:
        return self.view(record.with_codes(torch.zeros(64, dtype=torch.long).numpy()), template, rng)


def documents(batches: list[Batch]) -> list[tuple]:
    """Every document of the batches with its images as comparable values, in no order."""
    found = []
    for batch in batches:
        images = iter(batch.images.pixels)  # in reading order
        for row in range(len(batch.tokens)):
            for number in range(1, int(batch.documents[row].max()) + 1):
                here = batch.documents[row] == number
                columns = (batch.tokens, batch.kinds, batch.targets, batch.target_kinds, batch.weights, batch.positions)
                num_images = int((batch.kinds[row][here] == Kind.PIXELS).sum()) // make_template().num_positions
                seen = tuple(next(images).numpy().tobytes() for _ in range(num_images))
                found.append((*(tuple(column[row][here].tolist()) for column in columns), seen))
        assert next(images, None) is None, "every image is some document's"
    return sorted(found)


@pytest.mark.parametrize(("ranks", "micro_batches"), [(1, 1), (2, 1), (4, 1), (1, 3), (2, 2)])
def test_the_global_batch_does_not_depend_on_how_it_is_cut(ranks: int, micro_batches: int) -> None:
    mixture = make_mixture()
    for step in (0, 5):
        whole = make_steps(mixture)[step]
        parts = [
            make_steps(mixture, num_micro_batches=micro_batches, rank=rank, num_ranks=ranks)[step] for rank in range(ranks)
        ]
        together = [batch for part in parts for batch in part.batches]
        assert len(together) == ranks * micro_batches
        assert documents(together) == documents(whole.batches)
        assert Counter(sample for part in parts for sample in part.samples) == Counter(whole.samples)
        assert {part.origin for part in parts} == {whole.origin}
        assert sum(len(seen) for *_, seen in documents(together)) > 3


def test_a_step_is_the_same_in_any_process_and_order() -> None:
    steps = make_steps(make_mixture())
    there = pickle.loads(pickle.dumps(steps))
    for step in (40, 9, 3):
        assert documents(there[step].batches) == documents(steps[step].batches)
    assert documents(steps[3].batches) != documents(steps[9].batches)


def test_what_cannot_be_cut_is_refused_with_its_numbers() -> None:
    with pytest.raises(ValueError, match=r"\b9\b.*\b3\b.*\b4\b.*12"):
        make_steps(make_mixture(), num_micro_batches=3, num_ranks=4)
