"""Log-probabilities of a frozen reference, computed once and stored: then training holds no second model in memory.

    folder/manifest.json      of which model they are, and of which sources every record is stored
    folder/NAME.safetensors   "digests": (n, 16) uint8, of n sequences; "values": (N,) float, of their targets one after
                              another; "ends": (n,) int64, where those of each end

A sequence is found by a digest of all that it holds (ids, pixels, what is learned of it), so it does not matter in which row or
step it comes, or which process computed it, and a record that has changed is not found. What was stored before an interruption
is not computed again, and several runs may share a folder.

Shapes: B rows, T positions, D documents.
"""

import hashlib
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from torch import Tensor

from unimm.batch import Batch, collate
from unimm.checkpoints.fingerprint import model_fingerprint
from unimm.data.mixture import Mixture, Source
from unimm.data.records import key_at, unchecked
from unimm.models.lora import is_adapter
from unimm.models.unified import UnifiedModel
from unimm.runtime.atomic_files import flush, read_json, replace_json
from unimm.runtime.format_version import check_format, stamped
from unimm.runtime.rank_sync import Ranks
from unimm.sequence import Kind, Sample
from unimm.training.logbook import ProgressLine

MANIFEST, FORMAT = "manifest.json", 1
DIGEST = 16
SECONDS_BETWEEN_FILES = 60.0
"""So much computing an interruption may lose."""

_COLUMNS = ("tokens", "kinds", "targets", "target_kinds", "weights")
_BIASED = ("expected", "biases")
"""Of a document that holds some alone, so that what was stored before there were any is found."""


@dataclass(frozen=True)
class ReferencedBatch(Batch):
    """A batch with what a reference says of it. reference: (B, T) float, log-probabilities at the positions that predict; 0
    where no sequence is compared."""

    reference: Tensor


class Place(NamedTuple):
    """Where the values of a sequence lie: in which file, from where to where."""

    file: str
    begin: int
    end: int


