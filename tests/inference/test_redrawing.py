"""Draw, look, draw again: what shows its prompt stays, what does not is mended; the most probable is taken."""

from typing import Any

import numpy as np
import pytest
from PIL import Image

from unimm.data.grids import Grid
from unimm.inference.engine import Engine
from unimm.inference.redrawing import STRIDE, Redraw, Redrawing, _cells, read_redraw
from unimm.runtime.provenance import carried

PROMPTS = ["a red circle and a blue square", "two large squares", "a cross"]


def test_an_image_is_mended_the_same_alone_and_in_a_batch(tiny_engine: Engine) -> None:
    how = Redraw(2, threshold=1.0, paint=True)
    together = tiny_engine.generate_images(PROMPTS, num_images=2, seed=3, redraw=how)
    for prompt, images in zip(PROMPTS, together, strict=True):
        alone = tiny_engine.generate_images(prompt, num_images=1, seed=3, redraw=how)
        assert alone[0].tobytes() == images[0].tobytes()
        said = carried(images[0])
        assert said is not None and said["tries"] == 3 and said["redraw"]["tries"] == 2


def test_the_most_probable_of_all_tries_is_taken(tiny_engine: Engine) -> None:
    how = Redraw(2, threshold=1.0)
    (mended,) = tiny_engine.generate_images(PROMPTS[0], seed=1, redraw=how)
    tries = [tiny_engine.generate_images(PROMPTS[0], seed=1, first_index=number * STRIDE)[0] for number in range(3)]
    scores = [tiny_engine.alignment(one, PROMPTS[0]) for one in tries]
    assert mended.tobytes() == tries[int(np.argmax(scores))].tobytes()


def test_what_is_right_is_looked_at_once(tiny_engine: Engine) -> None:
    plain = tiny_engine.generate_images(PROMPTS, seed=1)
    looked = tiny_engine.generate_images(PROMPTS, seed=1, redraw=Redraw(3, threshold=0.0))
    assert [one[0].tobytes() for one in plain] == [one[0].tobytes() for one in looked]
    assert all((carried(one[0]) or {})["tries"] == 1 for one in looked)


def test_the_part_that_is_there_keeps_its_codes(tiny_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two claims one holds: the codes where it is are given to the next try."""
    filled: list[Any] = []
    usual = tiny_engine.decoder.fill
    monkeypatch.setattr(Redrawing, "_holds", lambda self, claims: [claim == "a red circle" for _, claim in claims])
    warm = np.zeros((16, 16), dtype=np.float32)
    warm[:8, :8] = 1.0
    monkeypatch.setattr(type(tiny_engine), "heat_map", lambda self, images, phrases: [warm for _ in images])
    monkeypatch.setattr(tiny_engine.decoder, "fill", lambda requests: filled.append(requests) or usual(requests))
    monkeypatch.setattr(type(tiny_engine), "alignment", lambda self, images, prompts: [0.1 for _ in images])
    tiny_engine.generate_images(PROMPTS[0], seed=1, redraw=Redraw(1, paint=True))
    first = tiny_engine.generate_codes(PROMPTS[0], seed=1)[0].tolist()
    (request,) = filled[0]
    assert request.first_place == 1 and request.blank.limit == 3, "the first of 2 x 2 codes stays"
    assert request.sequence.given.segments[-1].ids == (first[0],)


def test_cells_are_warm_where_a_pixel_is() -> None:
    heat = np.zeros((16, 16), dtype=np.float32)
    heat[9, 3] = 0.6
    assert _cells(heat, Grid(2, 2), 0.5).tolist() == [False, False, True, False]


def test_bad_settings_are_refused(tiny_engine: Engine) -> None:
    with pytest.raises(ValueError, match="best_of or redraw, not both"):
        tiny_engine.generate_images("a", redraw=1, best_of=2)
    with pytest.raises(ValueError, match="redraw"):
        tiny_engine.generate_images("a", redraw=-1)
    with pytest.raises(ValueError, match="threshold"):
        Redraw(1, threshold=2.0)
    assert read_redraw(3) == Redraw(3) and isinstance(tiny_engine.generate_images("a", redraw=0)[0], Image.Image)
