"""What goes wrong, said in one sentence: "unimm: ..." on stderr and exit code 2, never a traceback for a user's mistake.

`ValueError` and `OSError` are how our code and the libraries below it tell users what to do; Hydra's errors are reworded
(`unimm.cli.hydra_errors`). Anything else is a bug, and keeps its traceback; `UNIMM_DEBUG=1` shows all tracebacks.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

MAX_CHARACTERS = 1_000
INTERRUPTED = 130  # 128 + SIGINT, as shells count


@contextmanager
def plain_errors() -> Iterator[None]:
    """Turn what users can cause into one line and an exit code: 2 for a mistake, 130 for Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt:
        print("\nunimm: interrupted.", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
    except Exception as error:
        sentence = explain(error)
        if sentence is None or os.environ.get("UNIMM_DEBUG") == "1":
            raise
        print(f"unimm: {sentence}", file=sys.stderr)
        raise SystemExit(2) from None


def explain(error: BaseException) -> str | None:
    """One sentence for an error that a user can cause, None for a bug."""
    if type(error).__module__.split(".")[0] in ("hydra", "omegaconf"):
        from unimm.cli.hydra_errors import explain_hydra  # imports Hydra, which most commands do without

        sentence = explain_hydra(error)
        return None if sentence is None else _one_line(sentence)
    if isinstance(error, BrokenPipeError):
        return None  # the reader of our output has left: there is nobody to read it
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror.lower()}."
    if isinstance(error, ValueError | OSError | FloatingPointError):
        return _one_line(_without_worker(str(error))) or type(error).__name__
    if type(error).__name__ == "OutOfMemoryError":  # torch's; importing torch here would slow every command down
        return "The device ran out of memory: use a smaller batch, fewer images at once, or --dtype bfloat16."
    return None


def _without_worker(text: str) -> str:
    """What was raised in a process that loads data, without that process' traceback."""
    if "Original Traceback" not in text:
        return text
    return text.strip().splitlines()[-1].partition(": ")[2]


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= MAX_CHARACTERS else f"{line[:MAX_CHARACTERS]}..."
