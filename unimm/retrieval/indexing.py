"""Making an index, extending it, and going on with one that was interrupted, wherever that was.

What is there is compared with what is wanted: an image whose key and stamp are known keeps its vector, one that is new or has
changed is embedded, one that is gone is dropped. New vectors are written in parts, each whole or not there, so that after
`kill -9` only the last part is made again. At the end all vectors become one new generation beside the old one, and the
manifest, which is replaced in one step, names it: an image has one entry, whatever happened.
"""

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from unimm.data.records import Dataset, ImageLike, key_at, unchecked
from unimm.data.stores.digests import image_digest, image_stamp
from unimm.inference.embedding import EmbeddingCalls, Prepared, Towers
from unimm.precompute.bad_images import BadImage, list_bad, short_reason
from unimm.retrieval.index import (
    MANIFEST,
    VERSION,
    WHAT,
    Entry,
    Index,
    Manifest,
    check_model,
    entries_file,
    faiss,
    read_entries,
    read_manifest,
    read_vectors,
    vectors_file,
)
from unimm.runtime.atomic_files import flush, replace_json
from unimm.runtime.format_version import stamped
from unimm.runtime.number_checks import check_whole

PARTS = "parts"
BAD_IMAGES = "bad_images.txt"

Known = dict[str, tuple[Entry, np.ndarray]]
"""Entry and vector (D,) of an image, by its key."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pass:
    """How images are embedded.

    batch_size: images in one pass of the image tower. part_size: images after which vectors are written. num_threads: that
    read and prepare images. progress: called with the images that are done and all that are to be embedded.
    """

    batch_size: int = 32
    part_size: int = 1024
    num_threads: int = 2
    progress: Callable[[int, int], None] = lambda done, total: None

    def __post_init__(self) -> None:
        check_whole(self, 1, "batch_size", "part_size", "num_threads")


@dataclass
class Indexed:
    """What has become of an index: images in it, new ones and changed ones, those that were dropped, those that cannot be
    read."""

    index: Index
    num_new: int = 0
    num_dropped: int = 0
    bad: list[BadImage] = field(default_factory=list)


class _Wanted(NamedTuple):
    """An image that the index is to hold."""

    entry: Entry
    image: ImageLike


def build_index(
    embedder: EmbeddingCalls, dataset: Dataset, out: str | Path, *, model: str, source: str, work: Pass | None = None
) -> Indexed:
    """Have the images of a data set in an index, whatever was there of them before.

    Args:
        embedder: of `unimm.load_towers` or `unimm.load`.
        dataset: records with images; their keys say what is the same image.
        out: the folder of the index.
        model: how the model is named, for search.
        source: the folder or file that the keys are of.

    Raises:
        ValueError: something else lies there, it is an index of another model or of another folder, another process is making
            it, no image can be read, or FAISS is not installed.
    """
    work, folder, towers = work or Pass(), Path(out), embedder.towers
    faiss()  # said before the work, where it is not there
    _check_is_ours(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        manifest = read_manifest(folder)
        if manifest is None:
            manifest = Manifest(model, towers.fingerprint, towers.dim, source, 0, 0)
            _write_manifest(folder, manifest)
        check_model(manifest, towers.fingerprint, folder)
        if manifest.source != source:
            raise ValueError(f"{folder} is an index of {manifest.source}, not of {source}: give another --out.")
        known = _known(folder, manifest)
        bad: list[BadImage] = []
        wanted = list(_wanted(dataset, source, bad))
        todo = [one for one in wanted if one.entry.key not in known or known[one.entry.key][0].stamp != one.entry.stamp]
        num_new, unread = 0, list[BadImage]()
        for part in _embedded(towers, todo, work, unread):
            _write_part(folder, part)
            known |= part
            num_new += len(part)
        gone = {one.key for one in unread}
        entries = [one.entry for one in wanted if one.entry.key not in gone]
        bad += unread
        if not entries:
            raise ValueError(f"None of the {len(bad)} images of {source} can be read ({bad[0].key}: {bad[0].reason}).")
        old = {entry.key for entry in read_entries(folder, manifest)}
        num_dropped = len(old - {entry.key for entry in entries})
        manifest = _finish(folder, manifest, entries, known)
        if bad:
            list_bad(bad, folder / BAD_IMAGES)
        else:
            (folder / BAD_IMAGES).unlink(missing_ok=True)
    return Indexed(Index(folder, manifest, None), num_new, num_dropped, bad)


def _check_is_ours(folder: Path) -> None:
    """ValueError: something else lies there. What a kill left before there was a manifest begins with a dot."""
    is_other = folder.is_file() or (folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir()))
    if is_other and not (folder / MANIFEST).is_file():
        raise ValueError(f"{folder} is there and is not {WHAT}: choose another path.")


def _wanted(dataset: Dataset, source: str, bad: list[BadImage]) -> Iterator[_Wanted]:
    """Every image of a data set with its key, its stamp and its first caption, each key once; the others become bad ones."""
    seen: set[str] = set()
    for index in range(len(dataset)):
        try:
            record = unchecked(dataset, index)
            if record.image is None:
                raise ValueError("it has no image")
            if record.key in seen:
                raise ValueError("another record has the same key")
            stamp = image_stamp(record.image) or image_digest(record.image)
        except (ValueError, OSError) as error:
            bad.append(BadImage(key_at(dataset, index) or f"record {index}", short_reason(error)))
            continue
        seen.add(record.key)
        caption = record.captions[0].text if record.captions else ""
        path = Path(record.image).absolute() if isinstance(record.image, str | Path) else None
        told = "" if path is None or path == Path(source) / record.key else str(path)
        yield _Wanted(Entry(record.key, stamp.hex(), caption, told), record.image)


def _embedded(towers: Towers, todo: list[_Wanted], work: Pass, bad: list[BadImage]) -> Iterator[Known]:
    """The vectors of images, some at a time; those that cannot be read are put to the bad ones."""
    part, batch = Known(), list[tuple[Entry, Prepared]]()
    work.progress(0, len(todo))
    for done, (one, prepared) in enumerate(_prepared(towers, todo, work), 1):
        if isinstance(prepared, BadImage):
            bad.append(prepared)
        else:
            batch.append((one.entry, prepared))
        if batch and (len(batch) == work.batch_size or done == len(todo)):
            vectors = towers.embed_prepared([image for _, image in batch]).numpy()
            part |= {entry.key: (entry, vector) for (entry, _), vector in zip(batch, vectors, strict=True)}
            batch = []
            work.progress(done, len(todo))
        if part and (len(part) >= work.part_size or done == len(todo)):
            yield part
            part = Known()


def _prepared(towers: Towers, todo: list[_Wanted], work: Pass) -> Iterator[tuple[_Wanted, Prepared | BadImage]]:
    """Images in order, read and prepared by threads a few ahead."""

    def prepare(one: _Wanted) -> Prepared | BadImage:
        try:
            return towers.prepare(one.image)
        except (ValueError, OSError) as error:
            return BadImage(one.entry.key, short_reason(error))

    waiting = iter(todo)
    with ThreadPoolExecutor(work.num_threads) as threads:
        ahead = [(one, threads.submit(prepare, one)) for one in islice(waiting, 2 * work.batch_size)]
        while ahead:
            one, future = ahead.pop(0)
            yield one, future.result()
            ahead += [(more, threads.submit(prepare, more)) for more in islice(waiting, 1)]


def _known(folder: Path, manifest: Manifest) -> Known:
    """What the generation in force and the parts of an interrupted indexing hold; of an image in several, the newest."""
    entries = read_entries(folder, manifest)
    known: Known = {}
    if entries:
        vectors = read_vectors(folder, manifest).reconstruct_n(0, len(entries))
        known = {entry.key: (entry, vector) for entry, vector in zip(entries, vectors, strict=True)}
    for path in sorted((folder / PARTS).glob("*.safetensors")):
        try:
            with safe_open(path, framework="numpy") as part:
                vectors, written = part.get_tensor("vectors"), json.loads(part.metadata()["entries"])
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is damaged: remove it, and its images are embedded again.") from error
        known |= {own[0]: (Entry(*own), vector) for own, vector in zip(written, vectors, strict=True)}
    return known


def _write_part(folder: Path, part: Known) -> None:
    """A part, whole or not there."""
    parts = folder / PARTS
    parts.mkdir(exist_ok=True)
    numbers = [int(path.stem) for path in parts.glob("*.safetensors")]
    path = parts / f"{max(numbers, default=-1) + 1:06}.safetensors"
    entries = json.dumps([list(entry) for entry, _ in part.values()])
    temporary = path.with_suffix(".tmp")
    save_file({"vectors": np.stack([vector for _, vector in part.values()])}, temporary, metadata={"entries": entries})
    flush(temporary)
    temporary.replace(path)
    flush(parts)


def _finish(folder: Path, manifest: Manifest, entries: list[Entry], known: Known) -> Manifest:
    """A new generation of exactly these entries, in their order; or the old one, where it is that already."""
    if manifest.generation and not (folder / PARTS).is_dir() and read_entries(folder, manifest) == entries:
        return manifest
    return write_generation(folder, manifest, entries, np.stack([known[entry.key][1] for entry in entries]))


def write_generation(folder: Path, manifest: Manifest, entries: list[Entry], vectors_ND: np.ndarray) -> Manifest:
    """Put entries and their unit vectors (N, D) float32 in place of all that an index holds; gives the new manifest."""
    generation = manifest.generation + 1
    library = faiss()
    # Half the bytes to read for a query, which is what it takes time for; float16 moves a score by some 1e-4.
    kind = library.ScalarQuantizer.QT_fp16
    vectors = library.IndexScalarQuantizer(manifest.dim, kind, library.METRIC_INNER_PRODUCT)
    vectors.add(vectors_ND)
    lines = "".join(json.dumps(list(entry), ensure_ascii=True) + "\n" for entry in entries)
    library.write_index(vectors, str(vectors_file(folder, generation)))
    entries_file(folder, generation).write_text(lines, encoding="utf-8")
    for path in (vectors_file(folder, generation), entries_file(folder, generation), folder):
        flush(path)
    manifest = manifest._replace(generation=generation, num_images=len(entries))
    _write_manifest(folder, manifest)
    own = {vectors_file(folder, generation).name, entries_file(folder, generation).name}
    for path in (*folder.glob("vectors-*.faiss"), *folder.glob("entries-*.jsonl")):
        if path.name not in own:
            path.unlink()
    shutil.rmtree(folder / PARTS, ignore_errors=True)
    return manifest


def _write_manifest(folder: Path, manifest: Manifest) -> None:
    replace_json(folder / MANIFEST, stamped(VERSION, manifest._asdict()))
    flush(folder)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """ValueError: another process is making this index. What holds the lock may be killed: the system takes it back then."""
    if os.name != "posix":
        yield
        return
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"Another process is making the index {folder}: wait for it.") from error
        except OSError as error:  # NFS locks no folders
            logger.warning(f"{folder} cannot be locked here ({error.strerror}): let no other process make this index.")
        yield
    finally:
        os.close(descriptor)
