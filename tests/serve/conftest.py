"""One server for all tests of `unimm.serve`: uvicorn in a thread, around the demo, and the official client."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import openai
import pytest
import uvicorn
from fastapi import FastAPI

import unimm
from unimm.inference.engine import Engine
from unimm.serve.app import create_app
from unimm.serve.settings import ServerSettings


@contextmanager
def running(app: FastAPI) -> Iterator[str]:
    """Serve an app in a thread of its own; gives its address, such as "http://127.0.0.1:40123"."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", timeout_graceful_shutdown=5))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    end = time.monotonic() + 120
    while not server.started:
        assert thread.is_alive() and time.monotonic() < end, "the server did not start"
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)


@pytest.fixture(scope="session")
def demo_engine() -> Engine:
    """The model that comes with unimm. Do not change it."""
    return unimm.load("demo", device="cpu")


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
