"""Sends hostile requests to a server, many at a time, and judges each answer, and then the server itself.

A server has survived if nothing was answered by 5xx (but a 503 of /health), no request was left without an answer, no answer
told of paths, addresses in memory or code, nothing inside its network was connected to, and no secret file was opened; if
afterwards it is alive and healthy, has all rows free, and answers and draws as it did before.
"""

import asyncio
import contextlib
import json
import re
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from unimm.bench.hostile.posts import CHAT, DRAW, ask
from unimm.bench.hostile.wire import Hostile, http

NUM_CONNECTIONS = 12
"""At a time."""

ANSWER_SECONDS = 120.0
"""A request that has no answer by then counts as unanswered."""

FREE_SECONDS = 60.0
"""For the server to free its rows, after the last request."""

MOST_READ = 4 * 2**20
"""Bytes of an answer that are looked at."""

SECRET = "never-to-be-told-7f3a9c"

LEAKS = re.compile(
    r"(?<![\w+/])0x[0-9a-fA-F]{6,}|<[\w.]+ object at|Traceback|File \"|site-packages|"
    r"(?<![\w+/.:])/(?:home|root|tmp|usr|opt|var|etc|proc|mnt|work|srv|private|Users)/[\w.]|\b[A-Z]:\\\\?\w+\\|"
    + re.escape(SECRET)
)
"""What no answer may hold, unless the request itself did."""

_BASE64 = re.compile(r"[A-Za-z0-9+/=]{200,}")
_UPLOAD = re.compile(r"/[\w./-]*/gradio/[0-9a-f]{64}/")  # how Gradio's own protocol names a file that a client has uploaded


