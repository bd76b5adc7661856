"""The storm of hostile requests: it is as large and as varied as it says, and sees what a bad server does."""

import asyncio
import json
from collections import Counter

import pytest

from unimm.bench.hostile.generated import generated
from unimm.bench.hostile.posts import CHAT
from unimm.bench.hostile.storm import Server, Trap, leaks, status_of, storm
from unimm.bench.hostile.wire import Hostile, http
from unimm.cli.bench.hostile import make

KINDS = {
    "broken image",
    "address",
    "special token",
    "giant number",
    "broken base64",
    "wrong type",
    "slow body",
    "path",
    "headers",
}


@pytest.fixture(scope="module")
def requests():
    return make(1400, 0, "key", "127.0.0.1:9", "/tmp/secret.png")


def test_the_requests_are_many_and_varied(requests):
    counts = Counter(one.kind for one in requests)
    assert len(requests) == 1400 and counts.keys() >= {*KINDS, "text", "hang-up", "no HTTP", "endless body"}
    assert min(counts[kind] for kind in KINDS) >= 8
    assert len({one.data for one in requests}) > 1300


def test_the_same_seed_gives_the_same_requests():
    one, same, other = (generated(20, seed, "key") for seed in (0, 0, 1))
    assert one == same and one != other and len(one) == 20


@pytest.mark.parametrize(
    "told",
    [
        "<_io.BytesIO object at 0x7f0e2c1d5f30>",
        "at 0x7f0e2c1d5f30",
        'File "/usr/lib/python3/x.py"',
        "no such file: /home/me/x",
        "C:\\Users\\me",
        "Traceback (most recent call last)",
    ],
)
def test_what_is_a_leak(told):
    assert leaks(f'{{"error": "{told}"}}'.encode(), b"hello")
    assert not leaks(f'{{"error": "{told}"}}'.encode(), f"I said {told}".encode())


@pytest.mark.parametrize(
    "told",
    [
        "64x64 or 0x0",
        "see /docs",
        "/v1/models",
        "data:image/png;base64," + "/tmp/0x7f0e2c1d5f30" * 20,
        '["/tmp/gradio/' + "a1" * 32 + '/x.png"]',
    ],
)
def test_what_is_no_leak(told):
    assert not leaks(told.encode(), b"hello")


async def meet(answer, requests):
    """What a storm finds of a server that gives these answers, by the request's body."""

    async def serve(reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0] or 0)
        status, body = answer(head, await reader.readexactly(length))
        writer.write(b"HTTP/1.1 %d x\r\n\r\n" % status + body)
        writer.close()

    async with Trap() as trap, await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        if b"trap" in requests[0].data:
            (await asyncio.open_connection("127.0.0.1", trap.port))[1].close()
        return await storm(Server(server.sockets[0].getsockname()[1]), requests, trap)


def plain(head, body):
    """A good server."""
    if b"/metrics" in head:
        return 200, b"unimm_engine_rows 0.0\nunimm_engine_waiting 0.0\n"
    return (400, b"{}") if b"bad" in body else (200, b'{"content": "blue", "b64_json": "AAAA"}')


def posts(*bodies):
    return [Hostile("test", ((0.0, http("POST", CHAT, json.dumps(body).encode())),)) for body in bodies]


def test_a_good_server_has_no_failures():
    found = asyncio.run(meet(plain, posts("bad", "good", "bad")))
    assert found.failures == [] and found.totals == {"400": 2, "200": 1}


@pytest.mark.parametrize(
    ("answer", "failure"),
    [
        (lambda head, body: (500, b"") if b"bad" in body else plain(head, body), "500 to test"),
        (lambda head, body: (400, b"at 0x7f0e2c1d5f30") if b"bad" in body else plain(head, body), "is in the answer to test"),
        (lambda head, body: (503, b"") if b"/health" in head else plain(head, body), "/health is 503"),
    ],
)
def test_a_bad_server_is_seen(answer, failure):
    found = asyncio.run(meet(answer, posts("bad")))
    assert len(found.failures) == 1 and failure in found.failures[0]


def test_a_connection_to_the_inside_is_seen():
    assert "1 connections were made" in asyncio.run(meet(plain, posts("trap"))).failures[0]


def test_rows_that_stay_taken_are_seen(monkeypatch):
    def leaky(head, body):
        return (200, b"unimm_engine_rows 2.0\n") if b"/metrics" in head else plain(head, body)

    monkeypatch.setattr("unimm.bench.hostile.storm.FREE_SECONDS", 0.3)
    taken = asyncio.run(
        meet(lambda head, body: (200, b"unimm_engine_rows 2.0\n") if b"/metrics" in head else plain(head, body), posts("x"))
    )
    assert "rows are not free" in taken.failures[0]


def test_statuses():
    assert [status_of(answer) for answer in (b"HTTP/1.1 404 Not Found\r\n", b"", b"\x15\x03")] == ["404", "none", "none"]
