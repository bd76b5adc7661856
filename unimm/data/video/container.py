"""Video files (MP4, MOV, MKV, WebM, AVI, MPEG, OGG, FLV, ASF) by PyAV: their length from the header, frames by seeking.

A file is opened by our own file object and read as the format that its first bytes say, so that no name in it is ever followed:
FFmpeg's playlists and protocols are never reached. One frame is unpacked at a time, and scaled down to `KEPT_SIDE`, so that
neither hours nor an 8K picture fill the memory. Frames are turned as the file says, and as wide as its pixels are.

What is cut short or damaged is refused where a chosen frame lies in what is missing, since the times that were told would be
wrong; the last frame stands for what comes up to a second after it, or as long as the file shows it.

MPEG-TS may be wound to a place after the wanted time: then it is wound further back, at last decoded from its start. MPEG-PS
gives few frames a time, so that it is never wound and its frames are counted.
"""

import io
import math
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from unimm.data.image import MAX_PIXELS
from unimm.data.image_forms import ImageError
from unimm.data.records import Video
from unimm.data.video.limits import decode_frames

MAX_SECONDS = 24 * 3600.0
"""Longer clips are refused."""

MAX_DECODED = 200_000
"""Frames that are decoded on the way to those that are shown: files whose only whole picture is the first need all of them."""

KEPT_SIDE = 1024
"""Frames are scaled down to this longest side before they are given."""

SEEK_AFTER = 4.0
"""Seconds that are decoded through; to what lies further ahead the file is wound."""

FURTHER_BACK = (0.0, 5.0, 30.0)
"""Seconds before a time to which a file is wound in turn, until a frame comes that does not begin after it."""

MISTOLD = 17
"""Frames by which a time in MPEG-PS may differ from what is counted before it is taken for a gap: H.264 reorders up to 16."""

ENDS_EARLY = 1.0
"""Seconds that the last frame may stand for, where a frame is not shown longer."""

HEAD = 400

_ISO = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")
_STILL = (b"avif", b"avis", b"heic", b"heix", b"heim", b"heis", b"mif1", b"msf1")
_STARTS = (
    (b"\x1a\x45\xdf\xa3", "matroska"),
    (b"FLV\x01", "flv"),
    (b"OggS", "ogg"),
    (b"\x00\x00\x01\xba", "mpeg"),
    (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "asf"),
)


def container_of(start: bytes) -> str | None:
    """The container that a file is, by its first bytes, as FFmpeg names it; None: it is no video file that is read here."""
    if start[4:8] in _ISO and not (start[4:8] == b"ftyp" and start[8:12] in _STILL):
        return "mp4"
    if start[:4] == b"RIFF" and start[8:12] == b"AVI ":
        return "avi"
    if len(start) > 188 and start[0] == start[188] == 0x47:
        return "mpegts"
    return next((name for sign, name in _STARTS if start.startswith(sign)), None)


@dataclass(frozen=True)
class Header:
    """What a file says of itself. start: of its first frame, in seconds. num_frames: None where it does not say."""

    seconds: float
    num_frames: int | None
    start: float


