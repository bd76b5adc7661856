"""An index of images on disk: a unit vector for each, made by one model's image tower, and search in them by text or image.

    INDEX/
        manifest.json       the model and its fingerprint, what was indexed, which generation is in force
        vectors-G.faiss     generation G: vectors (N, D) of FAISS in float16, compared by their inner product, none left out
        entries-G.jsonl     a line a vector: the image's key, what tells whether it has changed, its caption, its file
        parts/              of an indexing that has not ended (`unimm.retrieval.indexing`)
        bad_images.txt      images that could not be read, a key and a reason a line

Search looks at every vector, so it finds what there is to be found. Vectors of one model say nothing about those of another:
the manifest names the model by its fingerprint, and no other may ask.
"""

import json
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from unimm.data.records import ImageLike
from unimm.inference.embedding import EmbeddingCalls
from unimm.retrieval.towers import load_towers
from unimm.runtime.atomic_files import read_json
from unimm.runtime.format_version import check_format
from unimm.runtime.number_checks import whole_number

MANIFEST = "manifest.json"
VERSION = 1
WHAT = "an index of images"


class Hit(NamedTuple):
    """Something that was found: its key (an image's path below the folder that was indexed, or a text), how near it is (the
    inner product of unit vectors, from -1 to 1), its file where it has one, its caption where it has one."""

    key: str
    score: float
    path: Path | None = None
    caption: str = ""


class Entry(NamedTuple):
    """What an index knows of an image beside its vector. stamp: another one where the image may have changed.
    path: its file, where the key does not say it."""

    key: str
    stamp: str
    caption: str = ""
    path: str = ""


class Manifest(NamedTuple):
    """What manifest.json says. model: as it was named. source: the folder or file that was indexed. generation: 0 until the
    first indexing has ended."""

    model: str
    fingerprint: str
    dim: int
    source: str
    generation: int
    num_images: int


class Index:
    """An index that is searched. Made by `Index.open`."""

    def __init__(self, folder: Path, manifest: Manifest, embedder: EmbeddingCalls | None = None) -> None:
        self.folder, self.manifest = folder, manifest
        self.entries = read_entries(folder, manifest)
        self.vectors = read_vectors(folder, manifest)
        self._embedder: EmbeddingCalls | None = None
        if embedder is not None:
            self.ask_with(embedder)

    @classmethod
    def open(cls, path: str | Path, embedder: EmbeddingCalls | None = None) -> "Index":
        """Open an index.

        Args:
            embedder: what it is asked with, of `unimm.load_towers` or `unimm.load`. None: the model that the index names, which
                is loaded when it is first needed.

        Raises:
            ValueError: there is no whole index, it is of another model, or FAISS is not installed.
        """
        folder = Path(path)
        manifest = read_manifest(folder)
        if manifest is None:
            raise ValueError(f"{folder} is no index: make one with `unimm index FOLDER --out {folder}`.")
        if manifest.generation == 0:
            raise ValueError(f"The indexing into {folder} has not ended: repeat the `unimm index` line, which goes on with it.")
        return cls(folder, manifest, embedder)

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def embedder(self) -> EmbeddingCalls:
        """What it is asked with. ValueError: the model that the index names cannot be loaded, or has changed."""
        if self._embedder is None:
            self.ask_with(load_towers(self.manifest.model))
        assert self._embedder is not None
        return self._embedder

    def ask_with(self, embedder: EmbeddingCalls) -> None:
        """Ask with this from now on, of `unimm.load_towers` or `unimm.load`. ValueError: it is not what made the index."""
        check_model(self.manifest, embedder.towers.fingerprint, self.folder)
        self._embedder = embedder

    def search(self, text: str | None = None, image: ImageLike | None = None, k: int = 10) -> list[Hit]:
        """The k images nearest to a text, or to an image, nearest first.

        Raises:
            ValueError: there is neither or both, the text is empty, or the image cannot be read.
        """
        if (text is None) == (image is None):
            raise ValueError("Search for a text or for an image, one of them.")
        vectors = self.embedder.embed_texts([text]) if text is not None else self.embedder.embed_images([image])
        return self.search_vectors(vectors, k)[0]

    def search_vectors(self, queries: np.ndarray, k: int = 10) -> list[list[Hit]]:
        """The k images nearest to each of these unit vectors (Q, D), nearest first; all of them where there are fewer.

        Raises:
            ValueError: they have another dimension.
        """
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.manifest.dim:
            raise ValueError(f"This index holds vectors of {self.manifest.dim} numbers, not queries {queries.shape}.")
        k = min(whole_number("k", k, 1), len(self.entries))
        scores, places = self.vectors.search(queries, k)
        root = Path(self.manifest.source)
        return [
            [self._hit(root, int(place), float(score)) for place, score in zip(*row, strict=True)]
            for row in zip(places, scores, strict=True)
        ]

    def _hit(self, root: Path, place: int, score: float) -> Hit:
        entry = self.entries[place]
        path = next((one for one in (root / entry.key, Path(entry.path)) if one.is_file()), None)
        return Hit(entry.key, score, path, entry.caption)


