"""MagicBrush's sessions: turns that follow one another, with masks in either form."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from users_files import make_magic_brush

from unimm.data.image import decode_image
from unimm.data.readers.magic_brush import MagicBrush, free_part


def test_a_session_is_a_record_whose_edits_follow_one_another(tmp_path: Path) -> None:
    data = MagicBrush(make_magic_brush(tmp_path))
    assert len(data) == 2
    first, second = data[0], data[1]
    assert [(one.source, one.target, one.instructions[0].text) for one in first.edits] == [(0, 1, "a"), (1, 2, "b")]
    assert [(one.source, one.target, one.instructions[0].text) for one in second.edits] == [(0, 1, "c")]
    shades = [int(np.asarray(decode_image(one.image))[0, 0, 0]) for one in (*first.images, *second.images)]
    assert shades == [0, 40, 80, 120, 160]
    assert [data.key_at(index) for index in range(2)] == [first.key, second.key]
    for edit, source in zip(first.edits, first.images, strict=False):
        assert edit.mask is not None
        free = free_part(edit.mask, source.image)
        assert free.shape == (16, 16) and free[4:8, 4:8].all() and free.sum() == 16
    with pytest.raises(IndexError):
        data[2]


def encoded(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (Image.new("RGB", (16, 16)), "frees nothing"),
        (Image.new("RGB", (8, 16), "white"), "The mask is 8x16, but the image 16x16"),
    ],
)
def test_masks_that_say_nothing(mask: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        free_part(encoded(mask), np.zeros((16, 16, 3), dtype=np.uint8))
