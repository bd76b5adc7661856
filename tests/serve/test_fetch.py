"""Addresses in messages: nothing is connected to unless the operator said so, and then public addresses of that host alone."""

import asyncio
import contextlib
import gzip
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest
from PIL import Image

from unimm.bench.hostile.images import data_uri, encoded
from unimm.serve import fetch
from unimm.serve.errors import ApiError
from unimm.serve.fetch import FAILED, OFF, REFUSED, fetch_image, is_public, resolve_host
from unimm.serve.media import read_image_part
from unimm.serve.settings import ServerSettings

PNG = encoded(Image.new("RGB", (8, 8), "red"))
MOST = 10_000


@pytest.fixture
def connections(monkeypatch):
    """Every address that a socket is connected to."""
    seen = []
    for name in ("connect", "connect_ex"):
        real = getattr(socket.socket, name)
        monkeypatch.setattr(socket.socket, name, lambda self, to, real=real: seen.append(to) or real(self, to))
    return seen


class Handler(BaseHTTPRequestHandler):
    """A host of images, and of traps."""

    seen: ClassVar[list] = []

    def do_GET(self):
        self.seen.append((self.path, self.headers["host"]))
        status, headers, body = {
            "/red.png": (200, {}, PNG),
            "/moved": (302, {"Location": "http://127.0.0.1:1/secret"}, b""),
            "/gone": (404, {}, b"secret"),
            "/large": (200, {}, b"\0" * (MOST + 1)),
            "/zipped": (200, {"Content-Encoding": "gzip"}, gzip.compress(b"\0" * 10_000_000)),
            "/slow": (200, {"Content-Length": "1000"}, b"\0"),
            "/endless": (200, {}, b"\0"),
        }[self.path]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(body)
            for _ in range(2000 if self.path in ("/slow", "/endless") else 0):
                time.sleep(0.05)
                self.wfile.write(b"\0" * (1 if self.path == "/slow" else 10_000))
                self.wfile.flush()

    def log_message(self, *args):
        """Say nothing."""


@pytest.fixture(scope="module")
def port():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


def settings(*domains):
    return ServerSettings(allowed_media_domains=domains, max_body_bytes=MOST)


def resolving(*addresses):
    async def resolve(host, port):
        return list(addresses)

    return resolve


def refusal(url, *domains, resolve=None):
    with pytest.raises(ApiError) as raised:
        asyncio.run(fetch_image(url, settings(*domains), resolve))
    assert raised.value.status == 400
    return raised.value.message


@pytest.mark.parametrize("url", ["http://example.com/a.png", "HTTPS://example.com", "http://127.0.0.1/", "http:\\\\a"])
def test_off_by_default(url, connections):
    for call in (fetch_image, read_image_part):
        with pytest.raises(ApiError) as raised:
            asyncio.run(call(url, settings()))
        assert (raised.value.status, raised.value.message) == (400, OFF)
    assert not connections


FORMS = [
    "http://127.0.0.1/",
    "http://169.254.169.254/latest/meta-data/",
    "http://[::1]/",
    "http://[::ffff:127.0.0.1]/",
    "http://0x7f.1/",
    "http://0177.0.0.1/",
    "http://2130706433/",
    "http://127.1/",
    "http://localhost/",
    "http://0/",
    "http://good.example\\@evil.example/",
    "http://good.example@evil.example/",
    "http://evil.example\\.good.example/",
    "http://user:word@good.example/",
    "http://good.example.evil.example/",
    "http://evil.example/?good.example",
    "http://evil.example#good.example",
    "http://evilgood.example/",
    "http://sub.good.example/",
    "http://good.example:22/",
    "http://good.example./",
    "http://ｇood.example/",
    "http://good.exampleⓏ/",
    "http://good%2eexample/",
    "http://good.example%00.evil.example/",
    "http://good.example%2f@evil.example",
    "http:///good.example",
    "http://good.example:99999/",
    "http://[good.example]/",
    "http://good.example:80:80/",
    "https://good.example:80/",
    "http:good.example",
    "http://[::1%25lo]/",
    "ftp://good.example/",
    "gopher://good.example/",
    "file:///etc/passwd",
    "file://good.example/etc/passwd",
    "dict://good.example/",
    "jar:http://good.example!/",
]


