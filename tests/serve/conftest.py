"""One server for all tests of `unimm.serve`: uvicorn in a thread, around the demo, and the official client."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import openai
import pytest
from fastapi import FastAPI

import unimm
from unimm.inference.engine import Engine
from unimm.serve.app import create_app
from unimm.serve.server import Server
from unimm.serve.settings import ServerSettings


def start(app: FastAPI, drain_seconds: float) -> tuple[str, Callable[[], None]]:
    """Serve an app in a thread of its own. Returns its address, such as "http://127.0.0.1:40123", and what ends it."""
    server = Server(app, drain_seconds, port=0)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    late = time.monotonic() + 120
    while not server.started:
        assert thread.is_alive() and time.monotonic() < late, "the server did not start"
        time.sleep(0.01)

    def end() -> None:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive(), "the server did not end"

    return f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}", end


@contextmanager
def running(app: FastAPI) -> Iterator[str]:
    """The address of a server of an app, which ends with the context."""
    address, end = start(app, drain_seconds=5)
    try:
        yield address
    finally:
        end()


@pytest.fixture(scope="session")
def demo_engine() -> Engine:
    """The model that comes with unimm. Do not change it."""
    return unimm.load("demo", device="cpu", limits=unimm.Limits(window=1))  # slow enough for previews


@pytest.fixture(scope="session")
def server(demo_engine: Engine) -> Iterator[str]:
    """The address of a server of the demo, under the names "demo" and "dall-e-2"."""
    settings = ServerSettings(served_model_names=("demo", "dall-e-2"), page=False)
    with running(create_app(demo_engine, settings)) as address:
        yield address


@pytest.fixture
def client(server: str) -> Iterator[openai.OpenAI]:
    """OpenAI's own client of that server."""
    with openai.OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0) as client:
        yield client
