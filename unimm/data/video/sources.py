"""Videos as users hold them -> `Video`: a file or its bytes, an animation, a folder of frames, an array, a list of images.

    "clip.mp4", bytes, a file object, a data: URI    by PyAV (`unimm.data.video.container`); GIF, WebP and PNG by Pillow
    a folder of images                               in the order of their names, where 10 comes after 9
    an array (T, H, W, 3) uint8, a list of images    with `times`, or `frame_rate` of them a second
    a part of a message                              {"type": "video", "video": ...}, {"type": "video_url", "video_url": ...}

Nothing is decoded here. A web address is refused, and a name inside a file is never followed.
"""

import bisect
import io
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from unimm.data.image import MAX_PIXELS, decode_image
from unimm.data.image_forms import ImageError, check_keys, held_in_part, plain_form, read_once
from unimm.data.records import ImageLike, Video
from unimm.data.video.container import HEAD, MAX_SECONDS, VideoFile, container_of

SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".ogv", ".flv", ".wmv", ".3gp")
"""What is taken for a video, by its name in small letters."""

ANIMATIONS = (".gif", ".webp", ".png", ".apng")

PARTS = ("video", "video_url")
"""The types of parts of messages that are videos."""

HELD = ("video", "path", "url", "base64")
SETTINGS = ("num_frames", "fps")

MAX_ANIMATION_PIXELS = 4_000_000_000
"""Of all frames of an animation together: all before a frame are unpacked on the way to it."""

MAX_ANIMATION_FRAMES = 10_000
"""Of an animation; small ones would cost time without end."""

STILL_SECONDS = 0.1
"""That a frame of an animation is shown which says no time, as browsers have it."""


def is_video(source: Any) -> bool:
    """Whether something that may be an image is a video without being called so: a file of that name or content, a part of a
    message. An animation, a folder and an array may be either: `open_video` makes a video of them."""
    if isinstance(source, Video):
        return True
    if isinstance(source, Mapping):
        return source.get("type") in PARTS
    if isinstance(source, bytes | bytearray | memoryview):
        return container_of(bytes(source[:HEAD])) is not None
    if isinstance(source, str) and source.lstrip()[:11].lower() == "data:video/":
        return True
    return isinstance(source, str | os.PathLike) and os.fspath(source).lower().endswith(SUFFIXES)


def open_video(
    source: Any,
    *,
    num_frames: int | None = None,
    choice: str | None = None,
    fps: float | None = None,
    times: Iterable[float] | None = None,
    frame_rate: float = 1.0,
    max_pixels: int = MAX_PIXELS,
) -> Video:
    """A video, ready for `Engine.answer` and for records; nothing of it is read but the bytes of a file object.

    Args:
        source: one of the forms of this module.
        num_frames, choice, fps: how its frames are chosen, instead of as the model takes videos (`VideoFormat`).
        times: of a list, an array or a folder: when each frame is shown, rising, in seconds.
        frame_rate: of them, frames a second, where no times are given.
        max_pixels: of a frame.

    Raises:
        ImageError (a ValueError): it is none of the forms, or cannot be found.
    """
    if isinstance(source, Mapping):
        source, asked = _held(source)
        num_frames, fps = asked.get("num_frames", num_frames), asked.get("fps", fps)
        choice = choice or ("fps" if asked.get("fps") is not None else None)
    video = source if isinstance(source, Video) else _open(source, times, frame_rate, max_pixels)
    return video.with_settings(num_frames=num_frames, choice=choice, fps=fps)


