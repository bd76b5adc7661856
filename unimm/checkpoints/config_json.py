"""Frozen dataclasses of sizes and settings as JSON, in the config.json of a folder.

A part of another package is named there by the import path of its config class, `_target_`; the class is a dataclass whose
fields are JSON, and its `build(...)` makes the part. Parts of our own have no `_target_`: the key says what they are.
"""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from unimm.runtime.lazy_exports import public_name
from unimm.runtime.plugins import TARGET, import_target


def to_json(config: Any, is_named: bool = False) -> dict[str, Any]:
    """The fields of a dataclass as JSON-able values, dataclasses in them too; `_target_` with those of other packages.

    is_named: with ours, too: where nothing else says of which class it is. A class that is one of several of ours in a
        place says `IS_NAMED = True` itself.
    """
    kind = type(config)
    is_named = is_named or not kind.__module__.startswith("unimm.") or getattr(kind, "IS_NAMED", False)
    target = {TARGET: public_name(kind)} if is_named else {}
    return target | {one.name: _value(getattr(config, one.name)) for one in fields(config)}


def from_json(kind: type | None, values: Mapping[str, Any], where: str, allow_code: bool = False) -> Any:
    """The dataclass `kind` of JSON values, or the one that `_target_` names among them.

    kind: None: `_target_` has to name it. where: the file and the keys in it, for errors.

    Raises:
        ValueError: a key is unknown or missing; or the class is of a package that may not be imported (`import_target`), or is
            no dataclass.
    """
    values = dict(values)
    target = values.pop(TARGET, None)
    if target is not None:
        kind = import_target(str(target), where, allow_code)
        if not (isinstance(kind, type) and is_dataclass(kind)):
            raise ValueError(f"{where} names {target}, which is no dataclass: it must be the class of a part's configuration.")
    if kind is None:
        raise ValueError(f"{where} does not say what it is of: add {TARGET}, the import path of its config class.")
    try:
        return kind(**values)
    except TypeError as error:
        remedy = "update unimm, or correct the file" if target is None else "install the version of it that wrote the file"
        raise ValueError(f"{where}: {error}; {remedy}.") from error


def _value(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return to_json(value)
    if isinstance(value, Mapping):
        return {key: _value(one) for key, one in value.items()}
    return [_value(one) for one in value] if isinstance(value, list | tuple) else value
