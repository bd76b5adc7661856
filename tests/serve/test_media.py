"""Clients' images: what is an image is the same picture as everywhere else, all else is 400 with one fixed sentence."""

import asyncio

import numpy as np
import pytest
from PIL import Image

from unimm.bench.hostile.images import broken, data_uri, encoded, odd, png_claiming, uris
from unimm.bench.hostile.storm import leaks
from unimm.data.image import decode_image
from unimm.serve import media
from unimm.serve.errors import ApiError
from unimm.serve.media import read_image, read_image_part
from unimm.serve.settings import ServerSettings

SETTINGS = ServerSettings(max_pixels=1_000_000)
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8))


def part(url):
    return asyncio.run(read_image_part(url, SETTINGS))


def refused(call, *args, status=400):
    with pytest.raises(ApiError) as raised:
        call(*args)
    assert raised.value.status == status and leaks(raised.value.message.encode(), b"") is None
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


BROKEN = {**broken(), "one pixel too many": png_claiming(1001, 1000)}
ODD = odd()
EMPTY = {"PNG with a text bomb"}  # its pixels are an image, its text is not read


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_image_is_one_sentence(name):
    said = refused(read_image, BROKEN[name], SETTINGS)
    assert said.count(". ") == 0
    if BROKEN[name]:
        assert refused(part, data_uri(BROKEN[name])) == said


@pytest.mark.parametrize("name", [name for name in ODD if name not in ("strip", "large and empty")])
def test_odd_images_are_the_same_picture_as_in_python(name):
    assert read_image(ODD[name], SETTINGS).tobytes() == decode_image(ODD[name]).tobytes()


def test_an_ordinary_progressive_jpeg_is_read():
    assert read_image(encoded(PICTURE, "JPEG", progressive=True), SETTINGS).size == PICTURE.size


@pytest.mark.parametrize("url", ["", None, 7, {"url": "x"}, ["data:image/png;base64,AAAA"], "data:text/html;base64,PGI+"])
def test_broken_addresses(url):
    refused(part, url)


def test_data_uris_that_hold_no_image():
    read = [uri for uri in uris() if not is_refused(uri)]
    assert all(uri.startswith("data:image/") for uri in read) and len(read) == 3


def is_refused(url):
    try:
        return not part(url)
    except ApiError as error:
        assert error.status == 400 and leaks(error.message.encode(), b"") is None
        return True


@pytest.mark.parametrize("form", ["{}", "file://{}", "FILE://{}", " {}", "./{}", "~/{}", "file:{}", "\\\\host{}", "{}\0.png"])
def test_a_path_is_never_opened(tmp_path, form, monkeypatch):
    path = tmp_path / "secret.png"
    PICTURE.save(path)
    monkeypatch.chdir(tmp_path)
    for name in (str(path), "secret.png"):
        assert "opens no paths" in refused(part, form.format(name))


def test_what_is_unpacked_at_once_is_limited_and_freed(monkeypatch):
    monkeypatch.setattr(media, "HELD_IMAGES", 2)
    small = ServerSettings(max_pixels=PICTURE.width * PICTURE.height)
    before = media._held.count
    held = [read_image(encoded(PICTURE), small) for _ in range(2)]
    refused(read_image, encoded(PICTURE), small, status=429)
    del held
    assert media._held.count == before
    assert read_image(encoded(PICTURE), small).size == PICTURE.size