class Pictures(Video):
    """Frames that are images already: a list of any images, or an array (T, H, W, 3) uint8; read one at a time.

    times: when each is shown, rising, in seconds; None: `frame_rate` of them a second.

    Raises ImageError where there is no frame, or times do not fit.
    """

    def __init__(
        self,
        pictures: list[ImageLike] | np.ndarray,
        times: Iterable[float] | None = None,
        frame_rate: float = 1.0,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        if not len(pictures):
            raise ImageError("Cannot use the video: it has no frames.")
        if times is None and not 0 < frame_rate < math.inf:
            raise ImageError(f"A video has more than 0 frames a second, not {frame_rate}.")
        self.pictures, self.max_pixels, self._are_given = pictures, max_pixels, times is not None
        self.times = [n / frame_rate for n in range(len(pictures))] if times is None else [float(time) for time in times]
        if not all(map(math.isfinite, self.times)):
            raise ImageError(f"The times of frames are finite numbers of seconds, not {self.times[:5]}.")
        if len(self.times) != len(pictures) or any(b <= a for a, b in zip(self.times, self.times[1:], strict=False)):
            raise ImageError(f"{len(pictures)} frames take as many times, rising, not {len(self.times)}: {self.times[:5]}.")
        self._last = 1 / frame_rate if len(pictures) < 2 else (self.times[-1] - self.times[0]) / (len(pictures) - 1)

    @property
    def seconds(self) -> float:
        """The last is shown as long as the others on the average."""
        return self.times[-1] + self._last

    @property
    def num_frames(self) -> int:
        """As many as images."""
        return len(self.pictures)

    @property
    def begins(self) -> list[float] | None:
        """The times that were given."""
        return self.times if self._are_given else None

    def frames(self, times: Iterable[float]) -> Iterator[np.ndarray]:
        """As `Video.frames`."""
        for time in times:
            yield np.asarray(decode_image(self.pictures[self._place(time)], self.max_pixels))

    def _place(self, seconds: float) -> int:
        return max(0, bisect.bisect_right(self.times, seconds + 1e-6) - 1)


def animation_format(start: bytes) -> str | None:
    """The format that an animation is in by its first 12 bytes, as Pillow names it; None: it is none of them."""
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "WEBP"
    return {b"GIF87a": "GIF", b"GIF89a": "GIF"}.get(start[:6], "PNG" if start[:8] == b"\x89PNG\r\n\x1a\n" else None)


class Animation(Video):
    """An animated GIF, WebP or PNG, opened as what its first bytes say: its frames as they are seen, one after the other."""

    def __init__(self, source: Path | bytes, max_pixels: int = MAX_PIXELS) -> None:
        self.source, self.max_pixels = source, max_pixels

    @property
    def seconds(self) -> float:
        """Until the last frame ends."""
        return self._starts[-1]

    @property
    def num_frames(self) -> int | None:
        """None, where it moves: encoders make one frame of equal neighbours, so that there may have been more."""
        return 1 if len(self._starts) == 2 else None

    def frames(self, times: Iterable[float]) -> Iterator[np.ndarray]:
        """As `Video.frames`."""
        with self._opened() as picture:
            number = -1
            for time in times:
                while number < self._place(time):  # one at a time: all before it are unpacked anyhow
                    number += 1
                    self._load(picture, number)
                yield np.asarray(decode_image(picture.copy(), self.max_pixels))

    @cached_property
    def _starts(self) -> list[float]:
        """When each frame begins, and when the last one ends."""
        starts = [0.0]
        with self._opened() as picture:
            while self._load(picture, len(starts) - 1):
                # a WebP knows only when it is unpacked how long it is shown
                starts.append(starts[-1] + (picture.info.get("duration", 0) / 1000 or STILL_SECONDS))
                if len(starts) * picture.width * picture.height > MAX_ANIMATION_PIXELS:
                    raise ImageError(f"Cannot use {self._name}: all its frames are too much to unpack, shrink or cut it.")
                if len(starts) > MAX_ANIMATION_FRAMES + 1:
                    raise ImageError(f"Cannot use {self._name}: it has more than {MAX_ANIMATION_FRAMES:,} frames, cut it.")
                if starts[-1] > MAX_SECONDS:
                    raise ImageError(f"Cannot use {self._name}: it is longer than {MAX_SECONDS / 3600:.0f} hours, cut it.")
        return starts

    def _load(self, picture: Image.Image, number: int) -> bool:
        """Unpack a frame; returns whether there is one."""
        try:
            picture.seek(number)
        except EOFError:
            return False
        if picture.width * picture.height > self.max_pixels:  # a GIF may grow on the way
            size = f"{picture.width}x{picture.height} is more than {self.max_pixels:,} pixels a frame"
            raise ImageError(f"Cannot use {self._name}: {size}, shrink it first.")
        if self.limit is not None:
            self.limit.count(picture.width, picture.height)
        picture.load()
        return True

    @property
    def _name(self) -> str:
        return "the animation" if isinstance(self.source, bytes) else f"the animation {str(self.source)[:300]!r}"

    def _place(self, seconds: float) -> int:
        return min(max(0, bisect.bisect_right(self._starts, seconds + 1e-6) - 1), len(self._starts) - 2)

    @contextmanager
    def _opened(self) -> Iterator[Image.Image]:
        formats = self._formats()
        decode_image(self.source, self.max_pixels, formats)  # says what is wrong with it, before anything large is unpacked
        file = io.BytesIO(self.source) if isinstance(self.source, bytes) else self.source
        try:
            with Image.open(file, formats=formats) as picture:
                yield picture
        except ImageError:
            raise
        except Exception:  # damaged data makes Pillow raise nearly anything
            raise ImageError(f"Cannot read {self._name}: its data is damaged or cut short.") from None

    def _formats(self) -> tuple[str, ...]:
        """The one format that it is read as. ImageError: it is none of an animation."""
        try:
            start = self.source[:HEAD] if isinstance(self.source, bytes) else _read_start(self.source)
        except OSError as error:
            raise ImageError(f"Cannot read {self._name}: {(error.strerror or str(error)).lower()}.") from None
        form = animation_format(start)
        if form is None:
            raise ImageError(f"Cannot read {self._name}: {'it is no GIF, WebP or PNG' if start else 'it is empty'}.")
        return (form,)


def _read_start(path: Path) -> bytes:
    """The first bytes of a file."""
    with path.open("rb") as file:
        return file.read(HEAD)


def _open(source: Any, times: Iterable[float] | None, frame_rate: float, max_pixels: int) -> Video:
    if isinstance(source, np.ndarray):
        if source.ndim != 4 or source.shape[-1] != 3 or source.dtype != np.uint8:
            raise ImageError(f"A video is an array (T, H, W, 3) uint8, not {source.shape} {source.dtype}.")
        return Pictures(source, times, frame_rate, max_pixels)
    if isinstance(source, list | tuple):
        return Pictures([read_once(one) for one in source], times, frame_rate, max_pixels)
    if isinstance(source, str) and source.lstrip()[:5].lower() == "data:":
        source = plain_form(source)
    source = read_once(source)
    if isinstance(source, bytes | bytearray | memoryview):
        return _of_bytes(bytes(source), max_pixels)
    if not isinstance(source, str | os.PathLike):
        what = "a path, bytes, a file object, a folder of frames, an array (T, H, W, 3) or a list of images"
        raise ImageError(f"A video is {what}, not {type(source).__name__}.")
    text = os.fspath(source)
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", text):
        raise ImageError(f"Cannot read the video {text[:300]!r}: addresses are not opened, download it and give the path.")
    path = Path(text)
    try:
        if path.is_dir():
            return Pictures(frames_in(path), times, frame_rate, max_pixels)
        if not path.exists():
            raise ImageError(f"Cannot read the video {text[:300]!r}: there is no such file.")
    except (OSError, ValueError) as error:  # a name that is too long, or has a null character
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"Cannot read the video {text[:300]!r}: {getattr(error, 'strerror', None) or error!s}.") from None
    return Animation(path, max_pixels) if text.lower().endswith(ANIMATIONS) else VideoFile(path, max_pixels)


