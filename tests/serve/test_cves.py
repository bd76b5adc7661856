"""What other servers of such models were broken by, one test each: the CVE or issue is in the docstring.

Each has its own tests beside the module that keeps it away (test_media, test_fetch, test_guard); here it is tried over HTTP.
"""

import json
import re
import shutil
import time
from pathlib import Path

import httpx
import pytest
import starlette
from fastapi.testclient import TestClient
from packaging.version import Version
from PIL import Image
from PIL import __version__ as pillow_version

import unimm
from unimm.bench.hostile.images import addresses, broken, data_uri, encoded, odd
from unimm.bench.hostile.posts import FOREIGN, SPECIAL
from unimm.bench.hostile.storm import leaks
from unimm.checkpoints.weight_files import DEMO
from unimm.data.template import Turn
from unimm.inference.decode.decoder import Decoder
from unimm.serve.app import create_app
from unimm.serve.settings import ServerSettings

ROOT = Path(unimm.__file__).parent
HTTP = httpx.Client(timeout=60)
PHOTO = encoded(Image.new("RGB", (16, 16), "red"))


def ask(server, content, status=200, **more):
    """What the server answers to one message; its error where that is not 200."""
    body = {"messages": [{"role": "user", "content": content}], "max_tokens": 3, **more}
    headers = {"content-type": "application/json"}
    answer = HTTP.post(f"{server}/v1/chat/completions", content=json.dumps(body), headers=headers)
    assert answer.status_code == status, answer.text
    assert leaks(answer.content, json.dumps(body).encode()) is None
    return answer.json()["choices"][0]["message"]["content"] if status == 200 else answer.json()["error"]


