"""Image generations by OpenAI's own client: the engine's drawings in sizes and formats, with previews; what is refused."""

import base64
import io
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from flows import make_engine
from PIL import Image

from serve.conftest import running
from unimm.inference.engine import Engine
from unimm.runtime.provenance import read_provenance
from unimm.serve.app import create_app
from unimm.serve.pictures import MAX_EVENT_CHARACTERS, Encoding, encode
from unimm.serve.settings import ServerSettings

PROMPT = "a large green cross"


def opened(text: str | None) -> Image.Image:
    """A picture in base64."""
    return Image.open(io.BytesIO(base64.b64decode(text or "")))


def test_drawings_are_the_engines_own(client: openai.OpenAI, demo_engine: Engine) -> None:
    settings = {"seed": 9, "guidance_scale": 3.0, "temperature": 0.9}
    reply: Any = client.images.generate(model="dall-e-2", prompt=PROMPT, n=2, extra_body=settings)
    expected = demo_engine.generate_images(PROMPT, 2, 9, 3.0, 0.9)
    assert all(np.array_equal(opened(one.b64_json), image) for one, image in zip(reply.data, expected, strict=True))
    assert (reply.size, reply.output_format, reply.seed) == ("64x64", "png", 9) and reply.data[0].url is None
    assert reply.usage.output_tokens == 2 * 64 and reply.usage.input_tokens > 0


def test_a_random_seed_is_told_and_draws_the_same_again(client: openai.OpenAI) -> None:
    first: Any = client.images.generate(model="demo", prompt=PROMPT)
    again: Any = client.images.generate(model="demo", prompt=PROMPT, extra_body={"seed": first.seed})
    assert first.data[0].b64_json == again.data[0].b64_json


def test_sizes_and_formats(client: openai.OpenAI) -> None:
    reply: Any = client.images.generate(
        model="demo", prompt=PROMPT, size="512x512", output_format="jpeg", output_compression=80, response_format="url"
    )
    url = reply.data[0].url
    assert url.startswith("data:image/jpeg;base64,") and reply.data[0].b64_json is None and reply.size == "512x512"
    image = opened(url.partition(",")[2])
    assert image.size == (512, 512) and image.format == "JPEG"
    said = read_provenance(image)
    assert said and (said["prompt"], said["seed"], said["index"]) == (PROMPT, reply.seed, 0)


def test_previews_and_then_the_same_image(client: openai.OpenAI, server: str) -> None:
    seed = {"seed": 6}
    whole: Any = client.images.generate(model="demo", prompt=PROMPT, extra_body=seed)
    events: list[Any] = []
    for _ in range(6):  # a busy machine leaves out previews that come too late
        if len(events) < 2:
            events = list(client.images.generate(model="demo", prompt=PROMPT, stream=True, partial_images=3, extra_body=seed))
    *previews, last = events
    assert [one.type for one in previews] == ["image_generation.partial_image"] * len(previews) and 1 <= len(previews) <= 3
    assert [one.partial_image_index for one in previews] == list(range(len(previews)))
    assert all(one.output_format == "webp" and opened(one.b64_json).format == "WEBP" for one in previews)
    assert last.type == "image_generation.completed" and last.b64_json == whole.data[0].b64_json
    assert last.usage.total_tokens == whole.usage.total_tokens
    with httpx.stream("POST", f"{server}/v1/images/generations", json={"prompt": PROMPT, "stream": True, **seed}) as raw:
        lines = [line for line in raw.iter_lines() if line and not line.startswith(":")]
    assert lines[0] == "event: image_generation.completed" and lines[-1] == "data: [DONE]" and len(lines) == 3


def test_a_large_picture_fits_an_event() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (384, 384, 3), dtype=np.uint8))
    assert len(encode(noise, Encoding(512, 512, "webp", 100))) > MAX_EVENT_CHARACTERS
    assert len(encode(noise, Encoding(512, 512, "webp", 100), fits_event=True)) <= MAX_EVENT_CHARACTERS


