"""`unimm locate`: where phrases are in a picture, as a table or JSON, and drawn on it."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from unimm.data.boxes import Box, Point
from unimm.data.image import decode_image
from unimm.data.records import ImageLike
from unimm.inference.engine import Engine
from unimm.inference.marking import draw_heat_map, draw_places

console = Console(highlight=False, markup=False, emoji=False)
status = Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def check_out(out: Path | None) -> None:
    """ValueError: no picture can be written there. Before a model is opened."""
    if out is not None and out.suffix.lower() not in SUFFIXES:
        raise ValueError(f"--out is a picture ({', '.join(SUFFIXES)}), not {out}.")


def locate(
    engine: Engine, image: ImageLike, phrases: list[str], out: Path | None, as_json: bool, *, points: bool, heat: str | None
) -> None:
    """Show where the phrases are.

    heat: by what heat maps are made instead, "default" for the model's own way; None: boxes, or points.

    Raises:
        ValueError: the model cannot do it, or the image is none.
    """
    picture = decode_image(image)
    if heat is not None:
        maps = engine.heat_map([picture] * len(phrases), phrases, None if heat == "default" else heat)
        _show_maps(phrases, maps, as_json)
        marked = [draw_heat_map(picture, one) for one in maps]
        if out is not None:
            _save(_beside(marked), out)
        return
    found = (engine.point if points else engine.locate)([picture] * len(phrases), phrases)
    _show(phrases, found, as_json)
    if out is not None:
        _save(draw_places(picture, [place for places in found for place in places]), out)


def _save(picture: Any, out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    picture.save(out)
    status.print(str(out))


def _beside(pictures: list[Any]) -> Any:
    """Pictures of one size in a row."""
    from PIL import Image

    sheet = Image.new("RGB", (sum(one.width for one in pictures), pictures[0].height))
    for number, one in enumerate(pictures):
        sheet.paste(one, (number * one.width, 0))
    return sheet


def _show(phrases: list[str], found: list[list[Box]] | list[list[Point]], as_json: bool) -> None:
    """A row a place, and one for each phrase that is not there."""
    if as_json:
        console.print_json(
            json.dumps([{"phrase": p, "found": [_plain(one) for one in f]} for p, f in zip(phrases, found, strict=True)])
        )
        return
    table = Table("phrase", box=None)
    for name in ("place", "score"):
        table.add_column(name, justify="right")
    for phrase, places in zip(phrases, found, strict=True):
        for one in places:
            numbers = one.corners if isinstance(one, Box) else (one.x, one.y)
            table.add_row(phrase, " ".join(f"{number:.0f}" for number in numbers), f"{one.score:.2f}")
        if not places:
            table.add_row(phrase, "none", "")
    console.print(table)


def _plain(place: Box | Point) -> dict[str, Any]:
    numbers = {name: value for name, value in asdict(place).items() if name != "label"}
    return {name: round(value, 4) for name, value in numbers.items()}


def _show_maps(phrases: list[str], maps: list[np.ndarray], as_json: bool) -> None:
    """Where each map is hottest, as the box of all that has at least half of its heat."""
    rows = []
    for phrase, heat in zip(phrases, maps, strict=True):
        ys, xs = np.nonzero(heat >= 0.5)
        hottest = [int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1] if len(xs) else []
        rows.append({"phrase": phrase, "hot": hottest, "share": round(float((heat >= 0.5).mean()), 4)})
    if as_json:
        console.print_json(json.dumps(rows))
        return
    table = Table("phrase", box=None)
    for name in ("hot (x1 y1 x2 y2)", "share of picture"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(row["phrase"], " ".join(map(str, row["hot"])) or "none", f"{row['share']:.2f}")
    console.print(table)
