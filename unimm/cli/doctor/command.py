"""`unimm doctor`: one page about the machine, what unimm would choose on it, and what is wrong with it; or the same as JSON."""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

doctor = typer.Typer(rich_markup_mode=None)

SECONDS = 120.0
"""For each question to torch: what takes longer hangs."""

PROBES = ("kernels", "torch", "devices", "speeds", "choices", "demo", "compile", "quickstart")

FORMAT = 1
"""Of the JSON."""


@doctor.command("doctor")
def command(
    as_json: Annotated[bool, typer.Option("--json", help="Print all readings as JSON, for programs.")] = False,
) -> None:
    """Tell what this machine is like, what unimm would use on it and why, and what is wrong, each with its mend.

    Paste the page into a bug report: it holds no tokens, and ~ instead of your home folder. The exit code is 1 where
    something is broken so that unimm cannot work.

    \b
    Examples:
      unimm doctor
      unimm doctor --json > doctor.json
    """
    if as_json:
        diagnosis = diagnose(lambda name: None)
        json.dump(diagnosis, sys.stdout, indent=2)
        print()
    else:
        from unimm.cli.doctor.page import show, waiting

        with waiting() as begin:
            diagnosis = diagnose(begin)
        show(diagnosis)
    if not diagnosis["works"]:
        raise typer.Exit(1)


def diagnose(begin: Callable[[str], None]) -> dict[str, Any]:
    """All of it, plain and without secrets. begin: called with what is examined next.

    Returns:
        {"format", "date", "works", "findings": [{"level", "about", "what", "mend"}], "choices": [{"what", "value", "why",
        "setting"}], "readings": {name: {...} or {"failed": reason}}}
    """
    from unimm.diagnosis import checks, gpu_checks, software_checks
    from unimm.diagnosis.apart import read_apart
    from unimm.diagnosis.choices import choose_all
    from unimm.diagnosis.findings import BROKEN, find
    from unimm.diagnosis.readings import redact

    begin("the machine")
    readings = plain_readings()
    package = str(Path(__file__).resolve().parents[3])
    code = f"import sys; sys.path.append({package!r}); from unimm.cli.doctor.probe import main; main()"
    readings |= read_apart(code, list(PROBES), SECONDS, begin)
    findings = find(readings, (*checks.CHECKS, *gpu_checks.CHECKS, *software_checks.CHECKS))
    return redact(
        {
            "format": FORMAT,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "works": all(one.level != BROKEN for one in findings),
            "findings": [asdict(one) for one in findings],
            "choices": [asdict(one) for one in choose_all(readings)],
            "readings": readings,
        }
    )


def plain_readings() -> dict[str, Any]:
    """Those that need no torch."""
    from unimm.diagnosis import machine, software
    from unimm.diagnosis.readings import take

    hub = take(software.read_hub)
    readers = {
        "unimm": software.read_unimm,
        "system": machine.read_system,
        "processor": machine.read_processor,
        "threads": machine.read_threads,
        "memory": machine.read_memory,
        "disks": lambda: machine.read_disks(hub.get("cache")),
        "gpus": machine.read_gpus,
        "python": software.read_python,
        "packages": software.read_packages,
        "compiler": software.read_compiler,
        "environment": software.read_environment,
    }
    return {**{name: take(read) for name, read in readers.items()}, "hub": hub}
