"""Sequences of segments: what they are long, what is open, what the null prompt leaves, what filling closes."""

import itertools
import pickle
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unimm.sequence import BLANK, Expected, Image, Kind, Segment, Sequence

PAD = 999
NUMBERS = Kind("NUMBERS")
IMAGE = np.zeros((3, 4, 4), dtype=np.float32)
CONDITIONS = st.sampled_from([None, "text", "image"])


@st.composite
def closed_segments(draw: st.DrawFn) -> Segment:
    kind = draw(st.sampled_from([Kind.TEXT, Kind.PIXELS, Kind.CODES]))
    if kind == Kind.PIXELS:
        return Segment.look(IMAGE, draw(st.integers(1, 6)), draw(CONDITIONS))
    ids = draw(st.lists(st.integers(0, 50), max_size=6))
    return Segment(kind, np.array(ids), float(draw(st.booleans())), draw(CONDITIONS))


@st.composite
def open_segments(draw: st.DrawFn) -> Segment:
    known = draw(st.lists(st.integers(BLANK, 50), max_size=4))
    limit = len(known) + draw(st.integers(1, 5))
    return Segment.blank(draw(st.sampled_from([Kind.TEXT, Kind.CODES])), limit, tuple(known), stop=(3,))


@st.composite
def sequences(draw: st.DrawFn) -> Sequence:
    segments = draw(st.lists(closed_segments(), min_size=1, max_size=5))
    return Sequence((*segments, *draw(st.lists(open_segments(), max_size=1))))


@given(sequences())
def test_spans_tile_the_sequence(sequence: Sequence) -> None:
    spans = sequence.spans()
    assert [span.segment for span in spans] == list(sequence.segments)
    assert spans[0].start == 0 and spans[-1].stop == sequence.length
    assert all(before.stop == after.start for before, after in itertools.pairwise(spans))
    assert all(span.stop - span.start == span.segment.length for span in spans)


@given(sequences())
def test_given_is_everything_but_the_blank(sequence: Sequence) -> None:
    assert sequence.is_open == (sequence.segments[-1].limit is not None)
    assert not sequence.given.is_open
    assert sequence.given.segments == (sequence.segments[:-1] if sequence.is_open else sequence.segments)


@given(sequences(), st.sets(st.sampled_from(["text", "image"])))
def test_the_null_prompt_keeps_every_position_and_what_belongs_to_no_condition(sequence: Sequence, drop: set[str]) -> None:
    null = sequence.unconditioned(PAD, drop)
    assert [span[1:] for span in null.spans()] == [span[1:] for span in sequence.spans()]
    for before, after in zip(sequence.segments, null.segments, strict=True):
        if before.condition in drop:
            assert after.kind == Kind.TEXT and after.ids == (PAD,) * before.length and not after.learn
        else:
            assert after is before
    assert null.unconditioned(PAD, drop) == null


def test_the_null_prompt_of_a_drawing_keeps_its_begin() -> None:
    bos, boi = Segment.text([1]), Segment.text([2])
    sequence = Sequence((bos, Segment.text([7, 8, 9], condition="text"), boi, Segment.blank(Kind.CODES, 4)))
    null = sequence.unconditioned(PAD)
    assert [segment.ids for segment in null.segments] == [(1,), (PAD,) * 3, (2,), ()]
    assert null.is_open and null.length == sequence.length


@given(sequences().filter(lambda sequence: sequence.is_open), st.data())
def test_filling_closes(sequence: Sequence, data: st.DataObject) -> None:
    last = sequence.segments[-1]
    assert last.limit is not None
    new = data.draw(st.lists(st.integers(0, 50), min_size=last.limit - len(last.ids), max_size=last.limit - len(last.ids)))
    ids = [0 if known == BLANK else known for known in last.ids] + new
    filled = sequence.fill(ids)
    assert not filled.is_open and filled.given == filled
    assert filled.segments[:-1] == sequence.segments[:-1]
    assert filled.segments[-1].ids == tuple(ids) and filled.segments[-1].kind == last.kind
    with pytest.raises(ValueError, match="no open segment"):
        filled.fill(ids)


def test_filling_refuses_what_does_not_fit() -> None:
    sequence = Sequence((Segment.text([1]), Segment.blank(Kind.CODES, 3, known=(5, BLANK))))
    with pytest.raises(ValueError, match="at most 3 elements, not 4"):
        sequence.fill([5, 6, 7, 8])
    with pytest.raises(ValueError, match="known to be 5, not 6"):
        sequence.fill([6])
    with pytest.raises(ValueError, match="blanks"):
        sequence.fill([5, BLANK])
    assert sequence.fill([5, 6]).length == 3


@pytest.mark.parametrize(
    "make",
    [
        lambda: Sequence(()),
        lambda: Sequence((Segment.blank(Kind.TEXT, 3), Segment.text([1]))),
        lambda: Segment.blank(Kind.TEXT, 0),
        lambda: Segment.blank(Kind.PIXELS, 3),
        lambda: Segment.blank(Kind.TEXT, 1, known=(1, 2)),
        lambda: Segment.text([BLANK]),
        lambda: Segment.look(IMAGE, 0),
        lambda: Segment(Kind.PIXELS, Image(4, IMAGE), weight=1.0),
        lambda: Segment(Kind.PIXELS, IMAGE),
        lambda: Segment(Kind.TEXT, Image(4, IMAGE)),
        lambda: Segment(Kind.TEXT, np.ones((2, 3))),
        lambda: Segment(NUMBERS, np.float32(1)),
        lambda: Segment.text([1, 2], weight=np.ones(3)),
        lambda: Segment(Kind.CODES, np.array([1, 2]), corrupted=np.array([3, 4])),
        lambda: Segment(Kind.CODES, np.array([1, 2]), 1.0, corrupted=np.array([3])),
        lambda: Segment(Kind.CODES, np.array([1, 2]), expected=Expected((3, 4), 1.0)),
        lambda: Segment(Kind.CODES, np.array([1, 2]), 1.0, expected=Expected((3,), 1.0)),
    ],
)
def test_what_makes_no_sense_is_refused(make) -> None:
    with pytest.raises(ValueError):
        make()


