"""Collating: every position knows the element that follows it in its own document, and who may look at whom."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_sequence import NUMBERS, sequences

from unimm.batch import PADDING, Batch, collate, normalise_pixels
from unimm.segment import Expected, in_unit_range
from unimm.sequence import Kind, Segment, Sequence

IMAGE = np.ones((3, 4, 4), dtype=np.float32)
CAPTION = Sequence((Segment.text([1]), Segment.look(IMAGE, 3), Segment.text([5]), Segment.text([6, 7], learn=True)))
DRAWING = Sequence((Segment.text([1]), Segment.text([8], condition="text"), Segment.codes([9, 10], learn=True)))


def test_targets_are_the_next_elements() -> None:
    batch = collate([[CAPTION, DRAWING], [DRAWING]], num_positions=12)
    pixels, text, codes = int(Kind.PIXELS), int(Kind.TEXT), int(Kind.CODES)
    assert batch.tokens[0].tolist() == [1, 0, 0, 0, 5, 6, 7, 1, 8, 9, 10, 0]
    assert batch.kinds[0].tolist() == [text, pixels, pixels, pixels] + [text] * 5 + [codes] * 2 + [PADDING]
    assert batch.targets[0].tolist() == [0, 0, 0, 0, 6, 7, 0, 0, 9, 10, 0, 0]
    assert batch.weights[0].tolist() == [0, 0, 0, 0, 1, 1, 0, 0, 1, 1, 0, 0]
    assert batch.documents[0].tolist() == [1] * 7 + [2] * 4 + [0]
    assert batch.positions[0].tolist() == [0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 3, 0]
    assert batch.documents[1].tolist() == [1] * 4 + [0] * 8
    assert batch.images.pixels.shape == (1, 3, 4, 4)
    assert (batch.num_targets(Kind.TEXT), batch.num_targets(Kind.CODES)) == (2, 4)
    assert batch.num_elements == 15


def test_what_is_corrupted_is_read_and_not_learned() -> None:
    plain, corrupted = collate([[DRAWING]]), collate([[DRAWING.with_corrupted(np.array([11, 12]))]])
    assert corrupted.tokens[0].tolist() == [1, 8, 11, 12]
    assert plain.targets.tolist() == corrupted.targets.tolist() == [[0, 9, 10, 0]]


def test_what_is_expected_stands_where_it_is_predicted() -> None:
    learned = replace(Segment.codes([5, 6, 7], learn=True), expected=Expected((5, 9, 7), 4.0))
    batch = collate([[Sequence((Segment.text([1, 2]), learned)), Sequence((Segment.text([3], learn=True),))]])
    assert batch.expected.tolist() == [[0, 5, 9, 7, 0, 0]] and batch.biases.tolist() == [[0, 4, 4, 4, 0, 0]]
    assert batch.targets.tolist() == [[0, 5, 6, 7, 0, 0]]


def test_elements_have_weights_of_their_own() -> None:
    answer = Segment.text([6, 7, 8], weight=np.array([0.5, 0.0, -2.0]))
    batch = collate([[Sequence((Segment.text([1]), answer))]])
    assert batch.weights.tolist() == [[0.5, 0.0, -2.0, 0.0]] and batch.num_targets(Kind.TEXT) == -1.5
    assert batch.targets.tolist() == [[6, 0, 8, 0]]
    assert batch.target_kinds.tolist() == [[Kind.TEXT, PADDING, Kind.TEXT, PADDING]]


def test_images_of_different_lengths_share_a_batch() -> None:
    """A span is an image's row, where it starts there, and its positions; unopened ones are read now."""
    short, long = Segment.look(lambda: IMAGE, 2), Segment.seen(np.ones((4, 8), np.float16), 5)
    text = Segment.text([1])
    batch = collate([[Sequence((text, short)), Sequence((text, long, short))], [], [Sequence((long, text))]])
    assert batch.image_spans.tolist() == [[0, 1, 2], [0, 4, 5], [0, 9, 2], [2, 0, 5]]
    assert batch.images.is_seen.tolist() == [False, True, False, True] and batch.num_images == 4
    assert batch.images.pixels.shape == (2, 3, 4, 4) and batch.images.features.shape == (2, 4, 8)
    for row, start, length in batch.image_spans.tolist():
        assert (batch.kinds[row, start : start + length] == Kind.PIXELS).all()


def test_numbers_of_a_kind_from_outside() -> None:
    given, learned = np.arange(4.0).reshape(2, 2), np.arange(6.0).reshape(3, 2)
    sequence = Sequence((Segment.array(NUMBERS, given), Segment.text([1]), Segment.array(NUMBERS, learned, learn=True)))
    batch = collate([[sequence], [DRAWING]])
    assert torch.equal(batch.contents[NUMBERS].values, torch.from_numpy(np.concatenate([given, learned])).float())
    assert batch.contents[NUMBERS].weights.tolist() == [0, 0, 1, 1, 1]
    assert int((batch.kinds == NUMBERS).sum()) == 5 and batch.num_targets(NUMBERS) == 3
    assert collate([[DRAWING]]).contents.keys() == {Kind.PIXELS}
    other = Sequence((Segment.array(NUMBERS, np.ones((1, 3))), Segment.text([1])))
    with pytest.raises(ValueError, match=r"NUMBERS must have one form.*\(2,\).*\(3,\)"):
        collate([[sequence], [other]])


