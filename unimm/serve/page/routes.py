"""The routes of Gradio that the page needs, and no others: each of the rest (proxies, logins, monitoring, calls by name) is one
more way in that nobody uses here.
"""

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from unimm.serve.errors import ApiError
from unimm.serve.page.context import is_upload

logger = logging.getLogger(__name__)

API = "/gradio_api"
EXACT = {"", "/", "/config", "/theme.css", "/manifest.json", "/robots.txt", "/favicon.ico"} | {
    API + name
    for name in ("/queue/join", "/queue/data", "/upload", "/upload_progress", "/cancel", "/reset", "/info", "/app_id")
}
BEGINNINGS = ("/assets/", "/static/", "/svelte/", f"{API}/file=", f"{API}/heartbeat/", f"{API}/startup-events")

CLOSE_SECONDS = 0.05
"""Between looks whether pages still wait for results."""


class PageRoutes:
    """A Gradio app that answers on those routes only, and on a request that it cannot read with 400, where it answers 500.

    It is asked about uploads and examples only: whoever writes requests by hand can name any file or web address as a picture,
    and Gradio would fetch the address, and, where it is mounted, copy the file to where it is served from.

    closed: the app's own event; once it is set, the connections that its pages hold while they are open end.
    """

    def __init__(self, app: ASGIApp, examples: Path, closed: asyncio.Event) -> None:
        self.app, self.examples, self.closed = app, examples, closed
        self.num_results = 0  # streams of results: open while a page waits for any

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if path not in EXACT and not path.startswith(BEGINNINGS):
            missing = ApiError(404, "There is no such address here: the page is at /page/en and /page/zh.")
            await missing.response(scope, receive, send)
            return
        if path == f"{API}/queue/join":
            body = await Request(scope, receive).body()
            if not self._names_uploads(body):
                refused = ApiError(400, "The page takes uploaded pictures only, no paths and no addresses.")
                await refused.response(scope, receive, send)
                return
            receive = _replay(body, receive)
        if path != f"{API}/queue/data":
            await self._answer(scope, receive, send)
            return
        self.num_results += 1
        try:
            await self._answer(scope, receive, send)
        finally:
            self.num_results -= 1

    async def close(self) -> None:
        """Let pages have the results that they wait for, then end the connections that they hold; no new ones are expected."""
        while self.num_results:
            await asyncio.sleep(CLOSE_SECONDS)
        self.closed.set()

    def _names_uploads(self, body: bytes) -> bool:
        """Whether the files that a body of JSON names are uploads or examples."""
        try:
            return self._are_uploads([json.loads(body)])
        except (ValueError, RecursionError):  # no JSON, or one of a thousand levels; no path: it holds a null character
            return False

    def _are_uploads(self, open_values: list[Any]) -> bool:
        while open_values:
            value = open_values.pop()
            if isinstance(value, dict):
                path = value.get("path")
                if path is not None and not (isinstance(path, str) and is_upload(path, self.examples)):
                    return False
                open_values += value.values()
            elif isinstance(value, list):
                open_values += value
        return True

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        failed = begun = False

        async def filtered(message: Message) -> None:
            nonlocal failed, begun
            failed = failed or (message["type"] == "http.response.start" and message["status"] >= 500)
            if not failed:
                begun = True
                await send(message)

        try:
            await self.app(scope, receive, filtered)
        except Exception as error:
            logger.warning("The page could not read a request", exc_info=error)
            failed = True
        if failed and not begun:
            unread = ApiError(400, "This request cannot be read: only the page itself sends such requests.")
            await unread.response(scope, receive, send)


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives a body that was read, and then what comes after it."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return messages.pop() if messages else await receive()

    return replayed
