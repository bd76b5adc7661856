"""The page's routes: what a request names as a file is an upload, or the request is refused."""

import asyncio
import json

import pytest

from unimm.serve.page.routes import PageRoutes


def status(body, examples):
    """What a page answers to a call of its functions, all of which are well."""
    sent = []

    async def page(scope, receive, send):
        assert (await receive())["body"] == body
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/gradio_api/queue/join", "headers": []}
    asyncio.run(PageRoutes(page, examples)(scope, receive, send))
    return sent[0]["status"]


def call(path):
    return json.dumps({"data": [{"files": [{"path": path}]}]}).encode()


def test_examples_are_taken(tmp_path):
    assert status(call(str(tmp_path / "a.png")), tmp_path) == 200
    assert status(b'{"data": []}', tmp_path) == 200


@pytest.mark.parametrize("path", ["/etc/passwd", "x\0", "a" * 100_000, "\ud800", "", 7, ["x"], "http://127.0.0.1/", "../x"])
def test_other_files_are_refused(path, tmp_path):
    assert status(call(path), tmp_path) == 400
    assert status(call(f"{tmp_path}/../x"), tmp_path) == 400


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 90_000, b'{"a":' * 50_000], ids=len)
def test_what_is_no_json_is_refused(body, tmp_path):
    assert status(body, tmp_path) == 400
