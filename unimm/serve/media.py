"""The one way in for a client's images: encoded bytes or the address in a message -> an upright RGB picture.

    uploaded bytes                     `read_image`
    "data:image/png;base64,iVBOR..."   `read_image_part`
    "https://..."                      `read_image_part`, of hosts that the operator allows (`unimm.serve.fetch`)
    "data:video/mp4;base64,AAAA..."    `read_video_bytes`: what is made of them is `unimm.serve.videos`

Anything else is refused: a path in a request is never opened. Decoding is that of training and of the Python engine
(`unimm.data.image.decode_image`: first frame, upright, transparency on white), with fewer formats, a limit of pixels that is
checked before they are unpacked, and few pictures unpacked at a time; what the server holds at once is limited, too.
"""

import asyncio
import re
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from PIL import Image

from unimm.data.image import decode_image
from unimm.data.image_forms import ImageError, looks_like_base64, plain_form
from unimm.serve.errors import ApiError
from unimm.serve.fetch import fetch_image
from unimm.serve.settings import ServerSettings

FORMATS = ("JPEG", "PNG", "WEBP", "GIF")
"""File formats that clients may send."""

MAX_SCANS = 64
"""Scans of a progressive JPEG; encoders write about ten, and each costs a pass over all pixels."""

HELD_IMAGES = 8
"""Pixels that all requests together may hold unpacked, in images of the largest size that is allowed."""

MAX_HEAD = 200
"""Characters before the comma of a data: URI."""

_REST = r"|application/octet-stream|)\s*(;[^,]*)?"


class _Kind(NamedTuple):
    """What a part of a message holds. example: how its address begins. files: those that may be sent."""

    name: str
    article: str
    types: re.Pattern[str]
    example: str
    files: str

    @property
    def how(self) -> str:
        """What a client should do."""
        return f'send it as "{self.example},..." with the bytes of a {self.files} file'

    def bad(self, message: str) -> ApiError:
        """An error about it."""
        return ApiError(400, message, code=f"invalid_{self.name}")


_IMAGE = _Kind(
    "image",
    "an",
    re.compile(r"data:(image/[\w.+-]+" + _REST, re.IGNORECASE),
    "data:image/png;base64",
    "JPEG, PNG, WEBP or GIF",
)
_VIDEO = _Kind(
    "video",
    "a",
    re.compile(r"data:(video/[\w.+-]+|image/(?:gif|webp)" + _REST, re.IGNORECASE),
    "data:video/mp4;base64",
    "MP4, WebM, MKV, MOV, AVI or GIF",
)

_decoders = ThreadPoolExecutor(2, thread_name_prefix="image-decoder")


def read_image(data: bytes, settings: ServerSettings) -> Image.Image:
    """The picture that encoded bytes hold: upright RGB, of an animation the first frame. Slow: not for the event loop.

    Raises:
        ApiError: 400, it is no such image or has more than `settings.max_pixels`; 429, all requests together hold too many.
    """
    if data[:2] == b"\xff\xd8" and data.count(b"\xff\xda") > MAX_SCANS:
        raise _bad(f"The image is a JPEG of more than {MAX_SCANS} scans: save it again as an ordinary one.")
    _held.check(settings.max_pixels)
    try:
        picture = decode_image(bytes(data), settings.max_pixels, FORMATS)
    except ImageError as error:  # one of our own sentences: it holds sizes at most
        raise _bad(str(error)) from None
    _held.add(picture)
    return picture


async def aread_image(data: bytes, settings: ServerSettings) -> Image.Image:
    """As `read_image`, for coroutines: in one of few threads of its own, so that pictures wait for each other."""
    return await asyncio.get_running_loop().run_in_executor(_decoders, read_image, data, settings)


async def read_image_part(url: Any, settings: ServerSettings) -> Image.Image:
    """The picture at the address that an `image_url` part of a message gives.

    Raises:
        ApiError: 400, as `read_image` and `fetch_image` do, or what it gives is neither a data: URI nor an allowed address.
    """
    return await aread_image(await _read_url(url, settings, _IMAGE), settings)


async def read_video_bytes(url: Any, settings: ServerSettings) -> bytes:
    """The bytes at the address that a `video_url` part of a message gives.

    Raises:
        ApiError: 400, it gives neither a data: URI nor an allowed address.
    """
    return await _read_url(url, settings, _VIDEO)


async def _read_url(url: Any, settings: ServerSettings, kind: "_Kind") -> bytes:
    """The bytes behind an address that a message gives."""
    if not isinstance(url, str):
        raise kind.bad(f"The url of {kind.article} {kind.name} is a string: {kind.how}.")
    start = url[:MAX_HEAD].lstrip().lower()
    if start.startswith("data:"):
        return await asyncio.to_thread(_from_data_uri, url, kind)
    if start.startswith(("http:", "https:")):
        return await fetch_image(url, settings, kind=kind.name)
    if looks_like_base64(url):
        raise kind.bad(f'The {kind.name} looks like base64: write "{kind.example}," before it.')
    raise kind.bad(f"The server opens no paths and no such addresses: {kind.how}.")


def _from_data_uri(uri: str, kind: "_Kind") -> bytes:
    """What a data: URI holds."""
    head, comma, _ = uri[:MAX_HEAD].partition(",")
    if not comma or not kind.types.fullmatch(head.strip()):
        raise kind.bad(f"The data: URI of the {kind.name} cannot be read: {kind.how}.")
    try:
        return plain_form(uri)
    except ImageError as error:
        raise kind.bad(str(error)) from None


def _bad(message: str) -> ApiError:
    return ApiError(400, message, code="invalid_image")


class _HeldPixels:
    """How many pixels of clients' pictures are unpacked in this process: counted until each picture is dropped."""

    def __init__(self) -> None:
        self._lock, self.count = threading.Lock(), 0

    def check(self, max_pixels: int) -> None:
        """ApiError: one more picture of the largest size may be too much."""
        if self.count > (HELD_IMAGES - 1) * max_pixels:
            message = "The server holds too many large images at once: send smaller ones, or ask again later."
            raise ApiError(429, message, "rate_limit_error", code="too_many_images", retry_after=1)

    def add(self, picture: Image.Image) -> None:
        """Count a picture while it lives."""
        pixels = picture.width * picture.height
        self._change(pixels)
        weakref.finalize(picture, self._change, -pixels)

    def _change(self, pixels: int) -> None:
        with self._lock:
            self.count += pixels


_held = _HeldPixels()
