"""What stands before every route, the page's too: header limits, the API key, bodies of bounded size and time.

They are ASGI middlewares around the whole application, not dependencies of routes, so that no route can be forgotten; the
only path without a key is /health. Paths are those that the router itself uses (`scope["path"]`), never made from the Host
header. From the outside in:

    HeaderLimit    431 for more header bytes or fields than any client needs
    HostCheck      421 for a name that is not this server's, where it has a list of its names (against DNS rebinding)
    ApiKeyCheck    401 without the key: "Authorization: Bearer KEY", or basic authentication (browsers) with it as password
    BodyLimit      413 for a large body, announced or not, 408 for a slow one, 429 where all bodies together are too many, 400
                   for one of more values than any request has
"""

import asyncio
import base64
import binascii
import hmac
import re
from collections.abc import Iterable

from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from unimm.serve.errors import ApiError
from unimm.serve.settings import ServerSettings

MAX_HEADER_BYTES = 32_768
MAX_HEADERS = 100

BODY_SECONDS = 60.0
"""Until a body must have arrived."""

PAUSE_SECONDS = 15.0
"""Between two pieces of a body."""

DRAIN_SECONDS = 2.0
"""For which the rest of a body that is too large is read and dropped."""

HELD_BODIES = 8
"""Bytes that the bodies of all requests together may take, in bodies of the largest size."""

MAX_VALUES = 100_000
"""Commas and opening brackets of a body that is no form. A small body of so many values is read and judged for minutes, in
gigabytes: each one that is wrong is an error of its own. A text full of commas that is not too long has fewer."""

OPEN_PATHS = ("/health",)

LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")


def add_guards(app: FastAPI, settings: ServerSettings) -> None:
    """Put all of them around an application."""
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes)
    if settings.api_key:
        app.add_middleware(ApiKeyCheck, api_key=settings.api_key)
    if settings.allowed_hosts:
        app.add_middleware(HostCheck, names=settings.allowed_hosts)
    app.add_middleware(HeaderLimit)


async def refuse(scope: Scope, receive: Receive, send: Send, error: ApiError, **headers: str) -> None:
    """Answer a request, or a websocket's, before the application hears of it. headers: "_" in their names stands for "-"."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": ""})
        return
    response = error.response
    response.headers.update({name.replace("_", "-"): value for name, value in headers.items()})
    await response(scope, receive, send)


class HeaderLimit:
    """Refuses requests with too many, or too long, header fields. uvicorn's h11 has a limit of its own, httptools has none."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        if scope["type"] in ("http", "websocket"):
            headers = scope["headers"]
            size = sum(len(name) + len(value) for name, value in headers)
            if size > MAX_HEADER_BYTES or len(headers) > MAX_HEADERS:
                message = f"At most {MAX_HEADERS} header fields with {MAX_HEADER_BYTES:,} bytes are read: send fewer."
                await refuse(scope, receive, send, ApiError(431, message, code="headers_too_large"), connection="close")
                return
        await self.app(scope, receive, send)


class HostCheck:
    """Refuses requests to names that are not this server's.

    A page of the web that has its own name resolved to 127.0.0.1 could else read a local server that asks for no key.

    names: without ports; "::1" without brackets.
    """

    def __init__(self, app: ASGIApp, names: Iterable[str]) -> None:
        self.app, self.names = app, frozenset(name.lower() for name in names)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        if scope["type"] in ("http", "websocket") and not self._is_known(Headers(scope=scope).getlist("host")):
            message = "This server has another name than the Host header says: start it with --api-key to serve other names."
            await refuse(scope, receive, send, ApiError(421, message, code="unknown_host"))
            return
        await self.app(scope, receive, send)

    def _is_known(self, hosts: list[str]) -> bool:
        found = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\[\]:]+))(?::\d+)?", hosts[0]) if len(hosts) == 1 else None
        return found is not None and (found[1] or found[2]).lower() in self.names


