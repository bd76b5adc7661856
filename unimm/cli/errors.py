"""What goes wrong, said in one sentence: "unimm: ..." on stderr and exit code 2, never a traceback for a user's mistake.

`ValueError` and `OSError` are how our code and the libraries below it tell users what to do; Hydra's errors are reworded so
that they name the key and, where there is one, the key that was probably meant. Anything else is a bug, and keeps its
traceback; `UNIMM_DEBUG=1` shows all tracebacks.
"""

import difflib
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

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
        return _explain_hydra(error)
    if isinstance(error, BrokenPipeError):
        return None  # the reader of our output has left: nobody is there to be told
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror.lower()}."
    if isinstance(error, ValueError | OSError | FloatingPointError):
        return _one_line(_without_worker(str(error))) or type(error).__name__
    if type(error).__name__ == "OutOfMemoryError":  # torch's; importing torch here would slow every verb down
        return "The device ran out of memory: use a smaller batch, fewer images at once, or --dtype bfloat16."
    return None


def _explain_hydra(error: BaseException) -> str | None:
    cause = error.__cause__
    message = str(error)
    if type(error).__name__ == "InstantiationException":
        return _explain_instantiation(message, cause)
    if type(error).__name__ == "MissingConfigException":
        return _explain_missing(error)
    if type(error).__name__ == "OverrideParseException":
        return f"Cannot read {getattr(error, 'override', '')!r}: write key=value, with quotes around special characters."
    key = getattr(cause, "full_key", None) or getattr(error, "full_key", None)
    if type(error).__name__ == "MissingMandatoryValue":
        return f"The key '{key}' has no value yet: add {key}=..."
    if type(cause).__name__ in ("ConfigAttributeError", "ConfigKeyError"):
        return f"There is no key '{key}' in the configuration{_meant(str(key), cause)}"
    if type(cause).__name__ == "ValidationError" or type(error).__name__ == "ValidationError":
        reason = str(cause or error).splitlines()[0]
        return f"The key '{key}' cannot take this value: {reason}."
    return _one_line(message)


def _explain_instantiation(message: str, cause: BaseException | None) -> str | None:
    found = re.search(r"full_key: (\S+)", message)
    key = found.group(1) if found else "the configuration"
    if unknown := re.search(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(cause)):
        return f"There is no key '{key}.{unknown.group(2)}': {unknown.group(1)} does not know it."
    if isinstance(cause, ValueError | OSError | TypeError):
        return f"{key}: {_one_line(str(cause))}"
    if isinstance(cause, ImportError | AttributeError) or (cause is None and "Error locating" in message):
        return f"{key}: {_one_line(message.splitlines()[0])}"
    return None


def _explain_missing(error: Any) -> str:
    """A config file that is not there: Hydra knows which ones are."""
    missing, options = str(error.missing_cfg_file or ""), [str(option) for option in error.options or ()]
    found = re.search(r"'([^']+)'\s*$", str(error).split("\n")[0])
    name = found.group(1) if found else missing
    close = difflib.get_close_matches(name.rsplit("/", 1)[-1], options, 1)
    hint = f"; did you mean '{close[0]}'?" if close else f": there is {', '.join(options)}." if options else "."
    return f"There is no configuration '{name}'{hint}"


def _meant(key: str, cause: Any) -> str:
    """A hint at the existing key that is nearest: by its whole name, then by its last word."""
    node = getattr(cause, "parent_node", None)
    if node is None:
        return "."
    keys = list(_flat_keys(node._get_root()))
    words = {known.rsplit(".", 1)[-1]: known for known in reversed(keys)}
    close = difflib.get_close_matches(key, keys, 1, cutoff=0.7)
    close = close or [words[word] for word in difflib.get_close_matches(key.rsplit(".", 1)[-1], words, 1, cutoff=0.7)]
    return f"; did you mean '{close[0]}'?" if close else "."


def _flat_keys(node: Any, prefix: str = "") -> Iterator[str]:
    for key in node:
        name = f"{prefix}{key}"
        yield name
        child = node._get_node(key)
        if hasattr(child, "items") and not child._is_none() and not child._is_missing() and not child._is_interpolation():
            yield from _flat_keys(child, f"{name}.")


def _without_worker(text: str) -> str:
    """What was raised in a process that loads data, without that process' traceback."""
    if "Original Traceback" not in text:
        return text
    return text.strip().splitlines()[-1].partition(": ")[2]


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= MAX_CHARACTERS else f"{line[:MAX_CHARACTERS]}..."
