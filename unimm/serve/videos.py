"""Clients' videos -> the frames that the model is shown: decoded once a request, however many answers it asks for.

That happens in few threads of its own, so that videos wait for each other and for nothing else; within limits that are checked
while frames are decoded, whatever a file says of itself; and it ends with the request: at its deadline, or when its client
hangs up. What all requests together hold of frames is limited, too.
"""

import asyncio
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from unimm.data.image_forms import ImageError
from unimm.data.video.choosing import Frames, segments_of
from unimm.data.video.container import HEAD
from unimm.data.video.limits import DecodingLimit
from unimm.data.video.sources import animation_format, open_video
from unimm.inference.engine import Engine
from unimm.serve.errors import ApiError
from unimm.serve.media import read_video_bytes
from unimm.serve.settings import ServerSettings

THREADS = 2
"""In which videos are decoded; what more there is waits."""

HELD_VIDEOS = 4
"""Frames that all requests together may hold, in videos of `ServerSettings.max_video_frames`."""

ANIMATION_SHARE = 4
"""Of the pixels of a video, an animation may have a part: Pillow unpacks all of them, in one thread, and twice."""

_decoders = ThreadPoolExecutor(THREADS, thread_name_prefix="video-decoder")


async def read_video_part(url: Any, num_frames: int | None, settings: ServerSettings, engine: Engine) -> Frames:
    """The frames that an engine is shown of the video at the address that a `video_url` part of a message gives; decoded.

    num_frames: that the part asks for; None: as the model takes videos.

    Raises:
        ApiError: 400, as `read_image_part`, or it is no video, or too much of one; 429, all requests together hold too many.
        ValueError: the model takes no videos, or its frames take more positions than there are.
    """
    if (num_frames or 0) > settings.max_video_frames:
        raise _bad(f"At most {settings.max_video_frames} frames of a video are looked at, not {num_frames}.")
    data = await read_video_bytes(url, settings)
    share = 1 if animation_format(data[:HEAD]) is None else ANIMATION_SHARE
    limit = DecodingLimit(settings.max_video_pixels // share, settings.max_decoding_seconds)
    try:
        return await asyncio.get_running_loop().run_in_executor(_decoders, _watch, data, num_frames, limit, settings, engine)
    except ImageError as error:  # one of our own sentences: it holds sizes at most
        raise _bad(str(error)) from None
    finally:
        limit.stop()  # a thread is not ended with the task that waits for it


def _watch(data: bytes, num_frames: int | None, limit: DecodingLimit, settings: ServerSettings, engine: Engine) -> Frames:
    video = open_video(data, num_frames=num_frames, max_pixels=settings.max_pixels)
    video.limit = limit
    if engine.prompt_format.video is not None and video.seconds > settings.max_video_seconds:
        raise ImageError(f"A video is at most {settings.max_video_seconds:g} seconds long here, not {video.seconds:.0f}.")
    frames = engine.template.watch(video)
    looked, most = segments_of(frames), engine.decoder.max_positions
    if len(looked) > settings.max_video_frames:
        few = f"At most {settings.max_video_frames} frames of a video are looked at: send num_frames"
        raise ImageError(f"{few}, since this model would look at {len(looked)}.")
    if (taken := sum(segment.length for segment in looked)) > most:
        raise ValueError(f"The frames of the video take {taken} positions, and there are {most}: send a smaller num_frames.")
    _held.reserve(len(looked), HELD_VIDEOS * settings.max_video_frames)
    try:
        opened = frames.opened()
    except BaseException:
        _held.release(len(looked))
        raise
    weakref.finalize(opened, _held.release, len(looked))  # the request's: the engine may keep its last batch a while longer
    return opened


def _bad(message: str) -> ApiError:
    return ApiError(400, message, code="invalid_video")


class _HeldFrames:
    """How many frames of clients' videos are decoded in this process: each counts as long as its request."""

    def __init__(self) -> None:
        self._lock, self.count = threading.RLock(), 0  # they may be dropped while the lock is held

    def reserve(self, wanted: int, most: int) -> None:
        """ApiError: with so many more there would be too many."""
        with self._lock:
            if self.count + wanted > most:
                message = "The server holds too many frames of videos at once: ask for fewer, or again later."
                raise ApiError(429, message, "rate_limit_error", code="too_many_frames", retry_after=1)
            self.count += wanted

    def release(self, count: int) -> None:
        """So many are gone."""
        with self._lock:
            self.count -= count


_held = _HeldFrames()
