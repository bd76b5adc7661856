"""Which frames of a clip are shown, and when they are read.

    uniform   the clip in N stretches of one length, and the middle of each: Video-LLaVA (arXiv 2311.10122)
    fps       so many frames a second, and N of the whole where that would be more: LLaVA-Video (arXiv 2410.02713)
    scene     the clip cut where the picture changes most, and the middle of each scene; long scenes get several

Times are known before a frame is decoded, so that a prompt can be measured and planned. A scene begins where the mean absolute
difference of RGB between neighbouring thumbnails (32 x 32 px, at most 8 a second) is a peak above `SCENE_CHANGE` and above
three times the median; of too many the largest count. That decodes the whole clip, and always finds the same.
"""

import bisect
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import numpy as np
from PIL import Image

from unimm.data.image import look_uint8
from unimm.data.records import Video
from unimm.runtime.number_checks import check_number, check_whole
from unimm.segment import Segment

CHOICES = ("uniform", "fps", "scene")

MAX_FRAMES = 4096
"""Of one clip that are shown."""

SCENE_CHANGE = 0.08
"""Of the mean absolute difference of two thumbnails, in [0, 1], where a scene may begin."""

THUMBNAIL, THUMBNAILS_A_SECOND, MAX_THUMBNAILS = 32, 8, 4096


@dataclass(frozen=True)
class VideoFormat:
    """How a model takes videos; part of its prompt format, and saved with it.

    num_frames: of a clip at most. choice: of frames, one of `CHOICES`. fps: of "fps".
    frame_positions: that a frame takes: those of an image are averaged over squares of neighbours, as LLaVA-Video has it; None:
        as many as an image.
    time_text: what stands before each frame; empty: nothing. time_decimals: of `{seconds}` in there.

    Raises ValueError where one is out of range.
    """

    num_frames: int = 8
    choice: str = "uniform"
    fps: float = 1.0
    frame_positions: int | None = None
    time_text: str = "{seconds}s: "
    time_decimals: int = 1

    def __post_init__(self) -> None:
        check_whole(self, 1, "num_frames")
        check_whole(self, 0, "time_decimals")
        check_number(self, "fps", above=0.0)
        if self.num_frames > MAX_FRAMES:
            raise ValueError(f"num_frames is at most {MAX_FRAMES:,}, not {self.num_frames:,}.")
        if self.frame_positions is not None:
            check_whole(self, 1, "frame_positions")
        if self.choice not in CHOICES:
            raise ValueError(f"Frames are chosen by {', '.join(CHOICES)}, not by '{self.choice}'.")

    def write_time(self, seconds: float) -> str:
        """What stands before the frame of a time."""
        return self.time_text.replace("{seconds}", f"{seconds:.{self.time_decimals}f}")


def format_for(video: Video, video_format: VideoFormat) -> VideoFormat:
    """The format with what the clip itself asks for. ValueError: it asks for what there is not."""
    try:
        return replace(video_format, **video.settings)
    except TypeError:
        unknown = next(name for name in video.settings if not hasattr(video_format, name))
        raise ValueError(f"A video has no setting '{unknown}': give num_frames, choice or fps.") from None


def choose_times(video: Video, video_format: VideoFormat) -> tuple[float, ...]:
    """The times of the frames that are shown, rising, in seconds.

    Raises:
        ValueError: the clip cannot be read, or asks for what there is not.
    """
    wanted = format_for(video, video_format)
    there, begins = video.num_frames, video.begins
    start, end = begins[0] if begins else 0.0, video.seconds
    most = wanted.num_frames if there is None else min(wanted.num_frames, there)
    if wanted.choice == "scene" and most > 1:
        times = _scene_times(video, most)
    elif wanted.choice == "fps" and (end - start) * wanted.fps < most:
        count = max(1, round((end - start) * wanted.fps))
        times = _middles(start, end, min(count, most))
    else:
        times = _middles(start, end, most)
    if begins is None:
        return tuple(times)
    if wanted.choice == "uniform" and len(begins) <= most:
        return tuple(begins)
    return tuple(dict.fromkeys(begins[max(0, bisect.bisect_right(begins, time) - 1)] for time in times))


