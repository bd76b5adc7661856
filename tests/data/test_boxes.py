"""Boxes as text: what is written reads back, in pixels of the picture given, however that lies in the model's square."""

import io

import numpy as np
import pytest
from PIL import Image

from unimm.checkpoints.weight_files import DEMO
from unimm.data.boxes import Box, BoxText, check_box, check_point, iou, rewrite
from unimm.data.fit import fit_crop, fit_look
from unimm.data.image import crop, decode_image, image_size, look
from unimm.data.text import TextTokenizer

SHORT, QWEN = BoxText("short", 64), BoxText("qwen", 1000)
SIZES = ((64, 64), (640, 480), (300, 900), (20, 17), (1, 5000))


@pytest.mark.parametrize("boxes", [SHORT, QWEN, BoxText("short", 100)])
@pytest.mark.parametrize("size", SIZES)
def test_what_is_written_reads_back(boxes: BoxText, size: tuple[int, int]) -> None:
    """Within half a bin, in pixels of the picture; what is smaller than a bin keeps an area."""
    fit, rng = fit_look(size, 384), np.random.default_rng(0)
    step = [0.51 * 384 / (boxes.bins - 1) * side / shown for side, shown in zip(size, (fit.width, fit.height), strict=True)]
    for _ in range(50):
        (x1, x2), (y1, y2) = (np.sort(rng.random(2) * side) for side in size)
        read = boxes.read(boxes.write([(x1, y1, x2, y2)], fit), fit)
        ((found, start, _),) = read
        assert start == 0 and 0 <= found[0] < found[2] <= size[0] and 0 <= found[1] < found[3] <= size[1]
        is_tiny = x2 - x1 < 2.2 * step[0] or y2 - y1 < 2.2 * step[1]
        assert is_tiny or np.abs(np.subtract(found, (x1, y1, x2, y2))).max() <= max(step) + 1e-6
        point = boxes.read_points(boxes.write_points([(x1, y1)], fit), fit)[0][0]
        assert abs(point[0] - x1) <= step[0] + 1e-6 and abs(point[1] - y1) <= step[1] + 1e-6


@pytest.mark.parametrize("bins", [4, 64, 81])
def test_every_box_inside_a_picture_reads_back(bins: int) -> None:
    """Also slivers at its edges, in pictures of any shape: with at least a pixel of the square's area in the picture."""
    rng, boxes = np.random.default_rng(0), BoxText("short", bins)
    for size in ((100, 50), (50, 100), (64, 64), (97, 31), (7, 90)):
        fit = fit_look(size, 64)
        for _ in range(40):
            starts, ends = ([], [])
            for side in size:
                length = rng.choice([0.01, 0.4, 1.0, 5.0])
                start = rng.choice([0.0, rng.random(), 1.0]) * (side - length)
                starts.append(start)
                ends.append(start + length)
            ((found, _, _),) = boxes.read(boxes.write([(*starts, *ends)], fit), fit)
            assert found[2] - found[0] > 0.01 and found[3] - found[1] > 0.01
    fit = fit_look((100, 50), 64)
    assert BoxText("short", 81).write([(10, 49.6, 20, 50)], fit) == "08 59 16 60"


def test_the_forms() -> None:
    """Several stand from left to right and once, nothing is "none"; each number of the short form takes a token a digit."""
    fit = fit_look((64, 64), 64)
    some = [(40.0, 41.0, 50.0, 52.0), (12.0, 7.0, 33.0, 28.0), (12.0, 7.0, 33.0, 28.0)]
    assert SHORT.write(some, fit) == "12 07 32 28, 39 40 49 51" and SHORT.write([], fit) == "none"
    assert QWEN.write(some[1:], fit) == "(187,109),(515,437)" and QWEN.write_points([(32, 0)], fit) == "(500,0)"
    assert SHORT.read("none", fit) == [] and [piece for _, *piece in SHORT.read("12 07 32 28, 39 40 49 51", fit)] == [
        [0, 11],
        [13, 24],
    ]
    assert SHORT.cut("12 07 32 28, 39 4") == "12 07 32 28" and SHORT.cut("12 0") == ""
    tokenizer = TextTokenizer.load(DEMO)
    assert len(tokenizer.encode(" 12 07 32 28")) == 8 and len(tokenizer.encode(" " + SHORT.longest(3))) == 3 * 9 - 1


@pytest.mark.parametrize(
    "text",
    [
        *("", "None", "none.", "12 07 33", "12 07 33 28 1", "12 7 33 28", "12 07 33 64", "12  07 33 28", " 12 07 33 28"),
        *("12 07 33 28,", "12 07 33 28, none", "33 07 12 28", "12 28 33 28", "-1 07 33 28", "١٢ 07 33 28", "a red circle"),
    ],
)
def test_nothing_else_is_read(text: str) -> None:
    with pytest.raises(ValueError, match=r"no list of boxes|no area"):
        SHORT.read(text, fit_look((64, 64), 64))


