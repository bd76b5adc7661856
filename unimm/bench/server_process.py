"""A server that a benchmark runs: a process that is started, looked at while it works, and ended."""

import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

HEALTH_SECONDS = 0.1
"""Between looks at /health."""

START_SECONDS, FREE_SECONDS, END_SECONDS = 300.0, 30.0, 60.0
"""For a server to start, for its rows to be free after a load, and to end after SIGTERM: no longer."""


@dataclass
class Watch:
    """What is seen of a server while it runs: seconds that /health took, its other answers, and the most memory it had."""

    health: list[float] = field(default_factory=list)
    unhealthy: int = 0
    peak_bytes: int = 0
    cpu_seconds: float = 0.0


class Server:
    """A server in a process of its own, at `address`; `log` has what it prints."""

    def __init__(self, command: list[str], port: int, log: Path) -> None:
        self.address, self.log = f"http://127.0.0.1:{port}", log
        started = time.monotonic()
        with log.open("wb") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        self.start_seconds = self._wait(started)

    def _wait(self, started: float) -> float:
        while time.monotonic() < started + START_SECONDS:
            with suppress(httpx.HTTPError):
                if httpx.get(f"{self.address}/health", timeout=5, trust_env=False).status_code == 200:
                    return time.monotonic() - started
            if self.process.poll() is not None:
                said = self.log.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
                raise ValueError(f"The server ended while it started: {said[-1]}")
            time.sleep(0.1)
        self.process.kill()
        raise ValueError(f"The server at {self.address} was not healthy after {START_SECONDS:.0f} seconds.")

    @contextmanager
    def watched(self) -> Iterator[Watch]:
        """Look at it again and again, from a thread."""
        watch, is_over, process = Watch(), threading.Event(), psutil.Process(self.process.pid)
        before = sum(process.cpu_times()[:2])

        def look() -> None:
            with httpx.Client(base_url=self.address, timeout=60, trust_env=False) as http:
                while not is_over.wait(HEALTH_SECONDS):
                    began = time.monotonic()
                    with suppress(httpx.HTTPError):
                        watch.unhealthy += http.get("/health").status_code != 200
                    watch.health.append(time.monotonic() - began)
                    watch.peak_bytes = max(watch.peak_bytes, process.memory_info().rss)

        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        try:
            yield watch
        finally:
            is_over.set()
            thread.join(60)
            with suppress(psutil.NoSuchProcess):
                watch.cpu_seconds = sum(process.cpu_times()[:2]) - before

    def busy(self) -> dict[str, float]:
        """The engine's rows and requests, as /metrics says them."""
        text = httpx.get(f"{self.address}/metrics", timeout=30, trust_env=False).text
        said = dict(line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("unimm_engine_"))
        return {name: float(said[f"unimm_engine_{name}"]) for name in ("rows", "running", "waiting")}

    def seconds_until_free(self) -> float | None:
        """Until no row is taken and nothing waits; None: not in time."""
        started = time.monotonic()
        while time.monotonic() < started + FREE_SECONDS:
            if not any(self.busy().values()):
                return time.monotonic() - started
            time.sleep(0.1)
        return None

    def end(self, by: signal.Signals = signal.SIGTERM) -> dict[str, Any]:
        """A signal; how long it took, and the exit code, which is None where it had to be killed."""
        started = time.monotonic()
        self.process.send_signal(by)
        try:
            code = self.process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            code = None
        return {"end_seconds": time.monotonic() - started, "exit_code": code}


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]
