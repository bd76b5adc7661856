"""Clients' images: what is an image is the same picture as everywhere else, all else is 400 with one fixed sentence."""

import asyncio
import base64
import gc
import re

import numpy as np
import pytest
from pictures_to_send import data_uri, encoded, png_claiming
from PIL import Image

from unimm.data.image import decode_image
from unimm.serve import media
from unimm.serve.errors import ApiError
from unimm.serve.media import read_image, read_image_part
from unimm.serve.settings import ServerSettings

SETTINGS = ServerSettings(max_pixels=1_000_000)
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8))
LEAK = re.compile(r"0x[0-9a-f]{4,}|BytesIO|Traceback|/(tmp|home|etc|work|usr)/", re.IGNORECASE)


def part(url):
    return asyncio.run(read_image_part(url, SETTINGS))


def refused(call, *args, status=400):
    with pytest.raises(ApiError) as raised:
        call(*args)
    assert raised.value.status == status and not LEAK.search(raised.value.message)
    return raised.value.message


@pytest.mark.parametrize("format", media.FORMATS)
def test_formats_are_the_same_picture_as_in_python(format):
    data = encoded(PICTURE, format)
    expected = decode_image(data)
    assert read_image(data, SETTINGS).tobytes() == expected.tobytes()
    assert part(data_uri(data, f"image/{format.lower()}")).tobytes() == expected.tobytes()


@pytest.mark.parametrize("form", [str.upper, lambda head: head.replace("png", "jpeg"), lambda head: f"  {head}"])
def test_a_data_uri_may_be_written_in_several_ways(form):
    head, body = data_uri(encoded(PICTURE)).split(",")
    assert part(f"{form(head)},{body}").tobytes() == PICTURE.tobytes()


def test_an_animation_is_its_first_frame():
    data = encoded(PICTURE, "GIF", save_all=True, append_images=[Image.new("RGB", PICTURE.size)] * 3)
    assert read_image(data, SETTINGS).tobytes() == decode_image(encoded(PICTURE, "GIF")).tobytes()


@pytest.mark.parametrize("format", ["BMP", "TIFF", "PPM", "ICO", "PDF", "TGA"])
def test_other_formats_are_not_decoded(format):
    assert "PNG" in refused(read_image, encoded(PICTURE.resize((16, 16)), format), SETTINGS)


BROKEN = {
    "nothing": b"",
    "one byte": b"\xff",
    "web page": b"<!doctype html><title>no image</title>",
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "cut short": encoded(PICTURE)[:200],
    "damaged": encoded(PICTURE)[:60] + b"\0" * 40 + encoded(PICTURE)[100:],
    "bomb": png_claiming(40_000, 40_000),
    "large": png_claiming(1001, 1000),
    "no pixels": png_claiming(0, 0),
    "strip": png_claiming(900_000, 1),
    "scans": b"\xff\xd8" + b"\xff\xda\0\0" * 1000,
    "pickle": b"cos\nsystem\n(S'true'\ntR.",
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_image_is_one_sentence(name):
    assert refused(read_image, BROKEN[name], SETTINGS).count(". ") == 0
    if BROKEN[name]:
        assert refused(part, data_uri(BROKEN[name])) == refused(read_image, BROKEN[name], SETTINGS)


def test_an_ordinary_progressive_jpeg_is_read():
    assert read_image(encoded(PICTURE, "JPEG", progressive=True), SETTINGS).size == PICTURE.size


@pytest.mark.parametrize(
    "url",
    [
        "data:image/png;base64",
        "data:,",
        "data:image/png;base64,",
        "data:image/png;base64,!!!!",
        "data:text/html;base64,PGI+",
        "data:image/svg+xml;utf8,<svg/>",
        "data:image/png;base64;" + ";" * 500_000 + ",AAAA",
        base64.b64encode(encoded(PICTURE)).decode(),
        "",
        None,
        7,
        {"url": "x"},
        ["data:image/png;base64,AAAA"],
    ],
    ids=lambda url: str(url)[:30],
)
def test_broken_addresses(url):
    refused(part, url)


@pytest.mark.parametrize("form", ["{}", "file://{}", "FILE://{}", " {}", "./{}", "~/{}", "file:{}", "\\\\host{}", "{}\0.png"])
def test_a_path_is_never_opened(tmp_path, form, monkeypatch):
    path = tmp_path / "secret.png"
    PICTURE.save(path)
    monkeypatch.chdir(tmp_path)
    for name in (str(path), "secret.png"):
        assert "opens no paths" in refused(part, form.format(name))


def test_what_is_unpacked_at_once_is_limited_and_freed(monkeypatch):
    gc.collect()
    monkeypatch.setattr(media, "HELD_IMAGES", 2)
    small = ServerSettings(max_pixels=PICTURE.width * PICTURE.height)
    before = media._held.count
    held = [read_image(encoded(PICTURE), small) for _ in range(2)]
    refused(read_image, encoded(PICTURE), small, status=429)
    del held
    gc.collect()
    assert media._held.count == before
    assert read_image(encoded(PICTURE), small).size == PICTURE.size
