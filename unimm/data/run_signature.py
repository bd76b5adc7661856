"""What the order of samples depends on, as checkpoints keep it: a run that went on with another order would learn some samples
twice and others never, and no number would show it.

That is the seed, the sizes of steps, and of each source that is learned from its records, weight and view, as far as they are
known without reading samples. Processes, workers and passes are no part of it, for the order does not depend on them.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from unimm.data.bad_records import BAD_RECORDS
from unimm.data.holdout import Subset
from unimm.data.image_batches import ImageBatches
from unimm.data.mixture import Mixture
from unimm.data.records import Dataset
from unimm.data.stores.digests import key_at

MAX_NAMED = 3
"""Differences that a message names."""

RENAMED_IN_VIEWS = {"decoys": "corrupted"}
"""Settings of views that older runs name otherwise."""

Order = dict[str, Any]
"""JSON-able; of sources by name."""


def order_of_rows(mixture: Mixture, num_positions: int, num_rows: int) -> Order:
    """Of a mixture in rows of so many positions, so many a step."""
    sources = {
        one.name: {**_of_dataset(one.dataset), "weight": one.weight, "view": _of_view(one.view)}
        for one in mixture.sources
        if one.weight > 0
    }
    sizes = {"seed": mixture.seed, "weigh_by": mixture.weigh_by, "num_positions": num_positions, "num_rows": num_rows}
    own = mixture.template
    template = {
        "prompt_format": asdict(own.prompt_format),
        "vocabulary": len(own.tokenizer),
        "max_positions": own.max_positions,
    }
    return _as_read({**sizes, **template, "sources": sources})


def order_of_images(batches: ImageBatches) -> Order:
    """Of batches of images."""
    sources = {str(number): {**_of_dataset(one.dataset), "weight": one.weight} for number, one in enumerate(batches.sources)}
    return _as_read({"seed": batches.seed, "batch_size": batches.batch_size, "sources": sources})


def check_order(folder: Path, began: Order, now: Order) -> list[str]:
    """What has changed of the order of samples that a run in a folder began with, and may: records that were taken out of a
    source, in the middle or such as the run could not use. What only one of them holds is not compared, but for sources.

    Raises:
        ValueError: anything else has changed.
    """
    began, notes = _without_removed(folder, _with_new_names(began), now)
    found = list(_differences(began, now))
    if found:
        differences = " and ".join(f"{what} {before}, not {after}" for what, before, after in found[:MAX_NAMED])
        raise ValueError(
            f"{folder} holds a run that began with {differences}, and what it has learned from depends on that: give what it "
            f"began with, or begin another run (out=FOLDER), from its model if you like (init_from=FOLDER)."
        )
    return notes


def _with_new_names(began: Order) -> Order:
    """What an older run began with, its views' settings by the names that they have now."""
    sources = {
        name: {**one, "view": {RENAMED_IN_VIEWS.get(key, key): value for key, value in one["view"].items()}}
        if "view" in one
        else one
        for name, one in began.get("sources", {}).items()
    }
    return {**began, "sources": sources} if sources else began


def _without_removed(folder: Path, began: Order, now: Order) -> tuple[Order, list[str]]:
    """What it began with, but for records that were taken out since; and of which sources, in words."""
    path = folder / BAD_RECORDS
    bad = {line.partition("\t")[0] for line in path.read_text("utf-8").splitlines()} if path.is_file() else set()
    ends = ("first_key", "last_key")
    sources, notes = dict(began.get("sources", {})), []
    for name, before in sources.items():
        after = now.get("sources", {}).get(name)
        if after is None or not {"num_records", *ends} <= before.keys():
            continue
        ends_are_theirs = all(before[key] == after[key] or before[key] in bad for key in ends)
        if after["num_records"] < before["num_records"] and ends_are_theirs:
            sources[name] = {**before, **{key: after[key] for key in ("num_records", *ends)}}
            held = "; so are those that are held out, of which some were learned from" if after["held_out"] else ""
            notes.append(
                f"The source {name} has {after['num_records']:,} records now, and had {before['num_records']:,}: {folder} goes "
                f"on with these, whose order is drawn anew{held}."
            )
    return ({**began, "sources": sources} if sources else began), notes


def _differences(began: Order, now: Order, of: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The names of what differs, and both values."""
    for key in [key for key in now if key in began]:
        before, after = began[key], now[key]
        if key == "sources" and list(before) != list(after):
            yield key, ", ".join(before), ", ".join(after)
        elif isinstance(before, dict) and isinstance(after, dict):
            yield from _differences(before, after, of if key == "sources" else f" of {key}{of}")
        elif before != after:
            yield f"{key}{of}", before, after


def _of_dataset(dataset: Dataset) -> dict[str, Any]:
    """Of all of it, and how many records of it are not learned from."""
    entire = dataset.dataset if isinstance(dataset, Subset) else dataset
    ends = {"first_key": key_at(entire, 0), "last_key": key_at(entire, len(entire) - 1)}
    return {"held_out": len(entire) - len(dataset), "num_records": len(entire), **ends}


def _of_view(view: Any) -> dict[str, Any]:
    return {"name": type(view).__name__, **(asdict(view) if is_dataclass(view) and not isinstance(view, type) else {})}


def _as_read(order: Order) -> Order:
    """As it will come back from a file."""
    return json.loads(json.dumps(order, default=str))
