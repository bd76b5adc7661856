"""How a model draws where a caller does not say: by codes (generation_config.json), and by a flow (config.json, key
`unimm`)."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from unimm.checkpoints.janus_processor import DRAWING
from unimm.runtime.atomic_files import read_json


@dataclass(frozen=True)
class DrawingDefaults:
    """How a model draws by codes where a caller does not say. The defaults are Janus'."""

    guidance_scale: float = DRAWING["guidance_scale"]
    temperature: float = DRAWING["temperature"]
    top_k: int = int(DRAWING["top_k"])
    top_p: float = DRAWING["top_p"]


@dataclass(frozen=True)
class FlowDefaults:
    """How a model that draws by a flow does where a caller does not say. The defaults are JanusFlow's demo's."""

    guidance_scale: float = 2.0
    steps: int = 30
    solver: str = "euler"


def read_drawing_defaults(folder: Path, otherwise: DrawingDefaults | None = None) -> DrawingDefaults:
    """Sampling settings of drawings in the folder of a model or an adapter (generation_config.json).

    otherwise: what it does not say; None: Janus'.

    Raises:
        ValueError: a value is no number.
    """
    written = read_json(folder / "generation_config.json") or {}
    drawing = otherwise or DrawingDefaults()
    for name, value in asdict(drawing).items():
        given = written.get(name)
        if given is None:
            continue
        if isinstance(given, bool) or not isinstance(given, int | float):
            raise ValueError(f"{folder / 'generation_config.json'}: {name} is {given!r}, it must be a number.")
        drawing = replace(drawing, **{name: type(value)(given)})
    return drawing


def read_flow_defaults(extra: Mapping[str, Any], folder: Path) -> FlowDefaults:
    """How a model draws by a flow where a caller does not say. extra: what its config.json holds of our own.

    Raises:
        ValueError: it is written in a form that unimm does not have.
    """
    try:
        return FlowDefaults(**(extra.get("flow") or {}))
    except TypeError as error:
        raise ValueError(f"How the model draws by a flow is unknown in {folder / 'config.json'}: {error}.") from error
