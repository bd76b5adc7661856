"""Passes over a set of shards that may grow: which shards each pass goes through, decided once for all processes of a run.

    FOLDER/pass-00000/shards.json   {"first": 0, "new": {"000.tar": 1048576, ...}, "gone": []}

A pass begins with the shards that are there: the first one with all of them, each later one with those of the pass before, and
what has come since ("new", with sizes in bytes) or gone. Whoever comes first to the end of a pass looks at the folder of shards
and writes the next entry; all others, also those that get there later, go by it. Checkpoints keep the entries, too: a run that
goes on elsewhere goes through the same shards, though more have come meanwhile.

Without a folder, as where nothing is trained, every pass goes through the shards that were there at the start.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unimm.runtime.atomic_files import read_json, write_json_once

ENTRY = "shards.json"

Sizes = dict[str, int]
"""Names of shards, and their sizes in bytes."""


@dataclass(frozen=True)
class ShardPass:
    """A pass. first: records of the set's stream before it. sizes: of its shards, as they were when it began."""

    first: int
    sizes: Sizes


class Passes:
    """The passes over a set.

    find: the shards that are there now, with their sizes. at_start: those that were there at the start.
    """

    def __init__(self, find: Callable[[], Sizes], at_start: Sizes) -> None:
        self._find, self._at_start = find, at_start
        self._folder: Path | None = None
        self._known: dict[int, ShardPass] = {}

    def attach(self, folder: Path) -> None:
        """Go by the entries of a folder from now on, and decide the first pass, if nobody has."""
        self._folder, self._known = folder, {}
        self.get(0, 0)

    def get(self, number: int, first: int) -> ShardPass:
        """A pass; decided now, where it was not, from record `first` of the stream on."""
        if number not in self._known:
            before = self.get(number - 1, 0).sizes if number else {}
            there = self._at_start if self._folder is None else self._find()
            entry = {
                "first": first,
                "new": {name: size for name, size in there.items() if name not in before},
                "gone": [name for name in before if name not in there],
            }
            if self._folder is not None:
                entry = write_json_once(_entry(self._folder, number), entry)
            sizes = {name: size for name, size in before.items() if name not in set(entry["gone"])} | entry["new"]
            self._known[number] = ShardPass(entry["first"], dict(sorted(sizes.items())))
            for old in [other for other in self._known if other < number - 1]:
                del self._known[old]
        return self._known[number]

    def begun(self, record: int) -> int:
        """The last pass that is decided and begins at a record of the stream, or before it."""
        number = 0
        while number + 1 in self._decided() and self.get(number + 1, 0).first <= record:
            number += 1
        return number

    def _decided(self) -> set[int]:
        """By their entries: the folder of one that another process is just writing is there before it."""
        return set() if self._folder is None else {int(path.parent.name[5:]) for path in self._folder.glob(f"pass-*/{ENTRY}")}


def _entry(folder: Path, number: int) -> Path:
    return folder / f"pass-{number:05}" / ENTRY


def read_passes(folder: Path) -> list[dict[str, Any]]:
    """All entries of a folder, in order; for a checkpoint."""
    entries: list[dict[str, Any]] = []
    while (entry := read_json(_entry(folder, len(entries)))) is not None:
        entries.append(entry)
    return entries


def write_passes(folder: Path, entries: list[dict[str, Any]]) -> None:
    """Make a folder hold these entries; further ones that it has stay, where the others are the same."""
    if read_passes(folder)[: len(entries)] == entries and entries:
        return
    shutil.rmtree(folder, ignore_errors=True)
    for number, entry in enumerate(entries):
        write_json_once(_entry(folder, number), entry)