class VideoFile(Video):
    """A video file, opened anew each time that something is asked of it.

    source: a path, or the bytes of the file. max_pixels: of a frame, checked before one is unpacked.
    """

    def __init__(self, source: Path | bytes, max_pixels: int = MAX_PIXELS) -> None:
        self.source, self.max_pixels = source, max_pixels
        self._header: Header | None = None

    @property
    def name(self) -> str:
        """For messages."""
        return "the video" if isinstance(self.source, bytes) else f"the video {str(self.source)[:300]!r}"

    @property
    def seconds(self) -> float:
        """By its header; where that does not say, by its packets."""
        return self.header.seconds

    @property
    def num_frames(self) -> int | None:
        """As its header has it."""
        return self.header.num_frames

    @property
    def header(self) -> Header:
        """Read once; that of a file is kept as long as the file is the same.

        Raises:
            ImageError: the file cannot be read, has no video, no frame, frames that are too large, or is too long.
        """
        if self._header is None and isinstance(self.source, Path):
            try:
                found = self.source.stat()
            except OSError as error:
                raise ImageError(f"Cannot read {self.name}: {(error.strerror or str(error)).lower()}.") from None
            self._header = _header_of(self.source, found.st_mtime_ns, found.st_size, self.max_pixels)
        elif self._header is None:
            self._header = _read_header(self)
        return self._header

    def frames(self, times: Iterable[float]) -> Iterator[np.ndarray]:
        """As `Video.frames`; wound forward where that pays.

        Raises:
            ImageError: as `header`, and where the file is damaged, or ends before one of the times.
        """
        left, seeks = deque(times), True
        while left:
            with self.opened() as (container, stream):
                reader = _Reader(self, container, stream, seeks)
                try:
                    while left:
                        yield self._picture(reader.at(left[0]), stream)
                        left.popleft()
                except _SeekError:
                    seeks = False  # once more, from the start

    @contextmanager
    def opened(self) -> Iterator[tuple[Any, Any]]:
        """The container of PyAV, and its first video stream. ImageError: there is none."""
        av = pyav()
        try:
            file = io.BytesIO(self.source) if isinstance(self.source, bytes) else self.source.open("rb")
        except OSError as error:
            raise ImageError(f"Cannot read {self.name}: {(error.strerror or str(error)).lower()}.") from None
        with file:
            start = file.read(HEAD)
            form = container_of(start)
            file.seek(0)
            if form is None:
                empty = "it is empty" if not start else "it is no video in MP4, MOV, MKV, WebM, AVI, MPEG, OGG, FLV or WMV"
                raise ImageError(f"Cannot read {self.name}: {empty}.")
            most = {"max_pixels": str(2 * self.max_pixels + 2**16)}  # whatever the header says; `_picture` is exact
            try:
                container = av.open(file, "r", format=form, metadata_errors="ignore", options=most)
            except Exception:  # whatever a damaged header makes of FFmpeg and PyAV; its words may name our own file object
                raise ImageError(f"Cannot read {self.name}: its header is damaged or cut short.") from None
            with container:
                stream = next((one for one in container.streams.video if not _is_cover(one)), None)
                if stream is None:
                    raise ImageError(f"Cannot use {self.name}: it has no video stream.")
                if stream.codec_context is None:
                    raise ImageError(f"Cannot use {self.name}: its codec is not known here, save it as H.264 in MP4.")
                self._check_size(stream.codec_context.width, stream.codec_context.height)
                stream.codec_context.options = most if self.limit is None else {**most, "threads": "1"}
                yield container, stream

    def _check_size(self, width: int, height: int) -> None:
        if width * height > self.max_pixels:
            limit = f"{self.max_pixels:,} pixels a frame"
            raise ImageError(f"Cannot use {self.name}: {width}x{height} is more than {limit}, shrink it first.")

    def _picture(self, frame: Any, stream: Any) -> np.ndarray:
        """A frame as it is to be seen: square pixels, upright, (H, W, 3) uint8."""
        self._check_size(frame.width, frame.height)
        aspect = float(stream.sample_aspect_ratio or 1) or 1.0
        width, height = frame.width * aspect, float(frame.height)
        scale = min(1.0, KEPT_SIDE / max(width, height))
        size = {"width": max(1, round(width * scale)), "height": max(1, round(height * scale))}
        array = frame.reformat(**size, format="rgb24", interpolation="AREA").to_ndarray()
        turns = round(frame.rotation / 90) % 4  # of 90 degrees, against the clock
        return np.ascontiguousarray(np.rot90(array, turns)) if turns else array


class _SeekError(Exception):
    """No frame at or before the wanted time is found by winding: the file has to be decoded from its start."""


