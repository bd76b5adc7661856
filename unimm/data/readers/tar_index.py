"""Where the members of a .tar shard lie: an index that makes tar files readable at random, built once and kept.

A shard of WebDataset holds samples: members that share the name up to the first dot of their base name (`0001.jpg`,
`0001.txt`, `0001.left.png`); what follows that dot is a member's extension. The index holds, for each sample, its name and the
extension, place and size of each member; samples without an image, a text or JSON are none, and counted. It lies beside the
shard (`shard.tar.index`) or, where that folder is read-only, in a cache folder, is written whole or not at all, and holds for
exactly the size and modification time that the shard had.
"""

import hashlib
import json
import logging
import os
import re
import secrets
import tarfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from unimm.data.readers.paths import IMAGE_SUFFIXES

IMAGES = (*(suffix[1:] for suffix in IMAGE_SUFFIXES), "img", "image")
"""What the last part of an image's extension is; webdataset's own writer also takes the last two."""

TEXTS = ("txt", "text", "caption", "transcript")
JSON = ("json", "jsn")

_VERSION = "2"
_BLOCK = 512

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TarIndex:
    """The samples of a shard, in the order of their first members.

    names: their names in bytes, as a rule UTF-8, one after the other; name_ends: (num_samples,) where each ends.
    places: (num_members, 2) first byte and size, sample after sample; ends: (num_samples,) where those of each end.
    form: (num_samples,) which of `forms` a sample has: the extensions of its members, in natural order ("2.jpg", "10.jpg").
    left_out: how many members of which extensions are no part of a sample.
    """

    names: np.ndarray
    name_ends: np.ndarray
    places: np.ndarray
    ends: np.ndarray
    form: np.ndarray
    forms: tuple[tuple[str, ...], ...]
    left_out: dict[str, int]

    def __len__(self) -> int:
        return len(self.name_ends)

    def name(self, number: int) -> str:
        """The name of a sample."""
        start = int(self.name_ends[number - 1]) if number else 0
        return self.names[start : int(self.name_ends[number])].tobytes().decode("utf-8", "surrogateescape")

    def members(self, number: int) -> dict[str, tuple[int, int]]:
        """First byte and size of each member of a sample, by their extensions."""
        first = int(self.ends[number - 1]) if number else 0
        places = self.places[first : int(self.ends[number])].tolist()
        return {name: (start, size) for name, (start, size) in zip(self.forms[self.form[number]], places, strict=True)}

    def counts(self) -> dict[str, int]:
        """How many samples have a member of an extension."""
        found: dict[str, int] = {}
        for names, count in zip(self.forms, np.bincount(self.form, minlength=len(self.forms)).tolist(), strict=True):
            for name in names:
                found[name] = found.get(name, 0) + count
        return found


def stored_index(shard: Path, cache: Path | None) -> TarIndex | None:
    """The index that was kept for the shard as it is now, None where there is none."""
    stamp = _stamp(shard)
    for path in _homes(shard, cache):
        try:
            with safe_open(path, framework="numpy") as file:
                if file.metadata() == stamp:
                    told = json.loads(file.get_tensor("told").tobytes())
                    forms = tuple(map(tuple, told["forms"]))
                    arrays = {name: file.get_tensor(name) for name in _ARRAYS}
                    return TarIndex(**arrays, forms=forms, left_out=told["left_out"])
        except (OSError, SafetensorError):  # not there, or not ours: built anew
            continue
    return None


def build_index(shard: Path, cache: Path | None) -> TarIndex:
    """Read a shard through, headers only, and keep its index where there is room.

    Raises:
        ValueError: the shard is damaged, compressed, cut short, or a member is there twice.
    """
    stamp = _stamp(shard)
    index = _scan(shard)
    told = np.frombuffer(json.dumps({"forms": index.forms, "left_out": index.left_out}).encode(), dtype=np.uint8)
    tensors = {**{name: getattr(index, name) for name in _ARRAYS}, "told": told}
    for path in _homes(shard, cache):
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")  # other processes may be at it as well
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(tensors, temporary, stamp)
            temporary.replace(path)
            return index
        except (OSError, SafetensorError):
            with suppress(OSError):
                temporary.unlink()
    logger.warning(f"The index of {shard} cannot be kept: there is no folder to write to, and it will be built again.")
    return index


