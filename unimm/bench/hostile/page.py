"""Hostile requests to the page, which is Gradio: paths and addresses where it expects uploads, its many routes, file names."""

import json
from collections.abc import Iterator
from typing import Any

from unimm.bench.hostile.images import broken
from unimm.bench.hostile.wire import Hostile, http

PAGE = "/page/en"
ROUTES = (
    *("queue/join", "run/predict", "api/predict", "call/ask", "component_server", "reset", "cancel", "upload", "queue/data"),
    *("upload?upload_id=../../x", "process_recording", "stream/x/diff", "login", "proxy=http://127.0.0.1/", "token", "info"),
)


def page_requests(key: str, inside: str, secret: str) -> Iterator[Hostile]:
    """All of them. key: the server's. inside, secret: as `images.addresses` has them."""
    for body in _bodies(inside, secret):
        yield _one(http("POST", f"{PAGE}/gradio_api/queue/join", body, key=key))
    for route in ROUTES:
        for method, body in (("GET", b""), ("POST", b"{}"), ("POST", b"[]"), ("POST", b'{"data": null, "session_hash": "x"}')):
            yield _one(http(method, f"{PAGE}/gradio_api/{route}", body, key=key))
    for path in (
        secret,
        "/etc/passwd",
        "..%2f..%2fetc%2fpasswd",
        f"/proc/self/cwd{secret}",
        f"http://{inside}/",
        "%00",
        "C:%5Cx",
    ):
        for start in (
            "gradio_api/file=",
            "gradio_api/file/",
            "file=",
            "static/",
            "assets/",
            "svelte/",
            "custom_component/1/x/",
        ):
            yield _one(http("GET", f"{PAGE}/{start}{path}", key=key))
    for name in (secret, "../../../x.png", "a" * 3000, "x\0.png", ".", "", "x.svg", "x.html"):
        for data in (broken()["SVG"], broken()["a web page"]):
            head = f'--x\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
            form = head.encode() + data + b"\r\n--x--\r\n"
            yield _one(http("POST", f"{PAGE}/gradio_api/upload", form, ["content-type: multipart/form-data; boundary=x"], key))


def _one(data: bytes) -> Hostile:
    return Hostile("page", ((0.0, data),))


def _bodies(inside: str, secret: str) -> Iterator[bytes]:
    """Calls of the page's functions: wrong ones, and right ones with files that are no uploads."""
    for value in ({}, [], None, 1, "x", {"data": []}, {"fn_index": "x"}, {"fn_index": -1, "data": [], "session_hash": "x"}):
        yield json.dumps(value).encode()
    for number in (0, 1, 5, 10, 10**6, 2**70):
        for value in (*_files(inside, secret), None, [], {}, "x" * 100_000, "\ud800", -1, 1e308):
            yield _call(number, [value] * 4)
    yield b"[" * 90_000
    yield b'{"fn_index": 0, "session_hash": "x", "data": ' + b'[{"a": ' * 40_000


def _files(inside: str, secret: str) -> Iterator[dict[str, Any]]:
    for path in (secret, f"http://{inside}/x.png", "x\0", "a" * 100_000, "\ud800", "", None, ["/etc/passwd"], "/dev/zero"):
        yield {"path": path, "url": f"http://{inside}/x.png", "meta": {"_type": "gradio.FileData"}}
    yield {"text": "What?", "files": [{"path": secret, "meta": {"_type": "gradio.FileData"}}]}


def _call(number: int, data: list[Any]) -> bytes:
    call = {"fn_index": number, "data": data, "session_hash": "x", "event_data": None, "trigger_id": 1}
    return json.dumps(call).encode()