BAD: list[tuple[dict[str, Any], str]] = [
    ({}, "prompt"),
    ({"prompt": " "}, "prompt"),
    ({"prompt": "x" * 50_001}, "prompt"),
    ({"prompt": "x" * 40_000, "output_format": "jpeg"}, "prompt"),
    ({"prompt": PROMPT, "n": 0}, "n"),
    ({"prompt": PROMPT, "n": 10**9}, "n"),
    ({"prompt": PROMPT, "size": "1024x1536"}, "size"),
    ({"prompt": PROMPT, "quality": "high"}, "quality"),
    ({"prompt": PROMPT, "background": "transparent"}, "background"),
    ({"prompt": PROMPT, "output_format": "gif"}, "output_format"),
    ({"prompt": PROMPT, "response_format": "file"}, "response_format"),
    ({"prompt": PROMPT, "partial_images": 4}, "partial_images"),
    ({"prompt": PROMPT, "negative_prompt": "blue"}, "negative_prompt"),
    ({"prompt": PROMPT, "guidance_scale": -1}, "guidance_scale"),
]


@pytest.mark.parametrize(("body", "param"), BAD, ids=lambda value: value if isinstance(value, str) else "")
def test_what_cannot_be_honoured_is_refused(server: str, body: dict[str, Any], param: str) -> None:
    response = httpx.post(f"{server}/v1/images/generations", json=body, timeout=120)
    assert response.status_code == 400 and response.json()["error"]["param"] == param
    assert httpx.post(f"{server}/v1/images/generations", content=b"{", timeout=120).status_code == 400


CLIENTS: list[tuple[str, dict[str, Any]]] = [
    # Open WebUI: images, a chat; LibreChat: its drawing tools, a chat; Nextcloud's integration_openai: images, a chat.
    (
        "images/generations",
        {"model": "dall-e-2", "prompt": PROMPT, "n": 1, "size": "512x512", "response_format": "b64_json"},
    ),
    ("chat/completions", {"model": "demo", "messages": [{"role": "user", "content": "Hi."}], "stream": True}),
    (
        "images/generations",
        {"model": "dall-e-2", "prompt": PROMPT, "n": 1, "size": "1024x1024", "quality": "standard", "style": "vivid"},
    ),
    (
        "images/generations",
        {
            **{"model": "demo", "prompt": PROMPT, "n": 1, "quality": "auto", "size": "auto", "background": "auto"},
            **{"output_format": "png", "output_compression": 100, "moderation": "auto", "user": "1"},
        },
    ),
    (
        "chat/completions",
        {
            **{"model": "demo", "user": "65f", "temperature": 1, "top_p": 1, "presence_penalty": 0, "frequency_penalty": 0},
            **{"messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi."}], "stream": True},
        },
    ),
    ("images/generations", {"model": "demo", "prompt": PROMPT, "size": "512x512", "n": 1, "user": "admin"}),
    (
        "chat/completions",
        {
            **{"model": "demo", "n": 1, "max_completion_tokens": 1000, "user": "admin"},
            **{"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi."}]}]},
        },
    ),
]


@pytest.mark.parametrize(("path", "body"), CLIENTS)
def test_bodies_that_front_ends_send(server: str, path: str, body: dict[str, Any]) -> None:
    response = httpx.post(f"{server}/v1/{path}", json=body, headers={"Authorization": "Bearer none"}, timeout=120)
    assert response.status_code == 200, response.text
    if body.get("stream"):
        assert response.text.rstrip().endswith("data: [DONE]")
    elif path == "images/generations":
        side = {"512x512": 512, "1024x1024": 1024}.get(body["size"], 64)
        assert opened(response.json()["data"][0]["b64_json"]).size == (side, side)
    else:
        assert response.json()["choices"][0]["message"]["role"] == "assistant"


def test_a_model_that_draws_by_a_flow_is_served_as_any_other() -> None:
    """Previews included; what only codes have is refused in one sentence."""
    engine = make_engine(codes=False)
    with running(create_app(engine, ServerSettings(served_model_names=("flow",), page=False))) as address:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        words: dict[str, Any] = {"model": "flow", "prompt": "red", "extra_body": {"seed": 4, "guidance_scale": 3.0}}
        reply: Any = client.images.generate(**words)
        expected = engine.generate_images("red", seed=4, guidance_scale=3.0)[0]
        assert np.array_equal(opened(reply.data[0].b64_json), expected) and reply.usage.output_tokens == 16
        *previews, last = client.images.generate(**words, stream=True, partial_images=2)
        assert 1 <= len(previews) <= 2 and last.b64_json == reply.data[0].b64_json
        with pytest.raises(openai.BadRequestError, match="no temperature, which is for codes"):
            client.images.generate(model="flow", prompt="red", extra_body={"temperature": 0.5})
        client.close()
