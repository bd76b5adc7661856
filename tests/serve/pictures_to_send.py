"""Encoded images as clients send them, good and bad, for several tests of the server."""

import base64
import io
import struct
import zlib

from PIL import Image


def encoded(image: Image.Image, format: str = "PNG", **more) -> bytes:
    """The bytes of a file."""
    buffer = io.BytesIO()
    image.save(buffer, format, **more)
    return buffer.getvalue()


def data_uri(data: bytes, kind: str = "image/png") -> str:
    """A data: URI of them."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def png_claiming(width: int, height: int, data: bytes = b"") -> bytes:
    """A PNG whose header says any size."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