def _homes(shard: Path, cache: Path | None) -> list[Path]:
    """Where an index may lie: beside its shard, then in the cache, by the shard's whole path."""
    whole = hashlib.sha256(os.fsencode(shard.resolve())).hexdigest()[:24]
    if cache is not None:
        return [cache / f"{whole}.index"]
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return [shard.with_name(f"{shard.name}.index"), home / "unimm" / "tar" / f"{whole}.index"]


def _stamp(shard: Path) -> dict[str, str]:
    status = shard.stat()
    return {"version": _VERSION, "size": str(status.st_size), "mtime_ns": str(status.st_mtime_ns)}


def _scan(shard: Path) -> TarIndex:
    found: dict[str, dict[str, tuple[int, int]]] = {}
    try:
        with tarfile.open(shard, "r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # pyright: ignore - else tarfile remembers all of them
                if (sample := _sample_of(member, shard)) is not None:
                    name, extension = sample
                    members = found.setdefault(name, {})
                    if extension in members:
                        raise ValueError(f"The sample {name} in {shard} has its {extension} twice: leave one out.")
                    members[extension] = (member.offset_data, member.size)
            end = tar.offset
    except (tarfile.TarError, EOFError, OSError) as error:
        advice = "it is compressed, unpack it to .tar" if _is_compressed(shard) else "copy or download it again"
        raise ValueError(f"{shard} cannot be read as tar ({str(error).rstrip('.')}): {advice}.") from None
    with shard.open("rb") as file:
        file.seek(end)
        if file.read(_BLOCK) != bytes(_BLOCK):  # tarfile takes damage for the end; a whole archive ends in zeros
            raise ValueError(f"{shard} is cut short or damaged at byte {end:,}: copy or download it again.")
    return _pack(found, shard)


_ARRAYS = ("names", "name_ends", "places", "ends", "form")


def _pack(found: dict[str, dict[str, tuple[int, int]]], shard: Path) -> TarIndex:
    left_out: dict[str, int] = {}
    for name in [name for name, members in found.items() if not any(map(_is_known, members))]:
        for extension in found.pop(name):
            left_out[extension] = left_out.get(extension, 0) + 1
    if not found:
        there = f", there is {', '.join(sorted(left_out)[:5])}" if left_out else ""
        raise ValueError(f"{shard} holds no samples{there}: members are named KEY.jpg and KEY.txt or KEY.json.")
    encoded = [name.encode("utf-8", "surrogateescape") for name in found]  # as tarfile decodes other names
    forms: dict[tuple[str, ...], int] = {}
    form, places = [], []
    for members in found.values():
        extensions = tuple(sorted(members, key=natural))
        form.append(forms.setdefault(extensions, len(forms)))
        places += [members[extension] for extension in extensions]
    return TarIndex(
        np.frombuffer(b"".join(encoded), dtype=np.uint8),
        np.cumsum([len(name) for name in encoded], dtype=np.int64),
        np.array(places, dtype=np.int64),
        np.cumsum([len(members) for members in found.values()], dtype=np.int64),
        np.array(form, dtype=np.int32),
        tuple(forms),
        left_out,
    )


def natural(name: str) -> list[tuple[int, int, str]]:
    """What names are sorted by so that 2 comes before 10."""
    parts = re.split(r"(\d+)", name)
    return [(number % 2, int(part) if number % 2 else 0, part) for number, part in enumerate(parts)]


def is_image(extension: str) -> bool:
    """Whether a member of this extension is taken for an image."""
    return extension.rpartition(".")[2] in IMAGES


def _is_known(extension: str) -> bool:
    return extension.rpartition(".")[2] in (*IMAGES, *TEXTS, *JSON)


def _sample_of(member: tarfile.TarInfo, shard: Path) -> tuple[str, str] | None:
    """A member's sample and extension in small letters, None for what is none of ours."""
    folder, _, base = member.name.rpartition("/")
    stem, dot, extension = base.partition(".")
    # Names that begin with a dot or two underscores are the archiver's and WebDataset's own.
    if member.isdir() or not dot or base.startswith((".", "__")):
        return None
    extension = extension.lower()
    if not member.isreg() or member.issparse():
        if _is_known(extension):
            raise ValueError(f"{member.name} in {shard} is a link or a file with holes: write the archive with plain files.")
        return None
    return (f"{folder}/{stem}" if folder else stem), extension


def _is_compressed(shard: Path) -> bool:
    with shard.open("rb") as file:
        return file.read(6).startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"))
