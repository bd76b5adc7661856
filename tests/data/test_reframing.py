"""Frames: a box moves with its picture when that is padded, cropped, mirrored, resized; phrases that are no longer true go."""

import numpy as np
import pytest

from unimm.data.records import Phrase, Record
from unimm.data.reframing import Frame, Reframed
from unimm.data.worlds.shapes import ShapesWorld

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
