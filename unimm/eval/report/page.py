"""The report: one page that shows what a run has learned, made from the files that trainings and evaluations leave.

It holds everything in itself (pictures and curves too), so it can be sent or put on any server. What went wrong stands first:
one learns more from it. A folder may hold one training, one evaluation, or many of both below it, as a quickstart does.
"""

import base64
import colorsys
import io
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image

from unimm.eval.report.ablation import group_runs
from unimm.eval.report.curves import draw_curves, read_metrics
from unimm.eval.score import SHARE

SHOWN = 12
"""Examples of a task, wrong and right ones each."""

MAX_DEPTH = 3
"""Folders below the run in which trainings and evaluations are looked for."""


@dataclass(frozen=True)
class Training:
    """One run of a trainer: its name, its curves as SVG by group, its newest samples, its last numbers, its configuration."""

    name: str
    curves: dict[str, str]
    samples: list["Sample"]
    last: dict[str, float]
    config: str


@dataclass(frozen=True)
class Sample:
    """What a training made in its middle: drawings or reconstructions as a data URI, captions as text, and at which step."""

    name: str
    step: int
    picture: str | None = None
    text: str = ""


@dataclass(frozen=True)
class Evaluation:
    """Scores by task, and the examples that are shown of each, failures first."""

    name: str
    scores: dict[str, Any]
    examples: dict[str, list[dict[str, Any]]]
    is_finished: bool


def write_report(run: Path, out: Path | None = None) -> Path:
    """Write the report of a folder; `out` is run/report.html where it is not said.

    Returns:
        The page.

    Raises:
        ValueError: there is neither a training nor an evaluation in the folder.
    """
    trainings = [read_training(path.parent, run) for path in _find(run, "metrics.jsonl")]
    evaluations = [read_evaluation(path.parent, run) for path in _find(run, "scores.json")]
    if not trainings and not evaluations:
        raise ValueError(
            f"{run} holds no metrics.jsonl of a training and no scores.json of an evaluation: name a run's folder."
        )
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    page = environment.get_template("page.html").render(
        title=run.resolve().name,
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        trainings=trainings,
        evaluations=evaluations,
        comparison=group_runs((one.name, _known(one.scores)) for one in evaluations),
        quickstart=_read_json(run / "quickstart.json"),
        say=say_score,
    )
    out = out or run / "report.html"
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.tmp")
    temporary.write_text(page, encoding="utf-8")
    temporary.replace(out)
    return out


def read_training(folder: Path, run: Path) -> Training:
    """What a trainer left in its folder."""
    series = read_metrics(folder / "metrics.jsonl")
    config = folder / "config.yaml"
    return Training(
        name=_name(folder, run),
        curves=draw_curves(series),
        samples=read_samples(folder / "samples"),
        last={name: points[-1][1] for name, points in series.items()},
        config=config.read_text(encoding="utf-8") if config.is_file() else "",
    )


def read_samples(folder: Path) -> list[Sample]:
    """The newest picture and text of each name in a training's folder of samples, pictures first."""
    newest = {path.name.partition("-")[2]: path for path in sorted(folder.glob("*-*"))}  # steps have leading zeros
    samples = []
    for path in sorted(newest.values(), key=lambda path: (path.suffix != ".png", path.name)):
        step, _, name = path.stem.partition("-")
        if step.isdecimal() and path.suffix == ".png":
            samples.append(Sample(name, int(step), picture=_embed_file(path)))
        elif step.isdecimal() and path.suffix == ".txt":
            samples.append(Sample(name, int(step), text=path.read_text(encoding="utf-8").strip()))
    return samples


def read_evaluation(folder: Path, run: Path) -> Evaluation:
    """What an evaluation left in its folder."""
    scores = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
    text = (folder / "answers.jsonl").read_text(encoding="utf-8") if (folder / "answers.jsonl").is_file() else ""
    lines = [line for line in text.splitlines() if line.endswith("}")]  # a kill may have left a part of the last one
    examples = {
        task: choose_examples([_with_pictures(one, folder) for one in group if "image" in one])
        for task, group in groupby(map(json.loads, lines), key=lambda one: one["task"])
    }
    tasks = {
        name: {"unit": SHARE, "higher_is_better": True, "other_scores": {}, **task} for name, task in scores["tasks"].items()
    }
    return Evaluation(_name(folder, run), tasks, {k: v for k, v in examples.items() if v}, scores["finished"])


def say_score(score: dict[str, Any], value: float | None = None) -> str:
    """A score of scores.json, or another number of its kind, with its unit; "–" where it is no number."""
    value, unit = score["score"] if value is None else value, score.get("unit", SHARE)
    if value is None:
        return "–"
    return f"{value:.3f}" if unit == SHARE else f"{value:.4g} {unit}"


def choose_examples(examples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Failures first, of every category in turn; then correct ones, alike."""
    chosen = []
    for is_right in (False, True):
        lines: dict[str, list[dict[str, Any]]] = {}
        for example in examples:
            if example["correct"] == is_right:
                lines.setdefault(example["category"], []).append(example)
        in_turns = [line[turn] for turn in range(SHOWN) for line in lines.values() if turn < len(line)]
        chosen += in_turns[:SHOWN]
    return chosen


def picture_codes(codes: list[list[int]]) -> str:
    """A map of codes as a PNG for a page."""
    return _embed(Image.fromarray(colour_codes(codes)))


def colour_codes(codes: list[list[int]]) -> np.ndarray:
    """A map of codes, rows of columns, as an image (rows, columns, 3) uint8: every code has its own colour, always the same."""
    colours = {code: _colour(code) for row in codes for code in row}
    return np.array([[colours[code] for code in row] for row in codes], dtype=np.uint8)


def _colour(code: int) -> tuple[int, int, int]:
    # Steps of the golden angle keep neighbours apart.
    red, green, blue = colorsys.hls_to_rgb(code * 0.61803398875 % 1.0, 0.35 + 0.4 * (code * 0.41421356 % 1.0), 0.65)
    return round(255 * red), round(255 * green), round(255 * blue)


def _known(scores: dict[str, Any]) -> dict[str, float]:
    return {task: one["score"] for task, one in scores.items() if one["score"] is not None}


def _with_pictures(example: dict[str, Any], folder: Path) -> dict[str, Any]:
    pictures = {part: _embed_file(folder / example[part]) if part in example else None for part in ("image", "original")}
    return example | pictures | {"map": picture_codes(example["codes"]) if "codes" in example else None}


def _embed_file(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def _embed(image: Image.Image) -> str:
    out = io.BytesIO()
    image.save(out, "PNG")
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"


def _find(run: Path, name: str) -> list[Path]:
    found = [path for depth in range(MAX_DEPTH) for path in run.glob("*/" * depth + name)]
    return sorted(found, key=lambda path: path.stat().st_mtime)


def _name(folder: Path, run: Path) -> str:
    return str(folder.relative_to(run)) if folder != run else run.resolve().name


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
