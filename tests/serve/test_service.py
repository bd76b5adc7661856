"""Admission and its ends: hang-ups, deadlines, a full queue, an engine that has died or is stuck."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from serve.conftest import running
from unimm.inference.decode.workload import Limits
from unimm.inference.engine import Engine
from unimm.serve.app import create_app
from unimm.serve.settings import ServerSettings

LONG: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi."}], "temperature": 50.0, "max_tokens": 400}
DRAW: dict[str, Any] = {"prompt": "a dot", "n": 4}


class Gate:
    """What an engine asks before each step: it may be held up, or made to die."""

    def __init__(self) -> None:
        self.is_open, self.is_waiting, self.dies = threading.Event(), threading.Event(), False
        self.is_open.set()

    def __call__(self) -> bool:
        self.is_waiting.set()
        self.is_open.wait(60)
        if self.dies:
            raise SystemExit
        return False


@contextmanager
def serving(engine: Engine, **settings: Any) -> Iterator[tuple[Gate, FastAPI, httpx.Client]]:
    """A server with an engine of its own, the gate before its steps, and a client."""
    gate = Gate()
    app = create_app(Engine(engine.bundle, Limits(window=1), is_stopped=gate), ServerSettings(page=False, **settings))
    with running(app) as address, httpx.Client(base_url=address, timeout=120) as client:
        try:
            yield gate, app, client
        finally:
            gate.is_open.set()


def until(is_so: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait for something that comes about soon."""
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def is_idle(app: FastAPI) -> bool:
    """Whether nothing is left of any request."""
    service = app.state.service
    stats = service.engine.decoder.stats()
    return service.num_open == stats.num_rows == stats.num_waiting == stats.num_running == 0


@pytest.mark.parametrize("path", ["chat/completions", "images/generations"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_hangs_up_frees_its_rows(demo_engine: Engine, path: str, stream: bool) -> None:
    body = {**(LONG if path.startswith("chat") else DRAW), "n": 2, "stream": stream}
    with serving(demo_engine) as (gate, app, client):
        gate.is_open.clear()
        connection = HTTPConnection(client.base_url.host, client.base_url.port or 80)
        connection.request("POST", f"/v1/{path}", json.dumps(body), {"Content-Type": "application/json"})
        until(lambda: app.state.service.num_open == 2)
        connection.close()
        until(lambda: app.state.service.num_open == 0)
        steps = app.state.service.engine.decoder._running.decoded_steps
        gate.is_open.set()
        until(lambda: is_idle(app))
        assert app.state.service.engine.decoder._running.decoded_steps <= steps + 1
        assert 'outcome="client_closed"' in client.get("/metrics").text


def test_a_full_queue_answers_429(demo_engine: Engine) -> None:
    with serving(demo_engine, max_queue=3) as (gate, app, client):
        gate.is_open.clear()
        first = threading.Thread(target=lambda: client.post("/v1/images/generations", json={"prompt": "a dot", "n": 2}))
        first.start()
        until(lambda: app.state.service.num_open == 2)
        refused = client.post("/v1/chat/completions", json={**LONG, "n": 2})
        assert refused.status_code == 429 and int(refused.headers["Retry-After"]) >= 1
        assert refused.json()["error"]["type"] == "rate_limit_error"
        gate.is_open.set()
        first.join(120)
        assert client.post("/v1/chat/completions", json={**LONG, "max_tokens": 2, "n": 3}).status_code == 200


def test_a_deadline_ends_a_request(demo_engine: Engine) -> None:
    with serving(demo_engine, deadline_seconds=0.2) as (gate, app, client):
        gate.is_open.clear()
        late = client.post("/v1/images/generations", json=DRAW)
        assert late.status_code == 408 and late.json()["error"]["code"] == "deadline_exceeded"
        gate.is_open.set()
        until(lambda: is_idle(app))


def test_an_engine_that_dies_and_a_start_that_serves_again(demo_engine: Engine) -> None:
    with serving(demo_engine) as (gate, app, client):
        gate.is_open.clear()
        answers: list[httpx.Response] = []
        asked = threading.Thread(target=lambda: answers.append(client.post("/v1/chat/completions", json=LONG)))
        asked.start()
        gate.is_waiting.wait(60)
        gate.dies = True
        gate.is_open.set()
        until(lambda: client.get("/health").status_code == 503)
        assert client.get("/health").json() == {"status": "dead"}
        asked.join(120)
        assert answers[0].status_code == 503 and "SystemExit" not in answers[0].text
        assert client.post("/v1/images/generations", json=DRAW).status_code == 503
        gate.dies = False
        app.state.service.engine.decoder.start()
        assert client.get("/health").status_code == 200
        assert client.post("/v1/chat/completions", json={**LONG, "max_tokens": 2}).status_code == 200


def test_an_engine_that_is_stuck_and_goes_on(demo_engine: Engine) -> None:
    with serving(demo_engine, stuck_after=0.5) as (gate, app, client):
        gate.is_open.clear()
        failed = client.post("/v1/chat/completions", json={**LONG, "stream": True})
        assert failed.status_code == 503 and failed.json()["error"]["code"] == "engine_unavailable"
        assert client.get("/health").json() == {"status": "stuck"} and client.get("/metrics").status_code == 200
        gate.is_open.set()
        until(lambda: client.get("/health").status_code == 200)
        until(lambda: is_idle(app))


def test_texts_of_exceptions_stay_inside(demo_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        int("/secret/path")

    with serving(demo_engine) as (_, app, client):
        monkeypatch.setattr(type(app.state.service.engine), "astream_images", fail)
        monkeypatch.setattr(type(app.state.service.engine), "_chat_request", fail)
        for path, body in (("chat/completions", LONG), ("images/generations", DRAW)):
            failed = client.post(f"/v1/{path}", json=body)
            assert failed.status_code == 500 and "secret" not in failed.text and "log" in failed.json()["error"]["message"]
