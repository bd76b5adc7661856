"""What an evaluation's answers are of, as data: the model with its precision, and each task with its arguments.

A folder of answers keeps it, so that a run goes on only after answers of the same model to the same items. A task is described
by its class, its size, and a hash of what it was made with: the public attributes of the task and of what these hold, as far as
they are plain data, arrays, functions or objects of such.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from unimm.eval.task import Task
from unimm.inference.engine import Engine
from unimm.runtime.version import package_version

PRECISION_NAMES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
"""What a model's dtype is called as a precision."""

COMPARED = ("precision", "model", "weights", "deterministic")
"""What has to be the same for answers to stand beside each other."""

NOT_COMPARED = ("batch_size",)
"""Attributes of a task that change no answer."""

MAX_DEPTH = 5
"""Objects within objects that are looked into."""


def describe_engine(engine: Engine) -> dict[str, Any]:
    """The model's hash, the precision, and how it decodes; and, for people, the device and the version of unimm."""
    if not isinstance(engine, Engine):  # any object with the calls that a task needs
        own = getattr(engine, "fingerprint", "")  # two towers have one
        return {"model": f"{own}{type(engine).__qualname__}"}
    dtype = str(next(engine.model.parameters()).dtype).removeprefix("torch.")
    return {
        "model": engine.model_hash,
        "precision": PRECISION_NAMES.get(dtype, dtype),
        "weights": engine.weights,
        "deterministic": engine.deterministic,
        "device": engine.device.type,
        "unimm": package_version(),
    }


def describe_task(task: Task) -> dict[str, Any]:
    """Its class, how many items it has, and a hash of its arguments."""
    return {"made_by": _name(type(task)), "num_items": task.num_items, "arguments": _hash(task, {}, MAX_DEPTH)}


def _hash(value: Any, known: dict[int, str], depth: int) -> str:
    """sha256 of a value; `known`: of objects that were hashed before, by their id."""
    if value is None or isinstance(value, bool | int | float | str | bytes | Path):
        return _digest(type(value).__name__, str(value))
    if id(value) not in known:
        known[id(value)] = _hash_of_parts(value, known, depth)
    return known[id(value)]


def _hash_of_parts(value: Any, known: dict[int, str], depth: int) -> str:
    if isinstance(value, np.ndarray):
        return _digest(str(value.dtype), str(value.shape), hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest())
    if isinstance(value, partial):
        return _digest(_name(value.func), *(_hash(one, known, depth) for one in (value.args, value.keywords)))
    if isinstance(value, list | tuple):
        return _digest(*(_hash(one, known, depth) for one in value))
    if isinstance(value, set | frozenset):
        return _digest(*sorted(_hash(one, known, depth) for one in value))
    if isinstance(value, Mapping):
        return _digest(*(_hash(one, known, depth) for pair in value.items() for one in pair))
    if callable(value) and hasattr(value, "__qualname__"):
        return _name(value)
    if depth == 0:
        return _name(type(value))
    names = [field.name for field in fields(value)] if is_dataclass(value) else sorted(getattr(value, "__dict__", ()))
    parts = [
        (name, _hash(getattr(value, name), known, depth - 1))
        for name in names
        if not (name.startswith("_") or name in NOT_COMPARED)
    ]
    return _digest(_name(type(value)), *(one for part in parts for one in part))


def _digest(*parts: str) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _name(what: Any) -> str:
    return f"{getattr(what, '__module__', '')}.{getattr(what, '__qualname__', type(what).__qualname__)}"