class ApiKeyCheck:
    """Asks for a key on every path but `OPEN_PATHS`. Compared in constant time."""

    def __init__(self, app: ASGIApp, api_key: str) -> None:
        self.app, self._key = app, api_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        is_asked = scope["type"] == "websocket" or (scope["type"] == "http" and scope["path"] not in OPEN_PATHS)
        if is_asked and not self._is_known(Headers(scope=scope)):
            message = 'This server asks for its API key: send it as "Authorization: Bearer KEY".'
            is_browser = "text/html" in Headers(scope=scope).get("accept", "")
            scheme = 'Basic realm="unimm: any name, the API key as password", charset="UTF-8"' if is_browser else "Bearer"
            error = ApiError(401, message, "authentication_error", code="invalid_api_key")
            await refuse(scope, receive, send, error, www_authenticate=scheme)
            return
        await self.app(scope, receive, send)

    def _is_known(self, headers: Headers) -> bool:
        given = headers.getlist("authorization")
        scheme, _, value = given[0].partition(" ") if len(given) == 1 else ("", "", "")
        key = value.strip().encode("latin-1", "replace")
        if scheme.lower() == "basic":
            try:
                key = base64.b64decode(key, validate=True).partition(b":")[2]
            except (binascii.Error, ValueError):
                return False
        elif scheme.lower() != "bearer":
            return False
        return hmac.compare_digest(key, self._key)


class BodyLimit:
    """Reads each body before the application does, up to a size and a time.

    Reading ahead costs what the application would hold anyhow, and makes the answer clear: nothing has begun yet.
    """

    def __init__(
        self,
        app: ASGIApp,
        max_bytes: int,
        seconds: float = BODY_SECONDS,
        pause_seconds: float = PAUSE_SECONDS,
        held_bodies: int = HELD_BODIES,
    ) -> None:
        self.app, self.max_bytes, self.seconds, self.pause_seconds = app, max_bytes, seconds, pause_seconds
        self.most_held, self.held = held_bodies * max_bytes, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body = _Body()
        try:
            if refusal := await self._read(body, scope, receive):
                await _drain(body, receive)
                await refuse(scope, receive, send, refusal, connection="close")
            elif not body.is_disconnected:
                await self.app(scope, body.replay(receive), send)
        finally:
            self.held -= body.size

    async def _read(self, body: "_Body", scope: Scope, receive: Receive) -> ApiError | None:
        """All of the body; or what to answer instead."""
        message = f"The body of a request is at most {self.max_bytes:,} bytes: send smaller or fewer images."
        too_large = ApiError(413, message, code="body_too_large")
        headers = Headers(scope=scope)
        length, is_form = headers.get("content-length", "0"), headers.get("content-type", "").startswith("multipart/")
        if length.isascii() and length.isdigit() and int(length[:20]) > self.max_bytes:
            return too_large
        try:
            async with asyncio.timeout(self.seconds):
                while not body.is_complete:
                    async with asyncio.timeout(self.pause_seconds):
                        size = body.add(await receive())
                    self.held += size
                    if body.size > self.max_bytes:
                        return too_large
                    if body.num_values > MAX_VALUES and not is_form:
                        return ApiError(
                            400, f"The body holds more than {MAX_VALUES:,} values: send fewer.", code="too_many_values"
                        )
                    if self.held > self.most_held:
                        message = "The server is reading too many bodies: ask again later."
                        return ApiError(429, message, "rate_limit_error", code="too_many_bodies", retry_after=1)
        except TimeoutError:
            body.is_slow = True
            return ApiError(408, "The body of the request came too slowly: send it again.", code="body_too_slow")
        return None


async def _drain(body: "_Body", receive: Receive) -> None:
    """Drop what still comes, for a moment: a client that sends all before it reads would see a broken connection, no answer."""
    if body.is_slow:
        return
    try:
        async with asyncio.timeout(DRAIN_SECONDS):
            while not body.is_complete:
                body.drop(await receive())
    except TimeoutError:
        return


class _Body:
    """The messages of a body, as they come."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self.size = self.num_values = 0
        self.is_complete = self.is_disconnected = self.is_slow = False

    def add(self, message: Message) -> int:
        """Take a message; gives the bytes in it."""
        piece = self.drop(message)
        self._pieces.append(piece)
        self.num_values += sum(piece.count(sign) for sign in (b",", b"[", b"{"))
        self.size += len(piece)
        return len(piece)

    def drop(self, message: Message) -> bytes:
        """Look at a message, and keep nothing of it; gives its bytes."""
        self.is_disconnected = message["type"] == "http.disconnect"
        self.is_complete = self.is_disconnected or not message.get("more_body", False)
        return message.get("body", b"")

    def replay(self, receive: Receive) -> Receive:
        """A `receive` that gives the body as one message, and then what comes after it."""
        body, self._pieces = b"".join(self._pieces), []
        messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replayed() -> Message:
            return messages.pop() if messages else await receive()

        return replayed
