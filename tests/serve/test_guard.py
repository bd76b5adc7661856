"""What stands before every route: keys, names, headers and bodies are judged before the application hears of a request."""

import asyncio
import base64

import pytest
from fastapi import FastAPI, Request, WebSocket
from fastapi.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from unimm.serve.guard import LOCAL_NAMES, MAX_HEADER_BYTES, MAX_VALUES, BodyLimit, add_guards
from unimm.serve.settings import ServerSettings

KEY = "a key of several words, ü"
MOST = 100_000


def client(**settings):
    app = FastAPI()

    @app.get("/health")
    def health():
        return "ok"

    @app.get("/who")
    def who():
        return "you"

    @app.post("/size")
    async def size(request: Request):
        return len(await request.body())

    @app.websocket("/socket")
    async def socket(websocket: WebSocket):
        await websocket.accept()

    @app.get("/page/{name:path}")
    def page(name: str):
        return name

    add_guards(app, ServerSettings(max_body_bytes=MOST, **settings))
    return TestClient(app, raise_server_exceptions=False)


def basic(word):
    return "Basic " + base64.b64encode(word.encode()).decode()


@pytest.mark.parametrize(
    "path",
    [
        "/who",
        "/openapi.json",
        "/docs",
        "/redoc",
        "/page/x",
        "/none",
        "/health/",
        "//health",
        "/page/%2e%2e/health",
        "/health%2f..%2fwho",
        "/Health",
    ],
)
def test_every_path_but_health_asks_for_the_key(path):
    server = client(api_key=KEY)
    answer = server.get(path)
    assert answer.status_code == 401 and answer.json()["error"]["code"] == "invalid_api_key"
    assert answer.headers["www-authenticate"] == "Bearer"
    assert server.get("/health").json() == "ok"
    assert server.get("/health?x=/who").json() == "ok"


@pytest.mark.parametrize(
    ("given", "status"),
    [
        (f"Bearer {KEY}", 200),
        (f"bearer  {KEY} ", 200),
        (basic(f"anybody:{KEY}"), 200),
        (basic(f":{KEY}"), 200),
        (f"Bearer {KEY}x", 401),
        (f"Bearer {KEY[:-1]}", 401),
        ("Bearer ", 401),
        ("Bearer", 401),
        (KEY, 401),
        (f"Token {KEY}", 401),
        (basic(KEY), 401),
        (basic(f"{KEY}:"), 401),
        ("Basic !!!", 401),
        ("Basic ü", 401),
        ("", 401),
    ],
)
def test_keys(given, status):
    server = client(api_key=KEY)
    assert server.get("/who", headers={"authorization": given.encode()}).status_code == status


def test_two_keys_are_none():
    headers = [("authorization", b"Bearer x"), ("authorization", f"Bearer {KEY}".encode())]
    assert client(api_key=KEY).get("/who", headers=headers).status_code == 401


def test_a_browser_is_asked_by_its_own_dialogue():
    answer = client(api_key=KEY).get("/who", headers={"accept": "text/html"})
    assert answer.status_code == 401 and answer.headers["www-authenticate"].startswith("Basic ")


def test_websockets_ask_for_the_key_too():
    server = client(api_key=KEY)
    with pytest.raises(WebSocketDisconnect), server.websocket_connect("/socket"):
        pass
    with server.websocket_connect("/socket", headers={"authorization": f"Bearer {KEY}".encode()}):
        pass


def test_without_a_key_everybody_is_answered():
    assert client().get("/who").json() == "you"


