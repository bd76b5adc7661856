"""Experiment trackers beside TensorBoard, where they are asked for: Weights & Biases (`wandb`) and trackio.

They get the same numbers, texts and pictures as the logbook. A run has one id, kept in its folder: one that goes on goes on
there, too; steps that it repeats after a kill are reported again. Where they write to is configured as each of them wants it:
`wandb login` or WANDB_MODE=offline, TRACKIO_SPACE_ID or TRACKIO_DIR. A package is imported only when it is asked for.
"""

import html
import importlib
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from unimm.runtime.atomic_files import read_json, write_json

IDENTITY = "trackers.json"
"""In a run's folder: {"id": what the trackers know the run by}."""


class Tracker(Protocol):
    """What a logbook passes everything on to. An error that a method raises is reported once, and does not stop the run."""

    name: str

    def numbers(self, step: int, values: dict[str, float]) -> None: ...

    def text(self, step: int, name: str, text: str) -> None: ...

    def picture(self, step: int, name: str, picture: Image.Image) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class TrackingConfig:
    """Which trackers a run reports to, and under which name.

    trackers: "wandb", "trackio", or both. project: what runs are gathered under. run_name: None: the name of the run's folder.

    Raises ValueError for a tracker that is none.
    """

    trackers: tuple[str, ...] | list[str] = ()
    project: str = "unimm"
    run_name: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.trackers, str):
            raise ValueError(f"trackers is a list: write trackers=[{self.trackers}].")
        if unknown := [name for name in self.trackers if name not in TRACKERS]:
            raise ValueError(f"There is no tracker '{unknown[0]}': choose among {', '.join(TRACKERS)}.")

    def check(self) -> None:
        """Find out now whether the packages are here, before hours of work.

        Raises:
            ValueError: one is not installed.
        """
        for name in self.trackers:
            _import(name)


@dataclass(frozen=True)
class _Run:
    """What a tracker is to know of a run. settings: its configuration, JSON-able."""

    project: str
    name: str
    id: str
    folder: Path
    settings: dict[str, Any]


def open_trackers(config: TrackingConfig, folder: Path, settings: dict[str, Any]) -> list[Tracker]:
    """Begin, or go on with, a run with every tracker; for the first process of a run alone.

    Args:
        folder: the run's. settings: what it is configured with, JSON-able.

    Raises:
        ValueError: one is not installed, or cannot start (nobody is logged in, for one).
    """
    if not config.trackers:
        return []
    path = folder / IDENTITY
    identity = read_json(path)
    if identity is None:
        identity = {"id": uuid.uuid4().hex[:8]}
        folder.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        write_json(temporary, identity)
        temporary.replace(path)
    run = _Run(config.project, config.run_name or folder.resolve().name, identity["id"], folder, settings)
    return [_open(name, run) for name in config.trackers]


def _open(name: str, run: _Run) -> Tracker:
    package = _import(name)
    try:
        return TRACKERS[name](package, run)
    except Exception as error:  # of whatever kind: packages of others, that speak with servers
        raise ValueError(f"{name} cannot start ({error}): {HELP[name]}, or leave it out of trackers.") from error


def _import(name: str) -> Any:
    try:
        package = importlib.import_module(name)
    except ImportError as error:
        raise ValueError(f"The tracker {name} is not installed ({error}): `pip install {name}`.") from error
    if package.__spec__ is None or package.__spec__.origin is None:  # a folder of that name, as wandb itself makes them
        raise ValueError(f"The tracker {name} is not installed: `pip install {name}`.")
    return package


class Wandb:
    """A run of Weights & Biases. The step is a number of its own there, since wandb's counter never goes back."""

    name = "wandb"

    def __init__(self, wandb: Any, run: _Run) -> None:
        self._wandb = wandb
        self._run = wandb.init(
            project=run.project, name=run.name, id=run.id, resume="allow", dir=str(run.folder), config=run.settings
        )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def numbers(self, step: int, values: dict[str, float]) -> None:
        """Scalars of a step."""
        self._run.log({**values, "step": step})

    def text(self, step: int, name: str, text: str) -> None:
        """A text, lines kept."""
        self._run.log({name: self._wandb.Html(f"<pre>{html.escape(text)}</pre>"), "step": step})

    def picture(self, step: int, name: str, picture: Image.Image) -> None:
        """A picture."""
        self._run.log({name: self._wandb.Image(picture), "step": step})

    def close(self) -> None:
        """Send what is left."""
        self._run.finish()


class Trackio:
    """A run of trackio. It knows runs by their names, so the id is part of it: another folder never goes on with this one."""

    name = "trackio"

    def __init__(self, trackio: Any, run: _Run) -> None:
        self._trackio = trackio
        name = f"{run.name}-{run.id}"
        self._run = trackio.init(project=run.project, name=name, resume="allow", config=run.settings, embed=False)

    def numbers(self, step: int, values: dict[str, float]) -> None:
        """Scalars of a step."""
        self._run.log(dict(values), step=step)

    def text(self, step: int, name: str, text: str) -> None:
        """A text, lines kept."""
        self._run.log({name: self._trackio.Markdown(f"```\n{text}\n```")}, step=step)

    def picture(self, step: int, name: str, picture: Image.Image) -> None:
        """A picture."""
        self._run.log({name: self._trackio.Image(picture)}, step=step)

    def close(self) -> None:
        """Send what is left."""
        self._run.finish()


TRACKERS: dict[str, Callable[[Any, _Run], Tracker]] = {"wandb": Wandb, "trackio": Trackio}

HELP = {"wandb": "log in by `wandb login`, or set WANDB_MODE=offline", "trackio": "see TRACKIO_SPACE_ID and TRACKIO_DIR"}
"""What may be amiss when a tracker does not start."""
