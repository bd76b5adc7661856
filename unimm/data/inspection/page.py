"""The result of an inspection as files: inspection.json, lists of all problems and duplicates, and one self-contained page.

The page shows what stands in the JSON, and images: some of each data set with their texts, and groups of near-duplicates.
"""

import base64
import io
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from unimm.data.image import decode_image
from unimm.data.inspection.measure import images_of, texts_of
from unimm.data.inspection.run import RESULT, Measured
from unimm.data.inspection.summary import Summary, summarize
from unimm.data.records import ImageLike, key_at, unchecked
from unimm.runtime.atomic_files import whole_folder, write_json
from unimm.runtime.version import package_version

PAGE = "inspection.html"
PROBLEMS = "problems.jsonl"
DUPLICATES = "duplicates.jsonl"

SHOWN = 48
"""Records of a data set that are shown."""

SHOWN_GROUPS, SHOWN_OF_GROUP = 12, 4

SIDE = 160
"""Pixels of a thumbnail."""

TEXTS_SHOWN = 4
TEXT_LENGTH = 200


def write_result(out: Path, measured: dict[str, Measured], settings: dict[str, Any]) -> dict[str, Any]:
    """Write the folder of an inspection, in the place of an older one.

    Args:
        measured: by the name of the data set.
        settings: how it was made, JSON-able.

    Returns:
        What inspection.json holds.
    """
    summaries = {name: summarize(one) for name, one in measured.items()}
    told = {
        "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "unimm_version": package_version(),
        "settings": settings,
        "data_sets": {name: summary.told for name, summary in summaries.items()},
    }
    with whole_folder(out, RESULT, "an inspection") as folder:
        write_json(folder / RESULT, told)
        _write_lines(folder / PROBLEMS, _problems(summaries))
        _write_lines(folder / DUPLICATES, _duplicates(summaries, measured))
        (folder / PAGE).write_text(_page(out.resolve().name, told, summaries, measured), encoding="utf-8")
    return told


def _write_lines(path: Path, lines: Iterator[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def _problems(summaries: dict[str, Summary]) -> Iterator[dict[str, Any]]:
    for name, summary in summaries.items():
        for one in summary.problems:
            yield {"data_set": name, "index": one.place, "key": one.key, "about": one.about, "reason": one.reason}


def _duplicates(summaries: dict[str, Summary], measured: dict[str, Measured]) -> Iterator[dict[str, Any]]:
    for name, summary in summaries.items():
        dataset = measured[name].measure.dataset
        for group in summary.groups:
            yield {"data_set": name, "indices": group, "keys": [key_at(dataset, index) for index in group]}


def _page(title: str, told: dict[str, Any], summaries: dict[str, Summary], measured: dict[str, Measured]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    pictures = {name: _pictures(summaries[name], one) for name, one in measured.items()}
    return environment.get_template("page.html").render(title=title, told=told, pictures=pictures)


def _pictures(summary: Summary, measured: Measured) -> dict[str, Any]:
    """The tiles of a data set, and its first groups of near-duplicates."""
    count = len(measured.indices)
    places = np.unique(np.linspace(0, max(0, count - 1), SHOWN).astype(int))[:count]
    groups = [[_tile(measured, index) for index in group[:SHOWN_OF_GROUP]] for group in summary.groups[:SHOWN_GROUPS]]
    return {"tiles": [_tile(measured, int(measured.indices[place])) for place in places], "groups": groups}


def _tile(measured: Measured, index: int) -> dict[str, Any]:
    """A record to look at: its key, its first image (None: it has none, or images are not opened), the first of its texts."""
    key = key_at(measured.measure.dataset, index) or f"record {index}"
    tile: dict[str, Any] = {"key": key, "image": None, "texts": [], "more": 0, "wrong": ""}
    try:
        record = unchecked(measured.measure.dataset, index)
        texts = [{"kind": kind, "text": _short(text)} for kind, _, text in texts_of(record)]
        tile |= {"key": record.key, "texts": texts[:TEXTS_SHOWN], "more": max(0, len(texts) - TEXTS_SHOWN)}
        images = images_of(record) if measured.measure.with_images else []
        return tile | {"image": thumbnail(images[0]) if images else None}
    except (ValueError, OSError) as error:
        return tile | {"wrong": str(error)}


def _short(text: str) -> str:
    return text if len(text) <= TEXT_LENGTH else f"{text[:TEXT_LENGTH]}..."


def thumbnail(image: ImageLike) -> str:
    """A small version of an image as a data: URI. Raises ValueError where it cannot be read."""
    picture = decode_image(image)
    is_small = max(picture.size) <= SIDE
    picture.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    picture.save(file, "PNG" if is_small else "JPEG", **({} if is_small else {"quality": 80}))
    kind = "png" if is_small else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
