"""Inpainting: what is not marked stays, to the byte; what is marked is chosen as a drawing is; any form of a mask and size."""

import asyncio
import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from unimm.data.image import crop, pixels_to_array
from unimm.inference.decode.request import Request
from unimm.inference.decode.sampling import Sampling
from unimm.inference.engine import Engine
from unimm.inference.inpainting import Canvas, any_in_cells, make_canvases, read_marked
from unimm.inference.windows_of_images import choose_windows
from unimm.sequence import BLANK, Kind, Segment, Sequence

PROMPT = "a red circle"


def marked(picture: Image.Image, *box: int) -> np.ndarray:
    """A mask (H, W) bool: from left, top to right, bottom."""
    left, top, right, bottom = box
    mask = np.zeros((picture.height, picture.width), dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


def canvas_of(engine: Engine, image: Any, mask: Any) -> Canvas:
    """What is painted of an image, in its first window."""
    given = read_marked(image, mask)
    return make_canvases(engine.coder, [given.picture], given.is_marked, given.windows[0], 0)[0]


def test_all_that_the_model_sees_is_a_drawing(tiny_engine: Engine, picture: Image.Image) -> None:
    mask = marked(picture, 4, 0, 20, 16)
    words: dict[str, Any] = {"seed": 5, "guidance_scale": 3.0}
    painted = tiny_engine.inpaint(picture, mask, PROMPT, 2, **words, keep_size=False)
    drawn = tiny_engine.generate_images(PROMPT, 2, **words)
    assert [one.tobytes() for one in painted] == [one.tobytes() for one in drawn]
    whole = tiny_engine.inpaint(picture, mask, PROMPT, 2, **words)
    assert [one.size for one in whole] == [(24, 16)] * 2
    for one, square in zip(whole, drawn, strict=True):
        assert np.array_equal(np.asarray(one)[:, 6:18], np.asarray(square)[:, 2:14])  # well inside, where nothing fades
        assert np.array_equal(np.asarray(one)[~mask], np.asarray(picture)[~mask])


@pytest.mark.parametrize("box", [(12, 0, 20, 16), (4, 8, 12, 16), (4, 0, 12, 8), (12, 8, 13, 9)], ids=str)
def test_codes_are_those_of_one_long_blank(tiny_engine: Engine, picture: Image.Image, box: tuple[int, ...]) -> None:
    """The codes before and behind the blank are never decoded, and change nothing: nor do images beside it, or their number."""
    mask = marked(picture, *box)
    canvas = canvas_of(tiny_engine, picture, mask)
    original = tiny_engine.encode_image(picture)
    assert torch.equal(torch.from_numpy(np.where(canvas.known == BLANK, original, canvas.known)), original)
    assert (canvas.known == BLANK).sum() == (1 if box[2] - box[0] < 8 or box[3] - box[1] == 8 else 2)
    prompt = tiny_engine.template.draw(PROMPT, num_codes=4)
    blank = Sequence((*prompt.given.segments, Segment.blank(Kind.CODES, 4, canvas.known)))
    expected = [tiny_engine.decoder.fill([Request(blank, Sampling(1.0, seed=5, index=i), 4.0)])[0] for i in range(3)]
    words = {"seed": 5, "guidance_scale": 4.0}
    last = list(tiny_engine.stream_inpaint(picture, mask, PROMPT, 3, preview_every=1, **words))[-1]
    assert last.codes.tolist() == expected and last.is_final and (last.step, last.num_steps) == (4, 4)
    is_kept = torch.from_numpy(canvas.known != BLANK)
    assert all(torch.equal(codes[is_kept], original[is_kept]) for codes in last.codes)
    (alone,) = tiny_engine.inpaint(picture, mask, PROMPT, **words)
    assert last.images is not None and alone.tobytes() == last.images[0].tobytes()

    engine = Engine(tiny_engine.bundle)

    async def both() -> list:
        other = engine.acomplete([{"role": "user", "content": "How many?"}], max_new_tokens=4)
        return await asyncio.gather(engine.ainpaint(picture, mask, PROMPT, 3, **words), other)

    asynchronous = asyncio.run(both())[0]
    engine.decoder.stop()
    assert [one.tobytes() for one in asynchronous] == [one.tobytes() for one in last.images]


def test_pixels_that_are_not_marked_stay(tiny_engine: Engine, picture: Image.Image) -> None:
    mask, original, found = marked(picture, 13, 2, 18, 14), np.asarray(picture), np.zeros((16, 24), dtype=bool)
    for image in tiny_engine.inpaint(picture, mask, PROMPT, 3, seed=1):
        differs = (np.asarray(image) != original).any(-1)
        assert not differs[~mask].any()
        found |= differs
    assert found[mask].mean() > 0.9
    for state in tiny_engine.stream_inpaint(picture, mask, PROMPT, seed=1, preview_every=1):
        if state.images:
            assert (np.asarray(state.images[0])[~mask] == original[~mask]).all()
    seen: list[int] = []
    tiny_engine.inpaint(picture, mask, PROMPT, callback=lambda state: seen.append(state.step))
    assert seen == sorted(seen) and seen[-1] == 4
    square, kept = pixels_to_array(crop(picture, 16)), ~mask[:, 4:20]
    assert (np.asarray(tiny_engine.inpaint(picture, mask, PROMPT, keep_size=False)[0])[kept] == square[kept]).all()


@pytest.mark.parametrize(("size", "box"), [((50, 37), (2, 3, 11, 9)), ((37, 50), (20, 1, 36, 49)), ((90, 20), (0, 4, 90, 12))])
def test_images_of_any_size_come_back_whole(tiny_engine: Engine, size: tuple[int, int], box: tuple[int, ...]) -> None:
    """Also where the square at the centre does not show the mask, and where no square shows all of it."""
    image = Image.fromarray(np.random.default_rng(2).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    mask = marked(image, *box)
    states = list(tiny_engine.stream_inpaint(image, mask, PROMPT, 2, seed=3, preview_every=1))
    final = states[-1].images
    assert final is not None and [state.is_final for state in states] == [False] * (len(states) - 1) + [True]
    assert [state.step for state in states] == sorted(state.step for state in states) and states[-1].step == states[0].num_steps
    for one in final:
        differs = (np.asarray(one) != np.asarray(image)).any(-1)
        assert one.size == size and not differs[~mask].any() and differs[mask].mean() > 0.8
    (alone,) = tiny_engine.inpaint(image, mask, PROMPT, seed=3)
    assert alone.tobytes() == final[0].tobytes() != final[1].tobytes()
    assert asyncio.run(tiny_engine.ainpaint(image, mask, PROMPT, seed=3))[0].tobytes() == alone.tobytes()


def test_a_margin_looks_closer(tiny_engine: Engine) -> None:
    mask = np.zeros((40, 60), dtype=bool)
    mask[30:34, 2:8] = True
    assert choose_windows(mask) == [(0, 0, 40)]
    assert choose_windows(mask, margin=5) == [(0, 24, 16)]
    image = Image.fromarray(np.full((40, 60, 3), 90, dtype=np.uint8))
    near, far = (np.asarray(tiny_engine.inpaint(image, mask, PROMPT, **words)[0]) for words in ({"margin": 5}, {}))
    assert not np.array_equal(near, far) and (near[~mask] == 90).all()


def test_the_best_of_several_is_one_of_them(tiny_engine: Engine, picture: Image.Image) -> None:
    mask = marked(picture, 13, 2, 18, 14)
    single = tiny_engine.inpaint(picture, mask, PROMPT, 3, seed=1)
    scores = tiny_engine.alignment(single, [PROMPT] * 3)
    (best,) = tiny_engine.inpaint(picture, mask, PROMPT, seed=1, best_of=3)
    assert best.tobytes() == single[scores.index(max(scores))].tobytes()


def test_where_an_image_is_transparent_it_has_no_colour_to_fade_into(tiny_engine: Engine) -> None:
    pixels = np.zeros((16, 32, 4), dtype=np.uint8)
    pixels[:, :20] = (10, 200, 30, 255)
    given = read_marked(Image.fromarray(pixels), None)
    assert (given.picture == (10, 200, 30)).all() and given.is_marked[:, 20:].all() and not given.is_marked[:, :20].any()


def test_masks_of_every_form_say_the_same(tiny_engine: Engine, picture: Image.Image) -> None:
    mask = marked(picture, 12, 0, 20, 9)
    white = Image.fromarray(mask.astype(np.uint8) * np.uint8(255))
    clear = picture.convert("RGBA")
    clear.putalpha(Image.fromarray(np.where(mask, 0, 255).astype(np.uint8)))
    opaque = white.convert("RGBA")
    file, expected = io.BytesIO(), canvas_of(tiny_engine, picture, mask).known.tolist()
    clear.save(file, "PNG")
    paletted = white.convert("P")
    floats = np.repeat(mask[..., None], 3, axis=2).astype(np.float32)
    for form in (white, white.convert("RGB"), clear, opaque, file, file.getvalue(), paletted, white.convert("1"), floats):
        assert canvas_of(tiny_engine, picture, form).known.tolist() == expected
    again = canvas_of(tiny_engine, clear, None)
    assert (again.known == BLANK).tolist() == [one == BLANK for one in expected]


def test_a_code_is_painted_where_any_pixel_of_it_is_marked() -> None:
    generator = np.random.default_rng(0)
    for height, width, side in ((7, 9, 4), (16, 16, 4), (5, 3, 8), (100, 37, 24)):
        mask = generator.random((height, width)) < 0.03
        square, found = min(height, width), any_in_cells(mask, side)
        expected = np.zeros((side, side), dtype=bool)
        for y, x in zip(*np.nonzero(mask), strict=True):
            for row in range(side):
                for column in range(side):
                    starts = [(n - square) / 2 + cell * square / side for n, cell in ((height, row), (width, column))]
                    touches = (s + square / side > p + 1e-9 and s < p + 1 - 1e-9 for s, p in zip(starts, (y, x), strict=True))
                    expected[row, column] |= all(touches)
        assert (found == expected).all()


def test_what_cannot_be_painted_is_refused(tiny_engine: Engine, picture: Image.Image) -> None:
    paint, mask = tiny_engine.inpaint, marked(picture, 12, 0, 20, 9)
    with pytest.raises(ValueError, match="The mask is 5x4, but the image 24x16: give a mask of its size"):
        paint(picture, np.zeros((4, 5), dtype=bool), PROMPT)
    with pytest.raises(ValueError, match="The mask marks nothing inside the square"):
        paint(picture, marked(picture, 0, 0, 4, 16), PROMPT, keep_size=False)
    with pytest.raises(ValueError, match="The mask marks nothing: make what is to be painted white"):
        paint(picture, marked(picture, 0, 0, 0, 0), PROMPT)
    with pytest.raises(ValueError, match="The mask marks the whole image, so nothing of it would stay"):
        paint(picture, marked(picture, 0, 0, 24, 16), PROMPT)
    with pytest.raises(ValueError, match="The image is transparent nowhere"):
        paint(picture, None, PROMPT)
    with pytest.raises(ValueError, match="Cannot read the image data"):
        paint(picture, b"no mask", PROMPT)
    with pytest.raises(ValueError, match="The prompt is empty"):
        paint(picture, mask, " ")
    with pytest.raises(ValueError, match="one prompt says, a string, not list"):
        paint(picture, mask, [PROMPT])  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="margin is a whole number of at least 0"):
        paint(picture, mask, PROMPT, margin=-1)
    with pytest.raises(TypeError, match="no setting strength"):
        paint(picture, mask, PROMPT, strength=2)
