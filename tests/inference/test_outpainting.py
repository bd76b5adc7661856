"""Out-painting: the image stays, to the byte, wherever it is on the canvas; what is new is painted window after window."""

import asyncio
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unimm.inference.drawing import DrawingProgress
from unimm.inference.engine import Engine
from unimm.inference.windows_of_images import MAX_WINDOWS, Sides, choose_windows, extend_image
from unimm.runtime.provenance import carried

PROMPT = "a red circle"
SIDES = (
    {"right": 8},
    {"left": 5, "top": 3},
    {"left": 16, "right": -16},
    {"bottom": 70},
    {"left": 3, "right": 4, "top": 5, "bottom": 6},
)


@pytest.mark.parametrize("sides", SIDES, ids=str)
def test_the_image_stays_and_all_else_is_painted(tiny_engine: Engine, picture: Image.Image, sides: dict[str, int]) -> None:
    by = Sides(**sides)
    seen: list[DrawingProgress] = []
    found = tiny_engine.outpaint(picture, PROMPT, **sides, num_images=2, seed=4, callback=seen.append)
    size = (24 + by.left + by.right, 16 + by.top + by.bottom)
    left, top = max(by.left, 0), max(by.top, 0)
    kept = np.asarray(picture)[max(-by.top, 0) : 16 + min(by.bottom, 0), max(-by.left, 0) : 24 + min(by.right, 0)]
    canvas, is_new = extend_image(picture, by)
    for one in found:
        pixels = np.asarray(one)
        assert one.size == size
        assert np.array_equal(pixels[top : top + kept.shape[0], left : left + kept.shape[1]], kept)
        assert (pixels != canvas).any(-1)[is_new].mean() > 0.8
    assert found[0].tobytes() != found[1].tobytes()
    windows = choose_windows(is_new)
    steps = [state.step for state in seen]
    assert seen[-1].is_final and steps == sorted(steps) and seen[-1].num_steps == steps[-1] == len(windows) * 4
    covered = np.zeros_like(is_new)
    for window in windows:
        covered[window.slices] = True
    assert covered[is_new].all()


def test_streams_give_the_same_and_say_where_it_comes_from(tiny_engine: Engine, picture: Image.Image) -> None:
    words: dict[str, Any] = {"size": "60x16", "seed": 2, "guidance_scale": 3.0}
    (image,) = tiny_engine.outpaint(picture, PROMPT, **words)
    states = list(tiny_engine.stream_outpaint(picture, PROMPT, preview_every=1, **words))
    assert states[-1].images is not None and states[-1].images[0].tobytes() == image.tobytes()
    previews = [state.images[0] for state in states if state.images and not state.is_final]
    assert previews and all(one.size == (60, 16) for one in previews)
    assert all(np.array_equal(np.asarray(one)[:, 18:42], np.asarray(picture)) for one in previews)

    async def stream() -> list[DrawingProgress]:
        return [state async for state in engine.astream_outpaint(picture, PROMPT, **words)]

    engine = Engine(tiny_engine.bundle)
    last = asyncio.run(stream())[-1]
    engine.decoder.stop()
    assert last.images is not None and last.images[0].tobytes() == image.tobytes()
    said = carried(image)
    assert said is not None and (said["task"], said["prompt"], said["settings"]["guidance_scale"]) == ("inpaint", PROMPT, 3.0)


def test_windows_go_on_from_what_is_there(picture: Image.Image) -> None:
    _, is_new = extend_image(picture, Sides(right=40))
    windows = choose_windows(is_new)
    assert windows[0] == (16, 0, 16) and [window.left for window in windows] == [16, 24, 32, 40, 48]
    _, is_new = extend_image(picture, Sides(left=20, right=20))
    assert [window.left for window in choose_windows(is_new)] == [12, 4, 36, 44, 0, 48]
    _, is_new = extend_image(picture, Sides(top=8))
    assert choose_windows(is_new) == [(0, 0, 24)]


def test_what_cannot_be_painted_is_refused(tiny_engine: Engine, picture: Image.Image) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({}, "nothing new to paint: say by how many pixels the image grows"),
        ({"left": -4}, "nothing new to paint"),
        ({"left": 30, "right": -24}, "Nothing of the image of 24x16 would be left"),
        ({"left": 1.5}, "left is a whole number"),
        ({"size": "24"}, 'A size is "WIDTHxHEIGHT" in pixels'),
        ({"size": "0x64"}, 'A size is "WIDTHxHEIGHT" in pixels'),
        ({"size": 64}, 'A size is "WIDTHxHEIGHT" in pixels'),
        ({"size": (64.5, 64)}, 'A size is "WIDTHxHEIGHT" in pixels'),
        ({"size": "9" * 5000 + "x1"}, 'A size is "WIDTHxHEIGHT" in pixels'),
        ({"size": (np.int64(90_000), np.int64(90_000))}, "more than 50,000,000 pixels"),
        ({"size": (24, 16)}, "nothing new to paint"),
        ({"size": "40x40", "left": 2}, "or the size of the canvas: not both"),
        ({"right": 100_000_000}, "more than 50,000,000 pixels: make it smaller"),
        ({"right": 16 * MAX_WINDOWS}, f"in more than {MAX_WINDOWS} squares, one after another"),
        ({"right": 2_000_000}, f"in more than {MAX_WINDOWS} squares"),  # at once: not all of its windows are looked for
    ]
    for words, sentence in cases:
        with pytest.raises(ValueError, match=sentence):
            tiny_engine.outpaint(picture, PROMPT, **words)
    with pytest.raises(ValueError, match="The prompt is empty"):
        tiny_engine.outpaint(picture, "", right=8)
