"""An inspection of data sets: records are measured in parts, by worker processes; interrupted, it goes on where it stopped.

A part is a file of what was measured of `PART_RECORDS` records, in a folder beside the result until all are there. Then they
are put together (`summary`), and OUT is written: inspection.json, inspection.html, problems.jsonl, duplicates.jsonl.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from unimm.data.inspection.measure import Measure, Part, Problem
from unimm.data.records import key_at
from unimm.runtime.environment import loader_processes
from unimm.runtime.number_checks import check_whole
from unimm.runtime.resumable_folder import ResumableFolder, drop_workspace
from unimm.runtime.version import package_version

PART_RECORDS = 1000
RESULT = "inspection.json"
"""By which the folder of an inspection is known."""

Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""(title, number of records) -> what is called with how many more are done."""

DTYPES = {"width": np.int32, "height": np.int32, "bytes": np.int64, "owner": np.int64, "said": np.uint64, "said_by": np.int64}
DTYPES |= {"bits": np.uint16, "colours": np.uint8}
WIDTHS = {"bits": 8, "colours": 48}
"""Values of one image, where they are several."""


@dataclass(frozen=True)
class InspectionConfig:
    """How it is gone about.

    sample: so many records of each data set, drawn at random; None: all.
    seed: of the sample, and of what views choose.
    num_workers: processes that read; 0: this one.
    settings: what else the result depends on, JSON-able: an inspection that was begun with others is not continued.
    """

    sample: int | None = None
    seed: int = 0
    num_workers: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_whole(self, 0, "seed", "num_workers")
        if self.sample is not None:
            check_whole(self, 1, "sample")


@dataclass
class Measured:
    """All that was measured of a data set: parts put together, lists as arrays.

    indices: of the records that were looked at. total: records that there are.
    """

    measure: Measure
    total: int
    indices: np.ndarray
    counts: Counter[str]
    tokens: dict[str, np.ndarray]
    lengths: dict[str, np.ndarray]
    longest: dict[str, tuple[int, int]]
    numbers: dict[str, np.ndarray]
    problems: list[Problem]


def measure_all(measures: dict[str, Measure], out: Path, config: InspectionConfig, progress: Progress) -> dict[str, Measured]:
    """Measure every data set, or go on with it.

    Args:
        measures: by the name of the data set.
        out: the folder of the result; parts lie beside it until `finish` removes them.

    Raises:
        ValueError: something else lies there, or other data was begun.
    """
    chosen = {name: _choose(len(one.dataset), config) for name, one in measures.items()}
    unfinished = _folder(measures, out, config)
    unfinished.begin()
    pieces = [(name, part) for name, indices in chosen.items() for part in _split(indices)]
    missing = unfinished.missing(range(len(pieces)))
    todo = _Pieces(measures, pieces)
    loader = DataLoader(todo, batch_size=None, sampler=missing, num_workers=loader_processes(config.num_workers))
    with progress("inspecting", sum(len(pieces[number][1]) for number in missing)) as advance:
        for number, part in zip(missing, loader, strict=True):
            unfinished.save(number, lambda path, part=part: _save(path, part))
            advance(len(pieces[number][1]))
    paths: dict[str, list[Path]] = {name: [] for name in measures}
    for number, (name, _) in enumerate(pieces):
        paths[name].append(unfinished.path(number))
    return {name: _put_together(measures[name], chosen[name], paths[name]) for name in measures}


def drop_parts(out: Path) -> None:
    """Remove the parts, when the result is written."""
    drop_workspace(out)


def _choose(total: int, config: InspectionConfig) -> np.ndarray:
    if config.sample is None or config.sample >= total:
        return np.arange(total)
    return np.sort(np.random.default_rng(config.seed).choice(total, config.sample, replace=False))


def _split(indices: np.ndarray) -> list[np.ndarray]:
    return [indices[start : start + PART_RECORDS] for start in range(0, len(indices), PART_RECORDS)]


def _folder(measures: dict[str, Measure], out: Path, config: InspectionConfig) -> ResumableFolder:
    described = {
        "settings": dict(config.settings) | {"sample": config.sample, "seed": config.seed},
        "data": {name: [len(one.dataset), *(key_at(one.dataset, at) for at in _ends(one))] for name, one in measures.items()},
    }
    digests = {
        name: hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12] for name, value in described.items()
    }
    return ResumableFolder(
        out, RESULT, "an inspection", {**digests, "unimm_version": package_version()}, lambda number: f"{number:05}.npz"
    )


def _ends(measure: Measure) -> list[int]:
    return [0, len(measure.dataset) - 1] if len(measure.dataset) else []


class _Pieces(TorchDataset):
    """Number -> the part that was measured there."""

    def __init__(self, measures: dict[str, Measure], pieces: list[tuple[str, np.ndarray]]) -> None:
        self._measures, self._pieces = measures, pieces

    def __getitem__(self, number: int) -> Part:
        name, indices = self._pieces[number]
        return self._measures[name](indices)


def _save(path: Path, part: Part) -> None:
    words = {
        "counts": dict(part.counts),
        "longest": part.longest,
        "problems": [list(problem) for problem in part.problems],
        "lengths": list(part.lengths),
    }
    arrays = {"words": np.frombuffer(json.dumps(words).encode(), dtype=np.uint8)}
    arrays |= {f"tokens {kind}": np.asarray(values, dtype=np.int32) for kind, values in part.tokens.items()}
    arrays |= {f"length {place}": np.asarray(values, np.int32) for place, values in enumerate(part.lengths.values())}
    arrays |= {f"number {name}": np.asarray(values, dtype=DTYPES[name]) for name, values in part.numbers.items()}
    with path.open("wb") as file:
        np.savez(file, **arrays)  # pyright: ignore[reportArgumentType] - its stubs take the arrays' names for its own settings


def _put_together(measure: Measure, indices: np.ndarray, paths: list[Path]) -> Measured:
    counts, problems, longest = Counter[str](), [], {}
    arrays: dict[str, list[np.ndarray]] = {}
    for path in paths:
        with np.load(path, allow_pickle=False) as part:
            words = json.loads(part["words"].tobytes())
            for name in part.files:
                arrays.setdefault(name, []).append(part[name])
        counts.update(words["counts"])
        problems += [Problem(*one) for one in words["problems"]]
        for name, pair in words["longest"].items():
            longest[name] = max(longest.get(name, (0, 0)), tuple(pair))
    joined = {name: np.concatenate(pieces) for name, pieces in arrays.items() if name != "words"}
    places = zip(measure.views, count())
    empty = np.empty(0, dtype=np.int32)
    return Measured(
        measure,
        len(measure.dataset),
        indices,
        counts,
        {name.partition(" ")[2]: values for name, values in joined.items() if name.startswith("tokens ")},
        {name: joined.get(f"length {place}", empty) for name, place in places},
        longest,
        {name: joined.get(f"number {name}", np.empty((0, *_width(name)), dtype=kind)) for name, kind in DTYPES.items()},
        problems,
    )


def _width(name: str) -> tuple[int, ...]:
    return (WIDTHS[name],) if name in WIDTHS else ()