@pytest.mark.parametrize(
    "url", [*FORMS, "http://good.example/\r\nHost: evil", " http://good.example/", "http://good.example/" + "a" * 3000]
)
def test_only_hosts_of_the_list_written_plainly(url, connections):
    assert refusal(url, "good.example", resolve=resolving("127.0.0.1")) in (REFUSED, OFF)
    assert not connections


PRIVATE = [
    "127.0.0.1",
    "10.0.0.1",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "0.0.0.0",
    "224.0.0.1",
    "255.255.255.255",
    "192.88.99.1",
    "198.18.0.1",
    "::1",
    "::",
    "::ffff:127.0.0.1",
    "::ffff:8.8.8.8",
    "::7f00:1",
    "64:ff9b::7f00:1",
    "2002:7f00:1::",
    "2001:0:7f00:1::",
    "fe80::1",
    "fec0::1",
    "fc00::1",
    "fe80::1%eth0",
    "ff02::1",
    "x",
]


def test_addresses_that_are_not_public():
    assert [one for one in PRIVATE if is_public(one)] == []
    assert is_public("8.8.8.8") and is_public("2606:4700::1")


@pytest.mark.parametrize("addresses", [[], ["127.0.0.1"], ["8.8.8.8", "10.0.0.1"], ["::ffff:127.0.0.1"]])
def test_a_host_of_the_list_that_resolves_to_the_inside(addresses, connections):
    assert refusal("http://good.example/", "good.example", resolve=resolving(*addresses)) == FAILED
    assert not connections


def test_localhost_stays_closed_even_if_listed(connections):
    assert refusal("http://127.0.0.1/", "127.0.0.1", resolve=resolve_host) == FAILED
    assert not [one for one in connections if one[1] == 80]


def test_the_connection_goes_to_the_address_that_was_checked(port, monkeypatch, connections):
    """A name that says another address the next time (DNS rebinding) is asked for its address once."""
    asked = []

    async def rebinding(host, port):
        asked.append(host)
        return ["127.0.0.1"] if len(asked) == 1 else ["10.0.0.1"]

    monkeypatch.setattr(fetch, "is_public", lambda address: address == "127.0.0.1")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    host = f"good.example:{port}"
    data = asyncio.run(fetch_image(f"http://Good.example:{port}/red.png", settings(host), rebinding))
    assert data == PNG and asked == ["good.example"]
    assert connections == [("127.0.0.1", port)] and Handler.seen[-1] == ("/red.png", host)


@pytest.mark.parametrize("path", ["moved", "gone", "large", "zipped", "slow", "endless"])
def test_what_the_host_may_not_do(port, path, monkeypatch, connections):
    monkeypatch.setattr(fetch, "is_public", lambda address: True)
    monkeypatch.setattr(fetch, "MAX_SECONDS", 0.3)
    started = time.monotonic()
    host = f"good.example:{port}"
    assert refusal(f"http://{host}/{path}", host, resolve=resolving("127.0.0.1")) == FAILED
    assert time.monotonic() - started < 60  # the slow body takes 100
    assert connections == [("127.0.0.1", port)]


def test_a_fetched_image_is_decoded_as_all_are(port, monkeypatch):
    monkeypatch.setattr(fetch, "is_public", lambda address: True)
    monkeypatch.setattr(fetch, "resolve_host", resolving("127.0.0.1"))
    host = f"good.example:{port}"
    fetched = asyncio.run(read_image_part(f"http://{host}/red.png", settings(host)))
    sent = asyncio.run(read_image_part(data_uri(PNG), settings()))
    assert fetched.tobytes() == sent.tobytes()
