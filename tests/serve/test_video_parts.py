"""Clients' videos: the same answer as in Python, in memory only, and what the server may not read is one fixed sentence."""

import asyncio
import base64
import gc
import io
import threading
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from unimm.bench.hostile.images import encoded
from unimm.data.template import PromptFormat
from unimm.data.video.choosing import Frames, VideoFormat
from unimm.data.video.container import VideoFile
from unimm.data.video.limits import DecodingLimit
from unimm.data.video.writing import write_video
from unimm.inference.engine import Engine
from unimm.serve import videos
from unimm.serve.app import create_app
from unimm.serve.errors import ApiError
from unimm.serve.settings import ServerSettings

from .conftest import running

pytest.importorskip("av", reason='PyAV is not installed: pip install "unimm[video]"')

TEXT = {"type": "text", "text": "How many circles?"}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    frames = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
    return write_video(tmp_path_factory.mktemp("clips") / "clip.mp4", list(frames), 2)


def uri(data: bytes, media_type: str = "video/mp4") -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def body(*urls: Any, **more: Any) -> dict[str, Any]:
    shown = [{"type": "video_url", "video_url": url, **more} for url in urls]
    return {"messages": [{"role": "user", "content": [*shown, TEXT]}], "max_tokens": 6}


def test_videos_are_looked_at_and_others_are_refused(tiny_engine: Engine, clip: Path) -> None:
    engine = taking(tiny_engine)
    settings = ServerSettings(page=False, max_pixels=1_000_000)
    with running(create_app(engine, settings)) as address, httpx.Client(base_url=address, timeout=60) as client:

        def ask(asked: dict[str, Any]) -> httpx.Response:
            return client.post("/v1/chat/completions", json=asked)

        data = clip.read_bytes()
        reply = ask(body({"url": uri(data)}))
        assert reply.status_code == 200, reply.text
        assert reply.json()["choices"][0]["message"]["content"] == engine.answer(data, TEXT["text"], 6)
        assert ask(body(uri(data), num_frames=2)).json()["usage"]["prompt_tokens"] < reply.json()["usage"]["prompt_tokens"]
        for asked, told in (
            (body(str(clip)), "opens no paths"),
            (body(f"file://{clip}"), "opens no paths"),
            (body("https://x.example/a.mp4"), "opens no web addresses: send the video as"),
            (body(uri(b"#EXTM3U\nfile:///etc/passwd\n" * 9)), "it is no video"),
            (body(uri(data[:300])), "its header is damaged"),
            (body(uri(data, "text/html")), "The data: URI of the video cannot be read"),
            (body(uri(data), uri(data)), "At most 1 videos are looked at, not 2"),
            (body(uri(data), num_frames=0), "num_frames"),
            (body(uri(data), num_frames=129), "At most 128 frames of a video are looked at, not 129"),
        ):
            refused = ask(asked)
            assert refused.status_code == 400 and told in refused.json()["error"]["message"], refused.text


def test_a_model_that_takes_none_says_so(server: str, clip: Path) -> None:
    refused = httpx.post(f"{server}/v1/chat/completions", json=body(uri(clip.read_bytes())), timeout=60)
    assert refused.status_code == 400 and "not made for videos" in refused.json()["error"]["message"]


def taking(engine: Engine, num_frames: int = 4) -> Engine:
    """The same as one that takes videos."""
    return Engine(replace(engine.bundle, prompt_format=PromptFormat(video=VideoFormat(num_frames, frame_positions=1))))


