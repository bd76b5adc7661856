import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra import numpy as hnp
from PIL import Image

from unimm.data.image import array_to_pixels, crop, look, pixels_to_array, to_pil

RNG = np.random.default_rng(0)


def smooth(height=48, width=64):
    """A picture that changes everywhere."""
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    return Image.fromarray(np.stack([255 * x, 255 * y, 255 * (1 - x)], axis=-1).astype(np.uint8))


def difference(one, other):
    return np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int)).max()


@given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=3, max_side=6).map(lambda shape: (*shape, 3))))
@settings(deadline=None)
def test_pixels_and_back_is_exact(array):
    pixels = array_to_pixels(array)
    assert pixels.dtype == np.float32 and pixels.shape[-3] == 3
    assert np.array_equal(pixels_to_array(pixels), array)


def test_range_of_pixels():
    array = np.array([[[0, 255, 51]]], dtype=np.uint8)
    assert array_to_pixels(array).ravel().tolist() == pytest.approx([-1, 1, -0.6])
    image = to_pil(np.array([-3, 9, 0], dtype=np.float32).reshape(3, 1, 1))
    assert image.size == (1, 1) and image.getpixel((0, 0)) == (0, 255, 128)


@pytest.mark.parametrize("prepare", [look, crop])
def test_an_image_of_the_right_size_is_not_resampled(prepare):
    array = RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert np.array_equal(np.asarray(to_pil(prepare(array, 64))), array)


@pytest.mark.parametrize(
    "width, height, inner",
    [
        (640, 480, (64, 48)),
        (480, 640, (48, 64)),
        (641, 480, (64, 47)),
        (1000, 10, (64, 14)),
        (3, 500, (14, 64)),
        (20, 15, (64, 48)),
    ],
)
def test_look_pads_the_short_side_with_grey(width, height, inner):
    pixels = np.asarray(to_pil(look(np.full((height, width, 3), 250, dtype=np.uint8), 64)))
    lit = (pixels == 250).all(axis=-1)
    assert (pixels[~lit] == 127).all()
    rows, columns = np.flatnonzero(lit.any(axis=1)), np.flatnonzero(lit.any(axis=0))
    assert (len(columns), len(rows)) == inner
    assert rows[0] == (64 - inner[1]) // 2 and columns[0] == (64 - inner[0]) // 2


def test_look_is_what_janus_does():
    """Its processor step by step: torchvision's resize of a PIL image is Pillow's antialiased bicubic."""
    image = smooth(100, 77)
    resized = image.resize((int(77 / 100 * 64), 64), Image.Resampling.BICUBIC)
    square = Image.new("RGB", (64, 64), (127, 127, 127))
    square.paste(resized, ((64 - 49) // 2, 0))
    expected = (np.asarray(square).transpose(2, 0, 1) / 255.0 - 0.5) / 0.5
    np.testing.assert_allclose(look(image, 64), expected, atol=1e-6)


def test_crop_takes_the_centre():
    array = np.zeros((64, 192, 3), dtype=np.uint8)
    array[:, 64:128] = RNG.integers(0, 256, (64, 64, 3))
    assert np.array_equal(np.asarray(to_pil(crop(array, 64))), array[:, 64:128])
    image = smooth(256, 320)
    resized = image.resize((80, 64), Image.Resampling.BICUBIC).crop((8, 0, 72, 64))
    assert difference(to_pil(crop(image, 64)), resized) <= 1
    assert crop(np.zeros((3, 60_000, 3), dtype=np.uint8), 64).shape == (3, 64, 64)
