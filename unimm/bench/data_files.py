"""Generated files for `unimm.bench.data`: a million small records, and photographs of the usual size, in users' formats.

A million records are a thousand files. Where those are tables or archives, one is written and the others are links to it: what
is opened, indexed and read is the same, and the disk holds one of them. Photographs are noise of several scales, which a JPEG
takes about as many bytes for as for a picture of that size.
"""

import io
import json
import os
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from unimm.data.readers.fields import Fields
from unimm.data.readers.json_lines import JsonLines
from unimm.data.readers.parquet import Parquet
from unimm.data.readers.web_dataset import WebDataset
from unimm.data.records import Dataset

FORMS = ("jsonl", "webdataset", "parquet")
SHARD = 1000
"""Samples of an archive."""

TABLE, GROUP = 10_000, 100
"""Rows of a table, and of a group of them, as `datasets` writes images."""

SMALL = 64
"""Pixels of a picture of which there are a million."""

DISTINCT = 100
"""Different pictures; the others repeat them."""

_WORDS = ("red", "green", "blue", "grey", "small", "large", "round", "square", "dog", "cat", "house", "tree", "above", "below")


def caption(number: int) -> str:
    """A caption of some words, the same for the same number."""
    return f"A {' '.join(_WORDS[(number >> shift) % len(_WORDS)] for shift in range(0, 24, 3))}, number {number}."


def photograph(width: int, height: int, rng: np.random.Generator, grain: float = 6.0) -> bytes:
    """A JPEG of quality 90, which looks like clouds on film."""
    picture = np.zeros((height, width, 3), dtype=np.float32)
    for scale in (8, 32, 128):
        levels = rng.integers(0, 256, (max(2, height // scale), max(2, width // scale), 3), dtype=np.uint8)
        enlarged = Image.fromarray(levels).resize((width, height), Image.Resampling.BICUBIC)
        picture += np.asarray(enlarged, dtype=np.float32) * scale**0.5
    picture *= 255 / picture.max()
    picture += rng.normal(0.0, grain, picture.shape)
    encoded = io.BytesIO()
    Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(encoded, "JPEG", quality=90)
    return encoded.getvalue()


def photographs(width: int, height: int, seed: int = 0) -> list[bytes]:
    """`DISTINCT` different ones."""
    rng = np.random.default_rng(seed)
    return [photograph(width, height, rng) for _ in range(DISTINCT)]


def write_records(folder: Path, form: str, count: int) -> Path:
    """So many records with small pictures, in a folder of their own.

    Raises:
        ValueError: there is no such form.
    """
    pictures, home = photographs(SMALL, SMALL), folder / form
    home.mkdir(parents=True, exist_ok=True)
    if form == "jsonl":
        for number, content in enumerate(pictures):
            (home / f"{number:03}.jpg").write_bytes(content)
        with (home / "records.jsonl").open("w", encoding="utf-8") as file:
            for number in range(count):
                file.write(json.dumps({"image": f"{number % DISTINCT:03}.jpg", "caption": caption(number)}) + "\n")
    elif form == "webdataset":
        write_shard(home / "000000.tar", pictures, range(min(SHARD, count)))
        _link(home / "000000.tar", [home / f"{number:06}.tar" for number in range(1, -(-count // SHARD))])
    elif form == "parquet":
        write_table(home / "000000.parquet", pictures, range(min(TABLE, count)))
        _link(home / "000000.parquet", [home / f"{number:06}.parquet" for number in range(1, -(-count // TABLE))])
    else:
        raise ValueError(f"Records are written as {', '.join(FORMS)}, not as '{form}'.")
    return home


def write_photographs(folder: Path, form: str, count: int, width: int, height: int) -> Path:
    """So many photographs with captions, in a folder of their own; the same for "webdataset", "parquet" and "arrow"."""
    pictures, home = photographs(width, height), folder / form
    home.mkdir(parents=True, exist_ok=True)
    for number, numbers in enumerate(np.array_split(np.arange(count), 4)):  # a plain pipeline needs a shard for each worker
        if form == "webdataset":
            write_shard(home / f"{number:06}.tar", pictures, numbers.tolist())
        else:
            write_table(home / f"{number:06}.{form}", pictures, numbers.tolist())
    return home


def open_records(folder: Path, form: str) -> Dataset:
    """What `write_records` or `write_photographs` wrote, as a user would open it."""
    if form == "jsonl":
        return JsonLines(folder, Fields(image="image", caption="caption"))
    return WebDataset(folder) if form == "webdataset" else Parquet(folder, Fields(image="image", caption="text"))


def write_shard(path: Path, pictures: list[bytes], numbers: range | list[int]) -> None:
    """An archive of `KEY.jpg` and `KEY.txt`."""
    with tarfile.open(path, "w") as tar:
        for number in numbers:
            for suffix, content in (("jpg", pictures[number % len(pictures)]), ("txt", caption(number).encode())):
                member = tarfile.TarInfo(f"{number:07}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def write_table(path: Path, pictures: list[bytes], numbers: range | list[int]) -> None:
    """A table with columns `image`, as `datasets` writes it, and `text`: Parquet, or Arrow's stream in its own cache.

    Raises:
        ValueError: pyarrow is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ValueError("Parquet is written by pyarrow, which is not installed: pip install 'unimm[data]'.") from None
    kind = pyarrow.schema([("image", pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])),
                           ("text", pyarrow.string())])  # fmt: skip
    is_arrow = path.suffix == ".arrow"
    with pyarrow.ipc.new_stream(path, kind) if is_arrow else pyarrow.parquet.ParquetWriter(path, kind) as writer:
        for some in _chunks(numbers, GROUP):
            images = [{"bytes": pictures[number % len(pictures)], "path": None} for number in some]
            writer.write_table(pyarrow.table({"image": images, "text": [caption(number) for number in some]}, schema=kind))


def _chunks(numbers: range | list[int], size: int) -> Iterator[range | list[int]]:
    for start in range(0, len(numbers), size):
        yield numbers[start : start + size]


def _link(source: Path, others: list[Path]) -> None:
    for other in others:
        try:
            os.link(source, other)
        except OSError:  # a disk without links
            shutil.copyfile(source, other)
