"""A server in a thread of a program that does something else, too: a notebook, a test.

with BackgroundServer(unimm.load("demo")) as server:
    openai.OpenAI(base_url=f"{server.address}/v1", api_key="none")
"""

import threading
import time
from types import TracebackType
from typing import Self

from unimm.inference.engine import Engine
from unimm.serve.app import create_app
from unimm.serve.server import Server
from unimm.serve.settings import ServerSettings

START_SECONDS, DRAIN_SECONDS = 60.0, 5.0


class BackgroundServer:
    """Serves an engine from its making until `close`.

    Args:
        settings: by default, or with port 0, at a port that is free, and without the page.

    Raises:
        RuntimeError: it did not start; the log has the reason.
    """

    def __init__(self, engine: Engine, settings: ServerSettings | None = None) -> None:
        settings = settings or ServerSettings(port=0, page=False)
        self._server = Server(create_app(engine, settings), DRAIN_SECONDS, host=settings.host, port=settings.port)
        self._thread = threading.Thread(target=self._server.run, name="unimm-server", daemon=True)
        self._thread.start()
        end = time.monotonic() + START_SECONDS
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > end:
                raise RuntimeError("The server did not start: its log has the reason.")
            time.sleep(0.01)
        host, port = self._server.servers[0].sockets[0].getsockname()[:2]
        self.address = f"http://{host}:{port}"

    def close(self) -> None:
        """Stop serving; requests that run may end, for five seconds."""
        self._server.should_exit = True
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
