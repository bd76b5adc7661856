"""`unimm classify`, `unimm index` and `unimm search`: what was found as a table or JSON; progress and trouble on stderr."""

import json
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from unimm.cli.progress import steps_bar
from unimm.data.bad_records import BadRecord, count_kinds
from unimm.data.records import ImageLike
from unimm.inference.engine import load
from unimm.retrieval.index import Hit, Index, rank_texts
from unimm.retrieval.indexing import BAD_IMAGES, Pass, build_index
from unimm.retrieval.rerank import FIRST, Reranker, check_score
from unimm.retrieval.sheet import check_out, write_hits
from unimm.retrieval.sources import images_of, open_images
from unimm.retrieval.towers import load_towers

console = Console(highlight=False, markup=False, emoji=False)  # names of files and captions are shown as they are
status = Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)

Place = tuple[str | None, str | None]
"""Device and dtype, as they were given."""


def classify(
    image: str | bytes, labels: list[str], model: str, templates: list[str] | None, as_json: bool, place: Place
) -> None:
    """Show the labels with their probabilities, the likeliest first.

    Raises:
        ValueError: the model has no towers, or image, labels or templates are none.
    """
    shares = load_towers(model, *place).classify(image, labels, templates or None)
    ordered = sorted(shares.items(), key=lambda item: -item[1])
    if as_json:
        console.print_json(json.dumps(dict(ordered)))
        return
    table = Table("label", box=None)
    table.add_column("probability", justify="right")
    for label, share in ordered:
        table.add_row(label, f"{share:.3f}")
    console.print(table)


def index(images: str, out: Path, model: str, batch_size: int, num_threads: int, place: Place) -> None:
    """Make or extend an index, and say what came of it.

    Raises:
        ValueError: there are no images, the index is of another model or folder, or nothing can be read.
    """
    dataset = open_images(images)
    embedder = load_towers(model, *place)
    source = str(Path(images).resolve())
    with steps_bar("embedding", len(dataset)) as advance:
        work = Pass(batch_size, num_threads=num_threads, progress=lambda done, total: advance(len(dataset) - total + done))
        made = build_index(embedder, dataset, out, model=_lasting(model), source=source, work=work)
    console.print(f"{out}: {len(made.index):,} images, {made.num_new:,} embedded now, {made.num_dropped:,} dropped.")
    if made.bad:
        kinds = count_kinds([BadRecord(one.key, one.reason) for one in made.bad])
        status.print(f"{len(made.bad):,} images cannot be used ({kinds}): see {out / BAD_IMAGES}.")


@dataclass(frozen=True)
class Asked:
    """What a search is for. query, image: one of them; texts: a file to choose from for an image. k: how many are shown."""

    query: str | None
    image: str | bytes | None
    texts: Path | None
    index: Path | None
    k: int

    def check(self) -> None:
        """Raises ValueError where it says too little or too much."""
        if (self.query is None) == (self.image is None):
            raise ValueError("Say what to search for: a QUERY in quotes, or --image FILE, one of them.")
        if self.texts is not None and self.image is None:
            raise ValueError("--texts is for an image: give --image FILE instead of a QUERY.")
        if self.texts is None and self.index is None:
            raise ValueError("Say where to search: --index FOLDER, which `unimm index` wrote.")


def search(
    asked: Asked, model: str | None, rerank: tuple[str | None, str], out: Path | None, as_json: bool, place: Place
) -> None:
    """Search, and show what was found.

    Args:
        rerank: the unified model that orders the first again, None for none; and by which score.

    Raises:
        ValueError: the arguments do not go together, there is no such index or model, or the index is of another model.
    """
    asked.check()
    check_score(rerank[1])
    if out is not None:
        check_out(out)
    if rerank[0] is not None and asked.query is None and asked.texts is None:
        raise ValueError("--rerank reads a text: search with a QUERY, or with --texts.")
    if out is not None and asked.texts is not None:
        raise ValueError("--out shows images, and --texts finds texts: leave one of them out.")
    opened, hits = (None, _texts(asked, model, place)) if asked.texts is not None else _images(asked, model, place)
    # Only what is looked at again or shown: a table needs no images, which may lie on another machine.
    num_seen = max(FIRST if rerank[0] is not None else 0, asked.k if out is not None else 0)
    seen = hits[:num_seen]
    images = {} if opened is None else dict(zip((hit.key for hit in seen), images_of(opened, seen), strict=True))
    scores: dict[str, float] = {}
    if rerank[0] is not None and hits:
        first, later = hits[:FIRST], hits[FIRST:]
        reranker = Reranker(load(rerank[0], *place), rerank[1])
        texts = [asked.query or hit.key for hit in first]
        pictures: list[ImageLike] = [_given(asked) if opened is None else images[hit.key] for hit in first]
        found = reranker.scores(pictures, texts).tolist()
        order = sorted(range(len(first)), key=lambda number: -found[number])
        scores = {first[number].key: found[number] for number in order}
        hits = [*(first[number] for number in order), *later]
    hits = hits[: asked.k]
    _show(hits, scores, as_json)
    if out is not None:
        write_hits(out, asked.query or _name(asked.image), hits, [images[hit.key] for hit in hits])
        status.print(str(out))


def _images(asked: Asked, model: str | None, place: Place) -> tuple[Index, list[Hit]]:
    """The index, and its nearest images, at least as many as are ranked again."""
    assert asked.index is not None
    opened = Index.open(asked.index)  # before a model is loaded for it
    opened.ask_with(load_towers(model or opened.manifest.model, *place))
    return opened, opened.search(asked.query, asked.image, max(asked.k, FIRST))


def _texts(asked: Asked, model: str | None, place: Place) -> list[Hit]:
    """The nearest texts of the file."""
    assert asked.texts is not None
    try:
        lines = asked.texts.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{asked.texts} is not UTF-8 ({error.reason}): save it as UTF-8.") from None
    texts = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not texts:
        raise ValueError(f"{asked.texts} holds no texts: write one a line.")
    if model is None and asked.index is None:
        raise ValueError("Name the model that compares them: --model MODEL, or --index FOLDER for the one that made an index.")
    name = model or Index.open(asked.index or "").manifest.model
    return rank_texts(load_towers(name, *place), _given(asked), texts, max(asked.k, FIRST))


def _given(asked: Asked) -> str | bytes:
    assert asked.image is not None
    return asked.image


def _name(image: str | bytes | None) -> str:
    return image if isinstance(image, str) else "an image"


def _show(hits: list[Hit], scores: dict[str, float], as_json: bool) -> None:
    if as_json:
        found = [
            {"key": hit.key, "score": hit.score, "path": None if hit.path is None else str(hit.path), "caption": hit.caption}
            | ({"rerank": scores[hit.key]} if hit.key in scores else {})
            for hit in hits
        ]
        console.print_json(json.dumps(found))
        return
    table = Table(box=None)
    for title in ("", "score", *(["again"] if scores else []), "found"):
        table.add_column(title, justify="left" if title == "found" else "right", overflow="fold")
    has_captions = any(hit.caption for hit in hits)
    if has_captions:
        table.add_column("caption", overflow="fold")
    for number, hit in enumerate(hits):
        again = [f"{scores[hit.key]:.3f}" if hit.key in scores else ""] if scores else []
        row = [str(number + 1), f"{hit.score:.3f}", *again, str(hit.path or hit.key)]
        table.add_row(*row, *([hit.caption] if has_captions else []))
    console.print(table)


def _lasting(model: str) -> str:
    """The name of a model as it holds from any folder: a local one by its whole path."""
    return str(Path(model).resolve()) if Path(model).is_dir() else model
