"""Settings that are numbers, checked where they are given: one sentence instead of a division by zero an hour later."""

import math
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any


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


def _values(settings: object, names: tuple[str, ...]) -> Iterable[tuple[str, Any]]:
    return settings.items() if isinstance(settings, dict) else [(name, getattr(settings, name)) for name in names]


def _is_finite(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
