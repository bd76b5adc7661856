"""Trials that take turns, each in a process of its own: neither memory nor warmth of one reaches the next.

A benchmark's module is run with one trial as JSON (`python -m MODULE {...}`) and prints what it measured as its last line.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

PEERS = ("unimm", "transformers")


def run_in_turns(
    module: str,
    trials: list[Any],
    repeats: int,
    progress: Callable[[Any], None],
    others: dict[str, list[str]] | None = None,
    keep: Callable[[list[dict[str, Any]]], Any] = lambda measured: None,
) -> list[dict[str, Any]]:
    """The medians of what each trial measured, beside its own fields.

    trials: frozen dataclasses with a field `who`. progress: called with the next one. others: the command of a peer that the
        module does not know; the trial is its last argument. keep: called after each trial with what is measured until then.

    Raises:
        ValueError: a trial failed; the last line that it said. UNIMM_DEBUG=1 shows all of it.
    """
    measured: list[list[dict[str, float]]] = [[] for _ in trials]
    for _ in range(repeats):
        for trial, runs in zip(trials, measured, strict=True):
            progress(trial)
            command = (others or {}).get(trial.who, [sys.executable, "-m", module])
            done = subprocess.run([*command, json.dumps(asdict(trial))], capture_output=True, text=True)
            if done.returncode:
                if os.environ.get("UNIMM_DEBUG") == "1":
                    print(done.stderr, file=sys.stderr)
                said = done.stderr.strip().splitlines() or [f"it ended with {done.returncode} and said nothing"]
                raise ValueError(f"The trial of {trial.who} failed: {said[-1]}")
            runs.append(json.loads(done.stdout.splitlines()[-1]))
            keep(_medians(trials, measured))
    return _medians(trials, measured)


def _medians(trials: list[Any], measured: list[list[dict[str, float]]]) -> list[dict[str, Any]]:
    """Of the trials that have run."""
    return [
        {**asdict(trial), **{key: statistics.median(one[key] for one in runs) for key in runs[0]}}
        for trial, runs in zip(trials, measured, strict=True)
        if runs
    ]


def peak_bytes() -> int:
    """The largest memory that this process ever had; Linux counts in KiB, macOS in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
