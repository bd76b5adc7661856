"""Image edits by OpenAI's own client: what the mask leaves open is drawn, all else stays; what has no mask is refused."""

import base64
import io
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from PIL import Image

from serve.conftest import running
from unimm.inference.engine import Engine
from unimm.serve.app import create_app
from unimm.serve.settings import ServerSettings

PROMPT = "a blue square"


def png(image: Image.Image) -> bytes:
    """As a file."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def photo() -> Image.Image:
    """64 px, no two pixels alike."""
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8))


@pytest.fixture
def mask() -> Image.Image:
    """Transparent in its lower half."""
    mask = Image.new("RGBA", (64, 64), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (0, 32, 64, 64))
    return mask


def test_a_masked_part_is_drawn_anew(client: openai.OpenAI, demo_engine: Engine, photo: Image.Image, mask: Image.Image) -> None:
    asked: dict[str, Any] = {"model": "demo", "image": png(photo), "mask": png(mask), "prompt": PROMPT}
    seed: dict[str, Any] = {"extra_body": {"seed": 3}}
    reply: Any = client.images.edit(**asked, **seed)
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(reply.data[0].b64_json))))
    assert np.array_equal(image, demo_engine.inpaint(photo, mask, PROMPT, seed=3)[0])
    assert np.array_equal(image[:32], np.asarray(photo)[:32]) and not np.array_equal(image[32:], np.asarray(photo)[32:])
    events: list[Any] = list(client.images.edit(**asked, **seed, stream=True, partial_images=1))
    assert [event.type for event in events][-1] == "image_edit.completed" and events[-1].b64_json == reply.data[0].b64_json


def test_lists_of_files_and_transparency_of_the_image_itself(server: str, photo: Image.Image, mask: Image.Image) -> None:
    photo.putalpha(mask.getchannel("A"))
    fields = {"model": "dall-e-2", "prompt": PROMPT, "n": "1", "size": "512x512", "response_format": "b64_json"}  # Open WebUI's
    files = [("image[]", ("../../etc/x.png", png(photo), "image/png"))]
    reply = httpx.post(f"{server}/v1/images/edits", data=fields, files=files, timeout=120)
    assert reply.status_code == 200 and reply.json()["size"] == "512x512", reply.text


def test_an_image_of_any_size_comes_back_whole(client: openai.OpenAI, photo: Image.Image) -> None:
    wide = Image.new("RGB", (120, 70), "navy")
    wide.paste(photo, (3, 2))
    mask = Image.new("RGBA", wide.size, (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (90, 10, 118, 60))
    asked: dict[str, Any] = {"model": "demo", "image": png(wide), "mask": png(mask), "prompt": PROMPT}
    events: list[Any] = list(client.images.edit(**asked, stream=True, partial_images=2))
    assert [event.size for event in events] == ["120x70"] * len(events) and len(events) > 1
    images = [np.asarray(Image.open(io.BytesIO(base64.b64decode(event.b64_json)))) for event in events]
    assert all(image.shape == (70, 120, 3) for image in images)
    stays = np.asarray(mask)[..., 3] > 0
    assert np.array_equal(images[-1][stays], np.asarray(wide)[stays]) and not np.array_equal(images[-1], np.asarray(wide))
    square: Any = client.images.edit(**asked | {"mask": png(mask.transpose(Image.Transpose.FLIP_LEFT_RIGHT))}, size="256x256")
    assert Image.open(io.BytesIO(base64.b64decode(square.data[0].b64_json))).size == (256, 256)


def test_the_canvas_grows(client: openai.OpenAI, demo_engine: Engine, photo: Image.Image) -> None:
    asked: dict[str, Any] = {"model": "demo", "image": png(photo), "prompt": PROMPT}
    reply: Any = client.images.edit(**asked, extra_body={"seed": 3, "right": 40, "top": -8})
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(reply.data[0].b64_json))))
    assert np.array_equal(image, demo_engine.outpaint(photo, PROMPT, right=40, top=-8, seed=3)[0])
    assert np.array_equal(image[:, :64], np.asarray(photo)[8:])


@pytest.fixture(scope="module")
def editor(tiny_engine: Engine) -> Iterator[tuple[Engine, str]]:
    """A model that says that it was taught to edit, and the address of its server."""
    taught = replace(tiny_engine.bundle, prompt_format=replace(tiny_engine.prompt_format, edits="codes_last"))
    engine = Engine(taught)
    with running(create_app(engine, ServerSettings(page=False))) as address:
        yield engine, address
    engine.decoder.stop()


def test_an_instruction_alone_edits_where_the_model_was_taught_to(editor: tuple[Engine, str], picture: Image.Image) -> None:
    engine, address = editor
    files, url = {"image": ("a.png", png(picture))}, f"{address}/v1/images/edits"
    fields = {"prompt": "make it blue", "seed": "3", "n": "2", "guidance_scale": "2", "image_guidance_scale": "1.5"}
    fields |= {"source_bias": "3"}
    body = httpx.post(url, data=fields, files=files, timeout=120).json()
    scales = {"guidance_scale": 2.0, "image_guidance_scale": 1.5, "source_bias": 3.0}
    expected = engine.edit_images(picture, "make it blue", 2, seed=3, **scales)
    images = [np.asarray(Image.open(io.BytesIO(base64.b64decode(one["b64_json"])))) for one in body["data"]]
    assert body["size"] == "24x16" and all(image.shape == (16, 24, 3) for image in images)
    for image, square in zip(images, expected, strict=True):
        assert np.array_equal(image[:, 4:20], np.asarray(square)) and np.array_equal(image[:, :4], np.asarray(picture)[:, :4])
    reply = httpx.post(url, data={**fields, "size": "16x16"}, files=files, timeout=120).json()
    native = [Image.open(io.BytesIO(base64.b64decode(one["b64_json"]))).tobytes() for one in reply["data"]]
    assert native == [square.tobytes() for square in expected]
    client = openai.OpenAI(api_key="none", base_url=f"{address}/v1")
    asked: dict[str, Any] = {"model": "unimm", "image": png(picture), "prompt": "make it blue", "partial_images": 2}
    events: list[Any] = list(client.images.edit(**asked, stream=True))
    assert events[-1].type == "image_edit.completed" and {event.size for event in events} == {"24x16"}
    masked = {**files, "mask": ("m.png", png(Image.new("RGBA", (24, 16), (0, 0, 0, 0))))}
    refused = httpx.post(url, data=fields, files=masked, timeout=120)
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "image_guidance_scale"


def test_what_cannot_be_edited_is_refused(server: str, photo: Image.Image, mask: Image.Image) -> None:
    whole, part = ("a.png", png(photo)), ("m.png", png(mask))
    small = ("m.png", png(mask.resize((32, 32))))
    cases: list[tuple[list[Any], dict[str, str], str | None]] = [
        ([("image", whole)], {"prompt": PROMPT}, "unsupported"),
        ([("mask", part)], {"prompt": PROMPT}, None),
        ([("image", whole), ("image", whole), ("mask", part)], {"prompt": PROMPT}, None),
        ([("image", ("a.png", b"GIF89a")), ("mask", part)], {"prompt": PROMPT}, "invalid_image"),
        ([("image", whole), ("mask", small)], {"prompt": PROMPT}, None),
        ([("image", whole), ("mask", part)], {}, None),
        ([("image", whole), ("mask", part)], {"prompt": PROMPT, "n": "99"}, None),
        ([("image", whole), ("mask", ("m.png", png(Image.new("L", (64, 64)))))], {"prompt": PROMPT}, None),
        ([("image", whole), ("mask", ("m.png", png(Image.new("L", (64, 64), 255))))], {"prompt": PROMPT}, None),
        ([("image", whole), ("mask", part)], {"prompt": PROMPT, "size": "64x96"}, None),
        ([("image", whole), ("mask", part)], {"prompt": PROMPT, "left": "8"}, None),
        ([("image", whole)], {"prompt": PROMPT, "left": "-64"}, None),
        ([("image", whole)], {"prompt": PROMPT, "bottom": "100000"}, None),
        ([("image", whole)], {"prompt": PROMPT, "bottom": "40000"}, None),
        ([("image", whole)], {"prompt": PROMPT, "bottom": "256", "n": "3"}, None),
    ]
    for files, fields, code in cases:
        reply = httpx.post(f"{server}/v1/images/edits", data=fields, files=files, timeout=120)
        assert reply.status_code == 400 and reply.json()["error"]["code"] == code, reply.text