@pytest.mark.parametrize("host", ["evil.example/health", "x/health?", "evil.example", "localhost#", "127.0.0.1:80@evil"])
def test_the_host_header_decides_nothing_about_the_path(host):
    """CVE-2026-48710: where the path is taken from an address that is made of the Host header."""
    assert client(api_key=KEY).get("/who", headers={"host": host}).status_code == 401


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:8000", "[::1]:8000", "LOCALHOST:1", "[::1]"])
def test_names_of_a_local_server(host):
    assert client(allowed_hosts=LOCAL_NAMES).get("/who", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "127.0.0.1.evil", "", "localhost:x", "::1", "[::1", "a@localhost"]
)
def test_names_that_are_not_a_local_servers(host):
    """Against a page whose own name is resolved to 127.0.0.1 (DNS rebinding)."""
    answer = client(allowed_hosts=LOCAL_NAMES).get("/who", headers={"host": host})
    assert answer.status_code == 421 and answer.json()["error"]["code"] == "unknown_host"


@pytest.mark.parametrize("headers", [{"x": "a" * (MAX_HEADER_BYTES + 1)}, {f"x-{i}": "a" for i in range(101)}])
def test_long_headers(headers):
    answer = client().get("/who", headers=headers)
    assert answer.status_code == 431 and answer.json()["error"]["code"] == "headers_too_large"


def pieces(size, count=10):
    for _ in range(count):
        yield b"a" * (size // count)


@pytest.mark.parametrize(("size", "status"), [(0, 200), (MOST, 200), (MOST + 10, 413), (MOST * 50, 413)])
@pytest.mark.parametrize("is_announced", [True, False])
def test_large_bodies(size, status, is_announced):
    answer = client().post("/size", content=b"a" * size if is_announced else pieces(size))
    assert answer.status_code == status
    assert answer.json() == size if status == 200 else answer.json()["error"]["code"] == "body_too_large"


def limited(messages, **settings):
    """The status that a `BodyLimit` answers, of an application that reads all of its body, and what it has read."""
    sent, read = [], []

    async def app(scope, receive, send):
        read.append(await receive())
        await send({"type": "http.response.start", "status": 200})

    async def receive():
        seconds, message = next(messages)
        await asyncio.sleep(seconds)
        return {"type": "http.request", **message}

    async def send(message):
        sent.append(message)

    limit = BodyLimit(app, MOST, **settings)
    asyncio.run(limit({"type": "http", "headers": []}, receive, send))
    assert limit.held == 0
    return [one["status"] for one in sent if "status" in one], [one["body"] for one in read]


@pytest.mark.parametrize("body", [b"1," * 60_000, b"[" * 60_000, b'{"a":' * 60_000])
def test_bodies_of_too_many_values(body):
    limit = ServerSettings().max_characters
    for count, kind, status in ((1, "application/json", 200), (2, "application/json", 400), (2, "multipart/form-data", 200)):
        app = FastAPI()
        app.post("/size")(length_of)
        add_guards(app, ServerSettings())
        answer = TestClient(app).post("/size", content=body * count, headers={"content-type": kind})
        assert answer.status_code == status
    assert limit < MAX_VALUES, "a text of commas is a text"


async def length_of(request: Request):
    return len(await request.body())


def test_slow_bodies():
    def drops(seconds):
        while True:
            yield seconds, {"body": b"a", "more_body": True}

    assert limited(drops(1), pause_seconds=0.02) == ([408], [])
    assert limited(drops(0.01), seconds=0.05) == ([408], [])


def test_a_body_in_pieces_arrives_as_one():
    parts = [(0, {"body": b"a", "more_body": True}), (0, {"more_body": True}), (0, {"body": b"b"})]
    assert limited(iter(parts)) == ([200], [b"ab"])


def test_a_client_that_hangs_up_meanwhile_is_not_served():
    assert limited(iter([(0, {"body": b"a", "more_body": True}), (0, {"type": "http.disconnect"})])) == ([], [])


def test_all_bodies_together_are_limited():
    parts = [(0, {"body": b"a" * (MOST // 2), "more_body": True}), (0, {"body": b"a", "more_body": False})]
    assert limited(iter(parts), held_bodies=0) == ([429], [])
    assert limited(iter(parts), held_bodies=1)[0] == [200]


def test_announcements_that_are_no_number():
    for length in ("-1", "1e9", "９", "9" * 5000):
        assert client().get("/who", headers={"content-length": length.encode()}).status_code in (200, 400, 413)
