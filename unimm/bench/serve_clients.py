"""The clients of a server under load, in a process of their own: what they do takes no turns from the server's threads.

Each of many clients sends one request after the other, chosen at random from a list, reads the whole answer, and now and then
hangs up in the middle of one. What was answered, and when, is written down for others to judge:

    python -m unimm.bench.serve_clients '{"address": ..., "requests": FILE, "out": FILE, ...}'
"""

import asyncio
import json
import random
import sys
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx

SLOWEST = 600.0
"""Seconds that an answer may take."""

ANSWERED, LEFT, REFUSED, FAILED = "answered", "left", "refused", "failed"


@dataclass(frozen=True)
class Load:
    """What the clients do.

    Args:
        address: of the server. requests: a JSON file, a list of {"path", "body"}. out: a JSON file for the results.
        num_clients: at the same time. seconds: after which they send no more.
        num_requests: of a client at most, taken in turn and not at random; 0: as many as there is time for.
        disconnects: the share of requests during which a client hangs up. streams: the share that are streamed.
        previews: of a drawing that is streamed. seed: of all choices.
        drain: wait for the answers that are missing at the end, instead of leaving.
    """

    address: str
    requests: str
    out: str
    num_clients: int = 32
    seconds: float = 180.0
    num_requests: int = 0
    disconnects: float = 0.1
    streams: float = 0.5
    previews: int = 2
    seed: int = 0
    drain: bool = True


@dataclass
class Exchange:
    """One request and what became of it.

    request: its number in the list. outcome: answered, left (hung up), refused (4xx) or failed (5xx, or no answer).
    sent_at: in seconds since 1970. seconds: until the answer was complete, or failed. first: until the first token or preview.
    answer: the text, or the images in base64.
    """

    request: int
    streamed: bool
    sent_at: float
    outcome: str = FAILED
    status: int = 0
    seconds: float = 0.0
    first: float | None = None
    answer: list[str] = field(default_factory=list)
    error: str = ""


async def run_clients(load: Load, requests: list[dict[str, Any]]) -> list[Exchange]:
    """All of them, until the time is over."""
    exchanges: list[Exchange] = []
    started = time.monotonic()
    limits = httpx.Limits(max_connections=load.num_clients, max_keepalive_connections=load.num_clients)
    async with httpx.AsyncClient(base_url=load.address, timeout=SLOWEST, limits=limits, trust_env=False) as http:
        clients = [_Client(number, load, requests, http, started, exchanges) for number in range(load.num_clients)]
        tasks = [asyncio.create_task(client.run()) for client in clients]
        await asyncio.wait(tasks, timeout=None if load.drain else load.seconds)
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task
    return exchanges


class _Client:
    """One of them."""

    def __init__(
        self, number: int, load: Load, requests: list[dict], http: httpx.AsyncClient, started: float, log: list[Exchange]
    ) -> None:
        self._load, self._requests, self._http, self._started, self._log = load, requests, http, started, log
        self._random = random.Random(f"{load.seed}/{number}")
        self._number, self._usual = number, 1.0  # seconds that an answer took of late

    async def run(self) -> None:
        sent = 0
        while time.monotonic() < self._started + self._load.seconds and sent < (self._load.num_requests or sys.maxsize):
            if self._load.num_requests:
                index = (self._number + sent * self._load.num_clients) % len(self._requests)
            else:
                index = self._random.randrange(len(self._requests))
            exchange = Exchange(index, self._random.random() < self._load.streams, time.time())
            leaves = self._random.random() < self._load.disconnects
            await self._exchange(exchange, self._random.uniform(0.0, self._usual) if leaves else None)
            sent += 1

    async def _exchange(self, exchange: Exchange, patience: float | None) -> None:
        began = time.monotonic()
        try:
            async with asyncio.timeout(patience):
                await self._send(exchange, began)
        except TimeoutError:
            exchange.outcome = LEFT
        except (httpx.HTTPError, ValueError, KeyError) as error:
            exchange.error = f"{type(error).__name__}: {error}"
        exchange.seconds = time.monotonic() - began
        if exchange.outcome == ANSWERED:
            self._usual += 0.3 * (exchange.seconds - self._usual)
        self._log.append(exchange)  # one that is cancelled at the end of the load does not count
        if exchange.outcome in (REFUSED, FAILED):
            await asyncio.sleep(0.5)

    async def _send(self, exchange: Exchange, began: float) -> None:
        request = self._requests[exchange.request]
        body = dict(request["body"])
        is_drawing = "prompt" in body
        if exchange.streamed:
            body |= {"stream": True} | ({"partial_images": self._load.previews} if is_drawing else {})
        async with self._http.stream("POST", request["path"], json=body) as response:
            exchange.status = response.status_code
            if response.status_code != 200:
                exchange.error = (await response.aread()).decode(errors="replace")[:500]
                exchange.outcome = FAILED if response.status_code >= 500 else REFUSED
                return
            if exchange.streamed:
                await _read_stream(exchange, response, began)
            else:
                exchange.answer = _answers(json.loads(await response.aread()))
        exchange.outcome = FAILED if exchange.error else ANSWERED


def _answers(said: dict[str, Any]) -> list[str]:
    if "data" in said:
        return [one["b64_json"] for one in said["data"]]
    return [choice["message"]["content"] for choice in said["choices"]]


async def _read_stream(exchange: Exchange, response: httpx.Response, began: float) -> None:
    """The events of a chat or a drawing; the time of the first piece of text, or the first preview."""
    text, images, is_whole = "", {}, False
    async for event in _events(response):
        if event == "[DONE]":
            is_whole = True
            continue
        said = json.loads(event)
        if "error" in said:
            exchange.error = json.dumps(said["error"])
            return
        kind, choices = said.get("type", ""), said.get("choices") or []
        piece = "".join(choice["delta"].get("content") or "" for choice in choices)
        text += piece
        if exchange.first is None and (piece or kind.endswith(".partial_image")):
            exchange.first = time.monotonic() - began
        if kind.endswith(".completed"):
            images[said.get("image_index", len(images))] = said["b64_json"]
    if not is_whole:
        exchange.error = "the stream ended without [DONE]"
    exchange.answer = [images[index] for index in sorted(images)] or [text]


async def _events(response: httpx.Response) -> AsyncIterator[str]:
    async for line in response.aiter_lines():
        if line.startswith("data:"):
            yield line.removeprefix("data:").strip()


def main() -> None:
    """A load as JSON in, a file of exchanges out."""
    load = Load(**json.loads(sys.argv[1]))
    requests = json.loads(Path(load.requests).read_text(encoding="utf-8"))
    exchanges = asyncio.run(run_clients(load, requests))
    Path(load.out).write_text(json.dumps([asdict(one) for one in exchanges]), encoding="utf-8")


if __name__ == "__main__":
    main()
