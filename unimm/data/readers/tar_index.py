"""Where the members of a .tar shard lie: an index that makes tar files readable at random, built once and kept.

A shard of WebDataset holds samples: members that share the name up to the first dot of their base name (`0001.jpg`,
`0001.txt`). The index holds, for each sample, its name and the place and size of its image, text and JSON; other members are
never opened. It lies beside the shard (`shard.tar.index`) or, where that folder is read-only, in a cache folder, is written
whole or not at all, and holds for exactly the size and modification time that the shard had.
"""

import hashlib
import logging
import os
import secrets
import tarfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from unimm.data.readers.paths import IMAGE_SUFFIXES

ROLES = ("image", "txt", "json")
"""What a sample is made of; the columns of an index."""

_VERSION = "1"
_BLOCK = 512

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TarIndex:
    """The samples of a shard, in the order of their first members.

    names: their names in UTF-8, one after the other; name_ends: (num_samples,) where each ends.
    places: (num_samples, 3 roles, 2) first byte and size; size -1 where there is none.
    """

    names: np.ndarray
    name_ends: np.ndarray
    places: np.ndarray

    def __len__(self) -> int:
        return len(self.name_ends)

    def name(self, number: int) -> str:
        """The name of a sample."""
        start = int(self.name_ends[number - 1]) if number else 0
        return self.names[start : int(self.name_ends[number])].tobytes().decode()

    def place(self, number: int, role: str) -> tuple[int, int] | None:
        """First byte and size of a member, None where the sample has none."""
        start, size = (int(value) for value in self.places[number, ROLES.index(role)])
        return None if size < 0 else (start, size)


def stored_index(shard: Path, cache: Path | None) -> TarIndex | None:
    """The index that was kept for the shard as it is now, None where there is none."""
    stamp = _stamp(shard)
    for path in _homes(shard, cache):
        try:
            with safe_open(path, framework="numpy") as file:
                if file.metadata() == stamp:
                    return TarIndex(*(file.get_tensor(name) for name in ("names", "name_ends", "places")))
        except (OSError, SafetensorError):  # not there, or not ours: built anew
            continue
    return None


def build_index(shard: Path, cache: Path | None) -> TarIndex:
    """Read a shard through, headers only, and keep its index where there is room.

    Raises:
        ValueError: the shard is damaged, compressed, cut short, or a sample has two images.
    """
    stamp = _stamp(shard)
    index = _scan(shard)
    for path in _homes(shard, cache):
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")  # other processes may be at it as well
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file({"names": index.names, "name_ends": index.name_ends, "places": index.places}, temporary, stamp)
            temporary.replace(path)
            return index
        except (OSError, SafetensorError):
            with suppress(OSError):
                temporary.unlink()
    logger.warning(f"The index of {shard} cannot be kept: there is no folder to write to, and it will be built again.")
    return index


def _homes(shard: Path, cache: Path | None) -> list[Path]:
    """Where an index may lie: beside its shard, then in the cache, by the shard's whole path."""
    whole = hashlib.sha256(str(shard.resolve()).encode()).hexdigest()[:24]
    if cache is not None:
        return [cache / f"{whole}.index"]
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return [shard.with_name(f"{shard.name}.index"), home / "unimm" / "tar" / f"{whole}.index"]


def _stamp(shard: Path) -> dict[str, str]:
    status = shard.stat()
    return {"version": _VERSION, "size": str(status.st_size), "mtime_ns": str(status.st_mtime_ns)}


def _scan(shard: Path) -> TarIndex:
    found: dict[str, list[tuple[int, int]]] = {}
    try:
        with tarfile.open(shard, "r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # pyright: ignore - else tarfile remembers all of them
                if (sample := _sample_of(member, shard)) is not None:
                    name, role = sample
                    places = found.setdefault(name, [(0, -1)] * len(ROLES))
                    if places[role][1] >= 0:
                        raise ValueError(f"The sample {name} in {shard} has its {ROLES[role]} twice: leave one out.")
                    places[role] = (member.offset_data, member.size)
            end = tar.offset
    except (tarfile.TarError, EOFError, OSError) as error:
        advice = "it is compressed, unpack it to .tar" if _is_compressed(shard) else "copy or download it again"
        raise ValueError(f"{shard} cannot be read as tar ({str(error).rstrip('.')}): {advice}.") from None
    with shard.open("rb") as file:
        file.seek(end)
        if file.read(_BLOCK) != bytes(_BLOCK):  # tarfile takes damage for the end; a whole archive ends in zeros
            raise ValueError(f"{shard} is cut short or damaged at byte {end:,}: copy or download it again.")
    if not found:
        raise ValueError(f"{shard} holds no samples: members are named KEY.jpg and KEY.txt or KEY.json.")
    encoded = [name.encode() for name in found]
    return TarIndex(
        np.frombuffer(b"".join(encoded), dtype=np.uint8),
        np.cumsum([len(name) for name in encoded], dtype=np.int64),
        np.array(list(found.values()), dtype=np.int64),
    )


def _sample_of(member: tarfile.TarInfo, shard: Path) -> tuple[str, int] | None:
    """A member's sample and role, None for what is none of ours."""
    folder, _, base = member.name.rpartition("/")
    stem, dot, extension = base.partition(".")
    # Names that begin with a dot or two underscores are the archiver's and WebDataset's own.
    if member.isdir() or not dot or base.startswith((".", "__")):
        return None
    last = extension.lower().rpartition(".")[2]
    role = "image" if f".{last}" in IMAGE_SUFFIXES else extension.lower()
    if role not in ROLES:
        return None
    if not member.isreg() or member.issparse():
        raise ValueError(f"{member.name} in {shard} is a link or a file with holes: write the archive with plain files.")
    return (f"{folder}/{stem}" if folder else stem), ROLES.index(role)


def _is_compressed(shard: Path) -> bool:
    with shard.open("rb") as file:
        return file.read(6).startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"))
