"""One connection to a server, as the bytes that go over the wire."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Hostile:
    """One connection.

    pieces: (seconds to wait, bytes to send). hang_up: seconds after the last piece at which the client leaves; None: it reads
    all of the answer.
    """

    kind: str
    pieces: tuple[tuple[float, bytes], ...]
    hang_up: float | None = None

    @property
    def data(self) -> bytes:
        """All that is sent."""
        return b"".join(piece for _, piece in self.pieces)


def http(method: str, path: str, body: bytes = b"", headers: Iterable[str] = (), key: str = "") -> bytes:
    """A request that closes its connection. headers: lines; one of a name that is there anyhow comes instead of it."""
    usual = {"host": "127.0.0.1", "connection": "close", "content-type": "application/json", "content-length": f"{len(body)}"}
    usual |= {"authorization": f"Bearer {key}"} if key else {}
    given = [line.partition(":")[0].lower() for line in headers]
    lines = [f"{name}: {value}" for name, value in usual.items() if name not in given]
    head = "\r\n".join([f"{method} {path} HTTP/1.1", *lines, *headers, "", ""])
    return head.encode("latin-1", "replace") + body
