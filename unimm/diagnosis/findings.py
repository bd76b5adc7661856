"""What is wrong with a machine, each with its mend: pure functions of readings, listed by the modules of checks.

Levels: BROKEN (unimm cannot work), PROBLEM (it works, but worse than it could, or not for long), NOTE (good to know).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from unimm.diagnosis.readings import Readings, has_failed

BROKEN, PROBLEM, NOTE = "broken", "problem", "note"
LEVELS = (BROKEN, PROBLEM, NOTE)


@dataclass(frozen=True)
class Finding:
    """level: one of LEVELS. about: a topic, such as "memory". what: a sentence. mend: what to do, if anything."""

    level: str
    about: str
    what: str
    mend: str | None = None


@dataclass(frozen=True)
class Check:
    """A function of readings that yields findings, and the readings that it needs."""

    needs: tuple[str, ...]
    run: Callable[[Readings], Iterable[Finding]]


def find(readings: Readings, checks: Iterable[Check]) -> list[Finding]:
    """All findings, the worst first; of readings that failed, that they did."""
    found = list(failed_readings(readings))
    for check in checks:
        if not any(has_failed(readings.get(name)) for name in check.needs):
            found.extend(check.run(readings))
    return sorted(found, key=lambda one: LEVELS.index(one.level))


def failed_readings(readings: Readings) -> Iterable[Finding]:
    """What could not be read. Of readings through torch, each reason is reported once: without torch all fail."""
    reported: set[str] = set()
    for name in sorted(readings, key=lambda name: ASKED_OF_TORCH.index(name) if name in ASKED_OF_TORCH else -1):
        if not has_failed(readings[name]):
            continue
        reason = readings[name]["failed"]
        if name in ASKED_OF_TORCH and (reason in reported or reason.startswith(AFTER) or "torch" in reported):
            continue
        reported |= {reason, name}
        what, mend = FATAL.get(name, ("This could not be read", REPORT))
        yield Finding(BROKEN if name in FATAL else PROBLEM, name, f"{what}: {reason}", mend)


AFTER = "not read: "
"""So begins the reason of what was not asked, since an earlier question has ended the process."""

ASKED_OF_TORCH = ("torch", "devices", "speeds", "choices", "demo", "compile", "quickstart")
"""In the order of asking."""

REPORT = "report it with this page"

FATAL = {
    "torch": ("PyTorch cannot be imported", "pip install --force-reinstall torch torchvision"),
    "devices": ("PyTorch cannot tell which devices are here", "mend the driver, or hide the cards: CUDA_VISIBLE_DEVICES="),
    "speeds": ("PyTorch cannot compute here", "install another build of torch: https://pytorch.org/get-started/locally"),
    "choices": ("unimm cannot choose what to use", REPORT),
    "demo": (
        "The demo model cannot describe a picture",
        "pip install --force-reinstall unimm, or git restore unimm/demo in a checkout",
    ),
}
"""Readings without which nothing works: what it means that they failed, and the mend."""
