"""Videos: every form gives the frames that are shown at the times that are told, and what cannot be read is one sentence."""

import io
import pickle
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unimm.data.image import decode_image, look_uint8
from unimm.data.records import Video
from unimm.data.video import container, sources, writing
from unimm.data.video.choosing import ChosenFrames, VideoFormat, choose_frames, choose_times, find_cuts
from unimm.data.video.limits import DecodingLimit
from unimm.data.video.sources import Pictures, is_video, open_video
from unimm.data.video.writing import write_video

pytest.importorskip("av", reason='PyAV is not installed: pip install "unimm[video]"')

LEVELS = (20, 60, 100, 140, 180, 220)
"""Of grey, of the frames in turn, at two a second."""


def frames(count: int = len(LEVELS), side: int = 32) -> list[np.ndarray]:
    return [np.full((side, side, 3), LEVELS[number % len(LEVELS)], np.uint8) for number in range(count)]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("clips") / "clip.mp4", frames(), 2)


def level(frame: np.ndarray) -> int:
    """Which of the levels a frame is."""
    return int(np.abs(np.array(LEVELS) - frame.mean()).argmin())


def shown(video: Video, **settings: Any) -> list[tuple[float, int]]:
    """The chosen times, and the frames there."""
    times = choose_times(video, VideoFormat(**settings))
    return list(zip(times, map(level, video.frames(times)), strict=True))


def write_folder(folder: Path) -> Path:
    folder.mkdir()
    for number, frame in enumerate(frames(12)):
        Image.fromarray(frame).save(folder / f"frame{number}.png")  # 10 comes after 9
    return folder


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "webm", "avi", "ts", "mpg", "gif", "webp"])
def test_files_and_their_bytes_give_the_same_frames(suffix: str, tmp_path: Path) -> None:
    path = write_video(tmp_path / f"clip.{suffix}", frames(), 2)
    for source in (path, str(path), path.read_bytes(), io.BytesIO(path.read_bytes())):
        video = open_video(source)
        assert video.seconds == pytest.approx(3.0, abs=0.02) and video.num_frames in (6, None)
        assert [number for _, number in shown(video, num_frames=6)] == [0, 1, 2, 3, 4, 5]
        assert [number for _, number in shown(video, num_frames=2)] == [1, 4]
        (middle,) = shown(video, num_frames=1)
        assert middle[0] == pytest.approx(1.5, abs=0.02) and middle[1] in (2, 3)


def test_frames_that_are_images_already(tmp_path: Path) -> None:
    folder = open_video(write_folder(tmp_path / "frames"), frame_rate=2)
    assert folder.seconds == 6 and [number for _, number in shown(folder, num_frames=12)] == [*range(6), *range(6)]
    array = open_video(np.stack(frames()), times=[0, 1, 2, 10, 11, 12])
    assert shown(array, num_frames=6)[0] == (0.0, 0)
    assert [time for time, _ in shown(array)] == [0, 1, 2, 10, 11, 12]
    assert {time for time, _ in shown(array, num_frames=3)} < {0, 1, 2, 10, 11, 12}
    late = open_video(np.stack(frames(20)), times=range(100, 120))  # the first does not begin at 0
    for settings in ({}, {"choice": "fps", "fps": 0.4}, {"choice": "scene"}):
        times = [time for time, _ in shown(late, num_frames=8, **settings)]
        assert len(times) == 8 and times[0] < 103 and times[-1] > 117, settings
    assert [number for _, number in shown(open_video([Image.fromarray(one) for one in frames()]))] == [0, 1, 2, 3, 4, 5]


def test_frames_are_chosen_as_asked(clip: Path) -> None:
    video = open_video(clip)
    assert [time for time, _ in shown(video, num_frames=3)] == pytest.approx([0.5, 1.5, 2.5])
    assert [time for time, _ in shown(video, choice="fps", fps=1)] == pytest.approx([0.5, 1.5, 2.5])
    assert len(shown(video, choice="fps", fps=100, num_frames=4)) == 4
    own = open_video({"type": "video", "video": str(clip), "num_frames": 2})
    assert len(shown(own)) == 2 and len(shown(open_video(clip, choice="fps", fps=1, num_frames=2))) == 2
    with pytest.raises(ValueError, match="chosen by uniform, fps, scene, not by 'best'"):
        VideoFormat(choice="best")
    with pytest.raises(ValueError, match="no setting 'zebra'"):
        choose_times(video.with_settings(zebra=1), VideoFormat())