def test_codes_are_corrupted_where_they_are_learned() -> None:
    text, given, learned = Segment.text([1, 2], learn=True), Segment.codes([3, 4]), Segment.codes([5, 6], learn=True)
    corrupted = Sequence((text, given, learned)).with_corrupted(np.array([7, 8]))
    assert [one.corrupted is not None and one.corrupted.tolist() for one in corrupted.segments] == [False, False, [7, 8]]
    assert [one.ids for one in corrupted.segments] == [(1, 2), (3, 4), (5, 6)]


def test_segments_are_the_same_where_all_of_them_is() -> None:
    """Also what their images show, which unopened ones are opened for."""
    numbers = np.arange(6).reshape(3, 2)
    makes: list[Callable[[], Segment]] = [
        lambda: Segment.text([1, 2]),
        lambda: Segment.text([1, 3]),
        lambda: Segment.codes([1, 2]),
        lambda: Segment.text([1, 2], condition="text"),
        lambda: Segment.text([1, 2], learn=True),
        lambda: Segment.text([1, 2], weight=0.5),
        lambda: Segment(Kind.TEXT, np.array([1, 2]), 1.0, expected=Expected((1, 3), 2.0)),
        lambda: Segment.text([1, 2], weight=np.array([0.0, 0.5])),
        lambda: Segment.codes([1, 2], learn=True),
        lambda: Segment(Kind.CODES, np.array([1, 2]), 1.0, corrupted=np.array([3, 4])),
        lambda: Segment.blank(Kind.TEXT, 3, (1, 2)),
        lambda: Segment.look(IMAGE.copy(), 4),
        lambda: Segment.look(lambda: IMAGE + 1, 4),
        lambda: Segment.look(IMAGE, 5),
        lambda: Segment.seen(np.zeros((4, 8)), 4),
        lambda: Segment.array(NUMBERS, numbers),
        lambda: Segment.array(NUMBERS, numbers + 1),
        lambda: Segment.array(Kind("OTHERS"), numbers),
    ]
    for one, other in itertools.product(range(len(makes)), repeat=2):
        assert (makes[one]() == makes[other]()) == (one == other), (one, other)
    assert all(hash(make()) == hash(make()) for make in makes)
    assert Segment.text((1, 2)) == Segment.text(np.array([1, 2], dtype=np.uint16))
    unopened = Segment.look(lambda: IMAGE, 4)
    assert unopened == Segment.look(IMAGE, 4) == unopened.opened() and len({unopened, unopened.opened()}) == 1


def test_an_image_is_opened_when_it_is_asked_for() -> None:
    reads = []
    unopened = Sequence((Segment.text([1]), Segment.look(lambda: reads.append(1) or IMAGE, 4, "image")))
    assert unopened.length == 5 and unopened.show() == "TEXT(1) · PIXELS(4, image)" and not reads
    opened = unopened.opened()
    assert (
        len(reads) == 1 and np.array_equal(opened.segments[1].pixels, IMAGE) and opened.opened().segments[1].pixels is not None
    )
    assert len(reads) == 1 and opened.segments[1].features is None


def test_content_is_neither_copied_nor_written_to() -> None:
    codes = np.arange(4)
    segment = Segment.codes(codes, learn=True)
    assert np.shares_memory(segment.content_ids, codes) and segment.ids == (0, 1, 2, 3) and segment.learn
    with pytest.raises(ValueError, match="read-only"):
        segment.content_ids[0] = 1
    codes[0] = 0  # what it was made of is still the caller's


def test_a_kind_from_outside_is_the_same_everywhere() -> None:
    """Its number follows from its name, so that batches and checkpoints of several processes agree."""
    assert Kind("NUMBERS") is NUMBERS and pickle.loads(pickle.dumps(NUMBERS)) is NUMBERS and int(NUMBERS) == 0x148DB34E3
    assert [int(Kind(name)) for name in ("TEXT", "PIXELS", "CODES")] == [0, 1, 2] and Kind("TEXT") is Kind.TEXT
    learned = Segment.array(NUMBERS, np.ones((3, 2)), learn=True)
    assert learned.length == 3 and learned.learn and learned.ids == ()
    assert Sequence((Segment.text([1]), Segment.blank(NUMBERS, 3))).fill(np.ones((3, 2))).segments[1] == replace(
        learned, weight=0.0
    )


def test_show_is_one_line_for_a_human() -> None:
    sequence = Sequence(
        (Segment.look(IMAGE, 4, "image"), Segment.text([1, 2]), Segment.codes([3], learn=True), Segment.blank(Kind.TEXT, 9))
    )
    assert sequence.show() == "PIXELS(4, image) · TEXT(2) · CODES(1, learn) · TEXT(9, open)"
