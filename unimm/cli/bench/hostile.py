"""`unimm bench hostile`: `unimm serve` in a process of its own, hostile requests against it, and what came of it as JSON."""

import asyncio
import random
import re
import secrets
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from unimm.bench.hostile.connections import connections
from unimm.bench.hostile.generated import generated
from unimm.bench.hostile.images import encoded
from unimm.bench.hostile.page import page_requests
from unimm.bench.hostile.posts import posts
from unimm.bench.hostile.storm import SECRET, Findings, Server, Trap, storm
from unimm.bench.hostile.wire import Hostile, http
from unimm.bench.provenance import provenance
from unimm.runtime.atomic_files import check_writable, write_json

START_SECONDS = 180.0

console = Console(highlight=False)


def run(model: str, num_requests: int, seed: int, out: Path) -> bool:
    """Send as many requests as asked for, the written ones among them; gives whether the server survived.

    Raises:
        ValueError: the server does not start.
    """
    check_writable(out)
    with tempfile.TemporaryDirectory() as folder:
        result = asyncio.run(_run(model, num_requests, seed, Path(folder)))
    show(result)
    write_json(out, {"bench": "hostile", "provenance": provenance(torch.device("cpu")), **result})
    console.print(out)
    return not result["failures"]


async def _run(model: str, num_requests: int, seed: int, folder: Path) -> dict[str, Any]:
    key, secret, log = secrets.token_urlsafe(16), folder / "secret.png", folder / "server.log"
    secret.write_bytes(encoded(Image.new("RGB", (16, 16), "red")) + SECRET.encode())
    async with Trap() as trap:
        requests = make(num_requests, seed, key, f"127.0.0.1:{trap.port}", str(secret))
        allowed = ["good.example", f"127.0.0.1:{trap.port}", f"localhost:{trap.port}"]
        with serving(model, key, allowed, log) as (port, process):
            findings = await storm(Server(port, key), requests, trap)
            peak = process.memory_info().rss if process.is_running() else 0
    said = log.read_text(encoding="utf-8", errors="replace")
    return {
        **as_json(findings),
        "seed": seed,
        "num_requests": len(requests),
        "rss_gib": round(peak / 2**30, 2),
        **_logged(said),
    }


def make(num_requests: int, seed: int, key: str, inside: str, secret: str) -> list[Hostile]:
    """The written requests, and generated ones up to the number, or as many of the written ones; shuffled."""
    written = [
        Hostile(kind, ((0.0, http("POST", path, body, lines, key)),)) for kind, path, body, lines in posts(inside, secret)
    ]
    written += [*connections(key, secret), *page_requests(key, inside, secret)]
    rng = random.Random(seed)
    if num_requests <= len(written):
        return rng.sample(written, num_requests)
    requests = [*written, *generated(num_requests - len(written), seed, key)]
    rng.shuffle(requests)
    return requests


@contextmanager
def serving(model: str, key: str, allowed: list[str], log: Path) -> Iterator[tuple[int, psutil.Process]]:
    """`unimm serve` on a free port, once it answers: the port and the process. ValueError: it does not start."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--port", str(port), "--api-key", key, *(word for host in allowed for word in ("--allowed-media-domain", host))]
    command = [sys.executable, "-c", "from unimm.cli import main; main()", "serve", model, *options]
    with log.open("w", encoding="utf-8") as file, subprocess.Popen(command, stdout=file, stderr=file) as child:
        try:
            _wait(port, child, log)
            yield port, psutil.Process(child.pid)
            if child.poll() is not None:
                raise ValueError(f"The server has ended with {child.returncode}.")
        finally:
            child.terminate()
            try:
                child.wait(60)
            except subprocess.TimeoutExpired:
                child.kill()
                raise


def _wait(port: int, child: subprocess.Popen, log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and child.poll() is None:
        try:  # it listens before its model is loaded: then a request waits
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    said = log.read_text(encoding="utf-8").strip().splitlines() or ["it said nothing"]
    raise ValueError(f"The server did not start: {said[-1]}")


def _logged(said: str) -> dict[str, Any]:
    """Exceptions that the server's log has: what no request should have caused."""
    raised = re.findall(r"^(?:[\w.]+(?:Error|Exception|Interrupt|Warning))\b.*", said, re.MULTILINE)
    return {"num_logged_tracebacks": said.count("Traceback (most recent call last)"), "logged": sorted(set(raised))[:20]}


def as_json(findings: Findings) -> dict[str, Any]:
    """The findings."""
    by_kind = {kind: dict(sorted(counts.items())) for kind, counts in sorted(findings.statuses.items())}
    return {
        "statuses": dict(sorted(findings.totals.items())),
        "by_kind": by_kind,
        "failures": findings.failures,
        "seconds": round(findings.seconds, 1),
        "slowest": findings.slowest,
    }


def show(result: dict[str, Any]) -> None:
    """The table."""
    table = Table(title=f"{result['num_requests']} hostile requests, {result['seconds']} s", title_justify="left")
    for title in ("", "answers by status"):
        table.add_column(title)
    for kind, counts in [*result["by_kind"].items(), ("all", result["statuses"])]:
        table.add_row(kind, "  ".join(f"{status}: {count}" for status, count in counts.items()))
    console.print(table)
    for failure in result["failures"][:20]:
        console.print(f"FAILED: {failure}", markup=False)
    what = "survived" if not result["failures"] else f"failed: {len(result['failures'])} findings"
    console.print(
        f"The server {what}. Its memory: {result['rss_gib']} GiB; tracebacks in its log: {result['num_logged_tracebacks']}."
    )