def test_scenes_are_found_where_the_picture_changes() -> None:
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 6, (16, 16, 3)).astype(np.uint8) for _ in range(12)]
    scenes = [one + 100 if 3 <= number < 10 else one for number, one in enumerate(noise)]
    assert find_cuts(scenes, 5) == [3, 10] and find_cuts(scenes, 1) in ([3], [10]) and find_cuts(noise, 5) == []
    times = choose_times(Pictures(np.stack(scenes)), VideoFormat(num_frames=3, choice="scene"))
    assert [int(time) for time in times] == [1, 6, 11]
    more = choose_times(Pictures(np.stack(scenes)), VideoFormat(num_frames=4, choice="scene"))
    assert len(more) == 4 and sum(3 <= time < 10 for time in more) == 2


def test_long_clips_are_wound_to_what_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same frames, of which far fewer are decoded."""
    path = write_video(tmp_path / "long.mp4", frames(1200, 16), 2)
    times = [10.1, 300.1, 590.1]
    expected = [int(time * 2) % 6 for time in times]
    monkeypatch.setattr(container, "MAX_DECODED", 700)
    assert [level(one) for one in open_video(path).frames(times)] == expected
    monkeypatch.setattr(container, "SEEK_AFTER", 1e9)
    with pytest.raises(ValueError, match="more than 700 frames lie before"):
        list(open_video(path).frames(times))


@pytest.mark.parametrize("suffix", ["ts", "mpg"])
@pytest.mark.parametrize(("count", "rate"), [(600, 25), (80, 1), (600, 10)])
def test_streams_without_an_index_give_the_frames_of_the_times(suffix: str, count: int, rate: int, tmp_path: Path) -> None:
    """They may be wound to a place after the wanted one, and give few frames a time."""
    levels = [20 + number * 7 % 200 for number in range(count)]
    path = write_video(tmp_path / f"clip.{suffix}", [np.full((16, 16, 3), one, np.uint8) for one in levels], rate)
    video = open_video(path)
    assert video.seconds == pytest.approx(count / rate, abs=1.1 / rate) and video.num_frames in (count, count + 1)
    for num_frames in (1, 2, 4, 8):
        times = choose_times(video, VideoFormat(num_frames=num_frames))
        expected = [levels[int(time * rate + 1e-3)] for time in times]
        assert np.abs(np.array([one.mean() for one in video.frames(times)]) - expected).max() < 5, num_frames


def test_a_time_in_mpeg_ps_that_is_anothers_moves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frame 281 says the time of frame 286, before which it is decoded."""
    monkeypatch.setattr(writing, "H264", ("libx264", {"bf": "3", "g": "50"}))
    levels = [20 + number * 7 % 200 for number in range(400)]
    path = write_video(tmp_path / "clip.mpg", [np.full((64, 64, 3), one, np.uint8) for one in levels], 25)
    asked = [275, 282, 284, 290, 350]
    shown = [one.mean() for one in open_video(path).frames([(number + 0.5) / 25 for number in asked])]
    assert np.abs(np.array(shown) - [levels[number] for number in asked]).max() < 5


def test_frames_are_upright_and_small(tmp_path: Path) -> None:
    wide = np.zeros((40, 2048, 3), np.uint8)
    wide[:, :1024] = 200  # bright on the left
    path = write_video(tmp_path / "wide.mp4", [wide], 2)
    assert next(iter(open_video(path).frames([0.0]))).shape == (20, 1024, 3)
    turned = write_video(tmp_path / "turned.mp4", [wide], 2, rotation=90)
    frame = next(iter(open_video(turned).frames([0.0])))
    assert frame.shape == (1024, 20, 3) and frame[-100:].mean() > 150 > frame[:100].mean()  # against the clock: left is below
    with pytest.raises(ValueError, match="2048x40 is more than 1,000 pixels a frame"):
        _ = open_video(path, max_pixels=1000).seconds


def test_frames_are_prepared_as_images_are_and_let_go(clip: Path) -> None:
    video = open_video(clip)
    times = choose_times(video, VideoFormat(num_frames=3))
    chosen = pickle.loads(pickle.dumps(ChosenFrames(video, times)))
    assert np.array_equal(chosen.pixels(1, 16), look_uint8(list(video.frames(times))[1], 16))
    chosen.pixels(0, 16), chosen.pixels(2, 16)
    assert not chosen._kept
    looked_at = choose_frames(video, VideoFormat(num_frames=3, frame_positions=1), 16, 4)
    assert [(text, frame[0].length) for text, frame in looked_at.shown] == [("0.5s: ", 1), ("1.5s: ", 1), ("2.5s: ", 1)]
    assert np.array_equal(np.asarray(decode_image(video)), next(iter(video.frames([1.5]))))


def cut(path: Path, share: float) -> bytes:
    return path.read_bytes()[: int(path.stat().st_size * share)]


def song(folder: Path) -> bytes:
    """A container with sound alone."""
    import av

    with av.open(str(folder / "song.mkv"), "w") as file:
        stream = file.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return (folder / "song.mkv").read_bytes()


