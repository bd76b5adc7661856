"""Frames: a box moves with its picture when that is padded, cropped, mirrored, resized; phrases that are no longer true go."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import tiny_text_tokenizer

from unimm.data.grounding import Grounding
from unimm.data.image import look
from unimm.data.records import Phrase, Record
from unimm.data.reframing import Frame, Reframed
from unimm.data.template import PromptFormat, Template
from unimm.data.tiles import Tiles
from unimm.data.worlds.shapes import ShapesWorld
from unimm.sequence import Kind

BOX = (20, 12, 40, 30)


class Marked:
    """Pictures of 80x60 px with a white box, and phrases about it."""

    def __init__(self, *phrases: Phrase) -> None:
        self.phrases = phrases or (Phrase("the box", (BOX,)),)

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> Record:
        array = np.full((60, 80, 3), 20, dtype=np.uint8)
        array[BOX[1] : BOX[3], BOX[0] : BOX[2]] = 255
        return Record(f"r/{index}", array, phrases=self.phrases)


@pytest.mark.parametrize(
    "ways",
    [
        {"pad": 0.5},
        {"crop": 0.3},
        {"mirror": 1.0},
        {"scale": (0.7, 1.8)},
        {"pad": 0.4, "crop": 0.2, "mirror": 0.5, "scale": (0.8, 1.5)},
    ],
    ids=["pad", "crop", "mirror", "resize", "all"],
)
def test_boxes_move_with_the_picture(ways: dict) -> None:
    """What is white in the new picture is what its box holds, to a pixel."""
    dataset, shapes = Reframed(Marked(), seed=3, **ways), set()
    for index in range(20):
        record = dataset[index]
        array = np.asarray(record.image)
        ys, xs = np.nonzero(array[..., 0] > 140)
        ((x1, y1, x2, y2),) = record.phrases[0].boxes
        assert np.abs(np.subtract((x1, y1, x2, y2), (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1))).max() <= 1.0
        assert (record.image_size or (80, 60)) == array.shape[1::-1]
        assert (np.asarray(dataset[index].image) == array).all()
        shapes.add(array.shape)
    assert len(shapes) > 1 or "mirror" in ways


def test_a_crop_cuts_no_box_of_the_record() -> None:
    """So "all boxes" stay all; of what a phrase may name besides nothing is known, so extremes are left out of what is cut."""
    far = (60.0, 40.0, 79.0, 59.0)
    phrases = Phrase("all boxes", (BOX, far)), Phrase("the largest", (far,), category="extreme"), Phrase("a cat")
    num_cut = 0
    for mirror in (0.0, 1.0):
        dataset = Reframed(Marked(*phrases), crop=0.45, mirror=mirror, seed=1)
        for index in range(20):
            record = dataset[index]
            kept = [one.text for one in record.phrases]
            is_cut = record.image_size is not None and record.image_size != (80, 60)
            assert kept == (["all boxes", "a cat"] if is_cut else ["all boxes", "the largest", "a cat"])
            assert len(record.phrases[0].boxes) == 2
            areas = sorted((x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in record.phrases[0].boxes)
            assert areas == [360, 361], "whole"
            num_cut += is_cut
    assert num_cut > 30


def test_a_frame_is_made_when_its_pixels_are_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planning a run makes no picture; what is opened later is that of the record."""
    prompt_format = PromptFormat(box_form="short", box_bins=64, tiles=Tiles(4))
    template = Template(tiny_text_tokenizer(), prompt_format, image_size=64, num_positions=4)
    record = Reframed(Marked(), pad=0.5)[3]
    with monkeypatch.context() as patched:
        patched.setattr(Frame, "apply", lambda *_: pytest.fail("made"))
        for one in (template, Template(template.tokenizer, replace(prompt_format, tiles=None), 64, 4)):
            sequence = Grounding()(record, one, np.random.default_rng(0))
    opened = next(one for one in sequence.segments if one.kind == Kind.PIXELS).pixels
    assert (opened == look(Reframed(Marked(), pad=0.5)[3].image, 64)).all()  # pyright: ignore[reportArgumentType]


def test_what_is_no_longer_true_is_left_out() -> None:
    sides = Phrase("the left box", (BOX,)), Phrase("左边的", (BOX,)), Phrase("the box", (BOX,)), Phrase("a cat")
    mirrored = Reframed(Marked(*sides), mirror=1.0)[0]
    assert [one.text for one in mirrored.phrases] == ["the box", "a cat"]
    assert mirrored.phrases[0].boxes == ((40, 12, 60, 30),) and mirrored.captions == () and mirrored.num_images == 1
    frame = Frame((80, 60), (30, 0, 80, 60), (50, 60))
    assert frame.move(BOX) is None and frame.move((31, 5, 40, 9)) == (1, 5, 10, 9)
    wide = Reframed(Marked(Phrase("all", ((0, 0, 80, 60),))), crop=0.4)
    assert wide[0].phrases[0].boxes == ((0, 0, 80, 60),), "no phrase would be left: as it was"
    framed = Reframed(ShapesWorld("train", lesson="locate"), pad=0.5)
    assert framed[3].phrases and framed.key_at(3) == "shapes/train/3"
    for ways, words in (
        ({"crop": 0.5}, "less than a half"),
        ({"scale": (2, 1)}, "smallest and the largest"),
        ({"pad": 2}, "pad"),
    ):
        with pytest.raises(ValueError, match=words):
            Reframed(Marked(), **ways)
    with pytest.raises(ValueError, match="no image with phrases"):
        Reframed([Record("r")])[0]  # pyright: ignore[reportArgumentType]
