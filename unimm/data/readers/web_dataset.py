"""WebDataset shards as a data set with random access: .tar files with `KEY.jpg` (png, webp) and `KEY.txt` or `KEY.json`.

    one image       0001.jpg 0001.txt          0001.png 0001.json
    several         0001.0.jpg 0001.1.jpg      0001.img1.jpg 0001.img2.jpg: a series with numbers, in their order
                    0001.left.jpg 0001.right.jpg by the field image="left.jpg,right.jpg" ("jpg;png": one of them)
                    listed in the JSON: {"images": ["0001.0.jpg", "1.jpg"]}, by image="images", or where JSON is read anyway
    a text          0001.txt, or of any other extension by its name: caption="caption", caption="prompt.txt"

Where a sample has several images and nothing says which they are (a photograph and its mask) it is refused. What is there in
other members and not read (.npy, .cls, .mp4) is warned of when the shards are opened.

Each shard's index (see `tar_index`) is built when it is first opened; after that a record costs one read of its text, and its
image is read when it is opened. Only images, texts and .json are read, never anything that would have to be unpickled.
Source of the format: webdataset/webdataset.
"""

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, Any

import numpy as np
from rich.console import Console
from rich.progress import track

from unimm.data.readers.fields import Fields
from unimm.data.readers.paths import IMAGE_SUFFIXES, Paths, find_files, locate, read_first, short, short_names, sound_files
from unimm.data.readers.tar_index import JSON, TEXTS, TarIndex, build_index, is_image, stored_index
from unimm.data.records import Record, UnreadImage

IMAGE, TXT = "(image)", "txt"
"""What the image and the text of a sample are called among the fields of its JSON."""

Members = dict[str, tuple[int, int]]
"""First byte and size of each member of a sample, by their extensions."""

logger = logging.getLogger(__name__)


class WebDataset:
    """The samples of .tar shards, shard after shard; a key is the shard's name and the sample's.

    Args:
        paths: a shard, a folder, a pattern, or a list of such.
        fields: which field of the sample's JSON is what; the name of a member's extension, such as "txt", stands for its
            content. `image` need not be named where a sample has one image, or a series with numbers. Default: captions in .txt
            files.
        cache: the folder for indexes; default: beside the shards, else in the user's cache folder.
        max_bad: the share of samples that may lack their image, which are then bad when they are read; and that of shards that
            may be damaged, which are left out, with a warning.

    Raises ValueError, at once where there is nothing, a shard is damaged, a sample lacks its image or has several and it is not
    said which, else when the bad sample is read.
    """

    def __init__(
        self, paths: Paths, fields: Fields | None = None, cache: str | Path | None = None, max_bad: float = 0.0
    ) -> None:
        own = Fields(caption=TXT) if fields is None else fields
        if own.video is not None:
            raise ValueError("Videos are not read from shards: unpack them, and name their files in JSON lines (data=llava).")
        self._images = _Images.of(own.image)
        self.fields = replace(own, image=IMAGE)
        self._names_read = self.fields.names - {IMAGE}
        shards = find_files(paths, (".tar",))
        self.shards, self._indexes = _open_indexes(shards, None if cache is None else Path(cache), max_bad)
        self._names = short_names(self.shards)
        self._ends = np.cumsum([len(index) for index in self._indexes])
        self._check_images(max_bad)
        self._tell_of_unread()
        read_first(self)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Record:
        number, place = locate(self._ends, index)
        shard, samples = self.shards[number], self._indexes[number]
        name, members = samples.name(place), samples.members(place)
        where = f"{shard}: sample {name}"
        with shard.open("rb") as file:
            item = self._item(file, members, where)
        chosen = self._images.chosen(tuple(members), item, name, where)
        if not chosen:
            raise ValueError(f"{where} has no image: add it, or leave the sample out.")
        images = [TarImage(shard, *members[one], where if len(chosen) == 1 else f"{where}, {one}") for one in chosen]
        item[IMAGE] = images[0] if len(images) == 1 else images
        return self.fields.record(item, f"{self._names[number]}/{name}", where, lambda value: value)

    def key_at(self, index: int) -> str:
        """The key of a record, also of one that cannot be read."""
        number, place = locate(self._ends, index)
        return f"{self._names[number]}/{self._indexes[number].name(place)}"

    def _item(self, file: IO[bytes], members: Members, where: str) -> dict[str, Any]:
        """What is known of a sample: the fields of its JSON and its texts, where they are asked for."""
        asked = self._names_read | self._images.names
        item: Any = {}
        try:
            json_name = _json_of(members)
            if json_name is not None and asked - members.keys():
                item = json.loads(_read(file, members[json_name], where).decode("utf-8-sig"))
            if not isinstance(item, dict):
                raise ValueError(f"it holds {type(item).__name__}, not an object")
            item = {**dict.fromkeys(name for name in members if not is_image(name) and name != json_name), **item}
            for name in asked & members.keys():
                item[name] = _read(file, members[name], where).decode("utf-8-sig")
        except (ValueError, RecursionError) as error:
            if str(error).startswith(where):
                raise
            raise ValueError(f"{where} has a .txt that is not UTF-8, or a .json that is none ({error}): mend it.") from None
        return item

    def _check_images(self, max_bad: float) -> None:
        """ValueError where more samples than `max_bad` allows have no image, or several and nothing says which are meant."""
        wrong, first = 0, ""
        for shard, index in zip(self.shards, self._indexes, strict=True):
            for number, form in enumerate(index.forms):
                problem = self._images.problem(form, can_be_listed=bool(self._names_read - set(form)))
                if problem:
                    samples = np.flatnonzero(index.form == number)
                    wrong += len(samples)
                    first = first or f"The sample {index.name(int(samples[0]))} in {shard} {problem}"
        if wrong > max_bad * len(self):
            raise ValueError(first)

    def _tell_of_unread(self) -> None:
        """Warn of members that are not read, by their extensions; a .json beside a .txt that is read is what people have."""
        counts: dict[str, int] = {}
        for index in self._indexes:
            for name, count in (*index.counts().items(), *index.left_out.items()):
                if name in index.left_out or not (name in self._names_read or is_image(name) or name in (*JSON, TXT)):
                    counts[name] = counts.get(name, 0) + count
        if counts:
            few = ", ".join(f"{count:,} .{name}" for name, count in sorted(counts.items(), key=lambda one: -one[1])[:6])
            known = [name for name in counts if name.rpartition(".")[2] in TEXTS]
            mend = f"; a text is read by its name, such as fields.caption={known[0]}" if known else ""
            logger.warning(f"Members of {self.shards[0].parent} that may be data are not read: {few}{mend}.")


