"""The checker reads scenes back: measured figures on clean, noisy and blurred scenes, and what it must not be fooled by."""

from collections.abc import Callable

import numpy as np
import pytest
from scipy import ndimage

from unimm.data.worlds.checker import UNCLEAR, read_objects, scene_is_exact
from unimm.data.worlds.scenes import COLOURS, FORMS, SIZES, Scene, Shape, make_scene, render

NUM_SCENES = 2000


def add_noise(image: np.ndarray) -> np.ndarray:
    """Gaussian noise at a PSNR of 30 dB."""
    noise = np.random.default_rng(int(image.sum())).standard_normal(image.shape, dtype=np.float32)
    return (image + noise * 255 / 10 ** (30 / 20)).round().clip(0, 255).astype(np.uint8)


def blur(image: np.ndarray) -> np.ndarray:
    return ndimage.gaussian_filter(image.astype(np.float32), (0.7, 0.7, 0)).round().astype(np.uint8)


@pytest.mark.parametrize(
    ("name", "degrade", "bar"),
    [("clean", lambda image: image, 0.995), ("PSNR 30 noise", add_noise, 0.98), ("blur 0.7 px", blur, 0.98)],
)
def test_scenes_are_read_exactly(name: str, degrade: Callable, bar: float):
    scenes = [make_scene(0, "held_out" if index % 5 == 0 else "test", index) for index in range(NUM_SCENES)]
    exact = np.mean([scene_is_exact(read_objects(degrade(render(scene))), scene) for scene in scenes])
    print(f"checker, {name}: {exact:.4f} of {NUM_SCENES} scenes exact")
    assert exact >= bar


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("colour", COLOURS)
def test_every_look_is_read(size, colour, form):
    scene = Scene((Shape(size, colour, form, 30, 41),))
    assert read_objects(render(scene)) == list(scene.objects)


def test_blotches_are_ignored_and_smudges_are_not():
    image = render(Scene((Shape("small", "red", "circle", 15, 15),)))
    image[50:54, 50:54] = (255, 255, 255)
    assert len(read_objects(image)) == 1
    image[40:44, 20:60] = (255, 255, 255)
    assert [item.form for item in read_objects(image)] == ["circle", UNCLEAR]


def test_touching_shapes_of_two_colours_are_told_apart():
    scene = Scene((Shape("large", "red", "square", 20, 20), Shape("large", "cyan", "square", 40, 20)))
    assert scene_is_exact(read_objects(render(scene)), scene)


def test_flat_images_hold_nothing():
    for value in (0, 128, 255):
        assert read_objects(np.full((64, 64, 3), value, dtype=np.uint8)) == []
    assert read_objects(np.broadcast_to(np.array(COLOURS["red"], dtype=np.uint8), (64, 64, 3))) == []


def test_another_size_is_refused():
    with pytest.raises(ValueError, match="resize"):
        read_objects(np.zeros((32, 32, 3), dtype=np.uint8))


def test_a_scene_is_not_exact_with_anything_changed():
    a, b = Shape("small", "red", "circle", 15, 15), Shape("large", "blue", "cross", 40, 40)
    scene = Scene((a, b))
    assert scene_is_exact([b, a], scene)
    for found in ([a], [a, b, b], [a, a], [a, Shape("small", "blue", "cross", 40, 40)], [Shape(*b_moved(a)), b]):
        assert not scene_is_exact(found, scene)


def b_moved(item: Shape) -> tuple[str, str, str, int, int]:
    return item.size, item.colour, item.form, item.x + 3, item.y
