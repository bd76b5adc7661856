"""Settings that a model folder or a configuration holds as a mapping, as the dataclass that checks them."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

T = TypeVar("T")


def read_settings(kind: type[T], given: T | Mapping[str, Any] | None, what: str) -> T | None:
    """A dataclass of settings from a mapping; one that is there already, and None, as they are.

    what: the settings in an error, with a verb: "tiles are set".

    Raises:
        ValueError: a name that is no setting, or something else than a mapping.
    """
    if given is None or isinstance(given, kind):
        return given
    names = [field.name for field in fields(kind)]  # pyright: ignore[reportArgumentType] - a dataclass
    unknown = [str(name) for name in given if name not in names] if isinstance(given, Mapping) else [repr(given)]
    if unknown:
        raise ValueError(f"{what} by {', '.join(names)}, not by {unknown[0]}.")
    return kind(**given)  # pyright: ignore[reportCallIssue]
