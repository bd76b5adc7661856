"""Replicas of `unimm.serve.ray_app` under load, of which one is killed: what clients notice, and how soon all is as before.

Ray runs as its users start it (`serve run`), with the clients of `unimm bench serve` in a process of their own. In the middle a
replica's process gets SIGKILL. Requests that it was working on may fail, none of the others may, every answer must be the
engine's own for its seed, and there must be as many replicas again.
"""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil

from unimm.bench.serve import Setting, expect, is_right, make_requests, run_load, summarize
from unimm.bench.serve_clients import ANSWERED, FAILED, REFUSED, Exchange, Load
from unimm.bench.server_process import Server, free_port
from unimm.inference.engine import Engine

REPLICA = "ray::ServeReplica"
STARTING = "initialize"
"""How Ray titles the process of one; and what is in the title of one that still loads its model."""

KILL_AFTER, NOTICE_SECONDS, BACK_SECONDS = 1 / 3, 5.0, 180.0
"""When a replica is killed, as a share of the load; how long Ray may send requests to it; and until there is another."""


@dataclass
class Kill:
    """When a replica was killed, in seconds since 1970; its process; and the seconds until there were as many again."""

    at: float = 0.0
    process: int = 0
    seconds_until_back: float | None = None


def measure(setting: Setting, engine: Engine, replicas: int, logs: Path, report: Callable[[str], None]) -> dict[str, Any]:
    """The whole trial; arguments as `unimm.bench.serve.measure` has them.

    Returns:
        What `summarize` tells; `wrong`; `failed_with_replica`, requests that the killed one took with it; `failed_otherwise`.
    """
    requests = make_requests(setting)
    expected = expect(engine, requests, report)
    port = free_port()
    with TemporaryDirectory() as folder:
        config, file, out = (Path(folder) / name for name in ("ray.json", "requests.json", "exchanges.json"))
        config.write_text(json.dumps(configuration(setting, replicas, port)), encoding="utf-8")
        file.write_text(json.dumps(requests), encoding="utf-8")
        report(f"Starting {replicas} replicas")
        server = Server([sys.executable, "-m", "ray.serve.scripts", "run", str(config)], port, logs / "ray.log")
        try:
            if _seconds_until(server, replicas) is None:
                raise ValueError(f"There were not {replicas} replicas after {BACK_SECONDS:.0f} seconds: {server.log} says why.")
            load = {"num_clients": setting.num_clients, "seconds": setting.seconds, "disconnects": setting.disconnects}
            kill = Kill()
            killer = threading.Thread(target=_kill_one, args=(server, setting.seconds * KILL_AFTER, replicas, kill))
            killer.start()
            report(f"{setting.num_clients} clients for {setting.seconds:.0f} seconds; a replica dies after a third")
            exchanges = run_load(Load(server.address, str(file), str(out), seed=setting.seed, **load))
            killer.join()
            after = run_load(Load(server.address, str(file), str(out), num_clients=4, num_requests=8, disconnects=0.0))
        finally:
            ended = server.end(signal.SIGINT)  # as Ctrl-C: Ray ends its processes
    answered = [one for one in [*exchanges, *after] if one.outcome == ANSWERED]
    wrong = [one for one in answered if not is_right(one, expected[one.request])]
    failed = [one for one in [*exchanges, *after] if one.outcome in (FAILED, REFUSED)]
    with_it = [one for one in failed if fell_with(one, kill)]
    return {
        "replicas": replicas,
        **summarize(exchanges, requests, setting.seconds),
        "compared": len(answered),
        "wrong": len(wrong),
        "failed_with_replica": len(with_it),
        "failed_otherwise": len(failed) - len(with_it),
        "answered_after": sum(one.outcome == ANSWERED for one in after),
        "seconds_until_back": kill.seconds_until_back,
        "start_seconds": server.start_seconds,
        **ended,
    }


def configuration(setting: Setting, replicas: int, port: int) -> dict[str, Any]:
    """Ray Serve's own file: where it listens, and the application with its arguments."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    arguments = {"model": setting.model, "device": setting.device, "dtype": setting.dtype}
    arguments |= {"min_replicas": replicas, "num_cpus": max(0.1, min(1.0, 0.9 * cores / replicas))}
    application = {"name": "unimm", "route_prefix": "/", "import_path": "unimm.serve.ray_app:build", "args": arguments}
    return {"http_options": {"host": "127.0.0.1", "port": port}, "applications": [application]}


def fell_with(exchange: Exchange, kill: Kill) -> bool:
    """Whether a request was being worked on when the replica died, or sent before Ray had noticed."""
    was_open = exchange.sent_at < kill.at + NOTICE_SECONDS and exchange.sent_at + exchange.seconds > kill.at
    return kill.at > 0 and was_open


def _replicas(server: Server) -> list[psutil.Process]:
    """The processes of replicas that are ready, among those that the server has started."""
    found = []
    for process in psutil.Process(server.process.pid).children(recursive=True):
        try:
            command = process.cmdline()
        except psutil.Error:  # it has just ended
            continue
        if command and command[0].startswith(REPLICA) and STARTING not in command[0]:
            found.append(process)
    return found


def _seconds_until(server: Server, replicas: int) -> float | None:
    """Until so many replicas are ready; None: not in time."""
    started = time.monotonic()
    while time.monotonic() < started + BACK_SECONDS:
        if len(_replicas(server)) >= replicas:
            return time.monotonic() - started
        time.sleep(0.2)
    return None


def _kill_one(server: Server, after: float, replicas: int, kill: Kill) -> None:
    time.sleep(after)
    victim = _replicas(server)[0]
    kill.at, kill.process = time.time(), victim.pid
    os.kill(victim.pid, signal.SIGKILL)
    victim.wait(30)
    kill.seconds_until_back = _seconds_until(server, replicas)
