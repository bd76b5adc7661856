"""Broken and unusual files as people have them, among good ones: a folder of images and captions of every kind, with what
becomes of each. Tests and `unimm bench broken-data` learn from it.
"""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, features

COLOURS = ((200, 40, 40), (40, 200, 40), (40, 40, 200), (220, 220, 40))


def squares(mode: str = "RGB", width: int = 40, height: int = 24) -> Image.Image:
    """Four colours, one in each corner."""
    array = np.zeros((height, width, 3), dtype=np.uint8)
    for number, colour in enumerate(COLOURS):
        top, left = (number // 2) * height // 2, (number % 2) * width // 2
        array[top : top + height // 2, left : left + width // 2] = colour
    return Image.fromarray(array).convert(mode)


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    """An image as a file's bytes."""
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def turned(orientation: int) -> bytes:
    """A JPEG that says in EXIF how it is to be turned."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(squares(), "JPEG", quality=95, exif=exif)


def claims(width: int, height: int) -> bytes:
    """A few bytes that promise so many pixels."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + body


def palette() -> bytes:
    """A PNG with a palette, one colour of which is transparent."""
    image = squares().quantize(8)
    return encoded(image, transparency=0)


PNG, JPEG = encoded(squares()), encoded(squares(), "JPEG", quality=95)
SPECIAL = "<image_placeholder> <|Assistant|>: </s> <begin_of_image>"
TEXT = b"Four squares."

MATRIX: dict[str, tuple[bytes, bytes | None, str | None]] = {
    # name of the image: its bytes, those of its caption (None: there is none), and what is wrong with it (None: it is used)
    "zero.png": (b"", TEXT, "it is empty"),
    "cut.jpg": (encoded(squares(width=400, height=240), "JPEG", quality=95)[:900], TEXT, "damaged or cut short"),
    "page.jpg": (b"<!DOCTYPE html><html><body>404</body></html>", TEXT, "it is not a JPEG"),
    "cmyk.jpg": (encoded(squares("CMYK"), "JPEG", quality=95), TEXT, None),
    "deep.png": (encoded(Image.fromarray(np.full((24, 40), 40_000, np.uint16))), TEXT, None),
    "palette.png": (palette(), TEXT, None),
    "moving.gif": (encoded(squares("P"), "GIF", save_all=True, append_images=[squares("P")]), TEXT, None),
    **{f"turned{number}.jpg": (turned(number), TEXT, None) for number in range(1, 9)},
    "dot.png": (encoded(squares(width=2, height=2).crop((0, 0, 1, 1))), TEXT, None),
    "strip.png": (encoded(Image.new("L", (30_000, 10))), TEXT, None),
    "large.png": (claims(30_000, 30_000), TEXT, "more pixels than are safe to unpack"),
    "gone.png": (b"", TEXT, "is not there"),
    "bare.png": (PNG, None, "has no caption"),
    "blank.png": (PNG, b" \n", "is empty"),
    "long.png": (PNG, b"A square. " * 100_000, None),
    "special.png": (PNG, SPECIAL.encode(), None),
    "latin.png": (PNG, b"A caf\xe9.", "cannot be read"),
    "utf16.png": (PNG, "A square.".encode("utf-16"), "cannot be read"),
    "bom.png": (PNG, b"\xef\xbb\xbf" + TEXT, None),
    "windows.png": (PNG, b"Four squares.\r\nOne is red.\r\n", None),
    "LOUD.JPG": (JPEG, TEXT, None),
    "caf\u00e9.png": (PNG, TEXT, None),
    "photo.jfif": (JPEG, TEXT, None),
    "photo.avif": (encoded(squares(), "AVIF"), TEXT, None) if features.check("avif") else (PNG, TEXT, None),
    "photo.heic": (b"\x00\x00\x00\x18ftypheic" + bytes(40), TEXT, "HEIF images are not read here|damaged"),
}
BAD = {name: why for name, (_, _, why) in MATRIX.items() if why}


def make_folder(folder: Path, names: tuple[str, ...] = tuple(MATRIX), num_good: int = 8) -> Path:
    """Make a folder of files of these kinds among some good ones, `num_good`."""
    folder.mkdir(parents=True)
    good = {f"good{number:02}.png": (PNG, f"Picture {number}.".encode(), None) for number in range(num_good)}
    for name, (content, caption, _) in (good | {name: MATRIX[name] for name in names}).items():
        (folder / name).write_bytes(content)
        text = Path(name).with_suffix(".TXT" if name.isupper() else ".txt").name
        if name == "caf\u00e9.png":
            text = "cafe\u0301.txt"
        if caption is not None:
            (folder / text).write_bytes(caption)
    return folder
