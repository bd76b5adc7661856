"""What is known of a shard: how many records it holds, and which file that was. Found out once, when it is first met, and kept.

    FOLDER/.unimm/NAME.READER.json       {"num_records", "size", "mtime_ns", "digest", "reason"}
    FOLDER/.unimm/held_out.READER.json   {"shards"}: of which records are held out

The folder lies beside the shards or, where that cannot be written to, in the user's cache. An entry is written whole, and by
the first process that has it: all others go by that one, so that all count the same, also where a shard is damaged (`reason`;
then it holds no records).

A shard keeps its name as long as it keeps its content. Its size and time of writing stand for that; where these have changed, a
digest of pieces from all over it says whether it is the same file, copied, or another one.
"""

import hashlib
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from unimm.runtime.atomic_files import read_json, write_json_once

FIRST = "held_out"
"""The entry that says of which shards records are held out."""

PIECES, PIECE_BYTES = 16, 1 << 16
"""Of a shard, which its digest is of; and its size."""


@dataclass(frozen=True)
class ShardInfo:
    """An entry. size in bytes, mtime_ns: of the file; digest: of its content. reason: why it cannot be read; empty: it can."""

    num_records: int
    size: int
    mtime_ns: int
    digest: str
    reason: str = ""

    @classmethod
    def of(cls, path: Path, num_records: int, reason: str = "") -> "ShardInfo":
        """Of a file as it is now."""
        status = path.stat()
        return cls(num_records, status.st_size, status.st_mtime_ns, shard_digest(path), reason)

    def is_at(self, path: Path) -> bool:
        """Whether a file was not written to since; by size and time alone."""
        status = path.stat()
        return (status.st_size, status.st_mtime_ns) == (self.size, self.mtime_ns)

    def is_of(self, path: Path) -> bool:
        """Whether a file has this content."""
        return self.is_at(path) or (path.stat().st_size == self.size and shard_digest(path) == self.digest)


def shard_digest(path: Path) -> str:
    """sha256 over a file's size and pieces from all over it, the first and last bytes among them."""
    digest, size = hashlib.sha256(), path.stat().st_size
    digest.update(str(size).encode())
    last = max(0, size - PIECE_BYTES)
    with path.open("rb") as file:
        for place in sorted({last * number // (PIECES - 1) for number in range(PIECES)}):
            file.seek(place)
            digest.update(file.read(PIECE_BYTES))
    return digest.hexdigest()[:32]


class ShardIndex:
    """The entries of a set's shards.

    Args:
        top: the folder that names of shards start from. reader: what reads them; another one may count otherwise.
        cache: the folder to keep entries in; default: beside the shards, else in the user's cache.
    """

    def __init__(self, top: Path, reader: str, cache: Path | None = None) -> None:
        self.home, self.reader = cache or _home(top), reader
        self._known: dict[str, ShardInfo] = {}

    def get(self, name: str) -> ShardInfo | None:
        """The entry of a shard, where there is one."""
        if name not in self._known:
            kept = read_json(self.path(name))
            if kept is None:
                return None
            self._known[name] = ShardInfo(**kept)
        return self._known[name]

    def put(self, name: str, info: ShardInfo) -> ShardInfo:
        """Keep an entry, unless another process has kept one before; gives the one that holds."""
        self._known[name] = ShardInfo(**write_json_once(self.path(name), asdict(info)))
        return self._known[name]

    def first_shards(self, names: list[str]) -> list[str]:
        """Those of which records were held out first, by name; these names, where it was never asked."""
        return write_json_once(self.path(FIRST), {"shards": names})["shards"]

    def path(self, name: str) -> Path:
        """The file of an entry."""
        return self.home / f"{name}.{self.reader}.json"


def _home(top: Path) -> Path:
    """Where entries are kept: beside the shards, or in the user's cache by the whole path of their folder."""
    beside = top / ".unimm"
    if os.access(beside if beside.is_dir() else top, os.W_OK):
        return beside
    whole = hashlib.sha256(os.fsencode(top.resolve())).hexdigest()[:24]
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "unimm" / "shards" / whole
