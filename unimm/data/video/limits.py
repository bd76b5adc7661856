"""How much of a clip may be decoded: `Video.limit`, counted frame by frame, for those who take clips of strangers."""

import time
from collections.abc import Iterator
from typing import Any

from unimm.data.image_forms import ImageError
from unimm.data.records import Video

JPEG_CODECS = ("mjpeg", "mjpegb", "amv", "sp5x", "smvjpeg", "thp")
"""Codecs whose frames are JPEGs."""

MAX_SCANS = 64
"""Of such a frame, whoever reads it: each costs a pass over all pixels, and FFmpeg cannot be stopped on the way."""


class DecodingLimit:
    """How much is decoded at most of the clips that it is the `limit` of, over all that is asked of them together.

    max_pixels: width x height of all frames that are decoded, shown or not. max_seconds: of work, from the first frame on.
    """

    def __init__(self, max_pixels: int, max_seconds: float) -> None:
        self.max_pixels, self.max_seconds = max_pixels, max_seconds
        self._num_pixels, self._deadline, self._is_stopped = 0, 0.0, False

    def stop(self) -> None:
        """Nobody waits for the frames any more: the next one ends the work. From any thread."""
        self._is_stopped = True

    def count(self, width: int, height: int) -> None:
        """Count a frame that was decoded.

        Raises:
            ImageError: it is one too many, or it took too long; so does each that comes after it.
        """
        self._num_pixels += width * height
        self._deadline = self._deadline or time.monotonic() + self.max_seconds
        if self._is_stopped:
            raise ImageError("Nobody waits for the frames of the video any more: ask again.")
        shorter = "send a shorter or smaller one, or one with more key frames"
        if self._num_pixels > self.max_pixels:
            raise ImageError(f"More than {self.max_pixels:,} pixels of the video would have to be decoded: {shorter}.")
        if time.monotonic() > self._deadline:
            raise ImageError(f"The video takes longer than {self.max_seconds:g} seconds to decode: {shorter}.")


def decode_frames(container: Any, stream: Any, video: Video) -> Iterator[Any]:
    """The frames of PyAV's, from where a container stands; each is counted, and each packet, since one may hold no frame.

    Raises:
        ImageError: the video's limit says so, or a frame is a JPEG of more than `MAX_SCANS` scans.
    """
    is_jpeg, limit = stream.codec_context.name in JPEG_CODECS, video.limit
    for packet in container.demux(stream):
        if limit is not None:
            limit.count(0, 0)
        if is_jpeg and bytes(packet).count(b"\xff\xda") > MAX_SCANS:
            raise ImageError(f"Cannot use the video: a frame is a JPEG of more than {MAX_SCANS} scans, save it again.")
        for frame in packet.decode():
            if limit is not None:
                limit.count(frame.width, frame.height)
            yield frame