def frames_in(folder: Path) -> list[ImageLike]:
    """The images in a folder of frames, in the order of their names, numbers by their value. ImageError: there is none."""
    from unimm.data.readers.paths import IMAGE_SUFFIXES

    paths = [path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")]
    if not paths:
        raise ImageError(f"Cannot use the folder {str(folder)[:300]!r} as a video: it holds no images.")
    parts = [(re.split(r"(\d+)", path.name), path) for path in paths]
    ordered = sorted(parts, key=lambda one: [(int(part), "") if part.isdigit() else (-1, part) for part in one[0]])
    return [path for _, path in ordered]


def _of_bytes(data: bytes, max_pixels: int) -> Video:
    return VideoFile(data, max_pixels) if animation_format(data[:HEAD]) is None else Animation(data, max_pixels)


def _held(part: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The video of a part of a message, and what is asked of its frames. ImageError: the part has another shape."""
    if part.get("type") == "video_url":
        check_keys("part of type video_url", part, ("type", "video_url", *SETTINGS))
        url = held_in_part({"type": "image_url", "image_url": part.get("video_url")})
        return url, {name: part[name] for name in SETTINGS if part.get(name) is not None}
    check_keys("video part", part, ("type", *HELD, *SETTINGS))
    held = [(key, part[key]) for key in HELD if part.get(key) is not None]
    if len(held) != 1:
        named = ", ".join(f'"{key}"' for key in HELD)
        raise ImageError(f"A video part has one of {named}, not {len(held)} of them.")
    key, source = held[0]
    if key == "base64":
        source = plain_form({"type": "image", "base64": source})
    return source, {name: part[name] for name in SETTINGS if part.get(name) is not None}
