"""Frames to a file: GIF and WebP by Pillow, everything else by PyAV. For examples and tests."""

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from unimm.data.image_forms import ImageError
from unimm.data.video.container import pyav

ENCODERS = {".webm": ("libvpx-vp9", {"crf": "20", "b": "0"}), ".avi": ("mpeg4", {"q": "3"})}
H264 = ("libx264", {"crf": "12", "preset": "veryfast"})

PICTURES = (".gif", ".webp")


def write_video(path: str | Path, frames: Iterable[np.ndarray], frame_rate: float = 2.0, rotation: float = 0.0) -> Path:
    """Write frames (H, W, 3) uint8 of one size, H and W even for all but GIF and WebP; the suffix says the format.

    Args:
        frame_rate: frames a second.
        rotation: degrees that players are to turn them by, against the clock; it is written beside the frames.

    Raises:
        ImageError: there is no frame, or no encoder for the suffix here.
    """
    path, frames = Path(path), list(frames)
    if not frames:
        raise ImageError("A video has at least one frame: give some.")
    if path.suffix.lower() in PICTURES:
        first, *others = [Image.fromarray(frame) for frame in frames]
        lossless: dict[str, Any] = {"lossless": True} if path.suffix.lower() == ".webp" else {}
        first.save(path, save_all=True, append_images=others, duration=round(1000 / frame_rate), loop=0, **lossless)
        return path
    av = pyav()
    codec, options = ENCODERS.get(path.suffix.lower(), H264)
    try:
        with av.open(str(path), "w") as container:
            stream = container.add_stream(codec, rate=Fraction(frame_rate).limit_denominator(1000), options=options)
            stream.height, stream.width = frames[0].shape[:2]
            stream.pix_fmt = "yuv420p"
            if rotation:
                stream.set_display_rotation(rotation)
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
            container.mux(stream.encode())
    except (av.error.FFmpegError, ValueError, LookupError) as error:
        raise ImageError(f"Cannot write {path}: {error}.") from None
    return path
