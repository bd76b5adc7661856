"""What projectors cost and keep: positions of an image, time of its prefill, bytes of its keys and values, and the scores.

A prefill is measured as the engine does it: one image and a question, until the first token of the answer is chosen; with
`batch` images at once it is shared out. Each trial has other images, so that nothing is taken from an earlier one. The models
take turns, so that what else the machine does meanwhile falls on all of them.
"""

import time
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from unimm.data.template import Turn
from unimm.inference.decode.kv_cache import cache_bytes
from unimm.inference.decode.request import Request
from unimm.inference.engine import Engine, load
from unimm.models.vision.projectors import ProjectorConfig
from unimm.runtime.atomic_files import read_json

QUESTION = "How many circles are there?"
SCORES = "scores/scores.json"
"""Of a run, beside its model."""

WARM_UP = 2


def find_models(named: Iterable[str]) -> dict[str, str]:
    """The models that are named, by what to call them: a model's folder, hub id or demo; or a folder of runs, each with its
    `model`.

    Raises:
        ValueError: a folder holds neither.
    """
    found: dict[str, str] = {}
    for name in named:
        folder = Path(name)
        runs = sorted(path.parent for path in folder.glob("*/model/config.json"))
        if folder.is_dir() and not (folder / "config.json").is_file() and not runs:
            raise ValueError(f"{folder} is no model's folder and holds no runs with one (RUN/model): name either.")
        own = folder.absolute().parent.name if folder.is_dir() and folder.name == "model" else name
        found |= {path.parent.name: str(path) for path in runs} or {own if own not in found else name: name}
    return found


def measure(named: Iterable[str], device: str, dtype: str, batch: int, repeats: int) -> list[dict[str, Any]]:
    """Measure all models in turns.

    Returns:
        Of each `name`, `model` (its folder), `projector` (its kind), `parameters` of it, `patches` and `positions` of an image,
        `prefill_ms` an image and question (the median), `kv_bytes` of an image, `scores` by task where its run was evaluated.
    """
    models = find_models(named)
    engines = {name: load(path, device, dtype) for name, path in models.items()}
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    for trial in range(WARM_UP + repeats):
        for name, engine in engines.items():
            taken = _prefill(engine, trial, batch)
            seconds[name] += [taken] if trial >= WARM_UP else []
    return [{"name": name, **_sizes(engine), **_more(models[name], seconds[name], batch)} for name, engine in engines.items()]


def _prefill(engine: Engine, trial: int, batch: int) -> float:
    """Seconds until the first token about so many images is there."""
    size = engine.model.config.vision.image_size
    images = np.random.default_rng(trial).integers(0, 256, (batch, size, size, 3), dtype=np.uint8)
    asked = [engine.template.chat([Turn("user", (engine.template.look(image), QUESTION))], 1) for image in images]
    requests = [Request(one.opened()) for one in asked]
    started = time.perf_counter()
    engine.decoder.fill(requests)
    return time.perf_counter() - started


def _sizes(engine: Engine) -> dict[str, Any]:
    port = engine.model.pixels
    config = engine.model.config.projector
    return {
        "projector": config.kind if isinstance(config, ProjectorConfig) else type(config).__name__,
        "parameters": sum(parameter.numel() for parameter in port.projector.parameters()),
        "patches": engine.model.config.vision.num_patches,
        "positions": port.num_positions,
        "kv_bytes": cache_bytes(engine.model, 1, port.num_positions),
    }


def _more(model: str, seconds: list[float], batch: int) -> dict[str, Any]:
    tasks = (read_json(Path(model).parent / SCORES) or {}).get("tasks") or {}
    scores = {task: one["score"] for task, one in tasks.items()}
    return {"model": model, "prefill_ms": 1e3 * median(seconds) / batch, "scores": scores}
