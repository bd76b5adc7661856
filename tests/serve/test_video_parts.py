"""Clients' videos: the same answer as in Python, in memory only, and what the server may not read is one fixed sentence."""

import base64
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from unimm.data.template import PromptFormat
from unimm.data.video.choosing import VideoFormat
from unimm.data.video.writing import write_video
from unimm.inference.engine import Engine
from unimm.serve.app import create_app
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
    taking = PromptFormat(video=VideoFormat(num_frames=4, frame_positions=1))
    engine = Engine(replace(tiny_engine.bundle, prompt_format=taking))
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
        ):
            refused = ask(asked)
            assert refused.status_code == 400 and told in refused.json()["error"]["message"], refused.text


def test_a_model_that_takes_none_says_so(server: str, clip: Path) -> None:
    refused = httpx.post(f"{server}/v1/chat/completions", json=body(uri(clip.read_bytes())), timeout=60)
    assert refused.status_code == 400 and "not made for videos" in refused.json()["error"]["message"]