@pytest.mark.parametrize("size", [(64, 64), (128, 96), (90, 120), (60, 200), (40, 30)])
def test_boxes_go_with_the_picture(size: tuple[int, int]) -> None:
    """Through every preparation there is: resized and padded for the vision tower, resized and cropped for codes."""
    width, height = size
    box = (width // 4, height * 3 // 8, width * 3 // 4, height * 5 // 8)
    array = np.zeros((height, width, 3), dtype=np.uint8)
    array[box[1] : box[3], box[0] : box[2]] = 255
    for prepare, lay in ((look, fit_look), (crop, fit_crop)):
        fit = lay(size, 64)
        seen = prepare(array, 64)[0] > 0.3  # beyond the grey of the padding
        ys, xs = np.nonzero(seen)
        found = (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
        moved = (fit.inward_x(box[0]), fit.inward_y(box[1]), fit.inward_x(box[2]), fit.inward_y(box[3]))
        assert np.abs(np.clip(moved, 0, 64) - found).max() <= 1.01, prepare
        back = (fit.outward_x(moved[0]), fit.outward_y(moved[1]), fit.outward_x(moved[2]), fit.outward_y(moved[3]))
        assert np.allclose(back, box)


def test_a_picture_that_lies_on_its_side_is_measured_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    Image.new("RGB", (40, 20)).save(file, "JPEG", exif=exif)
    assert image_size(file.getvalue()) == (20, 40) == decode_image(file.getvalue()).size
    assert image_size(np.zeros((20, 40, 3), dtype=np.uint8)) == (40, 20)


def test_boxes_that_are_none() -> None:
    assert check_box([-0.5, 0, 10, 20.4], (10, 20), outside=1) == (0, 0, 10, 20) and check_point((3, 4), (10, 20)) == (3, 4)
    for box, words in (
        ((5, 5, 5, 9), "has no area"),
        ((9, 5, 5, 9), "has no area"),
        ((5, 5, 11, 9), "out of the picture of 10x20 px"),
        ((1, 2, 3), "A box is four numbers"),
        ((1, 2, 3, float("nan")), "A box is four numbers"),
        ("abcd", "A box is four numbers"),
    ):
        with pytest.raises(ValueError, match=words):
            check_box(box, (10, 20))
    with pytest.raises(ValueError, match="beside the picture"):
        check_box((10, 3, 10.5, 9), (10, 20), outside=1)
    with pytest.raises(ValueError, match="lies outside"):
        check_point((11, 3), (10, 20))
    for form, bins, words in (("long", 64, "form short or qwen"), ("short", 1, "from 2 to 10,000"), ("short", True, "whole")):
        with pytest.raises(ValueError, match=words):
            BoxText(form, bins)
    assert iou((0, 0, 10, 10), (5, 0, 15, 10)) == pytest.approx(1 / 3) and iou((0, 0, 1, 1), (2, 2, 3, 3)) == 0
    assert Box(0, 2, 4, 4).centre == (2, 3)


def test_boxes_of_other_tools() -> None:
    """Qwen-VL's and InternVL's are thousandths of the picture, LLaVA's shares of the padded square."""
    fit, wide = fit_look((200, 100), 64), fit_look((200, 100), 64)
    at = SHORT.write([(20, 20, 100, 60)], fit)
    for form, text in (
        ("qwen", "Here: <ref>the dog</ref><box>(100,200),(500,600)</box>."),
        ("internvl", "Here: <ref>the dog</ref><box>[[100, 200, 500, 600]]</box>."),
    ):
        assert rewrite(text, form, SHORT, fit) == f"Here: the dog {at}."
    both = "<ref>dogs</ref><box>(100,200),(500,600)</box><box>(0,0),(100,100)</box>"
    assert rewrite(both, "qwen", SHORT, fit) == "dogs " + SHORT.write([(20, 20, 100, 60), (0, 0, 20, 10)], fit)
    assert rewrite("[0.1, 0.35, 0.5, 0.55]", "llava", SHORT, wide) == SHORT.write([(20, 20, 100, 60)], wide)
    assert rewrite("A list [1, 2].", "llava", SHORT, wide) == "A list [1, 2]."
    for form, text, words in (
        ("qwen", "<box>(100,200),(50,600)</box>", "has no area"),
        ("qwen", "<box>somewhere</box>", "no list of boxes in the form of qwen"),
        ("qwen", "<box>(100,200),(500,600)", "not closed"),
        ("qwen", "<box>(100,200),(5000,600)</box>", "out of the picture"),
        ("detr", "", "qwen, internvl, llava"),
    ):
        with pytest.raises(ValueError, match=words):
            rewrite(text, form, SHORT, fit)
