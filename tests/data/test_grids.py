"""Grids of codes by name and by size; pictures cut to their form; drawn scenes of other forms."""

import numpy as np
import pytest
from PIL import Image

from unimm.data.grids import Grid, choose_grid
from unimm.data.image import crop, pixels_to_array
from unimm.data.prompt_format import PromptFormat
from unimm.data.worlds.checker import read_objects, scene_is_exact
from unimm.data.worlds.shapes import ShapesWorld
from unimm.eval.tasks.shapes import at_side

OWN, TAUGHT = Grid(8, 8), ("8x12", "12x8")


@pytest.mark.parametrize(
    ("size", "grid"),
    [(None, OWN), ("64x64", OWN), ("96x64", Grid(8, 12)), ((64, 96), Grid(12, 8)), ([64, 64], OWN), ("96X64", Grid(8, 12))],
)
def test_a_size_names_a_grid(size: object, grid: Grid) -> None:
    assert choose_grid(size, OWN, 8, TAUGHT) == grid


@pytest.mark.parametrize("size", ["96x96", "64", "", 64, (64,), ("a", "b"), "96x64x3", 1.5, "-64x64", "٩٦x64"])
def test_other_sizes_end_in_a_sentence_that_lists_those_there_are(size: object) -> None:
    with pytest.raises(ValueError, match="This model draws 64x64, 96x64, 64x96: ask for one of them"):
        choose_grid(size, OWN, 8, TAUGHT)
    with pytest.raises(ValueError, match="taught no other size"):
        choose_grid(size, OWN, 8, ())


@pytest.mark.parametrize("name", ["8", "8x", "0x8", "8x8x8", "8x99999", 8, None, "axb", (8, -1), "8x1.5"])
def test_what_is_no_grid_is_refused(name: object) -> None:
    with pytest.raises(ValueError, match="ROWSxCOLUMNS"):
        Grid.read(name)


def test_a_prompt_format_keeps_them_by_name() -> None:
    assert PromptFormat(sizes=["8x12", (12, 8)]).sizes == TAUGHT  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="ROWSxCOLUMNS"):
        PromptFormat(sizes=("wide",))


def test_a_picture_is_cut_at_its_centre_to_the_form() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    assert np.array_equal(pixels_to_array(crop(picture, (40, 60))), picture)
    wide = pixels_to_array(crop(picture, (10, 30)))
    cut = Image.fromarray(picture).resize((30, 10), Image.Resampling.BICUBIC, box=(0, 10, 60, 30))
    assert np.array_equal(wide, np.asarray(cut))
    tall = pixels_to_array(crop(picture, (40, 20)))
    assert np.array_equal(tall, picture[:, 20:40])
    assert np.array_equal(crop(picture, 16), crop(picture, (16, 16)))


@pytest.mark.parametrize("size", ["96x64", "64x128"])
def test_scenes_fill_pictures_of_any_form_and_are_read_exactly(size: str) -> None:
    world = ShapesWorld(num_records=40, size=size)
    width, height = map(int, size.split("x"))
    images = [np.asarray(record.image) for record in (world[number] for number in range(40))]
    assert all(image.shape == (height, width, 3) for image in images)
    assert all(scene_is_exact(read_objects(image), world[number].facts) for number, image in enumerate(images))
    far = [max(item.x / width, item.y / height) for number in range(40) for item in world[number].facts.objects]
    assert max(far) > 0.8
    twice = np.asarray(Image.fromarray(images[1]).resize((2 * width, 2 * height), Image.Resampling.BICUBIC))
    assert at_side(twice).shape == (height, width, 3)
    assert np.array_equal(
        np.asarray(ShapesWorld(num_records=2)[1].image), np.asarray(ShapesWorld(num_records=2, size="64x64")[1].image)
    )


@pytest.mark.parametrize("words", [{"size": "32x64"}, {"size": "96x64", "places": True}, {"size": "wide"}])
def test_scenes_of_other_sizes_are_refused(words: dict) -> None:
    with pytest.raises(ValueError, match=r"64x64 or larger|ROWSxCOLUMNS"):
        ShapesWorld(**words)