BAD: dict[str, tuple[Callable[[Path, Path], Any], str]] = {
    "a text": (lambda clip, folder: b"Hello, this is no video." * 20, "it is no video in MP4"),
    "nothing": (lambda clip, folder: b"", "it is empty"),
    "an mp4 without its index": (lambda clip, folder: cut(clip, 0.5), "its header is damaged or cut short"),
    "sound alone": (lambda clip, folder: song(folder), "it has no video stream"),
    "no file": (lambda clip, folder: folder / "none.mp4", "there is no such file"),
    "an address": (lambda clip, folder: "https://x.example/a.mp4", "addresses are not opened"),
    "an empty folder": (lambda clip, folder: folder, "it holds no images"),
    "no frames": (lambda clip, folder: [], "it has no frames"),
    "one image": (lambda clip, folder: np.zeros((8, 8, 3), np.uint8), "A video is an array"),
    "a number": (lambda clip, folder: 7, "A video is a path, bytes, a file object"),
    "two in a part": (lambda clip, folder: {"type": "video", "video": "a", "url": "b"}, "not 2 of them"),
    "a playlist": (lambda clip, folder: b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n" * 20, "it is no video in MP4"),
    "a time that is none": (lambda clip, folder: Pictures(frames(2), times=[0, float("nan")]), "are finite numbers"),
    "an endless time": (lambda clip, folder: Pictures(frames(2), times=[0, float("inf")]), "are finite numbers"),
    "times that fall": (lambda clip, folder: Pictures(frames(2), times=[1, 0]), "as many times, rising"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_video_is_one_sentence(case: str, clip: Path, tmp_path: Path) -> None:
    make, told = BAD[case]
    with pytest.raises(ValueError, match=told) as raised:
        list(open_video(make(clip, tmp_path)).frames([0.0]))
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 400


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi", "gif", "webp"])
def test_damaged_files_end_in_one_sentence(suffix: str, tmp_path: Path) -> None:
    """Cut anywhere, or with other bytes anywhere: frames, or an error of ours."""
    rng = np.random.default_rng(0)
    data = write_video(tmp_path / f"clip.{suffix}", frames(), 2).read_bytes()
    for number in range(40):
        broken = bytearray(data[: rng.integers(1, len(data))] if number % 2 else data)
        for place in rng.integers(0, len(broken), 0 if number % 2 else 20):
            broken[place] = rng.integers(0, 256)
        try:
            choose_frames(open_video(bytes(broken)), VideoFormat(num_frames=4), 16, 4).opened()
        except ValueError as error:
            assert "\n" not in str(error) and len(str(error)) < 300


def test_a_clip_that_ends_early_is_refused_where_that_matters(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mkv", frames(120), 2)
    video = open_video(cut(path, 0.5))
    assert video.seconds == pytest.approx(60, abs=1)
    assert level(next(iter(video.frames([10.1])))) == 20 % 6
    with pytest.raises(ValueError, match=r"its data ends at [\d.]+ s of 60.0 s|its data is damaged after"):
        list(video.frames([10.1, 55.0]))
    for times in ([33.0], [10.1, 33.0], [33.0, 33.1, 33.2]):  # however many frames are shown
        with pytest.raises(ValueError, match=r"its data ends at|its data is damaged after"):
            list(video.frames(times))
    slow = open_video(write_video(tmp_path / "slow.mp4", frames(3), 0.1))  # a frame stands for the 10 s that it is shown
    assert level(next(iter(slow.frames([29.0])))) == 2
    single = open_video(write_video(tmp_path / "one.mp4", frames(1), 2))
    assert shown(single) == [(pytest.approx(single.seconds / 2), 0)]


def test_the_last_frame_is_shown_as_long_as_the_file_says(tmp_path: Path) -> None:
    """A last picture that stays for ten seconds, as in a recording of slides."""
    import av

    with av.open(str(tmp_path / "slides.mp4"), "w") as file:
        stream = file.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        packets = [packet for one in frames(12) for packet in stream.encode(av.VideoFrame.from_ndarray(one))] + stream.encode()
        last = max(packets, key=lambda packet: packet.pts or 0)
        last.duration = 10 * int(1 / last.time_base)
        file.mux(packets)
    video = open_video(tmp_path / "slides.mp4")
    assert video.seconds == pytest.approx(11.1, abs=0.2)
    assert [level(one) for one in video.frames([0.05, 1.05, 5.0, 9.0])] == [0, 4, 5, 5]


def test_what_is_a_video_by_its_name_or_content(clip: Path) -> None:
    assert all(map(is_video, (clip, str(clip).upper(), clip.read_bytes(), open_video(clip), {"type": "video"})))
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    assert not any(map(is_video, ("a.png", "a.gif", buffer.getvalue(), {"type": "image"}, np.zeros((2, 8, 8, 3), np.uint8))))


def test_a_missing_package_names_the_extra(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(ValueError, match=r'pip install "unimm\[video\]"'):
        _ = open_video(clip.read_bytes()).seconds


def gif(count: int = 4, side: int = 16) -> bytes:
    buffer, pictures = io.BytesIO(), [Image.new("L", (side, side), LEVELS[number % 6]) for number in range(count)]
    pictures[0].save(buffer, "GIF", save_all=True, append_images=pictures[1:], duration=500)
    return buffer.getvalue()


def test_an_animation_is_opened_as_what_its_first_bytes_say(tmp_path: Path) -> None:
    """A TIFF or a JPEG that has WEBP where a WebP has it is neither an animation nor a video."""
    for format in ("TIFF", "JPEG", "BMP"):
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8)).save(buffer, format)
        data = buffer.getvalue()
        for bad in (data, data[:8] + b"WEBP" + data[12:]):
            with pytest.raises(ValueError, match="it is no video"):
                _ = open_video(bad).seconds
        (tmp_path / "clip.gif").write_bytes(data)
        with pytest.raises(ValueError, match="it is no GIF, WebP or PNG"):
            _ = open_video(tmp_path / "clip.gif").seconds
    with pytest.raises(ValueError, match=r"clip2\.gif': no such file|there is no such file"):
        _ = open_video(tmp_path / "clip2.gif").seconds


def test_animations_have_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    grown = bytearray(gif(2))
    screen = grown.find(b"\x10\x00\x10\x00", 13)  # of the first frame, behind the header
    second = grown.find(b"\x10\x00\x10\x00", screen + 4)
    grown[second : second + 4] = b"\xff\x0f\xff\x0f"
    with pytest.raises(ValueError, match="4095x4095 is more than 1,000,000 pixels a frame"):
        _ = open_video(bytes(grown), max_pixels=1_000_000).seconds
    monkeypatch.setattr(sources, "MAX_ANIMATION_FRAMES", 3)
    assert open_video(gif(3)).seconds == 1.5
    with pytest.raises(ValueError, match="more than 3 frames"):
        _ = open_video(gif(4)).seconds
    monkeypatch.setattr(sources, "MAX_SECONDS", 1.0)
    with pytest.raises(ValueError, match="longer than"):
        _ = open_video(gif(3)).seconds


@pytest.mark.parametrize("form", ["gif", "mp4", "avi"])
def test_what_is_decoded_is_counted_and_stopped(form: str, tmp_path: Path) -> None:
    """All frames count, shown or not, each time that they are decoded; what was too much once stays so."""
    video = open_video(write_video(tmp_path / f"clip.{form}", frames(side=16), 2).read_bytes())
    video.limit = DecodingLimit((10 if form == "gif" else 4) * 256, 60)  # all of a GIF are unpacked for its length
    assert video.seconds == 3.0 and len(list(video.frames([0.1]))) == 1
    with pytest.raises(ValueError, match="pixels of the video would have to be decoded"):
        list(video.frames([2.9]))
    with pytest.raises(ValueError, match="pixels of the video would have to be decoded"):
        list(video.frames([0.1]))
    for limit, told in ((DecodingLimit(10**6, -1), "longer than -1 seconds"), (DecodingLimit(10**6, 60), "Nobody waits")):
        video.limit = limit
        if limit.max_seconds > 0:
            assert len(list(video.frames([2.9]))) == 1
            limit.stop()
        with pytest.raises(ValueError, match=told):
            list(video.frames([2.9]))


def test_a_frame_that_is_a_jpeg_has_few_scans() -> None:
    """FFmpeg goes over all pixels for each, and cannot be stopped on the way."""
    import av

    buffer = io.BytesIO()
    Image.new("L", (64, 64), 90).save(buffer, "JPEG", progressive=True)
    jpeg = buffer.getvalue()
    scan = jpeg[jpeg.rfind(b"\xff\xda") : -2]
    for count, is_read in ((0, True), (70, False)):
        file = io.BytesIO()
        with av.open(file, "w", format="avi") as container_file:
            stream: Any = container_file.add_stream("mjpeg", rate=1)
            stream.width = stream.height = 64
            stream.pix_fmt = "yuvj420p"
            packet = av.Packet(jpeg[:-2] + scan * count + jpeg[-2:])
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, 0, 0, Fraction(1)
            container_file.mux(packet)
        video = open_video(file.getvalue())
        if is_read:
            assert next(iter(video.frames([0.0]))).shape == (64, 64, 3)
        else:
            with pytest.raises(ValueError, match="a JPEG of more than 64 scans"):
                list(video.frames([0.0]))