@settings(max_examples=50)
@given(st.lists(st.lists(sequences(), max_size=3), min_size=1, max_size=3))
def test_alignment(rows: list[list[Sequence]]) -> None:
    """Whatever the sequences: a target is the learned element that comes next in the same document."""
    rows = [[sequence for sequence in row if sequence.given.length] for row in rows]
    batch = collate(rows)
    for b, row in enumerate(rows):
        start = 0
        for number, sequence in enumerate(row, start=1):
            stop = start + sequence.given.length
            assert (batch.documents[b, start:stop] == number).all()
            assert batch.positions[b, start:stop].tolist() == list(range(stop - start))
            assert batch.weights[b, stop - 1] == 0
            for segment, first, last in sequence.given.spans():
                for t in range(start + first, start + last):
                    assert batch.kinds[b, t] == segment.kind
                    if t > start:
                        assert batch.weights[b, t - 1] == segment.learn
                        assert batch.target_kinds[b, t - 1] == (segment.kind if segment.learn else PADDING)
                        assert batch.targets[b, t - 1] == (batch.tokens[b, t] if segment.learn else 0)
            start = stop
        assert (batch.kinds[b, start:] == PADDING).all() and (batch.documents[b, start:] == 0).all()
        assert (batch.weights[b, start:] == 0).all()
    looked_at = [s for row in rows for sequence in row for s in sequence.segments if s.kind == Kind.PIXELS]
    assert len(batch.images.pixels) == len(looked_at)
    check_mask(batch)


def check_mask(batch: Batch) -> None:
    mask = batch.attention_mask()[:, 0]
    later = torch.ones_like(mask).triu(1)
    assert not (mask & later).any(), "nobody looks ahead"
    assert mask.diagonal(dim1=1, dim2=2).all(), "everybody looks somewhere"
    documents = batch.documents
    same = (documents[:, :, None] == documents[:, None, :]) & (documents > 0)[:, :, None]
    assert torch.equal(mask & same, same & ~later), "all that came before in one's own document"
    itself = torch.eye(mask.shape[-1], dtype=torch.bool)
    assert not (mask & ~same & ~itself).any(), "nothing of another document, and of padding nothing"


def test_open_sequences_give_what_is_given() -> None:
    blank = Sequence((*CAPTION.segments[:-1], Segment.blank(Kind.TEXT, 50)))
    batch = collate([[blank]])
    assert batch.tokens.shape == (1, 5) and batch.weights.sum() == 0


def test_missing_rows_are_padding() -> None:
    batch = collate([[DRAWING]], num_positions=6, num_rows=3)
    assert batch.tokens.shape == (3, 6) and batch.num_elements == 4
    assert batch.images.pixels.shape[:2] == (0, 3)
    check_mask(batch)


def test_what_does_not_fit_is_told_with_both_numbers() -> None:
    with pytest.raises(ValueError, match=r"\b11\b.*\b10\b"):
        collate([[CAPTION, DRAWING]], num_positions=10)
    with pytest.raises(ValueError, match=r"\b2\b.*\b1\b"):
        collate([[DRAWING], [DRAWING]], num_rows=1)
    other = Sequence((Segment.look(IMAGE[:, :2], 3), Segment.text([1])))
    with pytest.raises(ValueError, match=r"\(3, 2, 4\).*\(3, 4, 4\)"):
        collate([[CAPTION], [other]])


def test_a_batch_moves_as_a_whole() -> None:
    moved = collate([[CAPTION]]).to("meta")
    tensors = [getattr(moved, name) for name in Batch.__dataclass_fields__ if name != "contents"]
    tensors += [getattr(moved.images, name) for name in ("pixels", "features", "is_seen")]
    assert {tensor.device.type for tensor in tensors} == {"meta"}


def test_pixels_travel_as_bytes_and_are_the_same_numbers_where_they_are_normalised() -> None:
    """All 256 values; opened or not; beside an image that is given as floats all of the batch is floats."""
    levels = np.arange(3 * 16 * 16, dtype=np.uint8).reshape(3, 16, 16)
    lazy, opened, floats = (Segment.look(one, 2) for one in (lambda: levels, levels, in_unit_range(levels)))
    assert lazy == floats == opened.opened() and lazy.pixels is not None and lazy.pixels.dtype == np.float32
    batch, mixed = (collate([[Sequence((one,)) for one in some]]) for some in ([lazy, opened], [lazy, floats]))
    assert batch.images.pixels.dtype == torch.uint8 and mixed.images.pixels.dtype == torch.float32
    assert torch.equal(normalise_pixels(batch.images.pixels), mixed.images.pixels)
    assert torch.equal(normalise_pixels(mixed.images.pixels), mixed.images.pixels)


def test_only_copies_to_a_device_are_queued(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read in main memory must be there."""
    asked: list[tuple[str, bool]] = []

    def move(tensor: torch.Tensor, device: str, non_blocking: bool = False) -> torch.Tensor:
        asked.append((device, non_blocking))
        return tensor

    monkeypatch.setattr(torch.Tensor, "to", move)
    batch = collate([[CAPTION]])
    for device in ("cuda:0", "cpu"):
        batch.to(device)
    assert set(asked) == {("cuda:0", True), ("cpu", False)}