@dataclass(frozen=True)
class Frames:
    """A video inside a conversation: its frames in order, each with the text of its time before it."""

    shown: tuple[tuple[str, tuple[Segment, ...]], ...]

    def opened(self) -> "Frames":
        """The same, its frames read. ValueError: they cannot be read."""
        return Frames(tuple((text, tuple(map(Segment.opened, frame))) for text, frame in self.shown))


def segments_of(shown: tuple[Segment, ...] | Frames) -> list[Segment]:
    """The segments of an image, or of a video's frames."""
    return [segment for _, frame in shown.shown for segment in frame] if isinstance(shown, Frames) else list(shown)


def choose_frames(video: Video, video_format: VideoFormat | None, image_size: int, num_positions: int) -> Frames:
    """The frames of a clip that are shown, unopened, and what is said of their times.

    image_size, num_positions: of an image that the model looks at.

    Raises:
        ValueError: the model was not made for videos (there is no format), or as `choose_times`.
    """
    if video_format is None:
        raise ValueError(
            "This model was not made for videos: train it with prompt_format.video (recipes/video.md), or show it an image."
        )
    wanted = format_for(video, video_format)
    times = choose_times(video, wanted)
    frames, positions = ChosenFrames(video, times), wanted.frame_positions or num_positions
    looks = [partial(frames.pixels, number, image_size) for number in range(len(times))]
    shown = [(Segment.look(one, positions, condition="image"),) for one in looks]
    return Frames(tuple((wanted.write_time(time), one) for time, one in zip(times, shown, strict=True)))


class ChosenFrames:
    """Frames of a clip, decoded together when the first of them is asked for, each kept until it was given."""

    def __init__(self, video: Video, times: tuple[float, ...]) -> None:
        self.video, self.times = video, times
        self._kept: dict[tuple[int, int], np.ndarray] = {}

    def pixels(self, number: int, size: int) -> np.ndarray:
        """A frame as the vision tower looks at it, (3, size, size) uint8.

        Raises:
            ValueError: the frames cannot be read.
        """
        if (number, size) not in self._kept:
            for place, frame in enumerate(self.video.frames(self.times)):
                self._kept[place, size] = look_uint8(frame, size)
        return self._kept.pop((number, size))


def _middles(start: float, end: float, count: int) -> list[float]:
    """The middles of so many stretches."""
    return [start + (number + 0.5) * (end - start) / count for number in range(count)]


def _scene_times(video: Video, most: int) -> list[float]:
    """So many times: the middle of each scene, several of long ones."""
    start, stop = video.begins[0] if video.begins else 0.0, video.seconds
    count = round(min((stop - start) * THUMBNAILS_A_SECOND, MAX_THUMBNAILS, video.num_frames or MAX_THUMBNAILS))
    places = _middles(start, stop, max(count, 2))
    cuts = find_cuts(video.frames(places), most - 1)
    edges = [start, *((places[cut - 1] + places[cut]) / 2 for cut in cuts), stop]
    scenes = list(pairwise(edges))
    shares = [1] * len(scenes)
    while sum(shares) < most:
        lengths = [(end - start) / share for (start, end), share in zip(scenes, shares, strict=True)]
        shares[int(np.argmax(lengths))] += 1
    return [time for (start, end), share in zip(scenes, shares, strict=True) for time in _middles(start, end, share)]


def find_cuts(frames: Iterable[np.ndarray], most: int) -> list[int]:
    """The numbers of the frames (H, W, 3) uint8 that begin a scene, rising; the `most` clearest, never the first."""
    small = np.stack([_thumbnail(frame) for frame in frames])
    changes = np.abs(small[1:] - small[:-1]).mean((1, 2, 3))
    enough = max(SCENE_CHANGE, 3 * float(np.median(changes))) if len(changes) > 2 else SCENE_CHANGE
    around = np.concatenate([[0.0], changes, [0.0]])
    is_peak = (changes >= around[:-2]) & (changes > around[2:])
    clear = sorted(np.flatnonzero(is_peak & (changes >= enough)), key=lambda place: (-changes[place], place))
    return sorted(int(place) + 1 for place in clear[:most])


def _thumbnail(frame: np.ndarray) -> np.ndarray:
    """(32, 32, 3) float32 in [0, 1]."""
    picture = Image.fromarray(frame).resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    return np.asarray(picture, dtype=np.float32) / 255