@dataclass(frozen=True)
class _Images:
    """Which members of a sample are its images.

    parts: patterns of extensions, of which all have to be there; each may have alternatives. field: that of the JSON which
    lists them. Neither: the only image, a series with numbers, or what the JSON lists as `images`.
    """

    parts: tuple[tuple[str, ...], ...] = ()
    field: str = ""

    @classmethod
    def of(cls, name: str | None) -> "_Images":
        """By what is said of the field `image`."""
        parts = tuple(tuple(one.strip().removeprefix(".") for one in part.split(";")) for part in (name or "").split(","))
        if name and all(f".{one.rpartition('.')[2]}".lower() in IMAGE_SUFFIXES for part in parts for one in part):
            return cls(parts)
        return cls(field=name or "")

    @property
    def names(self) -> set[str]:
        """The field of the JSON that has to be read."""
        return {self.field} if self.field else set()

    def chosen(self, form: tuple[str, ...], item: Mapping[str, Any], name: str, where: str) -> list[str]:
        """The extensions of a sample's images, in their order.

        Raises:
            ValueError: the JSON lists others than there are, or nothing says which they are.
        """
        listed = item.get(self.field or "images") if not self.parts else None
        if self.field or (isinstance(listed, list) and listed):
            listed = [listed] if isinstance(listed, str) else listed
            if not isinstance(listed, list) or not listed:
                raise ValueError(f"{where}: '{self.field}' of its .json names the sample's images, it holds {short(listed)}.")
            found = [_member(one, name, form) for one in listed]
            if all(found):
                return [one for one in found if one]
            if self.field or self.problem(form):
                other = listed[found.index(None)]
                raise ValueError(f"{where}: its .json lists the image {short(other)}, which is none of its members.")
        problem = self.problem(form)
        if problem and any(map(is_image, form)):
            raise ValueError(f"{where} {problem}")
        return self._of_form(form)

    def problem(self, form: tuple[str, ...], can_be_listed: bool = False) -> str:
        """What is wrong with the images of samples of these extensions; empty: nothing. can_be_listed: JSON may still tell."""
        images = [name for name in form if is_image(name)]
        if not images or (self.parts and not self._of_form(form)):
            there = f" by the name {' or '.join(self.parts[0])}, there is {', '.join(form)}" if self.parts and images else ""
            return f"has no image{there}: add it, or leave the sample out."
        if self.field or self._of_form(form) or (can_be_listed and _json_of(form) is not None):
            return ""
        return (
            f"has several images ({', '.join(images[:5])}) and nothing says which are meant: name them in their order by "
            f"data.fields.image='\"{','.join(images[:2])}\"', one of them, or the field of the .json that lists them."
        )

    def _of_form(self, form: tuple[str, ...]) -> list[str]:
        """The extensions of images by their names alone; empty: that is not known."""
        images = [name for name in form if is_image(name)]
        if self.parts:
            found = [next((hits for one in part if (hits := _matching(one, images))), []) for part in self.parts]
            return [name for hits in found for name in hits] if all(found) else []
        series = [re.fullmatch(r"(.*?)(\d+)\.[^.]+", name) for name in images]
        numbers = {(one[1], int(one[2])) for one in series if one}
        is_series = len(numbers) == len(images) and len({word for word, _ in numbers}) == 1
        return images if len(images) == 1 or is_series else []


def _matching(pattern: str, names: list[str]) -> list[str]:
    return [name for name in names if fnmatchcase(name, pattern.lower())]


def _member(value: Any, sample: str, form: tuple[str, ...]) -> str | None:
    """The extension of the member that a JSON means: by the whole name of the member, by its base name, or by its extension."""
    told = value.removeprefix("./").lower() if isinstance(value, str) else ""
    base = sample.lower().rpartition("/")[2]
    return next((one for one in form if told in (one, f"{base}.{one}", f"{sample.lower()}.{one}")), None)


def _json_of(members: Mapping[str, Any] | tuple[str, ...]) -> str | None:
    """The extension of a sample's JSON: .json, or the only one that ends so."""
    found = [name for name in members if name.rpartition(".")[2] in JSON]
    return next((name for name in JSON if name in found), found[0] if len(found) == 1 else None)


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
            return _read(file, (self.start, self.size), self.where)


def _read(file: IO[bytes], place: tuple[int, int], where: str) -> bytes:
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