def show(server, url, status=200):
    """The same, of an image at an address."""
    return ask(server, [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What is it?"}], status)


def test_ssrf_by_image_urls(server, tmp_path):
    """CVE-2025-6242, CVE-2026-24779 (vLLM), CVE-2026-26013 (langchain): addresses inside the network, and two parsers that read
    one address differently. By default no address is opened, nor is any path."""
    for url in addresses("127.0.0.1:9", str(tmp_path / "x.png"))[::8]:
        assert show(server, url, 400)["code"] in ("image_url_not_allowed", "invalid_image")


def test_a_refused_address_is_no_begun_stream(server):
    """vllm-mlx #490: an address is refused before the first byte of a stream, with its status."""
    part = {"type": "image_url", "image_url": {"url": "http://127.0.0.1/x.png"}}
    assert ask(server, [part, {"type": "text", "text": "?"}], 400, stream=True)["code"] == "image_url_not_allowed"


def test_decompression_bombs(server):
    """vLLM #47010; Pillow's CVE-2022-45198, CVE-2026-40192, CVE-2026-54059 (formats that are not decoded here): pixels are
    counted before they are unpacked."""
    assert Version(pillow_version) >= Version("12.3")
    for name in ("PNG bomb", "GIF canvas", "WebP canvas", "FITS", "PCF font", "PostScript", "JPEG of scans"):
        assert show(server, data_uri(broken()[name]), 400)["code"] == "invalid_image"


def test_errors_tell_nothing_of_the_inside(server):
    """CVE-2026-22778 (vLLM): Pillow's error gave a memory address to the client. `ask` looks at every answer here."""
    messages = {show(server, data_uri(data), 400)["message"] for data in (b"no image", b"<html>", b"\0" * 50)}
    assert messages == {"Cannot read the image data: it is not a JPEG, PNG, WEBP or GIF image."}


@pytest.mark.parametrize("name", ["1x1", "1x3", "3x1", "3x500", "mode LA", "mode P", "mode I;16", "CMYK"])
def test_odd_images_are_answered(server, name):
    """CVE-2026-22773 (vLLM): an image of one pixel ended the engine for all."""
    assert show(server, data_uri(odd()[name])) is not None


def test_special_tokens_that_users_type(server, demo_engine):
    """CVE-2026-44222 (GHSA-hpv8-x276-m59f), #57740 (vLLM): placeholders in a text moved, or took, the place of an image."""
    special, tokenizer = demo_engine.tokenizer.control_ids, demo_engine.tokenizer
    for text in (*SPECIAL, *(name.replace("<", "＜") for name in SPECIAL), *("\u200d".join(name) for name in SPECIAL)):
        assert special.isdisjoint(tokenizer.encode(text)) and tokenizer.decode(tokenizer.encode(text)) == text
    picture = demo_engine.template.look(Image.new("RGB", (8, 8)))
    plain, typed = (
        demo_engine.template.chat([Turn("user", (picture, text))], 1).segments for text in ("what", f"{SPECIAL[0] * 9}what")
    )
    assert [one.kind for one in plain] == [one.kind for one in typed]
    ask(server, [{"type": "text", "text": SPECIAL[0] * 20}, {"type": "image_url", "image_url": {"url": data_uri(PHOTO)}}])


def test_the_model_sees_what_people_see(server, demo_engine):
    """vLLM #44974, #47566; SGLang #33464: EXIF's orientation and transparency, by the one way to read images."""
    upright, turned = Image.linear_gradient("L").resize((32, 20)).convert("RGB"), Image.Exif()
    turned[0x0112] = 6
    file, clear = encoded(upright.rotate(90, expand=True), exif=turned), Image.new("RGBA", (32, 20), (0, 0, 0, 0))
    for data in (file, encoded(clear)):
        assert show(server, data_uri(data)) == demo_engine.answer(data, "What is it?", max_new_tokens=3)
    assert show(server, data_uri(file)) == show(server, data_uri(encoded(upright)))


@pytest.mark.parametrize(
    "more",
    [
        {"n": 10**6},
        {"n": 0},
        {"stop": ["a"] * 1000},
        {"stop": "a" * 10_000},
        {"top_logprobs": 10**6, "logprobs": True},
        {"max_tokens": -1},
        {"best_of": 9},
    ],
    ids=str,
)
def test_what_one_request_may_ask_for(server, more):
    """vLLM #37952, #51447: n, stop strings, log-probabilities without a limit."""
    assert ask(server, "hello", 400, **more)["type"] == "invalid_request_error"


def test_as_many_tokens_as_there_is_room_for(server):
    """vLLM #37952: a giant max_tokens takes no memory of its own."""
    ask(server, "hello", max_tokens=10**9, stop=["e", "a", " "])


def test_texts_are_measured_before_they_are_tokenized(server):
    """CVE-2025-62426 (vLLM): a request kept the event loop busy. A text that is too long is refused at once."""
    started = time.process_time()
    ask(server, "word " * 1_000_000, 400)
    assert time.process_time() - started < 5


def test_long_words_are_tokenized_quickly(demo_engine):
    """CVE-2025-62426: the longest text that is read, as one word."""
    started = time.process_time()
    demo_engine.tokenizer.encode("a" * ServerSettings().max_characters)
    assert time.process_time() - started < 2


def test_few_bytes_that_are_many_values(server):
    """As CVE-2025-62426: a small body, of which each of its values is an error of its own."""
    many = b'{"messages":[' + b"1," * 500_000 + b"1]}"
    names = b"{" + b",".join(b'"f%d":1' % number for number in range(90_000)) + b"}"
    for body in (many, many[:180_000] + b"1]}", names, b'{"messages":[],"stop":[' + b"1," * 90_000 + b"1]}"):
        started = time.process_time()
        answer = HTTP.post(f"{server}/v1/chat/completions", content=body, headers={"content-type": "application/json"})
        assert answer.status_code == 400 and time.process_time() - started < 3


@pytest.mark.parametrize("name", [name for name in FOREIGN if name not in ("response_format", "tools", "tool_choice")])
def test_fields_that_were_ways_in(server, name):
    """CVE-2026-5760 (SGLang, templates of requests), CVE-2024-56201 (jinja2's sandbox), CVE-2025-62426 (chat_template_kwargs),
    CVE-2025-62164 (prompt_embeds, a pickle): there are no such fields."""
    assert name in ask(server, "hello", 400, **{name: "{{7*7}}"})["message"]


def test_templates_are_our_own_code():
    """CVE-2026-5760: a model folder's chat_template, or a text, is never run by a template engine: prompts are our own code."""
    assert using(r"^\s*(?:import|from) jinja2|\.apply_chat_template\(", "serve", "inference") == []
    assert "jinja" not in (ROOT / "data" / "template.py").read_text(encoding="utf-8")


def test_no_pickle_in_the_serve_path(server, tmp_path):
    """CVE-2025-32434, CVE-2026-24747 (torch.load), CVE-2025-10164, CVE-2026-3059 (SGLang), CVE-2026-25873 (a pickled body)."""
    loaders = (
        r"^\s*(?:import|from) (?:pickle|joblib|cloudpickle|marshal|dill|shelve)\b|\b(?:torch|yaml)\.load\(|allow_pickle=True"
    )
    layers = ("serve", "inference", "checkpoints", "data", "models", "runtime")
    assert using(loaders, *layers) == ["weight_files.py"], "it opens pickles for `unimm convert --from-pickle` alone"
    assert using("from_pickle", "serve", "inference") == []
    shutil.copytree(DEMO, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors*"))
    (tmp_path / "model" / "pytorch_model.bin").write_bytes(broken()["pickle"])
    with pytest.raises(ValueError, match="pickled weights"):
        unimm.load(tmp_path / "model")
    headers = {"content-type": "application/x-python-pickle"}
    assert HTTP.post(f"{server}/v1/chat/completions", content=broken()["pickle"], headers=headers).status_code == 400


def test_no_remote_code():
    """CVE-2026-4944 (vLLM), CVE-2025-66448 (auto_map): no module says anything of it but no."""
    assert using(r"trust_remote_code[\"']?\s*[=:]\s*(?!False)", "") == []


def test_client_file_names_are_not_used(server, tmp_path):
    """SGLang #17267 and CVE-2026-28414 (Gradio): a file name of an upload wrote, or read, anywhere."""
    target, mask = tmp_path / "written.png", Image.new("RGBA", (16, 16), "white")
    mask.paste((0, 0, 0, 0), (14, 14, 16, 16))
    for name in (str(target), f"../../../../../../../..{target}"):
        files = {"image": (name, PHOTO, "image/png"), "mask": (name, encoded(mask), "image/png")}
        answer = HTTP.post(f"{server}/v1/images/edits", data={"prompt": "a red circle", "n": "1"}, files=files)
        assert answer.status_code == 200 and leaks(answer.content, name.encode()) is None
    assert not target.exists()


def test_every_route_asks_for_the_key(demo_engine):
    """vLLM's key guarded /v1 alone: /invocations, /pause and /metrics were open. Here all but /health are asked."""
    app = create_app(demo_engine, ServerSettings(api_key="key", page=False))
    client = TestClient(app)
    paths = {getattr(route, "path", "") for route in app.routes} | set(app.openapi()["paths"]) | {"/none"}
    assert {"/v1/chat/completions", "/metrics", "/docs", "/openapi.json"} <= paths
    for path in paths - {"/health"}:
        assert client.get(path.replace("{name}", "x") or "/").status_code == 401, path
        assert client.post(path or "/", content=b"{}").status_code == 401, path
    assert client.get("/metrics", headers={"authorization": "Bearer key"}).status_code == 200


def test_headers_have_a_limit(server):
    """CVE-2025-48956 (GHSA-rxc4-3w6r-4v47, vLLM): headers of any size were kept."""
    answer = HTTP.get(f"{server}/v1/models", headers={"x": "a" * 60_000})
    assert 400 <= answer.status_code < 500


def test_the_host_header_is_no_way_around_the_key(demo_engine):
    """CVE-2026-48710 (Starlette before 1.0.1)."""
    assert Version(starlette.__version__) >= Version("1.0.1")
    client = TestClient(create_app(demo_engine, ServerSettings(api_key="key", page=False)))
    for host in ("x/health?", "localhost/health#", "/health"):
        assert client.get("/metrics", headers={"host": host}).status_code == 401


def test_a_dead_engine_is_not_healthy(server, monkeypatch):
    """transformers serve, and others: a dead worker was reported as healthy. (How one dies: test_service.)"""
    assert HTTP.get(f"{server}/health").status_code == 200
    monkeypatch.setattr(Decoder, "is_alive", property(lambda decoder: False))
    assert HTTP.get(f"{server}/health").status_code == 503


def test_images_of_equal_bytes_and_other_sizes_are_not_taken_for_each_other(server):
    """CVE-2025-46722 (vLLM): a cache's key left the size out. The same pixels, in rows of another length, are another image."""
    tall, wide = (Image.frombytes("RGB", size, bytes(range(192)) * 4) for size in ((4, 64), (64, 4)))
    codes = [show(server, data_uri(encoded(one))) for one in (tall, wide, tall)]
    assert codes[0] == codes[2]


def using(pattern, *layers):
    """The modules of some layers in which a pattern is found."""
    paths = [path for layer in layers for path in sorted((ROOT / layer).rglob("*.py"))]
    return [path.name for path in paths if re.search(pattern, path.read_text(encoding="utf-8"), re.MULTILINE)]
