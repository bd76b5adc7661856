"""What the order of samples follows from, in words that a checkpoint keeps: a run that goes on with other ones would learn some
samples twice and others never, and nobody would see it.

Told are seed, sizes of steps, and of each source that is learned from its records, weight and view: what can be told without
looking at samples. Processes, workers and passes are no part of it, for the order does not depend on them.
"""

import json
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from unimm.data.held_out import Part
from unimm.data.images import ImageBatches
from unimm.data.mixture import Mixture
from unimm.data.records import Dataset

Order = dict[str, Any]
"""JSON-able; of sources by name."""


def order_of_rows(mixture: Mixture, num_positions: int, num_rows: int) -> Order:
    """Of a mixture in rows of so many positions, so many a step."""
    sources = {
        one.name: {**_of_dataset(one.dataset), "weight": one.weight, "view": _of_view(one.view)}
        for one in mixture.sources
        if one.weight > 0
    }
    told = {"seed": mixture.seed, "weigh_by": mixture.weigh_by, "num_positions": num_positions, "num_rows": num_rows}
    template = {"prompt_format": asdict(mixture.template.prompt_format), "vocabulary": len(mixture.template.tokenizer)}
    return _as_read({**told, **template, "sources": sources})


def order_of_images(batches: ImageBatches) -> Order:
    """Of batches of images."""
    sources = {str(number): {**_of_dataset(one.dataset), "weight": one.weight} for number, one in enumerate(batches.sources)}
    return _as_read({"seed": batches.seed, "batch_size": batches.batch_size, "sources": sources})


def check_order(folder: Path, began: Order, now: Order) -> None:
    """Raises ValueError where a run in a folder began with another order of samples. What only one of them tells is not
    compared, but for sources.
    """
    found = _first_difference(began, now)
    if found is not None:
        what, before, after = found
        raise ValueError(
            f"{folder} holds a run that began with {what} {before}, not {after}, and what it has learned from depends on that: "
            f"give what it began with, or begin another run (out=FOLDER), from its model if you like (init_from=FOLDER)."
        )


def _first_difference(began: Order, now: Order, of: str = "") -> tuple[str, Any, Any] | None:
    """The name of what differs, and both values."""
    for key in [key for key in now if key in began]:
        before, after = began[key], now[key]
        if key == "sources" and list(before) != list(after):
            return key, ", ".join(before), ", ".join(after)
        if isinstance(before, dict) and isinstance(after, dict):
            found = _first_difference(before, after, of if key == "sources" else f" of {key}{of}")
        else:
            found = None if before == after else (f"{key}{of}", before, after)
        if found is not None:
            return found
    return None


def _of_dataset(dataset: Dataset) -> dict[str, Any]:
    """Of all of it, and how many records of it are not learned from."""
    entire = dataset.dataset if isinstance(dataset, Part) else dataset
    ends = {"first_key": entire[0].key, "last_key": entire[len(entire) - 1].key}
    return {"held_out": len(entire) - len(dataset), "num_records": len(entire), **ends}


def _of_view(view: Any) -> dict[str, Any]:
    return {"name": type(view).__name__, **(asdict(view) if is_dataclass(view) and not isinstance(view, type) else {})}


def _as_read(order: Order) -> Order:
    """As it will come back from a file."""
    return json.loads(json.dumps(order, default=str))
