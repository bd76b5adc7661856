"""WebDataset shards as a data set with random access: .tar files with `KEY.jpg` (png, webp) and `KEY.txt` or `KEY.json`.

Each shard's index (see `tar_index`) is built when it is first opened; after that a record costs one read of its text, and its
image is read when it is opened. Only images, .txt and .json are read, never anything that would have to be unpickled.
Source of the format: webdataset/webdataset.
"""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
from rich.console import Console
from rich.progress import track

from unimm.data.readers.fields import Fields
from unimm.data.readers.paths import Paths, find_files, locate, read_first, short_names, sound_files
from unimm.data.readers.tar_index import TarIndex, build_index, stored_index
from unimm.data.records import Record, UnreadImage

IMAGE, TXT = "(image)", "txt"
"""What the image and the text of a sample are called among the fields of its JSON."""


class WebDataset:
    """The samples of .tar shards, shard after shard; a key is the shard's name and the sample's.

    Args:
        paths: a shard, a folder, a pattern, or a list of such.
        fields: which field of the sample's JSON is what; the name "txt" stands for the content of its .txt, and `image` is
            not named. Default: captions in .txt files.
        cache: the folder for indexes; default: beside the shards, else in the user's cache folder.
        max_bad: the share of samples that may lack their image, which are then bad when they are read; and that of shards that
            may be damaged, which are left out, with a warning.

    Raises ValueError, at once where there is nothing, a shard is damaged or a sample lacks its image, else when the bad sample
    is read.
    """

    def __init__(
        self, paths: Paths, fields: Fields | None = None, cache: str | Path | None = None, max_bad: float = 0.0
    ) -> None:
        own = Fields(caption=TXT) if fields is None else fields
        if own.image is not None:
            raise ValueError("The image of a sample is its image file: leave fields.image out.")
        self.fields = replace(own, image=IMAGE)
        self._wants_json, self._wants_txt = bool(own.names - {TXT}), TXT in own.names
        shards = find_files(paths, (".tar",))
        self.shards, self._indexes = _open_indexes(shards, None if cache is None else Path(cache), max_bad)
        self._names = short_names(self.shards)
        self._ends = np.cumsum([len(index) for index in self._indexes])
        lacking = [np.flatnonzero(index.places[:, 0, 1] < 0) for index in self._indexes]
        is_lost = sum(map(len, lacking)) > max_bad * len(self)
        for shard, index, without in zip(self.shards, self._indexes, lacking, strict=True):
            if len(without) and is_lost:
                raise ValueError(f"The sample {index.name(int(without[0]))} in {shard} has no image: add it, or leave it out.")
        read_first(self)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Record:
        number, place = locate(self._ends, index)
        shard, samples = self.shards[number], self._indexes[number]
        name = samples.name(place)
        where = f"{shard}: sample {name}"
        at = samples.place(place, "image")
        if at is None:
            raise ValueError(f"{where} has no image: add it, or leave the sample out.")
        start, size = at
        image = TarImage(shard, start, size, where)
        roles = ("json",) * self._wants_json + ("txt",) * self._wants_txt
        with shard.open("rb") as file:
            texts = {role: _read(file, samples.place(place, role), where) for role in roles}
        return self.fields.record(self._item(image, texts, where), f"{self._names[number]}/{name}", where, lambda value: value)

    def key_at(self, index: int) -> str:
        """The key of a record, also of one that cannot be read."""
        number, place = locate(self._ends, index)
        return f"{self._names[number]}/{self._indexes[number].name(place)}"

    def _item(self, image: "TarImage", texts: dict[str, bytes | None], where: str) -> dict[str, Any]:
        """What is known of a sample: the fields of its JSON, its text and its image."""
        item: Any = {}
        json_text, text = texts.get("json"), texts.get("txt")
        try:
            if json_text is not None:
                item = json.loads(json_text.decode("utf-8-sig"))
            if not isinstance(item, dict):
                raise ValueError(f"it holds {type(item).__name__}, not an object")
            if text is not None:
                item[TXT] = text.decode("utf-8-sig")
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where} has a .txt that is not UTF-8, or a .json that is none ({error}): mend it.") from None
        return {**item, IMAGE: image}


@dataclass(frozen=True)
class TarImage(UnreadImage):
    """An image inside a shard: its first byte, its size, and where that is, for a person."""

    shard: Path
    start: int
    size: int
    where: str = field(compare=False)

    def __str__(self) -> str:
        return self.where

    def home(self) -> tuple[Path, str]:
        """The shard, and the place in it."""
        return self.shard, f"{self.start} {self.size}"

    def read(self) -> bytes:
        """Its bytes. Raises ValueError where the shard has changed."""
        with self.shard.open("rb") as file:
            return _read(file, (self.start, self.size), self.where) or b""


def _read(file: IO[bytes], place: tuple[int, int] | None, where: str) -> bytes | None:
    if place is None:
        return None
    start, size = place
    file.seek(start)
    content = file.read(size)
    if len(content) < size:
        raise ValueError(f"{where} is cut short: the shard has changed since it was opened, start again.")
    return content


def _open_indexes(shards: list[Path], cache: Path | None, max_bad: float) -> tuple[list[Path], list[TarIndex]]:
    """The shards that can be read, and their indexes; those that are not kept yet are built, with a bar."""
    stored = {shard: stored_index(shard, cache) for shard in shards}
    num_missing = sum(index is None for index in stored.values())
    console = Console(stderr=True)
    todo = iter(
        track(
            range(num_missing),
            description=f"indexing {num_missing:,} shards",
            console=console,
            disable=not num_missing or not console.is_terminal,
        )
    )

    def index_of(shard: Path) -> TarIndex:
        kept = stored[shard]
        if kept is None:
            next(todo, None)
        return build_index(shard, cache) if kept is None else kept

    found = sound_files(shards, index_of, max_bad)
    next(todo, None)  # the bar is full
    return found
