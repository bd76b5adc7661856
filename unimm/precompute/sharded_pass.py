"""A pass of a data set's images through a frozen network in shards, which can be resumed: what stored codes and stored
features share.

A part is a file of so many rows, an image a row, computed in batches that begin with it: its bytes depend neither on how many
processes share the work nor on where it was interrupted. Process r of n makes parts r, r + n, ...

Images that were stored before are not computed again, wherever they stand now (`unimm.precompute.known_images`). Those that
cannot be used do not end the work where they are met: all others are made and kept, and then all of them are named at once.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader

from unimm.data.records import Dataset, ImageLike
from unimm.data.stores.digests import HALF, image_identity
from unimm.precompute.bad_images import (
    BadImage,
    UsedImages,
    forget_bad,
    is_hopeless,
    note_bad,
    noted_bad,
    raise_bad,
    retry_bad,
)
from unimm.precompute.known_images import ABSENT, KnownImages, link_or_copy
from unimm.precompute.pass_progress import images_progress, say
from unimm.runtime.environment import loader_processes
from unimm.runtime.folder_lock import occupy_together
from unimm.runtime.number_checks import check_probability, check_whole
from unimm.runtime.rank_sync import Ranks
from unimm.runtime.resumable_folder import ResumableFolder

COMPARED_AT_ONCE = 256


class Prepare(NamedTuple):
    """What comes before the parts, and whether it was done before."""

    do: Callable[[], None]
    is_done: Callable[[], bool]


Write = Callable[[Path], object]
"""Writes a file at a path."""


@dataclass(frozen=True)
class PassConfig:
    """How it is gone about.

    batch_size: images at a time; others round otherwise. num_workers: processes that prepare images ahead, for each of `ranks`.
    ranks: who shares the work; all of them are called with the same words.
    quiet: no progress, and nothing said.
    max_bad: the share of images that may be unusable: their rows are zeros, as are their identities.
    """

    batch_size: int = 64
    num_workers: int = 0
    ranks: Ranks = field(default_factory=Ranks)
    quiet: bool = False
    max_bad: float = 0.0

    def __post_init__(self) -> None:
        check_whole(self, 1, "batch_size")
        check_whole(self, 0, "num_workers")
        check_probability(self, "max_bad")

    @property
    def is_silent(self) -> bool:
        """Whether this process says nothing: only the first one does."""
        return self.quiet or self.ranks.number > 0

    def say(self, sentence: str) -> None:
        """A line on stderr, once for all processes."""
        if not self.is_silent:
            say(sentence)


@dataclass(frozen=True)
class Job:
    """What is made.

    see: pixels (N, 3, H, W) on the CPU -> what is stored of them, (N, ...) in `dtype` on the CPU.
    prepare: an image -> pixels (3, H, W) float32.
    images: (num_rows,) the index of the record whose image each row is of.
    part_rows: rows of a part.
    shape: of what is stored of an image.
    key: the name of the tensor; beside it stand the "identities" of the images.
    title: what is done, for a person.
    """

    see: Callable[[torch.Tensor], torch.Tensor]
    prepare: Callable[[ImageLike], np.ndarray]
    dataset: Dataset
    images: np.ndarray
    part_rows: int
    shape: tuple[int, ...]
    key: str
    dtype: torch.dtype
    title: str

    @property
    def num_parts(self) -> int:
        """Of all processes together."""
        return -(-len(self.images) // self.part_rows)

    def rows(self, number: int) -> np.ndarray:
        """Those of a part."""
        return np.arange(number * self.part_rows, min((number + 1) * self.part_rows, len(self.images)))


def begin_pass(unfinished: ResumableFolder, num_images: int, work: PassConfig, prepare: Prepare | None = None) -> None:
    """Begin a folder, or go on with it; all processes call it. prepare: what the first does. ValueError: another is at it."""
    work.ranks.barrier()  # no process writes before all have looked
    occupy_together(unfinished.workspace, work.ranks, lambda _: None, patience=0)
    if work.ranks.number == 0:
        unfinished.begin()
        forget_bad(unfinished, prepare is not None and prepare.is_done())
        if len(noted_bad(unfinished)) > work.max_bad * num_images:  # fewer may be bad than when it was begun
            unfinished.set_all_aside()
            forget_bad(unfinished)
        if prepare is not None and not prepare.is_done():
            prepare.do()
    work.ranks.barrier()


def known_images(
    out: Path, files: Iterable[Path], unfinished: ResumableFolder, key: str, is_same: bool, work: PassConfig
) -> KnownImages:
    """The images that were stored before, under this key: in the files of a store that is there, and in an unfinished one."""
    known = KnownImages([*files, *unfinished.kept()], key)
    if is_same and not len(known) and not known.num_damaged:
        work.say(f"{out} is of an older unimm and does not tell of which images it is: it is made again.")
    return known


def end_pass(out: Path, unfinished: ResumableFolder, is_new: bool, work: PassConfig) -> None:
    """Drop what was unfinished, once the store is written; every process calls it."""
    if not is_new:
        work.say(f"{out} is there already, of the same images: it is kept. To make it again, remove it.")
    work.ranks.barrier()
    if work.ranks.number == 0:
        unfinished.drop()
    work.ranks.barrier()


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """In here a network is in eval mode, without gradients; after it in the mode that it was in, also where this raises."""
    was_training = network.training
    network.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        network.train(was_training)


def make_parts(
    job: Job,
    unfinished: ResumableFolder,
    known: KnownImages,
    work: PassConfig,
    is_same: bool,
    before: Callable[[], None] | None = None,
) -> bool:
    """Make what is missing of this process' parts, each a safetensors file; every process calls it.

    known: what was stored before. is_same: whether that is a whole store that says the same of itself. before: what the first
    process does before anything is made, if there is anything new.

    Returns:
        Whether there is anything new: False where what was stored before is what would be made.

    Raises:
        ValueError: images cannot be used; names them.
    """
    own = range(work.ranks.number, job.num_parts, work.ranks.count)
    with images_progress(f"{job.title}, proving", len(unfinished.begun(own)), work.is_silent, "parts") as advance:
        missing = unfinished.missing(own, advance)
    if len(missing) < len(own):
        work.say(f"{job.title}: {len(own) - len(missing)} of {len(own)} parts are there already.")
    rows = np.concatenate([np.empty(0, dtype=np.int64), *(job.rows(number) for number in missing)])
    found = _find(job, rows, known, work)
    is_kept = is_same and len(missing) == len(own) and len(known) == len(job.images) and np.array_equal(found.places, rows)
    if not work.ranks.any(not is_kept):
        return False
    if before is not None and work.ranks.number == 0:
        before()
    parts = _parts(job, missing, found)
    _make(job, parts, known, unfinished, work)
    work.ranks.barrier()
    if len(noted_bad(unfinished)) > work.max_bad * len(job.images):
        retry_bad(unfinished, own)
    raise_bad(unfinished, len(job.images), work.max_bad)
    return True


class _Found(NamedTuple):
    """Of rows: where their images were stored before (n,), ABSENT where they were not, and their identities (n, 32)."""

    places: np.ndarray
    identities: np.ndarray


def _find(job: Job, rows: np.ndarray, known: KnownImages, work: PassConfig) -> _Found:
    found = _Found(np.full(len(rows), ABSENT, dtype=np.int64), np.zeros((len(rows), 2 * HALF), dtype=np.uint8))
    if not len(known):
        return found
    images = UsedImages(job.dataset, known.find)
    order = job.images[rows].tolist()
    loader = DataLoader(
        images, COMPARED_AT_ONCE, sampler=order, num_workers=loader_processes(work.num_workers), collate_fn=list
    )
    with images_progress(f"{job.title}, comparing", len(rows), work.is_silent) as advance:
        number = 0
        for batch in loader:
            for one in batch:
                if not isinstance(one, BadImage):
                    found.places[number], found.identities[number] = one
                number += 1
            advance(len(batch))
    return found


class _Part:
    """A part in the making. rows: of the job."""

    def __init__(self, number: int, rows: np.ndarray, found: _Found) -> None:
        self.number, self.rows = number, rows
        self.places, self.identities = found
        self.new = np.flatnonzero(self.places == ABSENT)
        self.bad: list[BadImage] = []
        self._made: dict[int, torch.Tensor] = {}

    def batches(self, batch_size: int) -> list[np.ndarray]:
        """Its rows that are new, counted within the part."""
        return [self.new[start : start + batch_size] for start in range(0, len(self.new), batch_size)]

    def see(self, batch: np.ndarray, loaded: "_Loaded", job: Job) -> None:
        """Compute a batch."""
        self.bad += [one for one in loaded.bad if one is not None]
        good = [int(row) for row, one in zip(batch, loaded.bad, strict=True) if one is None]
        if good:
            self.identities[good] = loaded.identities
            self._made |= dict(zip(good, job.see(loaded.pixels), strict=True))

    def save(self, job: Job, known: KnownImages, unfinished: ResumableFolder, has_gaps: bool) -> None:
        """Write it, and note its bad images; with these only what is new is kept for the next time, unless it has gaps."""
        note_bad(unfinished, self.number, self.bad)
        if self.bad and has_gaps:
            gaps = [int(row) for row in self.new if int(row) not in self._made]
            self._made |= {row: torch.zeros(job.shape, dtype=job.dtype) for row in gaps}
            self.identities[gaps] = 0
        elif self.bad:
            if self._made:
                self._write(sorted(self._made), job, known, unfinished.keep)
            return

        def save(write: Write) -> None:
            unfinished.save(self.number, write)

        whole = known.whole_file(self.places)
        if whole is not None:
            save(lambda path: link_or_copy(whole, path))
        else:
            self._write(range(len(self.rows)), job, known, save)

    def _write(self, rows: Iterable[int], job: Job, known: KnownImages, save: Callable[[Write], None]) -> None:
        def seen(row: int) -> torch.Tensor:
            return self._made[row] if row in self._made else known.read(int(self.places[row])).to(job.dtype)

        rows = list(rows)
        tensors = {
            job.key: torch.stack([seen(row) for row in rows]),
            "identities": torch.from_numpy(self.identities[rows]),
        }
        save(lambda path: save_file(tensors, path))


def _parts(job: Job, numbers: list[int], found: _Found) -> list[_Part]:
    ends = np.cumsum([len(job.rows(number)) for number in numbers])[:-1]
    pieces = zip(numbers, np.split(found.places, ends), np.split(found.identities, ends), strict=True) if numbers else ()
    return [_Part(number, job.rows(number), _Found(places, identities)) for number, places, identities in pieces]


def _make(job: Job, parts: list[_Part], known: KnownImages, unfinished: ResumableFolder, work: PassConfig) -> None:
    """Make and save the parts, and note the images that cannot be used."""
    total, new = sum(len(part.rows) for part in parts), sum(len(part.new) for part in parts)
    if new < total:
        work.say(f"{job.title}: {total - new:,} of {total:,} images were stored before and are kept.")
    order = [job.images[part.rows[batch]].tolist() for part in parts for batch in part.batches(work.batch_size)]
    images = UsedImages(job.dataset, _Prepared(job.prepare))
    loaded = iter(
        DataLoader(images, batch_sampler=order, num_workers=loader_processes(work.num_workers), collate_fn=_Loaded.of)
    )
    num_bad, num_seen, is_told = 0, 0, False
    with images_progress(job.title, new, work.is_silent) as advance:
        for part in parts:
            for batch in part.batches(work.batch_size):
                part.see(batch, next(loaded), job)
                num_seen += len(batch)
                advance(len(batch))
                if part.bad and not is_told:
                    is_told = True
                    work.say(f"{job.title}: {': '.join(part.bad[0])}; the others are made first, then all such are named.")
                now_bad = num_bad + len(part.bad)
                if now_bad > work.max_bad * len(job.images) and is_hopeless(now_bad, num_seen):
                    note_bad(unfinished, part.number, part.bad)
                    return
            num_bad += len(part.bad)
            part.save(job, known, unfinished, has_gaps=work.max_bad > 0)


class _Prepared:
    """An image -> its identity and its pixels. The identity comes first: if a file changes in between, it is that of the file
    before, and who reads the record notices."""

    def __init__(self, prepare: Callable[[ImageLike], np.ndarray]) -> None:
        self._prepare = prepare

    def __call__(self, image: ImageLike) -> tuple[np.ndarray, np.ndarray]:
        return image_identity(image), self._prepare(image)


class _Loaded(NamedTuple):
    """A batch: for each image what is bad about it, or None; identities and pixels of the others."""

    bad: list[BadImage | None]
    identities: np.ndarray
    pixels: torch.Tensor

    @classmethod
    def of(cls, images: list[Any]) -> "_Loaded":
        """Of what a worker has prepared."""
        good = [one for one in images if not isinstance(one, BadImage)]
        bad = [one if isinstance(one, BadImage) else None for one in images]
        if not good:
            return cls(bad, np.empty((0, 2 * HALF), dtype=np.uint8), torch.empty(0))
        return cls(bad, np.stack([one[0] for one in good]), torch.from_numpy(np.stack([one[1] for one in good])))