def rank_texts(embedder: EmbeddingCalls, image: ImageLike, texts: list[str], k: int = 10) -> list[Hit]:
    """The k texts nearest to an image, nearest first.

    Raises:
        ValueError: there are no texts, one is empty, or the image cannot be read.
    """
    if not texts:
        raise ValueError("There are no texts to choose among: name at least one.")
    scores = embedder.embed_texts(texts) @ embedder.embed_images([image])[0]
    order = np.argsort(-scores, kind="stable")[: whole_number("k", k, 1)]
    return [Hit(texts[place], float(scores[place])) for place in order]


def read_manifest(folder: Path) -> Manifest | None:
    """None where there is none. ValueError: it is of a newer unimm, or damaged."""
    content = read_json(folder / MANIFEST)
    if content is None:
        return None
    check_format(content, VERSION, folder / MANIFEST)
    try:
        return Manifest(**{name: content[name] for name in Manifest._fields})
    except KeyError as error:
        raise ValueError(f"{folder / MANIFEST} lacks {error}: it is not the manifest of an index.") from error


def check_model(manifest: Manifest, fingerprint: str, folder: Path) -> None:
    """ValueError: the index was made by another model, or by this one before it was trained on."""
    if manifest.fingerprint != fingerprint:
        raise ValueError(
            f"{folder} is an index of the model {manifest.model}, as it was when it was made, and not of this one: search it "
            f"with that model, or index the images again into another folder."
        )


def vectors_file(folder: Path, generation: int) -> Path:
    """Where the vectors of a generation lie."""
    return folder / f"vectors-{generation}.faiss"


def entries_file(folder: Path, generation: int) -> Path:
    """Where the entries of a generation lie."""
    return folder / f"entries-{generation}.jsonl"


def read_entries(folder: Path, manifest: Manifest) -> list[Entry]:
    """The entries of the generation in force, none before the first. ValueError: they are not whole."""
    if manifest.generation == 0:
        return []
    path = entries_file(folder, manifest.generation)
    try:
        entries = [Entry(*json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged or not there: index the images again into another folder.") from error
    if len(entries) != manifest.num_images:
        raise ValueError(f"{path} holds {len(entries)} entries, not {manifest.num_images}: index the images again.")
    return entries


def read_vectors(folder: Path, manifest: Manifest) -> Any:
    """FAISS' index of the generation in force. ValueError: it is damaged, or FAISS is not installed."""
    path = vectors_file(folder, manifest.generation)
    try:
        vectors = faiss().read_index(str(path))
    except RuntimeError as error:
        raise ValueError(f"{path} is damaged or not there: index the images again into another folder.") from error
    if (vectors.ntotal, vectors.d) != (manifest.num_images, manifest.dim):
        raise ValueError(f"{path} does not fit its manifest: index the images again into another folder.")
    return vectors


def faiss() -> Any:
    """The library. ValueError: it is not installed."""
    try:
        return import_module("faiss")
    except ImportError as error:
        raise ValueError('An index of images needs FAISS: pip install "unimm[search]".') from error
