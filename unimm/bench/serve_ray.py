"""Replicas of `unimm.serve.ray_app` under load: what clients notice where one is killed, or where Ray adds and removes some.

Ray runs as its users start it (`serve run`), with the clients of `unimm bench serve` in a process of their own. In the middle a
replica's process gets SIGKILL. Requests that it was working on may fail, none of the others may, every answer must be the
engine's own for its seed, and there must be as many replicas again. In the other trial (`measure_scaling`) none dies, and no
request may fail.
"""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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

KILL_AFTER, NOTICE_SECONDS, WAIT_SECONDS = 1 / 3, 5.0, 180.0
"""When a replica is killed, as a share of the load; how long Ray may send requests to it; until there are as many as wanted."""

SCALED_FOR = 2.0
"""Requests that each replica is to have, where Ray adds some."""

DELAYS = {"upscale_delay_s": 2.0, "downscale_delay_s": 10.0}
"""Seconds for which there must be too few or too many replicas, so that a trial does not take ten minutes."""


@dataclass
class Kill:
    """When a replica was killed, in seconds since 1970; its process; and the seconds until there were as many again."""

    at: float = 0.0
    process: int = 0
    seconds_until_back: float | None = None


def measure(setting: Setting, engine: Engine, replicas: int, logs: Path, report: Callable[[str], None]) -> dict[str, Any]:
    """A replica is killed; arguments as `unimm.bench.serve.measure` has them.

    Returns:
        What `summarize` tells; `wrong`; `failed_with_replica`, requests that the killed one took with it; `failed_otherwise`.
    """
    requests, kill, told = make_requests(setting), Kill(), dict[str, Any]()
    expected = expect(engine, requests, report)
    report(f"Starting {replicas} replicas")
    with _served(setting, requests, {"min_replicas": replicas}, logs, told) as (server, load):
        killer = threading.Thread(target=_kill_one, args=(server, setting.seconds * KILL_AFTER, replicas, kill), daemon=True)
        killer.start()
        report(f"{setting.num_clients} clients for {setting.seconds:.0f} seconds; a replica dies after a third")
        exchanges = load(num_clients=setting.num_clients, seconds=setting.seconds, disconnects=setting.disconnects)
        killer.join()
        after = load(num_clients=4, num_requests=8, disconnects=0.0)
    told |= summarize(exchanges, requests, setting.seconds) | judge([*exchanges, *after], expected, kill)
    answered = sum(one.outcome == ANSWERED for one in after)
    return told | {"replicas": replicas, "answered_after": answered, "seconds_until_back": kill.seconds_until_back}


def measure_scaling(
    setting: Setting, engine: Engine, replicas: int, logs: Path, report: Callable[[str], None]
) -> dict[str, Any]:
    """One replica becomes `replicas` under load, and one again after it; the rest as `measure` has it.

    Returns:
        As `measure`, and `seconds_until_more` and `seconds_until_fewer` (None: not in time), from the begin of the load and
        from its end.
    """
    requests, told = make_requests(setting), dict[str, Any]()
    expected = expect(engine, requests, report)
    scaling = {"min_replicas": 1, "max_replicas": replicas, "target_ongoing_requests": SCALED_FOR, **DELAYS}
    report("Starting a replica")
    with _served(setting, requests, scaling, logs, told) as (server, load):
        more: list[float | None] = []

        def watch() -> None:
            more.append(_seconds_until(server, lambda count: count >= replicas))

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        report(f"{setting.num_clients} clients for {setting.seconds:.0f} seconds; Ray adds replicas")
        exchanges = load(num_clients=setting.num_clients, seconds=setting.seconds, disconnects=setting.disconnects)
        report("Waiting until one replica is left")
        watcher.join()
        fewer = _seconds_until(server, lambda count: count == 1)
        after = load(num_clients=4, num_requests=8, disconnects=0.0)
    told |= summarize(exchanges, requests, setting.seconds) | judge([*exchanges, *after], expected, Kill())
    answered = sum(one.outcome == ANSWERED for one in after)
    return told | {"answered_after": answered, "seconds_until_more": more[0] if more else None, "seconds_until_fewer": fewer}