class _Reader:
    """Goes forward through a stream; knows the frame that is shown, and the first one after it, each with when it begins.

    seeks: whether the file may be wound; else it is decoded from its start.
    """

    def __init__(self, video: VideoFile, container: Any, stream: Any, seeks: bool) -> None:
        self._video, self._name, self._header = video, video.name, video.header
        self._container, self._stream = container, stream
        self._frames = decode_frames(container, stream, video)
        self._shown: tuple[Any, float] | None = None
        self._ahead: tuple[Any, float] | None = None
        self._seeks = seeks and container.format.name != "mpeg"
        self._num_decoded, self._has_ended, self._begins = 0, False, -1e-9

    def at(self, time: float) -> Any:
        """The frame that is shown at a time.

        Raises:
            ImageError: there is none, it is damaged, or the data ends before it. _SeekError: it is not found by winding.
        """
        if self._seeks and not self._has_ended and time - self._begins > SEEK_AFTER:
            self._seek(time)
        while not self._has_ended and (self._ahead is None or self._ahead[1] <= time + 1e-6):
            self._shown, self._ahead = self._ahead or self._shown, self._next()
        found = self._shown or self._ahead
        if found is None:
            raise ImageError(f"Cannot use {self._name}: it has no frames.")
        frame, begins = found
        seconds, count = self._header.seconds, self._header.num_frames
        own = float((frame.duration or 0) * self._stream.time_base)
        if self._has_ended and time - begins > max(ENDS_EARLY, own, seconds / count if count else 0.0):
            where = f"its data ends at {begins:.1f} s of {seconds:.1f} s, cut it there, or copy it again"
            raise ImageError(f"Cannot read {self._name}: {where}.")
        return frame

    def _seek(self, time: float) -> None:
        """Go on from the last whole picture before a time; never again, where that is not before us."""
        behind = self._begins
        for back in FURTHER_BACK:
            if back and time - back <= behind:
                break
            place = int((time - back + self._header.start) / self._stream.time_base)
            try:
                self._container.seek(place, stream=self._stream, backward=True)
            except Exception:  # a container that cannot be wound: go on as before, where nothing was moved
                if back:
                    break
                self._seeks = False
                return
            self._frames = decode_frames(self._container, self._stream, self._video)
            self._shown = self._ahead = None
            if self._finds(time):
                self._seeks = self._begins > behind
                return
        raise _SeekError

    def _finds(self, time: float) -> bool:
        """Whether the first frame after a seek says when it begins, and that is not after the time."""
        self._begins = -1e-9
        try:
            self._ahead = self._next()
        except ImageError:
            if self._num_decoded > MAX_DECODED:
                raise
            return False
        return self._ahead is not None and self._ahead[0].pts is not None and self._ahead[1] <= time + 1e-6

    def _next(self) -> tuple[Any, float] | None:
        try:
            frame = next(self._frames, None)
        except ImageError:
            raise
        except Exception:  # FFmpeg's own errors, and what PyAV makes of them
            told = f"its data is damaged after {max(self._begins, 0.0):.1f} s"
            raise ImageError(f"Cannot read {self._name}: {told}.") from None
        self._has_ended = frame is None
        if frame is None:
            return None
        self._num_decoded += 1
        if self._num_decoded > MAX_DECODED:
            few = "cut it, or save it with more key frames"
            raise ImageError(f"Cannot use {self._name}: more than {MAX_DECODED:,} frames lie before those to show, {few}.")
        length = 1 / float(self._stream.average_rate or 25)
        counted = max(self._begins, 0.0) + length * (self._num_decoded > 1)
        told = counted if frame.pts is None else float(frame.pts * self._stream.time_base) - self._header.start
        # The few times in MPEG-PS may be those of a neighbour, so that only a gap is believed.
        is_counted = self._container.format.name == "mpeg" and abs(told - counted) < MISTOLD * length
        self._begins = counted if is_counted else max(self._begins, told)
        return frame, self._begins


@lru_cache(4096)
def _header_of(path: Path, changed: int, size: int, max_pixels: int) -> Header:
    """Kept: a run is planned by reading records far ahead, many times over."""
    return _read_header(VideoFile(path, max_pixels))


def _read_header(video: VideoFile) -> Header:
    with video.opened() as (container, stream):
        base = stream.time_base
        start = float((stream.start_time or 0) * base)
        seconds, count = 0.0, stream.frames or None
        if stream.duration:
            seconds = float(stream.duration * base)
        elif container.duration:
            seconds = container.duration / 1e6
        if not seconds > 0 or container.format.name == "mpeg":  # which says the time of its last frame at best
            seconds, count = _count(video, container, stream, start)
        if not math.isfinite(seconds) or seconds > MAX_SECONDS:
            raise ImageError(f"Cannot use {video.name}: it is longer than {MAX_SECONDS / 3600:.0f} hours, cut it.")
        rate = float(stream.average_rate or 0)
        return Header(seconds, count or (max(1, round(seconds * rate)) if rate else None), start)


def _count(video: VideoFile, container: Any, stream: Any, start: float) -> tuple[float, int]:
    """Seconds and frames by the packets, which are not unpacked. A single frame without a length is a second of it."""
    base, ends, num_packets = stream.time_base, 0.0, 0
    try:
        for packet in container.demux(stream):
            if video.limit is not None:
                video.limit.count(0, 0)
            num_packets += packet.size > 0
            if packet.size and packet.pts is not None:
                ends = max(ends, float((packet.pts + (packet.duration or 0)) * base) - start)
    except ImageError:
        raise
    except Exception:
        raise ImageError(f"Cannot read {video.name}: its data is damaged or cut short.") from None
    if not num_packets:
        raise ImageError(f"Cannot use {video.name}: it has no frames.")
    if stream.average_rate and (container.format.name == "mpeg" or not ends):
        ends = max(ends, num_packets / float(stream.average_rate))
    return ends or 1.0, num_packets


def _is_cover(stream: Any) -> bool:
    """Whether a stream is the picture on the cover of a song."""
    return bool(int(stream.disposition) & 0x400)


def pyav() -> Any:
    """The package `av`. ImageError: it is not installed."""
    try:
        import av
    except ImportError:
        raise ImageError('Video files need PyAV, which is not installed: pip install "unimm[video]".') from None
    return av
