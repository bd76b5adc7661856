"""uvicorn around the application, which ends without waiting for web pages that are only open."""

import asyncio
import socket
from typing import Any

import uvicorn
from fastapi import FastAPI


class Server(uvicorn.Server):
    """Serves an application of `create_app` until `should_exit`, or a signal in the main thread; see `run` of uvicorn.

    Args:
        drain_seconds: that running requests get at the end; others are not taken then.
        listening: where, as uvicorn's Config has it: `host` and `port`, or none where `run` gets sockets.
    """

    def __init__(self, app: FastAPI, drain_seconds: float, **listening: Any) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http="h11",  # httptools has no limit of header bytes
                ws="none",  # nothing here speaks it; a request to upgrade is an ordinary one then
                log_level="warning",
                server_header=False,
                timeout_graceful_shutdown=max(1, round(drain_seconds)),
                **listening,
            )
        )
        self._app = app

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Finish what runs, and close pages that wait for nothing: a browser holds a connection while a tab is open."""
        closing = [asyncio.create_task(page.close()) for page in self._app.state.pages]
        await super().shutdown(sockets)
        for task in closing:
            task.cancel()
