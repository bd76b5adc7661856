"""The page's routes: what a request names as a file is an upload, or the request is refused."""

import asyncio
import json
import threading
import time
from contextlib import ExitStack

import httpx
import pytest
from fastapi import FastAPI
from fastapi.responses import StreamingResponse

from serve.conftest import start
from unimm.serve.page.ask import WAITING, unanswered_left_out
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
    asyncio.run(PageRoutes(page, examples, asyncio.Event())(scope, receive, send))
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


def test_a_server_ends_beside_an_open_page_once_it_has_its_results(tmp_path):
    """As Gradio's, a page holds a connection that never ends until it is closed, and one more while it waits for results."""
    closed, finished, page, app = asyncio.Event(), threading.Event(), FastAPI(), FastAPI()

    @page.get("/gradio_api/heartbeat/x")
    def heartbeat():
        async def alive():
            yield "alive"
            await closed.wait()

        return StreamingResponse(alive())

    @page.get("/gradio_api/queue/data")
    def results():
        async def come():
            yield "first"
            await asyncio.to_thread(finished.wait, 60)
            assert not closed.is_set()
            yield " last"

        return StreamingResponse(come())

    app.state.pages = [PageRoutes(page, tmp_path, closed)]
    app.mount("/page/en", app.state.pages[0])
    address, end = start(app, drain_seconds=60)
    with ExitStack() as stack:
        client = stack.enter_context(httpx.Client(base_url=f"{address}/page/en/gradio_api", timeout=60))
        alive = stack.enter_context(client.stream("GET", "/heartbeat/x")).iter_text()
        read = stack.enter_context(client.stream("GET", "/queue/data")).iter_text()
        assert next(alive) == "alive" and next(read) == "first"
        ending = threading.Thread(target=end)
        ending.start()
        time.sleep(0.3)  # a few looks at what is open
        assert ending.is_alive() and not closed.is_set()
        finished.set()
        assert "".join(read) == " last" and "".join(alive) == ""
        ending.join(30)
        assert not ending.is_alive()


def test_a_question_that_was_stopped_is_not_asked_again():
    """Its picture stays; what is said in the answer's place goes to no model."""
    picture, first, second = {"type": "image", "image": "a.png"}, {"type": "text", "text": "a"}, {"type": "text", "text": "b"}
    asked, next_one = {"role": "user", "content": [picture, first]}, {"role": "user", "content": [second]}
    for said in (WAITING, "Stopped."):
        notice = {"role": "assistant", "content": [{"type": "text", "text": said}]}
        kept = unanswered_left_out([asked, notice, next_one], "Stopped.")
        assert kept == [{"role": "user", "content": [picture, second]}]
        assert unanswered_left_out([notice, next_one], "Stopped.") == [notice, next_one]
    answered = [asked, {"role": "assistant", "content": [second]}, next_one]
    assert unanswered_left_out(answered, "Stopped.") == answered
