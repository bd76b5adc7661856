"""Hostile connections: heads that are long or lie about what follows, keys that are none, slow and endless bodies, clients that
hang up, and no HTTP at all."""

import itertools
import json
from collections.abc import Iterator

from unimm.bench.hostile.posts import CHAT, DRAW, ask
from unimm.bench.hostile.wire import Hostile, http

PATHS = [
    "/",
    "/docs",
    "/openapi.json",
    "/redoc",
    "/health",
    "/metrics",
    "/v1/models",
    "/v1/models/../../etc/passwd",
    "/v1/models/..%2f..%2fetc%2fpasswd",
    "/..%c0%af",
    "/v1/models/%00",
    "/v1/models/%ff%fe",
    "/v1/models/" + "a" * 3000,
    "/static/../../etc/passwd",
    "/file=/etc/passwd",
    "/.env",
    "/admin",
    "/metrics/",
    "/gradio_api/file=/etc/passwd",
    "/gradio_api/file=http://127.0.0.1/",
    "/gradio_api/proxy=http://127.0.0.1/",
    "/gradio_api/upload",
    "/gradio_api/queue/join",
    "/gradio_api/call/draw",
    "/gradio_api/info",
    "/config",
    "/theme.css",
    "/invocations",
    "/pause",
    "/sleep",
    "/tokenize",
    "/shutdown",
    "//evil.example/%2f..",
    "/v1//models",
    "/v1/chat/completions/",
    "/V1/MODELS",
    "/v1/files",
    "/v1/embeddings",
    "/v1/responses",
    "/v1/audio/speech",
]


def connections(key: str, secret: str) -> Iterator[Hostile]:
    """All of them. key: the server's. secret: the path of a file that must not be read."""
    return itertools.chain(_heads(key, secret), _slow(key), _hang_ups(key))


def _heads(key: str, secret: str) -> Iterator[Hostile]:
    def one(kind: str, data: bytes) -> Hostile:
        return Hostile(kind, ((0.0, data),))

    body = json.dumps(ask("hello")).encode()
    files = [f"{start}{secret}" for start in ("", "/gradio_api/file=", "/file=", "/gradio_api/file%3D", "/v1/models/")]
    for path in (*PATHS, *files, f"/gradio_api/file=/../..{secret}", f"/gradio_api/file=file://{secret}"):
        for method in ("GET", "POST", "TRACE"):
            yield one("path", http(method, path, key=key))
    for given in (
        "",
        "Bearer",
        "Bearer x",
        f"Bearer {key}x",
        f"Basic {key}",
        "Basic !!!",
        "Basic Og==",
        "Digest x",
        "Bearer " + "a" * 20_000,
    ):
        for path in (CHAT, "/metrics", "/docs", "/", "/gradio_api/info"):
            yield one("API key", http("POST" if path == CHAT else "GET", path, body, [f"authorization: {given}"]))
    for host in ("", "evil.example", "x/health?", "127.0.0.1:99999", "[::1", "a" * 5000, "health", "\x7f", "é"):
        yield one("Host", http("POST", CHAT, body, [f"host: {host}"], key))
        yield one("Host", http("GET", "/metrics", b"", [f"host: {host}"]))
    long = [[f"x: {'a' * size}"] for size in (10_000, 70_000, 1_000_000)] + [
        [f"x-{number}: a" for number in range(count)] for count in (200, 9000)
    ]
    for lines in [
        *long,
        [f"cookie: {'a=b; ' * 5000}"],
        [f"{'n' * 20_000}: a"],
        ["x: \0"],
        ["x y: z"],
        ["\x80: a"],
        ["x-forwarded-for: " + "1," * 9000],
    ]:
        yield one("headers", http("POST", CHAT, body, lines, key))
    odd_heads = [
        *(
            ["content-length: -1"],
            ["content-length: 1e3"],
            ["content-length: 99999999999999999999"],
            ["content-length: 1", "content-length: 2"],
        ),
        *(
            ["transfer-encoding: chunked"],
            ["transfer-encoding: chunked, chunked"],
            ["transfer-encoding: x"],
            ["expect: 200-ok"],
        ),
        *(
            ["transfer-encoding: chunked", "content-length: 5"],
            ["upgrade: websocket", "connection: upgrade"],
            ["range: bytes=0-"],
        ),
        *(
            ["accept: " + "text/html," * 2000],
            ["accept-encoding: " + "gzip;q=0," * 900],
            ["origin: null"],
            ["x-http-method-override: DELETE"],
        ),
    ]
    for lines in odd_heads:
        yield one("framing", http("POST", CHAT, body, lines, key))
    chunks = (
        b"5\r\nhello\r\n0\r\n\r\n",
        b"ffffffffffffffff\r\nx",
        b"-1\r\n\r\n",
        b"zz\r\n",
        b"1;" + b"a" * 50_000 + b"\r\nx\r\n0\r\n\r\n",
        b"0\r\n" + b"a: b\r\n" * 9000,
    )
    for chunk in chunks:
        yield one(
            "framing",
            http("POST", CHAT, b"", ["transfer-encoding: chunked", "content-length:"], key).replace(b"content-length:\r\n", b"")
            + chunk,
        )
    for data in (
        b"\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\0" * 10_000,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"SSH-2.0-x\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"A" * 100_000,
    ):
        yield Hostile("no HTTP", ((0.0, data),), hang_up=3.0)


def _slow(key: str) -> Iterator[Hostile]:
    good = http("POST", CHAT, json.dumps(ask("hello")).encode(), key=key)
    head, _, body = good.partition(b"\r\n\r\n")
    for start in range(6):
        drops = tuple((0.5, body[i : i + 4]) for i in range(start, 40, 4))
        yield Hostile("slow body", ((0.0, head + b"\r\n\r\n" + body[:start]), *drops), hang_up=1.0)
        yield Hostile(
            "slow body", ((0.0, head + b"\r\n\r\n"), (0.1, body[: 10 * start]))
        )  # the rest never comes: the server ends it
        yield Hostile("slow headers", tuple((0.3, good[i : i + 3]) for i in range(0, 60, 3)), hang_up=1.0)
    yield Hostile("slow body", ((0.0, head + b"\r\n\r\n"), (3.0, body)))
    endless = http("POST", CHAT, b"", ["transfer-encoding: chunked"], key).replace(b"content-length: 0\r\n", b"")
    megabyte = b"100000\r\n" + b"a" * 0x100000 + b"\r\n"
    yield Hostile("endless body", ((0.0, endless), *((0.0, megabyte) for _ in range(200))))


def _hang_ups(key: str) -> Iterator[Hostile]:
    asked = [
        (CHAT, ask("hello", max_tokens=200, stream=True, n=4)),
        (CHAT, ask("hello", max_tokens=200, n=4)),
        (DRAW, {"prompt": "a red circle", "n": 4, "stream": True, "partial_images": 3}),
        (DRAW, {"prompt": "a red circle", "n": 4}),
    ]
    for (path, body), seconds in itertools.product(asked, (0.0, 0.01, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0)):
        yield Hostile("hang-up", ((0.0, http("POST", path, json.dumps(body).encode(), key=key)),), hang_up=seconds)
