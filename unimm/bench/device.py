"""Many measurements in little time: each part is a process of its own, with a time limit, and what is known is kept after each.

Parts come in order of worth. Each gets at most the least that it needs and, by its weight, its share of what is free beyond the
least of all that still fit; what it does not use is for those after it, and where the least is not left it is skipped. When a
part's time is over it is asked to end (SIGINT: pytest then says what has failed so far), and seconds later its whole process
group is killed. What it has printed lies in a file, and what it had written counts.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unimm.runtime.atomic_files import read_json

MINUTES = "{minutes}"
"""In a command: the time that the part is given, less `START_SECONDS`, in minutes."""

START_SECONDS = 30.0
"""What a command that keeps to its minutes may need besides: for importing, and for what it has begun when they are over."""

GRACE_SECONDS = 5.0
"""Between SIGINT and SIGKILL, at most; taken from the part's own time."""

POLL_SECONDS = 0.05
TAIL_LINES, TAIL_CHARACTERS = 40, 6_000


@dataclass(frozen=True)
class Part:
    """One measurement.

    Args:
        name: short; also of the file that keeps what it prints.
        command: the arguments of its process.
        weight: of its share of the time.
        least_seconds: with fewer it would measure nothing.
        shown: the arguments as a user would give them [default: `command`].
        result: a JSON file that the process writes, for `Outcome.result`.
        needs: the name of an earlier part that must have been done.
        why_not: it is skipped for this reason.
        folder: where the process runs [default: here].
        environment: variables that it has besides ours.
    """

    name: str
    command: list[str]
    weight: float = 1.0
    least_seconds: float = 0.0
    shown: str = ""
    result: Path | None = None
    needs: str = ""
    why_not: str = ""
    folder: Path | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Outcome:
    """What became of a part.

    status: "waiting", "running", "done", "failed", "timed out", "interrupted" or "skipped". reason: why it is not done.
    tail: the end of what it has printed; of a part that is done the last line.
    """

    name: str
    command: str
    status: str = "waiting"
    reason: str = ""
    limit_seconds: float = 0.0
    seconds: float = 0.0
    exit_code: int | None = None
    output: str = ""
    tail: list[str] = field(default_factory=list)
    result: dict[str, Any] | None = None


def run_parts(
    parts: list[Part],
    seconds: float,
    logs: Path,
    record: Callable[[list[Outcome], Outcome], None],
    is_stopped: Callable[[], bool] = lambda: False,
) -> list[Outcome]:
    """Run the parts one after the other.

    Args:
        parts: in order of worth.
        seconds: for all of them.
        logs: a folder for what they print, NAME.log each.
        record: called with all outcomes, and the one that is new, when a part begins and when it is over.
        is_stopped: asked again and again; if so, the part that runs is ended, and no other one begins.
    """
    deadline = time.monotonic() + seconds
    logs.mkdir(parents=True, exist_ok=True)
    outcomes = [Outcome(part.name, part.shown or " ".join(part.command)) for part in parts]
    for number, (part, outcome) in enumerate(zip(parts, outcomes, strict=True)):
        left = deadline - time.monotonic()
        outcome.reason = "stopped before its turn" if is_stopped() else _why_skipped(part, outcomes[:number], left)
        if outcome.reason:
            outcome.status = "skipped"
            record(outcomes, outcome)
            continue
        outcome.status, outcome.limit_seconds = "running", round(share(parts[number:], left), 1)
        outcome.output = str(logs / f"{part.name}.log")
        outcome.command = outcome.command.replace(MINUTES, _minutes(outcome))
        record(outcomes, outcome)
        try:
            _run(part, outcome, is_stopped)
        finally:
            record(outcomes, outcome)
    return outcomes


def share(parts: list[Part], left: float) -> float:
    """Seconds of those that are left that the first of the parts may take; the others are those that come after it."""
    free, weights = left, 0.0
    for part in parts:
        if not part.why_not and part.least_seconds <= free:
            free -= part.least_seconds
            weights += part.weight
    return parts[0].least_seconds + free * parts[0].weight / weights


def _why_skipped(part: Part, before: list[Outcome], left: float) -> str:
    if part.why_not:
        return part.why_not
    needed = next((one for one in before if one.name == part.needs), None)
    if needed is not None and needed.status != "done":
        return f"it needs what '{needed.name}' makes, which was not done"
    if left < max(part.least_seconds, 2 * POLL_SECONDS):
        return f"it needs {part.least_seconds:.0f} s, and {max(left, 0.0):.0f} s were left"
    return ""


def _run(part: Part, outcome: Outcome, is_stopped: Callable[[], bool]) -> None:
    """Run one part for as long as it may, and write down what became of it."""
    limit = outcome.limit_seconds
    arguments = [argument.replace(MINUTES, _minutes(outcome)) for argument in part.command]
    if part.result is not None:
        part.result.unlink(missing_ok=True)  # of an earlier day
    started = time.monotonic()
    outcome.status, outcome.reason = "interrupted", "stopped while it ran"
    try:
        with Path(outcome.output).open("wb") as output:
            # Without buffers, for what is in them is lost with the process; in a session of its own, to end all that it starts.
            process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=part.folder,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **part.environment},
                start_new_session=True,
            )
            grace = min(GRACE_SECONDS, limit / 4)
            try:
                _wait(process, outcome, started + limit - grace, is_stopped)
            finally:
                _end(process, grace)
        outcome.exit_code = process.returncode
    except OSError as error:
        outcome.status, outcome.reason = "failed", f"it cannot be started: {error}"
    outcome.seconds = round(time.monotonic() - started, 1)
    outcome.tail = _tail(Path(outcome.output))[-1 if outcome.status == "done" else -TAIL_LINES :]
    with suppress(ValueError):  # what a process that was killed has left half-written counts for nothing
        outcome.result = read_json(part.result) if part.result is not None else None


def _minutes(outcome: Outcome) -> str:
    return f"{max(0.1, (outcome.limit_seconds - START_SECONDS) / 60):.2f}"


def _wait(process: subprocess.Popen, outcome: Outcome, deadline: float, is_stopped: Callable[[], bool]) -> None:
    """Until the process ends, its time is over, or all is stopped."""
    while process.poll() is None:
        if is_stopped():
            return
        if time.monotonic() > deadline:
            outcome.status, outcome.reason = "timed out", f"its {outcome.limit_seconds:.0f} s were over"
            return
        time.sleep(POLL_SECONDS)
    code = process.returncode
    outcome.status = "failed" if code else "done"
    outcome.reason = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}" if code else ""


def _end(process: subprocess.Popen, grace: float) -> None:
    """Ask the process and all that it has started to end; kill what has not, also where the process itself is gone."""
    try:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(grace)
    finally:  # also where a second Ctrl-C ends the waiting
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _tail(path: Path) -> list[str]:
    """The last lines of what was printed, without empty ones."""
    if not path.is_file():
        return []
    with path.open("rb") as printed:
        printed.seek(max(0, path.stat().st_size - TAIL_CHARACTERS))
        text = printed.read().decode("utf-8", "replace")
    return [line for line in (line.rstrip() for line in text.splitlines()) if line][-TAIL_LINES:]
