"""Files of benchmarks and of answers: what a task on a user's files reads, and what it says where one is of another form.

A task that is given `answers` scores that file instead of asking a model: VQA's [{"question_id", "answer"}], COCO's
[{"image_id", "caption"}], lines of {"question_id", "answer"} for POPE.
"""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from unimm.data.readers.json_lines import JsonFiles, JsonItems
from unimm.data.readers.paths import Paths, image_at, short
from unimm.data.records import ImageLike


def read_entries(paths: Paths, fields: tuple[str, ...], form: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The entries of .json and .jsonl files, each with its file.

    Args:
        fields: what an entry has to have. form: what the files should be, for messages: "POPE's".

    Raises:
        ValueError: there is no such file, it is no JSON, or an entry lacks a field.
    """
    files = JsonFiles(paths)
    for index in range(len(files)):
        items, number, _ = files.find(index)
        item = items[number]
        if missing := [name for name in fields if name not in item]:
            there = ", ".join(sorted(item)) or "nothing"
            raise ValueError(
                f"{items.where(number)} has no {missing[0]}, there is {there}: {form} files have {', '.join(fields)}."
            )
        yield items.path, item


def read_answers(path: str | Path, key: str, value: str, keys: Iterable[str]) -> dict[str, str]:
    """The answers of a file by the names of their items.

    Args:
        key, value: the fields that hold an item's name and its answer. keys: of the items that need one.

    Raises:
        ValueError: there is no such file, it is of another form, has two answers to one item, or lacks some.
    """
    if not Path(path).is_file():
        raise ValueError(f"There is no file of answers {short(Path(path))}: name one, or leave answers out to ask the model.")
    found: dict[str, str] = {}
    items = JsonItems(Path(path))
    for number in range(len(items)):
        entry = items[number]
        if missing := [name for name in (key, value) if name not in entry]:
            raise ValueError(
                f"{items.where(number)} has no {missing[0]}, there is {', '.join(sorted(entry)) or 'nothing'}: "
                f"a file of answers has {key} and {value} in every entry."
            )
        if str(entry[key]) in found:
            raise ValueError(f"{items.where(number)} answers {key} {entry[key]} a second time: leave one answer of each.")
        found[str(entry[key])] = str(entry[value])
    keys = list(keys)
    if lacking := [one for one in keys if one not in found]:
        raise ValueError(
            f"{path} lacks {len(lacking):,} of {len(keys):,} answers, such as that of {key} {lacking[0]}: "
            f"complete it, or score the first ones alone by num_items."
        )
    return found


def find_images(root: Path, names: Iterable[str]) -> dict[str, ImageLike]:
    """The images of these names below a folder. ValueError: some are not there, and how many."""
    found: dict[str, ImageLike] = {}
    lacking: list[str] = []
    for name in dict.fromkeys(names):
        try:
            found[name] = image_at(root, name, "this item")
        except ValueError:
            lacking.append(name)
    if lacking:
        raise ValueError(
            f"{len(lacking):,} of {len(found) + len(lacking):,} images are not in {root}, such as {lacking[0]}: "
            f"put them there, or name their folder with images=..."
        )
    return found


def take(items: list[Any], num_items: int | None, what: str) -> list[Any]:
    """The first items, or all of them. ValueError: there are none, or fewer than are asked for."""
    if not items:
        raise ValueError(f"There are no {what} to ask: name another file.")
    if num_items is not None and not 1 <= num_items <= len(items):
        raise ValueError(f"num_items is from 1 to the {len(items):,} {what} that there are, not {num_items}.")
    return items[:num_items]


def digest(parts: Iterable[str]) -> str:
    """A fingerprint of what a task asks: a run goes on only after answers to the same items."""
    total = hashlib.sha256()
    for part in parts:
        total.update(part.encode() + b"\0")
    return total.hexdigest()
