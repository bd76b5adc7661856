"""Settings that are numbers, checked where they are given: one sentence instead of a division by zero an hour later.

`check_...` look at the attributes of a settings object. `whole_number` and `real_number` convert an argument: Python's, NumPy's
and 0-d tensors of PyTorch's numbers become plain ints and floats. (A NumPy integer that went on would wrap around at its own 64
or 32 bits, where noise is hashed in Python's.)
"""

import math
import operator
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any

MOST_IMAGES = 100_000
"""Images of a prompt in one call: each is a request that waits in memory."""

MOST_DRAFTS = 1_000
"""Drafts of which one is chosen, by votes or as the best."""


def check_whole(settings: object, least: int, *names: str) -> None:
    """The named attributes, or all values of a dict, are whole numbers of at least `least`.

    Raises:
        ValueError: one of them is not.
    """
    for name, value in _values(settings, names):
        if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
            raise ValueError(f"{name} is a whole number of at least {least}, not {value!r}.")


def check_number(settings: object, *names: str, above: float | None = None, below: float | None = None) -> None:
    """The named attributes, or all values of a dict, are finite numbers, at least 0; or above `above`, and below `below`, where
    these are given.

    Raises:
        ValueError: one of them is not.
    """
    lower = "at least 0" if above is None else f"above {above:g}"
    expected = lower if below is None else f"{lower} and below {below:g}"
    for name, value in _values(settings, names):
        if not _is_finite(value) or (value < 0 if above is None else value <= above) or (below is not None and value >= below):
            raise ValueError(f"{name} is a number {expected}, not {value!r}.")


def check_probability(settings: object, *names: str) -> None:
    """The named attributes are numbers from 0 to 1.

    Raises:
        ValueError: one of them is not.
    """
    for name, value in _values(settings, names):
        if not _is_finite(value) or not 0 <= value <= 1:
            raise ValueError(f"{name} is a number from 0 to 1, not {value!r}.")


def whole_number(name: str, value: Any, least: int | None = None, most: int | None = None) -> int:
    """The value as an int. ValueError: it is no whole number (a bool is none), less than `least`, or more than `most`."""
    at_least = "" if least is None else f" of at least {least}"
    try:
        if "bool" in str(getattr(value, "dtype", type(value))):
            raise TypeError
        number = operator.index(value)
    except (TypeError, ValueError, RuntimeError):  # of several elements, or of floats
        raise ValueError(f"{name} is a whole number{at_least}, not {shorten(value)}.") from None
    if least is not None and number < least:
        raise ValueError(f"{name} is a whole number{at_least}, not {number}.")
    if most is not None and number > most:
        raise ValueError(f"{name} is a whole number of at most {most:,}, not {number:,}.")
    return number


def whole_numbers(name: str, values: Any, count: int) -> list[int]:
    """One number for all, or a list, range, array or tensor with one for each of `count`. ValueError: it is neither."""
    if not isinstance(values, list | tuple | range) and not getattr(values, "ndim", 0):
        return [whole_number(name, values)] * count
    return [whole_number(name, value) for value in values]


def real_number(name: str, value: Any) -> float:
    """The value as a float. ValueError: it is no number."""
    try:
        if isinstance(value, str | bytes | bool):
            raise TypeError
        return float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise ValueError(f"{name} is a number, not {shorten(value)}.") from None


def shorten(value: Any, length: int = 60) -> str:
    """How a value is written, on one line and cut where it is long."""
    text = " ".join(repr(value)[: 10 * length].split())
    return text if len(text) <= length else f"{text[:length]}..."


def _values(settings: object, names: tuple[str, ...]) -> Iterable[tuple[str, Any]]:
    return settings.items() if isinstance(settings, dict) else [(name, getattr(settings, name)) for name in names]


def _is_finite(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