@contextmanager
def _served(
    setting: Setting, requests: list[dict[str, Any]], scaling: dict[str, Any], logs: Path, told: dict[str, Any]
) -> Iterator[tuple[Server, Callable[..., list[Exchange]]]]:
    """Ray with as many replicas as it begins with, and what loads it; how it started and ended is put into `told`."""
    port, replicas = free_port(), scaling["min_replicas"]
    with TemporaryDirectory() as folder:
        config, file, out = (Path(folder) / name for name in ("ray.json", "requests.json", "exchanges.json"))
        config.write_text(json.dumps(configuration(setting, scaling, port)), encoding="utf-8")
        file.write_text(json.dumps(requests), encoding="utf-8")
        server = Server([sys.executable, "-m", "ray.serve.scripts", "run", str(config)], port, logs / "ray.log")
        told["start_seconds"] = server.start_seconds
        try:
            if _seconds_until(server, lambda count: count >= replicas) is None:
                raise ValueError(f"There were not {replicas} replicas after {WAIT_SECONDS:.0f} seconds: {server.log} says why.")
            yield server, lambda **more: run_load(Load(server.address, str(file), str(out), seed=setting.seed, **more))
        finally:
            told |= server.end(signal.SIGINT)  # as Ctrl-C: Ray ends its processes


def judge(exchanges: list[Exchange], expected: list[list[Any]], kill: Kill) -> dict[str, int]:
    """How many answers were compared, and wrong; how many requests failed with a replica that was killed, and otherwise."""
    answered = [one for one in exchanges if one.outcome == ANSWERED]
    failed = [one for one in exchanges if one.outcome in (FAILED, REFUSED)]
    with_it = sum(fell_with(one, kill) for one in failed)
    return {
        "compared": len(answered),
        "wrong": sum(not is_right(one, expected[one.request]) for one in answered),
        "failed_with_replica": with_it,
        "failed_otherwise": len(failed) - with_it,
    }


def configuration(setting: Setting, scaling: dict[str, Any], port: int) -> dict[str, Any]:
    """Ray Serve's own file: where it listens, and the application with its arguments, `scaling` among them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    arguments = {"model": setting.model, "device": setting.device, "dtype": setting.dtype}
    most = max(scaling["min_replicas"], scaling.get("max_replicas", 1))
    arguments |= {**scaling, "num_cpus": max(0.1, min(1.0, 0.9 * cores / most))}
    application = {"name": "unimm", "route_prefix": "/", "import_path": "unimm.serve.ray_app:build", "args": arguments}
    return {"http_options": {"host": "127.0.0.1", "port": port}, "applications": [application]}


def fell_with(exchange: Exchange, kill: Kill) -> bool:
    """Whether a request was being worked on when the replica died, or sent before Ray had noticed."""
    was_open = exchange.sent_at < kill.at + NOTICE_SECONDS and exchange.sent_at + exchange.seconds > kill.at
    return kill.at > 0 and was_open


def _replicas(server: Server) -> list[psutil.Process]:
    """The processes of replicas that are ready, among those that the server has started."""
    found: list[psutil.Process] = []
    if not psutil.pid_exists(server.process.pid):
        return found
    for process in psutil.Process(server.process.pid).children(recursive=True):
        try:
            command = process.cmdline()
        except psutil.Error:  # it has just ended
            continue
        if command and command[0].startswith(REPLICA) and STARTING not in command[0]:
            found.append(process)
    return found


def _seconds_until(server: Server, is_so: Callable[[int], bool]) -> float | None:
    """Until the number of replicas that are ready is as it should be; None: not in time."""
    started = time.monotonic()
    while time.monotonic() < started + WAIT_SECONDS:
        if is_so(len(_replicas(server))):
            return time.monotonic() - started
        time.sleep(0.2)
    return None


def _kill_one(server: Server, after: float, replicas: int, kill: Kill) -> None:
    time.sleep(after)
    victim = _replicas(server)[0]
    kill.at, kill.process = time.time(), victim.pid
    os.kill(victim.pid, signal.SIGKILL)
    victim.wait(30)
    kill.seconds_until_back = _seconds_until(server, lambda count: count >= replicas)
