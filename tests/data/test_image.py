import io
import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from unimm.bench.hostile.images import png_claiming
from unimm.data.image import FORMATS, ImageError, crop, decode_image, look

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (12, 16, 3), dtype=np.uint8)


def encoded(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def smooth(height=48, width=64):
    """A picture that survives JPEG: no two corners alike."""
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    return Image.fromarray(np.stack([255 * x, 255 * y, 255 * (1 - x)], axis=-1).astype(np.uint8))


def difference(one, other):
    return np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int)).max()


def refused(image, match, **options):
    with pytest.raises(ImageError, match=match) as caught:
        decode_image(image, **options)
    message = str(caught.value)
    assert message.endswith(".") and "\n" not in message and not re.search("0x[0-9a-f]{6}", message)
    return message


# what is read


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF"])
def test_path_bytes_image_and_array_are_one(tmp_path, format):
    image = Image.fromarray(NOISE)
    path = tmp_path / f"noise.{format.lower()}"
    image.save(path, format)
    for source in (path, str(path), path.read_bytes(), bytearray(path.read_bytes()), image, NOISE, Image.open(path)):
        decoded = decode_image(source)
        assert decoded.mode == "RGB" and np.array_equal(np.asarray(decoded), NOISE)


def test_lossy_formats():
    for format in ("JPEG", "WEBP"):
        assert difference(decode_image(encoded(smooth(), format, quality=95)), smooth()) < 24
    assert decode_image(encoded(smooth(), "GIF")).size == (64, 48)


def test_wrong_extension_is_read_by_content(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(Image.fromarray(NOISE)))
    assert np.array_equal(np.asarray(decode_image(path)), NOISE)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientations_give_the_upright_pixels(format, orientation):
    stored = {  # how a camera stores the upright picture under each orientation: the inverse of what a viewer does
        1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95} if format == "JPEG" else {"lossless": True} if format == "WEBP" else {}
    data = encoded(smooth() if stored is None else smooth().transpose(stored), format, exif=exif, **options)
    for source in (data, Image.open(io.BytesIO(data))):
        decoded = decode_image(source)
        assert decoded.size == (64, 48)
        assert difference(decoded, smooth()) <= (8 if format == "JPEG" else 0)
    assert decode_image(decode_image(data)).size == (64, 48)  # not turned twice


def test_transparency_is_white():
    half = Image.new("RGBA", (2, 1), (200, 0, 0, 255))
    half.putpixel((1, 0), (0, 0, 0, 0))
    expected = [[[200, 0, 0], [255, 255, 255]]]
    palette = Image.new("P", (2, 1))
    palette.putpalette([200, 0, 0, 0, 0, 255])
    palette.putpixel((1, 0), 1)
    keyed = Image.fromarray(np.array([[[200, 0, 0], [0, 0, 255]]], dtype=np.uint8))
    sources = {
        "RGBA": half, "array": np.asarray(half), "PNG": encoded(half), "WEBP": encoded(half, "WEBP", lossless=True),
        "palette": encoded(palette, transparency=1), "palette of bytes": encoded(palette, transparency=b"\xff\x00"),
        "GIF": encoded(palette, "GIF", transparency=1), "keyed": encoded(keyed, transparency=(0, 0, 255)),
        "premultiplied": half.convert("RGBa"), "PA": palette_with_alpha(palette),
    }  # fmt: skip
    for name, source in sources.items():
        assert np.asarray(decode_image(source)).tolist() == expected, name


def palette_with_alpha(palette):
    image = palette.convert("PA")
    image.putalpha(Image.fromarray(np.array([[255, 0]], dtype=np.uint8)))
    return image


def test_grey_with_alpha():
    for mode in ("LA", "La"):
        image = Image.new("LA", (1, 1), (100, 51)).convert(mode)
        assert abs(decode_image(image).getpixel((0, 0))[0] - 224) <= 2  # 100 at 20 % on white
    assert decode_image(encoded(Image.new("LA", (1, 1), (0, 0)))).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("dtype, mode", [(np.uint16, "I;16"), (np.int32, "I"), (">u2", "I;16B")])
def test_16_bit_is_scaled_not_clipped(dtype, mode):
    values = np.array([[0, 257, 32768, 65278, 65535]])
    image = (
        Image.fromarray(values.astype(np.int32))
        if mode == "I"
        else Image.frombytes(mode, (5, 1), values.astype(dtype).tobytes())
    )
    sources = [image] if mode == "I;16B" else [image, encoded(image, "TIFF"), encoded(image)]
    for source in sources:
        assert np.asarray(decode_image(source))[0, :, 0].tolist() == [0, 1, 128, 254, 255]
    if mode == "I;16":
        keyed = encoded(image, transparency=0)
        assert np.asarray(decode_image(keyed))[0, :, 2].tolist() == [255, 1, 128, 254, 255]


def test_other_modes():
    cmyk = smooth().convert("CMYK")
    assert difference(decode_image(cmyk), smooth()) <= 1
    assert difference(decode_image(encoded(cmyk, "JPEG", quality=95)), smooth()) < 24
    assert decode_image(Image.new("1", (3, 2), 1)).getpixel((0, 0)) == (255, 255, 255)
    assert decode_image(Image.new("YCbCr", (3, 2), (255, 128, 128))).getpixel((0, 0)) == (255, 255, 255)
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert np.array_equal(np.asarray(decode_image(grey)), np.stack([grey] * 3, axis=-1))


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_animation_gives_its_first_frame(format):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if format == "WEBP" else {}
    data = encoded(frames[0], format, save_all=True, append_images=frames[1:], **options)
    assert decode_image(data).getpixel((4, 4)) == (255, 0, 0)