@dataclass
class Findings:
    """What became of a storm.

    statuses: by what was hostile, answers by their status; "none" for connections that were closed without one, "left" where
        the client hung up first.
    failures: sentences; none where the server survived.
    """

    statuses: dict[str, Counter[str]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0
    slowest: list[tuple[float, str]] = field(default_factory=list)

    @property
    def totals(self) -> Counter[str]:
        """Answers by their status."""
        return sum(self.statuses.values(), Counter())


class Server:
    """A server at 127.0.0.1, asked over connections of our own."""

    def __init__(self, port: int, key: str = "") -> None:
        self.port, self.key = port, key

    async def exchange(self, request: Hostile) -> bytes:
        """Send a request as it is, and read until the server or the client closes. TimeoutError: the server does not."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=2**20)
        try:
            sending = asyncio.create_task(_send(writer, request))
            reading = asyncio.create_task(_read(reader))
            patience = ANSWER_SECONDS if request.hang_up is None else sum(s for s, _ in request.pieces) + request.hang_up
            done, _ = await asyncio.wait([reading], timeout=patience)
            sending.cancel()
            if not done:
                reading.cancel()
                if request.hang_up is None:
                    raise TimeoutError
                return b""
            return reading.result()
        finally:
            writer.transport.abort()

    async def ask(self, method: str, path: str, body: bytes = b"") -> tuple[str, str]:
        """A plain request: the status and all that follows."""
        answer = await self.exchange(Hostile("plain", ((0.0, http(method, path, body, key=self.key)),)))
        return status_of(answer), answer.decode("utf-8", "replace")

    async def numbers(self) -> dict[str, float]:
        """What /metrics says of the engine."""
        _, text = await self.ask("GET", "/metrics")
        return {name: float(value) for name, value in re.findall(r"^(unimm_engine_\w+) ([\d.e+]+)$", text, re.MULTILINE)}

    async def works(self) -> tuple[str, str]:
        """An answer and a drawing, which never change: their texts."""
        chat = ask("What colour is the sky?", temperature=0, max_tokens=8)
        draw = {"prompt": "a red circle", "seed": 7, "output_format": "png"}
        bodies = [await self.ask("POST", path, json.dumps(body).encode()) for path, body in ((CHAT, chat), (DRAW, draw))]
        found = [re.search(r'"(?:content|b64_json)": ?"[^"]*"', text) for _, text in bodies]
        if any(one is None for one in found):
            raise ValueError(f"The server neither answers nor draws: {[status for status, _ in bodies]}.")
        return tuple(one[0] for one in found if one)  # pyright: ignore[reportReturnType]


async def storm(server: Server, requests: list[Hostile], trap: "Trap") -> Findings:
    """Send all of them, some at a time, in this order. trap: what must not be connected to."""
    findings, waiting = Findings(), iter(requests)
    before, started = await server.works(), time.monotonic()

    async def send_some() -> None:
        for request in waiting:
            await _judge(server, request, findings)

    await asyncio.gather(*(send_some() for _ in range(NUM_CONNECTIONS)))
    findings.seconds = time.monotonic() - started
    findings.slowest = sorted(findings.slowest, reverse=True)[:10]
    findings.failures += await _look_after(server, before)
    if trap.num_connections:
        findings.failures.append(f"{trap.num_connections} connections were made to what lies inside the network")
    return findings


async def _judge(server: Server, request: Hostile, findings: Findings) -> None:
    """Send one, and note what it was answered."""
    name, began = f"{request.kind}: {request.data[:60]!r}...{request.data[-200:]!r}", time.monotonic()
    try:
        answer = await server.exchange(request)
    except TimeoutError:
        findings.failures.append(f"no answer in {ANSWER_SECONDS:g} s to {name}")
        answer = b""
    except OSError as error:
        findings.failures.append(f"no connection ({type(error).__name__}) for {name}")
        answer = b""
    status = status_of(answer) if answer else "left" if request.hang_up is not None else "none"
    findings.statuses.setdefault(request.kind, Counter())[status] += 1
    findings.slowest.append((round(time.monotonic() - began, 2), name[:120]))
    if status.startswith("5"):
        findings.failures.append(f"{status} to {name}")
    if leak := leaks(answer, request.data):
        findings.failures.append(f"{leak!r} is in the answer to {name}")


async def _look_after(server: Server, before: tuple[str, str]) -> list[str]:
    """What is wrong with the server afterwards."""
    end, numbers, free = time.monotonic() + FREE_SECONDS, {}, False
    while not free and time.monotonic() < end:
        numbers = await server.numbers()
        free = bool(numbers) and not any(numbers.get(f"unimm_engine_{name}") for name in ("waiting", "running", "rows"))
        await asyncio.sleep(0.2)
    failures = [] if free else [f"the rows are not free {FREE_SECONDS:g} s later: {numbers}"]
    if (health := await server.ask("GET", "/health"))[0] != "200":
        failures.append(f"/health is {health[0]}")
    if await server.works() != before:
        failures.append("it answers or draws otherwise than before")
    return failures


def status_of(answer: bytes) -> str:
    """Of an HTTP answer; "none" for anything else."""
    found = re.match(rb"HTTP/1\.[01] (\d{3})", answer)
    return found[1].decode() if found else "none"


def leaks(answer: bytes, request: bytes) -> str | None:
    """What an answer tells of the server's inside; None: nothing. What the client has said itself is none of it."""
    text, asked = _UPLOAD.sub("", _BASE64.sub("", answer.decode("utf-8", "replace"))), request.decode("utf-8", "replace")
    asked += asked.encode("utf-8", "replace").decode("unicode_escape", "replace") if len(asked) < 100_000 else ""
    return next((found[0] for found in LEAKS.finditer(text) if found[0] not in asked), None)


class Trap:
    """Something inside the network: counts who connects to it. Use it with `async with`."""

    num_connections = 0

    async def __aenter__(self) -> "Trap":
        self._server = await asyncio.start_server(self._count, "127.0.0.1", 0)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *error: Any) -> None:
        self._server.close()

    def _count(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        writer.close()


async def _send(writer: asyncio.StreamWriter, request: Hostile) -> None:
    with contextlib.suppress(OSError):  # the server may end the connection before all is sent: its answer is read all the same
        for seconds, piece in request.pieces:
            await asyncio.sleep(seconds)
            writer.write(piece)
            await writer.drain()


async def _read(reader: asyncio.StreamReader) -> bytes:
    """All that comes; of long answers the beginning."""
    answer = bytearray()
    with contextlib.suppress(OSError):
        while piece := await reader.read(2**16):
            answer += piece[: MOST_READ - len(answer)]
    return bytes(answer)
