"""The perceptual hash: other sizes, formats and qualities of an image are found; other images, and other colours, are not."""

import io

import numpy as np
import pytest
from PIL import Image

from unimm.data.inspection.near_duplicates import MAX_BITS, duplicate_groups, fingerprint
from unimm.data.worlds.shapes import ShapesWorld


def photo(seed: int, side: int = 96) -> Image.Image:
    """Smooth random blotches, as unlike each other as photographs."""
    values = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((side, side), Image.Resampling.BICUBIC)


def again(picture: Image.Image, form: str, **settings: int) -> Image.Image:
    file = io.BytesIO()
    picture.save(file, form, **settings)
    return Image.open(file).convert("RGB")


def groups(pictures: list[Image.Image]) -> list[list[int]]:
    marks = [fingerprint(picture) for picture in pictures]
    found = duplicate_groups(np.stack([one.bits for one in marks]), np.stack([one.colours for one in marks]))
    return [group.tolist() for group in found]


def test_other_sizes_and_qualities_of_an_image_are_found_among_others() -> None:
    pictures = [photo(seed) for seed in range(60)]
    pictures += [
        pictures[7].resize((200, 150)),
        again(pictures[7], "JPEG", quality=40),
        again(pictures[31], "WEBP", quality=60),
    ]
    assert groups(pictures) == [[7, 60, 61], [31, 62]]


def test_the_same_form_in_another_colour_is_another_image() -> None:
    red, blue, red_again = (Image.new("RGB", (64, 64), colour) for colour in ("red", "blue", "red"))
    for picture in (red, blue, red_again):
        picture.paste((255, 255, 255), (10, 10, 30, 50))
    assert groups([red, blue, red_again]) == [[0, 2]]


def test_scenes_of_the_built_in_world_are_hardly_ever_duplicates_of_each_other() -> None:
    pictures = [Image.fromarray(record.image) for record in map(ShapesWorld(num_records=300).__getitem__, range(300))]
    assert sum(map(len, groups(pictures))) <= 0.1 * len(pictures)  # those without an object are alike, and some with one


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_to_compare(count: int) -> None:
    assert duplicate_groups(np.zeros((count, 8), np.uint16), np.zeros((count, 48), np.uint8)) == []


def test_pairs_are_those_of_comparing_all() -> None:
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 1 << 16, (400, 8), dtype=np.uint16)
    for place in range(200, 400):  # near some other one, by 0 to 9 bits
        bits[place] = bits[place - 200]
        for flipped in rng.choice(128, place % 10, replace=False):
            bits[place, flipped // 16] ^= 1 << flipped % 16
    found = duplicate_groups(bits, np.zeros((400, 48), np.uint8))
    expected = [[place - 200, place] for place in range(200, 400) if place % 10 <= MAX_BITS]
    assert sorted(group.tolist() for group in found) == expected