class StoredReference:
    """A folder of log-probabilities of one model. Opened by each process for itself.

    Args:
        folder: where they lie, or will.
        model: whose they are, as it is now.
        precision: that it computes in.

    Raises ValueError where the folder holds those of another model, or something else.
    """

    def __init__(self, folder: Path, model: UnifiedModel, precision: str) -> None:
        self.folder = folder
        own = model_fingerprint((_plain(name), one) for name, one in model.named_parameters() if not is_adapter(name))
        self.of = {"model": own, "precision": precision}
        found = read_json(folder / MANIFEST) if folder.is_dir() else None
        if found is None and folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir()):
            raise ValueError(f"{folder} is there and holds no stored log-probabilities: name another folder.")
        if found is not None:
            check_format(found, FORMAT, folder / MANIFEST)
            for name, value in self.of.items():
                if found.get(name) != value:
                    raise ValueError(
                        f"The log-probabilities in {folder} are of another {name} ({str(found.get(name))[:12]}) than the "
                        f"reference of this run ({value[:12]}): name another folder, or remove this one."
                    )
        self.whole: list[dict[str, Any]] = found["whole"] if found else []
        self._places: dict[bytes, Place] = {}
        self._open: dict[str, Any] = {}
        self.read()

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._places

    def read(self) -> None:
        """Find all sequences of the folder's files, also those that other processes have written since."""
        known = {place.file for place in self._places.values()}
        for path in sorted(self.folder.glob("*.safetensors")):
            if path.name in known:
                continue
            held = load_file(path)
            begins = [0, *held["ends"].tolist()]
            for digest, begin, end in zip(held["digests"], begins, begins[1:], strict=False):
                self._places[digest.tobytes()] = Place(path.name, begin, end)

    def add(self, found: dict[bytes, np.ndarray]) -> None:
        """Write the values of some sequences, by digest, as a file."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / MANIFEST).is_file():
            self.say_whole([])
        name = secrets.token_hex(8)
        temporary = self.folder / f".{name}.tmp"
        tensors = {
            "digests": np.stack([np.frombuffer(digest, np.uint8) for digest in found]),
            "values": np.concatenate(list(found.values())),
            "ends": np.cumsum([len(one) for one in found.values()]),
        }
        save_file(tensors, temporary)
        flush(temporary)
        temporary.replace(self.folder / f"{name}.safetensors")
        begin = 0
        for digest, values in found.items():
            self._places[digest] = Place(f"{name}.safetensors", begin, begin + len(values))
            begin += len(values)

    def say_whole(self, marks: list[dict[str, Any]]) -> None:
        """Keep which sources have all of their records here, beside those that are known to."""
        self.whole += [one for one in marks if one not in self.whole]
        self.folder.mkdir(parents=True, exist_ok=True)
        replace_json(self.folder / MANIFEST, stamped(FORMAT, {**self.of, "whole": self.whole}))

    def values(self, digest: bytes) -> np.ndarray:
        """Of the targets of a sequence, in order. Raises KeyError where it is not here."""
        place = self._places[digest]
        if place.file not in self._open:
            self._open[place.file] = safe_open(self.folder / place.file, framework="numpy").get_slice("values")
        return self._open[place.file][place.begin : place.end]

    def look_up(self, batch: Batch, documents: list[int]) -> ReferencedBatch:
        """The batch with what is stored of some of its documents.

        Args:
            batch: in main memory. documents: rows of `batch.samples`.

        Raises:
            ValueError: nothing is stored of one of them.
        """
        found = [self._values_of(batch, place) for place in places_of(batch, documents)]
        dtype = found[0][1].dtype if found else np.float32
        reference_BT = np.zeros(batch.tokens.shape, dtype)
        for (row, where), values in found:
            reference_BT[row, where] = values
        return ReferencedBatch(**vars(batch), reference=torch.from_numpy(reference_BT))

    def _values_of(self, batch: Batch, place: "Document") -> tuple[tuple[int, np.ndarray], np.ndarray]:
        digest = digest_of(batch, place)
        where = place.begin + np.flatnonzero(batch.weights[place.row, place.begin : place.end].numpy())
        if digest not in self:
            raise ValueError(
                f"{self.folder} holds no log-probabilities of a sequence that is compared now: its record has changed since "
                f"they were stored, or its view makes another sequence of it each time. Remove the folder, and the same line "
                f"stores them again; or take objective.reference=copy."
            )
        return (place.row, where), self.values(digest)


class Document(NamedTuple):
    """Where a document lies in its batch: row, first position and the one behind its last."""

    row: int
    begin: int
    end: int


def places_of(batch: Batch, documents: list[int]) -> list[Document]:
    """Where some documents lie."""
    begins = ((batch.positions == 0) & (batch.documents > 0)).nonzero().tolist()
    lengths = torch.bincount(batch.document_indices().flatten() + 1, minlength=len(begins) + 1).tolist()[1:]
    return [Document(begins[one][0], begins[one][1], begins[one][1] + lengths[one]) for one in documents]


def digest_of(batch: Batch, place: Document) -> bytes:
    """Of all that a document holds, wherever it lies: ids, kinds, what is learned, pixels or features, other arrays."""
    digest = hashlib.sha256()
    biased = bool(batch.biases[place.row, place.begin : place.end].any())
    for name in (*_COLUMNS, *(_BIASED if biased else ())):
        digest.update(getattr(batch, name)[place.row, place.begin : place.end].numpy().tobytes())
    inside_I = (batch.image_spans[:, 0] == place.row) & (batch.image_spans[:, 1] >= place.begin)
    inside_I &= batch.image_spans[:, 1] < place.end
    images = batch.images
    for index in inside_I.nonzero().flatten().tolist():
        is_seen = bool(images.is_seen[index])
        number = int((images.is_seen[:index] == is_seen).sum())
        held = (images.features if is_seen else images.pixels)[number]
        digest.update(f"image {batch.image_spans[index, 1] - place.begin} {held.dtype} {tuple(held.shape)}".encode())
        digest.update(held.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    for kind in sorted(kind for kind in batch.contents if kind != Kind.PIXELS):
        number_N = (batch.kinds == kind).flatten().cumsum(0).view(batch.kinds.shape)
        own = number_N[place.row, place.begin : place.end][batch.kinds[place.row, place.begin : place.end] == kind] - 1
        digest.update(batch.contents[kind].values[own].numpy().tobytes())
    return digest.digest()[:DIGEST]


def store_reference(
    store: StoredReference,
    model: UnifiedModel,
    mixtures: list[Mixture],
    batches_of: Callable[[Mixture], Iterator[tuple[float, Batch]]],
    compared: Callable[[Batch], list[int]],
    run: tuple[Any, Ranks],
) -> None:
    """Compute what is missing of all records of all sources that hold pairs; every process its share. Every process calls it.

    Args:
        model: in one piece, as it is now.
        batches_of: this process' share of all records of a mixture, with how much of it is done then, 0 to 1.
        compared: the documents of a batch whose log-probabilities are asked for.
        run: its accelerator and its processes.
    """
    accelerator, ranks = run
    paired = [one for one in map(_paired, mixtures) if one is not None]
    marks = [_mark(mixture, source, compared) for mixture in paired for source in mixture.sources]
    is_whole = all(mark in store.whole for mark in marks)
    ranks.barrier()  # all have looked before anything is written
    if is_whole:
        return
    if ranks.number == 0:
        store.say_whole([])
    ranks.barrier()
    was_training = model.training
    model.to(accelerator.device).eval()
    line, num_new = ProgressLine("log-probabilities of the reference", ranks.number == 0), [0]
    for number, mixture in enumerate(paired):
        found: dict[bytes, np.ndarray] = {}
        written = time.monotonic()
        for done, batch in batches_of(mixture):
            new = _compute(store, model, batch, compared(batch), accelerator)
            found |= new
            num_new[0] += len(new)
            line.update((number + done) / len(paired), lambda: f"{num_new[0]:,} sequences")
            if found and time.monotonic() - written > SECONDS_BETWEEN_FILES:
                store.add(found)
                found, written = {}, time.monotonic()
        if found:
            store.add(found)
    line.close()
    model.train(was_training)
    ranks.barrier()
    store.read()
    if ranks.number == 0:
        store.say_whole(marks)
    ranks.barrier()


@torch.no_grad()
def _compute(
    store: StoredReference, model: UnifiedModel, batch: Batch, documents: list[int], accelerator: Any
) -> dict[bytes, np.ndarray]:
    """What is not stored yet of a batch, by digest."""
    named = [(digest_of(batch, place), place) for place in places_of(batch, documents)]
    missing = [(digest, place) for digest, place in named if digest not in store]
    if not missing:
        return {}
    with accelerator.autocast():
        told_BT = model.log_probs(batch.to(accelerator.device)).cpu()
    found = {}
    for digest, (row, begin, end) in missing:
        learned = batch.weights[row, begin:end] != 0
        found[digest] = told_BT[row, begin:end][learned].numpy()
    return found


def _paired(mixture: Mixture) -> Mixture | None:
    """The sources that are learned from and whose samples hold several sequences, each with all of its records; None: there
    are none."""
    named = [(number, mixture.sources[number]) for number in mixture.used]
    sources = [replace(one, weight=1.0) for number, one in named if len(mixture.sample((number, 0)).sequences) > 1]
    return Mixture(sources, mixture.template, mixture.seed, "samples", mixture.max_bad) if sources else None


def _mark(mixture: Mixture, source: Source, compared: Callable[[Batch], list[int]]) -> dict[str, Any]:
    """What tells a source, and how its samples are made, from others, as far as its first record shows it."""
    count = len(source.dataset)
    keys = [key_at(source.dataset, 0), key_at(source.dataset, count - 1)]
    first: list[str] = []
    with suppress(ValueError, OSError):  # a bad record, in whose place others stand where there may be any
        made = source.view(unchecked(source.dataset, 0), mixture.template, np.random.default_rng(0))
        sequences = made.sequences if isinstance(made, Sample) else (made,)
        batch = collate([[one] for one in sequences], samples=[[(0, place)] for place in range(len(sequences))])
        first = [digest_of(batch, place).hex() for place in places_of(batch, compared(batch))]
    return {"source": source.name, "num_records": count, "keys": keys, "first": first}


def _plain(name: str) -> str:
    """The name of a weight without what an adapter puts around it."""
    return name.replace("base_layer.", "")