def test_the_source_is_left_alone():
    image = Image.fromarray(NOISE)
    decode_image(image).putpixel((0, 0), (0, 0, 0))
    assert np.array_equal(np.asarray(image), NOISE)
    array = NOISE.copy()
    decode_image(array).putpixel((0, 0), (0, 0, 0))
    assert np.array_equal(array, NOISE)


# what is refused


def test_bad_files(tmp_path):
    jpeg = encoded(smooth(480, 640), "JPEG", quality=95)
    cases = {
        "empty.png": (b"", "it is empty"),
        "page.jpg": (b"<!DOCTYPE html><html><body>404</body></html>", "it is not a JPEG, PNG, WEBP, GIF, BMP or TIFF image"),
        "drawing.png": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "it is not a JPEG"),
        "old.ppm": (encoded(smooth(), "PPM"), "it is not a JPEG"),
        "cut.jpg": (jpeg[: len(jpeg) // 2], "damaged or cut short"),
        "cut.png": (encoded(smooth(480, 640))[:2000], "damaged or cut short"),
        "head.jpg": (jpeg[:3], "it is not a JPEG|header is damaged"),
        "bomb.png": (png_claiming(10_000, 10_000), "10000x10000 is more than 50,000,000 pixels"),
        "big bomb.png": (png_claiming(60_000, 60_000), "more pixels than are safe"),
        "story.png": (png_claiming(4, 4, text=b" " * 2**21), "a text beside its pixels is too long to unpack"),
        "strip.png": (png_claiming(1_000_000, 1), "65,535 a side"),
    }
    for name, (data, match) in cases.items():
        path = tmp_path / name
        path.write_bytes(data)
        assert name in refused(path, match)
        assert str(tmp_path) not in refused(data, match)


def test_bad_paths(tmp_path):
    assert "gone.png" in refused(tmp_path / "gone.png", "there is no such file")
    assert tmp_path.name in refused(tmp_path, "it is a folder")
    refused("https://example.org/a.png", "https://example.org/a.png.*web address")
    assert len(refused("x" * 100_000, "name too long")) < 500
    refused("a\0b", "null")
    refused("", "its path is empty")


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_bombs_are_refused_before_they_are_unpacked():
    code = r"""
import re, sys
from pathlib import Path
from unimm.data.image import decode_image
try: decode_image(sys.stdin.buffer.read())
except ValueError as error: print(error)
print(re.search("VmHWM: *\t*(.*) kB", Path("/proc/self/status").read_text())[1], "torch" in sys.modules)
"""
    bomb = png_claiming(10_000, 10_000)
    run = subprocess.run([sys.executable, "-c", code], input=bomb, capture_output=True, timeout=120)
    *sentence, kilobytes, torch_imported = run.stdout.decode().split()
    assert "10000x10000" in sentence and int(kilobytes) < 250_000
    assert torch_imported == "False" and run.stderr == b""


def test_the_limit_can_be_moved():
    refused(NOISE, "16x12 is more than 191 pixels", max_pixels=191)
    assert decode_image(NOISE, max_pixels=192).size == (16, 12)


@pytest.mark.parametrize(
    "image",
    [
        NOISE.astype(np.float32), NOISE.transpose(2, 0, 1), NOISE[None], NOISE[:, :0], NOISE[0, 0], NOISE > 0, None, 3,
        Image.new("F", (2, 2)), Image.fromarray(np.array([[70_000]], dtype=np.int32)), Image.new("RGB", (0, 3)),
    ],
)  # fmt: skip
def test_odd_objects(image):
    refused(image, "image|Cannot use")


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damaged_files_are_refused_or_read(data):
    """Any damage ends in a picture or an ImageError, never in anything else."""
    format = data.draw(st.sampled_from(FORMATS))
    body = bytearray(encoded(Image.fromarray(NOISE), format))
    for _ in range(data.draw(st.integers(1, 8))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    body = body[: data.draw(st.integers(1, len(body)))]
    try:
        assert decode_image(bytes(body), max_pixels=10**6).mode == "RGB"
    except ImageError as error:
        assert str(error).endswith(".")


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "I", "I;16"]),
    st.tuples(st.integers(1, 40), st.integers(1, 40)), st.integers(1, 40),
)  # fmt: skip
def test_every_mode_and_size_can_be_prepared(mode, size, target):
    image = Image.new(mode, size)
    assert decode_image(image).size == size
    for prepare in (look, crop):
        pixels = prepare(image, target)
        assert pixels.shape == (3, target, target) and pixels.dtype == np.float32 and np.abs(pixels).max() <= 1


def test_a_picture_of_ones_own_is_neither_changed_nor_given_back(tmp_path):
    """Files are read without a copy; what a caller holds, or gets, is its own."""
    turned = Image.Exif()
    turned[0x0112] = 6
    for form, options in (("PNG", {}), ("JPEG", {"exif": turned})):
        Image.new("RGB", (4, 2), "red").save(tmp_path / "0", form, **options)
        with Image.open(tmp_path / "0") as mine:
            given = decode_image(mine)
            assert mine.size == (4, 2) and given.size == ((2, 4) if options else (4, 2))
            given.putpixel((0, 0), (0, 0, 255))
            assert mine.getpixel((0, 0)) != (0, 0, 255)
        assert type(decode_image(tmp_path / "0")) is Image.Image
