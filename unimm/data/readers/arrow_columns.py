"""What the columns of Arrow's tables hold: texts, lists, images as numbers, names of classes. Reads no image."""

import json
from typing import Any


def is_text(kind: Any) -> bool:
    """Whether a type is one of texts."""
    from pyarrow import types

    return types.is_string(kind) or types.is_large_string(kind)


def is_list(kind: Any) -> bool:
    """Whether a type is one of lists."""
    from pyarrow import types

    return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)


def is_byte_list(kind: Any) -> bool:
    """Whether a type is a list of bytes as numbers: an encoded image that was held by numpy."""
    from pyarrow import types

    return is_list(kind) and types.is_uint8(kind.value_type)


def image_kind(kind: Any, where: str) -> tuple[Any, bool]:
    """The type of a single image of a column, and whether the column holds lists of them.

    Raises:
        ValueError: it holds pixels, or lists of lists; `where` is said first.
    """
    kind = getattr(kind, "storage_type", kind)  # as of datasets' Array3D
    if not is_list(kind) or is_byte_list(kind):
        return kind, False
    inner = kind.value_type
    if not is_list(inner) or (is_byte_list(inner) and getattr(inner, "list_size", -1) < 0 and not _is_fixed(kind)):
        return inner, True
    while is_list(inner):
        inner = inner.value_type
    from pyarrow import types

    if types.is_integer(inner) or types.is_floating(inner):
        raise ValueError(f"{where} holds pixels as lists of numbers: write the bytes of a PNG or JPEG in their place.")
    raise ValueError(f"{where} holds lists of lists: write a flat list of images.")


def _is_fixed(kind: Any) -> bool:
    from pyarrow import types

    return types.is_fixed_size_list(kind)


def class_names(schema: Any) -> dict[str, list[str]]:
    """The names of classes, by column, as `datasets` notes them of a ClassLabel."""
    noted = (schema.metadata or {}).get(b"huggingface", b"{}")
    try:
        features = json.loads(noted)["info"]["features"]
        labels = {name: one for name, one in features.items() if one.get("_type") == "ClassLabel"}
        return {name: list(one["names"]) for name, one in labels.items()}
    except (ValueError, KeyError, TypeError, AttributeError):  # somebody else's notes
        return {}


def held_images(column: Any) -> list[list[bool] | None]:
    """Of each row whether each place of its list holds an image; None where there is no list."""
    from pyarrow import compute as functions
    from pyarrow import types

    compute: Any = functions  # made when pyarrow is imported, so that nothing is known of them before
    flat = compute.list_flatten(column)
    is_there = compute.is_valid(flat)
    if types.is_struct(flat.type):
        parts = [compute.is_valid(compute.struct_field(flat, part.name)) for part in flat.type]
        for part in parts[1:]:
            parts[0] = compute.or_(parts[0], part)
        is_there = compute.and_(is_there, parts[0])
    marks, held, start = is_there.to_pylist(), [], 0
    for length in compute.list_value_length(column).to_pylist():
        held.append(None if length is None else marks[start : start + length])
        start += length or 0
    return held
