"""Provenance: what is written is read, in every format, and nothing that anyone may have written does harm."""

import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image, PngImagePlugin

from unimm.runtime.provenance import FORMATS, KEY, attach, carried, describe, exif, read_provenance, write_image

SAID = describe('一个红色圆形 "a"\n\0 é', 2**40, 3, {"guidance_scale": 2.5, "top_k": 0}, "ab" * 32, dtype="float32")


@pytest.mark.parametrize("format", FORMATS)
def test_it_comes_back_from_every_format(format: str, picture: Image.Image, tmp_path: Path) -> None:
    path = tmp_path / f"cat.{format.lower()}"
    write_image(attach(picture, SAID), path, quality=90)
    assert read_provenance(path) == read_provenance(path.read_bytes()) == SAID
    with Image.open(path) as opened:
        assert opened.format == format and carried(opened) == SAID
        software = opened.getexif().get(ExifTags.Base.Software) or opened.info["Software"]
        assert software == f"unimm {SAID['version']}"
    buffer = io.BytesIO()
    write_image(picture.copy(), buffer, SAID, format=format.lower())
    assert read_provenance(buffer.getvalue()) == SAID
    again = Image.open(io.BytesIO(path.read_bytes()))
    if format == "PNG":
        assert again.tobytes() == picture.tobytes()


def test_an_image_without_one_is_written_without(picture: Image.Image, tmp_path: Path) -> None:
    write_image(picture, tmp_path / "plain.png")
    assert read_provenance(tmp_path / "plain.png") is None
    picture.save(tmp_path / "other.jpg", exif=Image.Exif())
    assert read_provenance(tmp_path / "other.jpg") is None
    assert read_provenance(picture) is None


def test_what_cannot_be_read_is_one_sentence(picture: Image.Image, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="There is no file"):
        read_provenance(tmp_path / "none.png")
    with pytest.raises(ValueError, match="not a whole PNG, WEBP or JPEG"):
        read_provenance(b"nothing")
    with pytest.raises(ValueError, match=r"not as BMP: name the file \.png"):
        write_image(picture, tmp_path / "a.bmp")
    for text in ("{", "[1]", "{}", json.dumps({**SAID, "seed": "7"}), "[" * 100_000, "x" * 500_000):
        info = PngImagePlugin.PngInfo()
        info.add_itxt(KEY, text)
        picture.save(tmp_path / "bad.png", pnginfo=info)
        with pytest.raises(ValueError, match="not as unimm writes it"):
            read_provenance(tmp_path / "bad.png")


def test_another_program_s_comment_is_none_of_ours(picture: Image.Image, tmp_path: Path) -> None:
    data = exif(SAID)
    data.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = b'ASCII\0\0\0{"camera": 1}'
    picture.save(tmp_path / "photo.webp", exif=data)
    assert read_provenance(tmp_path / "photo.webp") is None


@given(st.binary(max_size=200))
def test_damaged_files_raise_nothing_but_that(data: bytes) -> None:
    buffer = io.BytesIO()
    write_image(Image.new("RGB", (4, 4)), buffer, SAID, format="PNG")
    whole = buffer.getvalue()
    place = len(data) * 7 % len(whole)
    try:
        read_provenance(whole[:place] + data + whole[place + len(data) :])
    except ValueError as error:
        assert str(error).endswith(".")