def test_a_video_is_decoded_once_for_all_answers(tiny_engine: Engine, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the threads for videos; and its frames count until the request is over."""
    threads: list[str] = []
    frames_of = VideoFile.frames

    def frames(self: VideoFile, times: Iterable[float]) -> Iterator[np.ndarray]:
        threads.append(threading.current_thread().name)
        return frames_of(self, times)

    monkeypatch.setattr(VideoFile, "frames", frames)
    with TestClient(create_app(taking(tiny_engine), ServerSettings(page=False))) as client:
        for more in ({"n": 3, "temperature": 1.0}, {"votes": 3}):
            threads.clear()
            reply = client.post("/v1/chat/completions", json=body(uri(clip.read_bytes())) | more)
            assert reply.status_code == 200, reply.text
            assert len(threads) == 1 and threads[0].startswith("video-decoder")
    gc.collect()
    assert videos._held.count == 0


LIMITS: dict[str, tuple[dict[str, Any], str]] = {
    "seconds": ({"max_video_seconds": 2.5}, "A video is at most 2.5 seconds long here, not 3"),
    "frames": ({"max_video_frames": 3}, "send num_frames, since this model would look at 4"),
    "pixels": ({"max_video_pixels": 1000}, "More than 1,000 pixels of the video"),
    "time": ({"max_decoding_seconds": -1.0}, "takes longer than -1 seconds to decode"),
    "a frame": ({"max_pixels": 100}, "16x16 is more than 100 pixels a frame"),
}


async def read(engine: Engine, data: bytes, num_frames: int | None = None, **settings: Any) -> Frames:
    return await videos.read_video_part(uri(data), num_frames, ServerSettings(**settings), engine)


@pytest.mark.parametrize("name", LIMITS)
def test_limits_of_the_server(name: str, tiny_engine: Engine, clip: Path) -> None:
    settings, told = LIMITS[name]
    with pytest.raises(ApiError, match=told) as refused:
        asyncio.run(read(taking(tiny_engine), clip.read_bytes(), **settings))
    assert refused.value.status == 400 and videos._held.count == 0


def test_what_only_looks_like_an_animation_is_refused(tiny_engine: Engine) -> None:
    """The formats and scans that images may not have are no way in as a video either."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "TIFF")
    tiff = buffer.getvalue()
    jpeg = encoded(Image.new("RGB", (8, 8)), "JPEG")
    for data in (tiff, tiff[:8] + b"WEBP" + tiff[12:], jpeg, jpeg[:4] + b"xxxxWEBPxx" + jpeg[4:]):
        with pytest.raises(ApiError, match="it is no video"):
            asyncio.run(read(taking(tiny_engine), data))


def test_positions_are_counted_before_frames_are_decoded(
    tiny_engine: Engine, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(VideoFile, "frames", None)
    engine = Engine(replace(tiny_engine.bundle, prompt_format=PromptFormat(video=VideoFormat(4))))
    monkeypatch.setattr(engine.decoder, "max_positions", 15)
    with pytest.raises(ValueError, match="take 16 positions, and there are 15: send a smaller num_frames"):
        asyncio.run(read(engine, clip.read_bytes()))
    for shown, told in ((clip, "The frames of the video take 16"), ((clip, str(clip)), "")):
        with pytest.raises(ValueError, match=f"{told}.* positions, and there are 15"):
            engine.answer(shown, "How many?")


def test_frames_that_are_held_are_limited_and_freed(tiny_engine: Engine, clip: Path) -> None:
    engine, settings = taking(tiny_engine), {"max_video_frames": 4}
    held = [asyncio.run(read(engine, clip.read_bytes(), **settings)) for _ in range(videos.HELD_VIDEOS)]
    assert videos._held.count == 4 * len(held)
    with pytest.raises(ApiError, match="holds too many frames") as refused:
        asyncio.run(read(engine, clip.read_bytes(), **settings))
    assert refused.value.status == 429
    held.clear()
    assert videos._held.count == 0


def test_decoding_ends_with_the_request(tiny_engine: Engine, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task that is cancelled, as at a deadline or when its client hangs up, takes its thread with it at the next frame."""
    began, may_go_on, ended = threading.Event(), threading.Event(), threading.Event()
    count = DecodingLimit.count

    def slowly(self: DecodingLimit, width: int, height: int) -> None:
        began.set()
        may_go_on.wait(30)
        try:
            count(self, width, height)
        except ValueError:
            ended.set()
            raise

    monkeypatch.setattr(DecodingLimit, "count", slowly)

    async def leave() -> None:
        task = asyncio.create_task(read(taking(tiny_engine), clip.read_bytes()))
        await asyncio.to_thread(began.wait, 30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        may_go_on.set()
        assert await asyncio.to_thread(ended.wait, 30)

    asyncio.run(leave())
