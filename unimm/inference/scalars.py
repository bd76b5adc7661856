"""Input coercion of numbers: NumPy's, and 0-d tensors of PyTorch's, to plain ints and floats.

A NumPy integer that went on would wrap around at its own 64 or 32 bits, where noise is hashed in Python's.
"""

import operator
from typing import Any


def whole_number(name: str, value: Any, least: int | None = None) -> int:
    """The value as an int. ValueError: it is no whole number (a bool is none), or less than `least`."""
    at_least = "" if least is None else f" of at least {least}"
    try:
        if "bool" in str(getattr(value, "dtype", type(value))):
            raise TypeError
        number = operator.index(value)
    except (TypeError, ValueError, RuntimeError):  # of several elements, or of floats
        raise ValueError(f"{name} is a whole number{at_least}, not {shorten(value)}.") from None
    if least is not None and number < least:
        raise ValueError(f"{name} is a whole number{at_least}, not {number}.")
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
