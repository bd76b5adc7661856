"""Readings in a subprocess: one that crashes or hangs costs the readings after it, and never the page.

The process writes a line of JSON when it begins with a reading and one when it is done: {"name"}, {"name", "reading"}.
"""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import IO

from unimm.diagnosis.findings import AFTER
from unimm.diagnosis.readings import Reading, Readings, take

TAIL = 3
"""Lines of what a process said last, for whoever asks why it ended."""


def read_apart(code: str, names: list[str], seconds: float, begin: Callable[[str], None] = lambda name: None) -> Readings:
    """What a Python process with that code reads; each of `names` has a reading, failed or not.

    seconds: for each of them. begin: called with the name of each reading when it is begun.
    """
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", code],  # -P: nothing in the current folder takes a library's place
        stdin=subprocess.PIPE,  # closed where we end before it does, however that is
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,  # to end with the compilers that it has started
    )
    said: list[str] = []
    lines: queue.Queue[str | None] = queue.Queue()
    threads = [
        threading.Thread(target=_pass_on, args=(process.stdout, lines.put), daemon=True),
        threading.Thread(target=_pass_on, args=(process.stderr, said.append), daemon=True),
    ]
    for thread in threads:
        thread.start()
    readings: Readings = {}
    current, why = None, "the process did not begin"
    try:
        current, why = _collect(lines, readings, seconds, begin)
    finally:
        _end(process)
    if why is None:
        threads[1].join(1)
        last = " / ".join(line.strip() for line in said if line and line.strip()).split(" / ")[-TAIL:]
        why = f"the process ended with {_code(process.returncode)}: {' / '.join(last)}".rstrip(": ")
    for name in names:
        readings.setdefault(name, {"failed": why if current in (None, name) else f"{AFTER}{current} failed before"})
    return readings


def write_readings(sections: dict[str, Callable[[], Reading]]) -> None:
    """The other process: read all, and report each on what was standard output; what libraries print goes to standard error."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for name, read in sections.items():
        print(json.dumps({"name": name}), file=channel, flush=True)
        print(json.dumps({"name": name, "reading": take(read)}), file=channel, flush=True)
    channel.close()


def _end_with_parent() -> None:
    """There is no reader any more."""
    os.read(0, 1)
    os._exit(1)


def _collect(
    lines: "queue.Queue[str | None]", readings: Readings, seconds: float, begin: Callable[[str], None]
) -> tuple[str | None, str | None]:
    """The reading at which it ended, None if that is none; and why, None if the process has ended by itself."""
    current = None
    while True:
        try:
            line = lines.get(timeout=seconds)
        except queue.Empty:
            return current, f"it did not end within {seconds:g} seconds"
        if line is None:
            return current, None
        message = json.loads(line)
        if "reading" in message:
            readings[message["name"]], current = message["reading"], None
        else:
            current = message["name"]
            begin(current)


def _pass_on(stream: IO[str], take_line: Callable[[str | None], None]) -> None:
    for line in stream:
        take_line(line)
    take_line(None)


def _end(process: subprocess.Popen[str]) -> None:
    """Whatever is left of it and of what it has started."""
    try:
        process.wait(0.5)
    except subprocess.TimeoutExpired:
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    process.wait()


def _code(code: int) -> str:
    """An exit code, or the signal's name, as text."""
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name
