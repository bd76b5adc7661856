"""AVIF and HEIC: read by their content where Pillow or its plug-in can, under any spelling of their names."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features
from users_files import make_shard, picture_bytes, read_all

from unimm.data.image import ImageError, decode_image
from unimm.data.readers.image_folder import ImageFolder
from unimm.data.readers.paths import IMAGE_SUFFIXES
from unimm.data.readers.web_dataset import WebDataset

needs_avif = pytest.mark.skipif(not features.check("avif"), reason="this Pillow was built without AVIF")


def encoded(form: str, **options: object) -> bytes:
    """A picture of 40x32, red on the left and blue on the right."""
    array = np.zeros((32, 40, 3), dtype=np.uint8)
    array[:, :20, 0], array[:, 20:, 2] = 255, 255
    written = io.BytesIO()
    Image.fromarray(array).save(written, form, quality=90, **options)
    return written.getvalue()


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 3
    return exif.tobytes()


def check(content: bytes, is_turned: bool) -> None:
    picture = decode_image(content)
    assert picture.mode == "RGB" and picture.size == (40, 32)
    left = np.asarray(picture)[16, 5]
    assert (left[0] > 200) != is_turned and (left[2] > 200) == is_turned


@needs_avif
def test_avif() -> None:
    check(encoded("AVIF"), False)
    check(encoded("AVIF", exif=turned()), True)
    plain = encoded("AVIF")
    size = plain[3]
    generic = plain[:8] + b"mif1" + plain[12:16] + b"avif" + plain[20:size] + plain[size:]
    check(generic, False)
    with pytest.raises(ImageError, match="damaged"):
        decode_image(plain[: len(plain) // 2])


def test_heic() -> None:
    plugin = pytest.importorskip("pillow_heif", reason="pillow-heif, which reads HEIC, is not installed")
    plugin.register_heif_opener()
    check(encoded("HEIF"), False)
    check(encoded("HEIF", exif=turned()), True)
    with pytest.raises(ImageError, match="damaged"):
        decode_image(encoded("HEIF")[:300])


@pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
def test_names_of_images_are_known_in_any_spelling(suffix: str, tmp_path: Path) -> None:
    """Each is read by what it holds."""
    names = [f"a{suffix}", f"B{suffix.upper()}"]
    for name in names:
        (tmp_path / name).write_bytes(picture_bytes(0))
        (tmp_path / f"{name[0]}.txt").write_text("A square.")
    assert sorted(record.key for record in read_all(ImageFolder(tmp_path))) == sorted(names)
    members = {name: picture_bytes(0) for name in names} | {"a.txt": b"A.", "B.TXT": b"B."}
    assert [decode_image(one.image).size for one in read_all(WebDataset(make_shard(tmp_path / "0.tar", members)))] == 2 * [
        (20, 16)
    ]
