"""Images as they are drawn: previews, and whole images that previews change nothing of."""

from concurrent.futures import Future

import numpy as np
import pytest
import torch
from PIL import Image

from unimm import Limits
from unimm.inference.drawing import GREY, draw
from unimm.inference.engine import Engine
from unimm.inference.engine_parts import ImageCoder

PROMPTS = ["a red circle", "two blue squares"]


class AtOnce:
    """An executor without threads: what is submitted is done, so that every preview is in time."""

    def __init__(self, *_) -> None:
        pass

    def shutdown(self, **_) -> None:
        pass

    def submit(self, work, *words) -> Future:
        future: Future = Future()
        future.set_result(work(*words))
        return future


@pytest.mark.parametrize("preview_every", [0, 1, 2, 3])
def test_previews_change_nothing(preview_every: int, tiny_engine: Engine) -> None:
    states = list(tiny_engine.stream_images(PROMPTS, num_images=2, seed=5, preview_every=preview_every))
    assert [state.step for state in states] == [1, 2, 3, 4]
    assert [state.is_final for state in states] == [False, False, False, True]
    whole = [image for row in tiny_engine.generate_images(PROMPTS, num_images=2, seed=5) for image in row]
    assert [image.tobytes() for image in states[-1].images or []] == [image.tobytes() for image in whole]
    assert torch.equal(states[-1].codes, tiny_engine.generate_codes(PROMPTS, num_images=2, seed=5).flatten(0, 1))


def test_a_preview_shows_whole_rows_and_grey_below(tiny_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unimm.inference.drawing.ThreadPoolExecutor", AtOnce)
    states = list(tiny_engine.stream_images(PROMPTS[0], seed=5, preview_every=1))
    previews = [state.images for state in states]
    assert previews[0] is None
    # What is shown at a step was begun at the one before: 1 code, which is no whole row of 2, then 2 codes, which are.
    for images, rows_there in zip(previews[1:3], (0, 8), strict=True):
        assert images is not None and len(images) == 1
        pixels = np.asarray(images[0])
        assert (pixels[rows_there:] == GREY).all()
        assert rows_there == 0 or not (pixels[:rows_there] == GREY).all()


def test_a_drawing_that_is_dropped_frees_its_rows(tiny_engine: Engine) -> None:
    engine = Engine(tiny_engine.bundle, limits=Limits(window=1))  # with wider ones all four codes may come in the first pass
    stream = engine.stream_images(PROMPTS, preview_every=1)
    next(stream)
    assert engine.decoder.stats().num_rows == 4
    stream.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert engine.decoder.stats().num_rows == 0


def test_images_that_are_ready_early_are_decoded_early(tiny_engine: Engine) -> None:
    """Where image decoding has a stream of its own: the first images are decoded while others are drawn."""
    seen = []

    class Beside(ImageCoder):
        has_own_stream = True  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]

        def decode(self, codes: torch.Tensor) -> list[Image.Image]:
            seen.append(len(codes))
            return super().decode(codes)

    narrow = Engine(tiny_engine.bundle, limits=Limits(max_rows=4))
    requests = narrow._requests(PROMPTS, 2, 5, {})
    final = list(draw(narrow.decoder, requests, Beside(tiny_engine.image_tokenizer)))[-1]
    assert seen == [2, 2]
    expected = [image for row in tiny_engine.generate_images(PROMPTS, 2, 5) for image in row]
    assert [image.tobytes() for image in final.images or []] == [image.tobytes() for image in expected]


def test_settings_of_a_drawing(tiny_engine: Engine) -> None:
    with pytest.raises(ValueError, match="preview_every"):
        tiny_engine.stream_images(PROMPTS, preview_every=-1)
    with pytest.raises(TypeError, match="no setting guidance"):
        tiny_engine.generate_codes(PROMPTS[0], guidance=3.0)
    with pytest.raises(ValueError, match="guidance_interval"):
        tiny_engine.generate_images(PROMPTS[0], guidance_interval=(0.5, 0.1))
    certain = tiny_engine.generate_codes(PROMPTS[0], min_p=1.0, seed=9)
    assert torch.equal(certain, tiny_engine.generate_codes(PROMPTS[0], temperature=0.0))


def test_what_was_told_of_a_drawing_stays_as_it_was(tiny_engine: Engine) -> None:
    states = list(tiny_engine.stream_images(PROMPTS, num_images=2, seed=5, preview_every=0))
    assert [state.codes.shape[1] for state in states] == [1, 2, 3, 4]
