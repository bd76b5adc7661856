"""One reading after another, none of which may end the others; and nothing secret or personal in what they report."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

Reading = dict[str, Any]
Readings = dict[str, Reading]

MAX_REASON = 400


def take(read: Callable[[], Reading]) -> Reading:
    """What it reads, or {"failed": why it cannot}."""
    try:
        return read()
    except Exception as error:  # whatever it is: a doctor reports it
        return {"failed": reason_of(error)}


def reason_of(error: BaseException) -> str:
    """Type and message in one line."""
    text = " ".join(str(error).split())
    line = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return line if len(line) <= MAX_REASON else f"{line[:MAX_REASON]}..."


def has_failed(reading: Reading | None) -> bool:
    """Whether there is no such reading, or it could not be taken."""
    return reading is None or "failed" in reading


def gib(count: float) -> str:
    """A number of bytes, for a person."""
    if count >= 100 * 2**30:
        return f"{count / 2**30:,.0f} GiB"
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def redact(value: Any) -> Any:
    """The same without what a bug report should not hold: the home folder, tokens, passwords in addresses."""
    if isinstance(value, dict):
        return {redact(key): redact(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [redact(entry) for entry in value]
    return _redact_text(value) if isinstance(value, str) else value


def _redact_text(text: str) -> str:
    text = re.sub(r"://[^/\s@]+@", "://***@", text)
    text = re.sub(r"\b(hf|sk|ghp|gho|github_pat|glpat|wandb)[_-][A-Za-z0-9_-]{8,}", r"\1_***", text)
    for home in {str(_home()), str(_home().resolve())} - {"/", "."}:
        text = re.sub(rf"{re.escape(home)}(?=[/\\\s:;,'\")]|$)", "~", text)
    return text


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError:  # nobody's home
        return Path(os.sep)
