"""Variants of an ablation: scores of trainings that differ in one thing, over several seeds.

A run is a folder VARIANT-SEED, "two-0"; its evaluations are folders in it. That of the training's end is "scores"; one named
NAME-NUMBER, "guidance-2.5", is the same variant at that value of a setting. Runs without evaluations have their losses.
"""

import itertools
import re
from collections.abc import Iterable
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

import numpy as np

from unimm.eval.report.curves import GREY, PALETTE, Series, read_metrics
from unimm.runtime.atomic_files import read_json

RIGHT, VALUE = "share right", "mean at the end"
"""What scores are where all are shares, and what numbers of a training are, in tables and plots."""

METRICS = "metrics.jsonl"
LOSS = "loss/"
LAST = 0.1
"""The share of a training's points, the last of them, that a number of it is the mean of."""

FINAL_SCORES = "scores"
"""The folder of the evaluation at a training's end."""

LONG_NAME = 9
"""Letters of a variant's name above which names below bars would touch."""

SEED = re.compile(r"-\d+$")
SETTING = re.compile(r"(.+)-(\d+(?:\.\d+)?)$")


class MeanOverSeeds(NamedTuple):
    """A score over seeds: the mean, its standard deviation (0 of one), and of how many."""

    mean: float
    deviation: float
    num_seeds: int


Variants = dict[str, dict[str, MeanOverSeeds]]
"""Scores by variant and column: "shapes_answers", or "guidance-2.5 shapes_drawings"."""


def group_runs(evaluations: Iterable[tuple[str, dict[str, float]]]) -> Variants:
    """Scores beside each other. An evaluation is named as its folder is, below that of the runs: "two-0/guidance-2.5"."""
    found: dict[str, dict[str, list[float]]] = {}
    for name, scores in evaluations:
        run, _, setting = name.partition("/")
        columns = found.setdefault(SEED.sub("", run), {})
        for task, score in scores.items():
            columns.setdefault(f"{_column(setting)} {task}".strip(), []).append(score)
    return {
        variant: {
            column: MeanOverSeeds(mean(values), stdev(values) if len(values) > 1 else 0.0, len(values))
            for column, values in columns.items()
        }
        for variant, columns in sorted(found.items())
    }


def find_variants(folder: Path) -> tuple[Variants, list[str]]:
    """The variants in a folder of runs, and notes on what was left out or does not match, a sentence each.

    Raises:
        ValueError: none has scores, a file holds something else, a run has two evaluations of one name, or the folder is a run.
    """
    _check_holds_runs(folder)
    paths = sorted(path for pattern in ("*/scores.json", "*/*/scores.json") for path in folder.glob(pattern))
    read = {path: read_scores(path) for path in paths}
    unfinished = [str(path.parent) for path, (is_finished, _) in read.items() if not is_finished]
    finished = {path: tasks for path, (is_finished, tasks) in read.items() if is_finished and tasks}
    if not finished:
        raise ValueError(f"{folder} holds no runs with scores (VARIANT-SEED/scores/scores.json): name the folder of runs.")
    notes = [f"Left out, since they are not finished: {', '.join(unfinished)}."] if unfinished else []
    evaluations, counts, seen = [], {}, {}
    for path, tasks in finished.items():
        name = str(path.parent.relative_to(folder))
        run, _, setting = name.partition("/")
        column = _column(setting)
        if (run, column) in seen:
            raise ValueError(f"{seen[run, column]} and {path} are both the scores of {run}: keep one of them.")
        seen[run, column] = path
        evaluations.append((name, finite_scores(tasks)))
        for task, one in tasks.items():
            counts.setdefault(f"{column} {task}".strip(), set()).add(one.get("count", 0))
    notes += [
        f"Scores of {column} are not all of as many items ({', '.join(map(str, sorted(them)))})."
        for column, them in counts.items()
        if len(them) > 1
    ]
    return group_runs(evaluations), notes


def find_numbers(folder: Path, metrics: list[str]) -> tuple[Variants, list[str]]:
    """Numbers that trainings reported (metrics.jsonl), such as "loss/codes", beside each other: the mean over the last tenth of
    a run's points; and notes, a sentence each.

    metrics: their names; none: all losses.

    Raises:
        ValueError: there are no trainings, one has not begun, none reported a number of this name, or the folder is a run.
    """
    _check_holds_runs(folder)
    runs = {path.parent.name: read_metrics(path) for path in sorted(folder.glob(f"*/{METRICS}"))}
    known = sorted({name for series in runs.values() for name in series})
    if not known:
        raise ValueError(
            f"{folder} holds no runs with scores (VARIANT-SEED/scores/scores.json) and no trainings (VARIANT-SEED/{METRICS}): "
            f"name the folder of runs."
        )
    if unknown := [name for name in metrics if name not in known]:
        raise ValueError(f"No run has reported '{unknown[0]}': choose among {', '.join(known)}.")
    chosen = metrics or [name for name in known if name.startswith(LOSS)]
    steps = sorted({_last_step(series) for series in runs.values() if series})
    notes = [f"The runs are not all of as many steps ({', '.join(map(str, steps))})."] if len(steps) > 1 else []
    ends = ((run, {name: _at_end(series[name]) for name in chosen if name in series}) for run, series in runs.items())
    return group_runs(ends), notes


def _check_holds_runs(folder: Path) -> None:
    if (folder / METRICS).is_file():
        raise ValueError(f"{folder} is one run, and seeds are runs beside each other: name the folder that holds them.")


def has_scores(folder: Path) -> bool:
    """Whether any run in a folder was evaluated."""
    return any(next(folder.glob(pattern), None) for pattern in ("*/scores.json", "*/*/scores.json"))


def _at_end(points: list[tuple[int, float]]) -> float:
    return mean(value for _, value in points[-max(1, round(LAST * len(points))) :])


def _last_step(series: Series) -> int:
    return max(points[-1][0] for points in series.values())


def read_scores(path: Path) -> tuple[bool, dict[str, dict]]:
    """Whether an evaluation has come to its end, and its tasks. ValueError: the file holds no such thing."""
    content = read_json(path) or {}
    tasks = content.get("tasks")
    if not isinstance(tasks, dict) or not all(isinstance(one, dict) and "score" in one for one in tasks.values()):
        raise ValueError(f"{path} holds no scores as `unimm eval` writes them: move it out of the folder of runs.")
    return bool(content.get("finished", True)), tasks


def finite_scores(tasks: dict[str, dict]) -> dict[str, float]:
    """The scores that are numbers: none is written where one is not finite."""
    return {task: one["score"] for task, one in tasks.items() if one["score"] is not None}


def evaluation_name(name: str) -> tuple[str, str]:
    """The variant and the column of an evaluation in a folder of runs, "two-0/guidance-2.5"."""
    run, _, setting = name.partition("/")
    return SEED.sub("", run), _column(setting)


def _column(setting: str) -> str:
    """What an evaluation's folder says of a setting: nothing, or "guidance-2.5" ("guidance-2.50" is the same)."""
    found = SETTING.match(setting)
    return f"{found[1]}-{float(found[2]):g}" if found else "" if setting == FINAL_SCORES else setting


def columns_of(variants: Variants, tasks: list[str]) -> list[str]:
    """What there is of these tasks, all of it where none is named: a task, then the same at each value of a setting.

    Raises:
        ValueError: there is no such task.
    """
    every = list(dict.fromkeys(column for scores in variants.values() for column in scores))
    known = list(dict.fromkeys(column.split()[-1] for column in every))
    if unknown := [task for task in tasks if task not in known]:
        raise ValueError(f"No run has a score of '{unknown[0]}': choose among {', '.join(known)}.")
    places = {task: place for place, task in enumerate(tasks or known)}
    return sorted((one for one in every if one.split()[-1] in places), key=lambda one: (places[one.split()[-1]], _value(one)))


def plot(variants: Variants, columns: list[str], path: Path, label: str = RIGHT) -> None:
    """Scores as bars in a group for each variant, or, where they were taken at several values of a setting, as a line for each.

    path: its suffix says which format. label: what the numbers are.
    """
    from matplotlib.figure import Figure

    lines: dict[tuple[str, str], list[str]] = {}
    for column in columns:
        if setting := _setting(column):
            lines.setdefault((setting[0], column.split()[-1]), []).append(column)
    at_settings = {
        task: [column for column in columns if _setting(column) and column.endswith(f" {task}")] for _, task in lines
    }
    plain = [
        column for column in columns if not _setting(column) and not _shown_in(variants, column, at_settings.get(column, []))
    ]
    panels = [*([plain] if plain else []), *lines.items()]
    widths = [max(4.6, 0.9 * len(variants))] * bool(plain) + [4.6] * len(lines)
    figure = Figure(figsize=(sum(widths), 3.8), layout="constrained")
    drawn = figure.subplots(1, len(panels), squeeze=False, width_ratios=widths)[0]
    for axes, panel in zip(drawn, panels, strict=True):
        if isinstance(panel, list):
            _bars(axes, variants, panel)
            axes.set_ylabel(label)
        else:
            _lines(axes, variants, *panel)
        axes.set_ylim(bottom=0)
        axes.grid(axis="y", alpha=0.15)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors=GREY)
    figure.savefig(path, dpi=150)


def _shown_in(variants: Variants, column: str, others: list[str]) -> bool:
    """Whether every variant that has a score has it at a value of a setting, too, where a picture shows it."""
    return all(column not in scores or any(other in scores for other in others) for scores in variants.values())


def _bars(axes, variants: Variants, columns: list[str]) -> None:
    names = [variant for variant, scores in variants.items() if any(column in scores for column in columns)]
    width = 0.8 / len(columns)
    for place, (column, colour) in enumerate(zip(columns, itertools.cycle(PALETTE), strict=False)):
        known = [(index, variants[variant][column]) for index, variant in enumerate(names) if column in variants[variant]]
        at = [index + width * (place - (len(columns) - 1) / 2) for index, _ in known]
        heights, errors = [one.mean for _, one in known], [one.deviation for _, one in known]
        axes.bar(at, heights, 0.9 * width, color=colour, label=column.replace("_", " "), alpha=0.85)
        axes.errorbar(at, heights, errors, fmt="none", ecolor="#333a45", elinewidth=1, capsize=2)
    crowded = max(map(len, names)) > LONG_NAME
    axes.set_xticks(range(len(names)), names, rotation=30 * crowded, ha="right" if crowded else "center")
    axes.legend(frameon=False, fontsize=8, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0))


def _lines(axes, variants: Variants, what: tuple[str, str], columns: list[str]) -> None:
    setting, task = what
    values = sorted({_value(column) for column in columns})
    step = 0.006 * (values[-1] - values[0] or 1.0)  # beside each other, or their bars would hide each other
    for number, ((variant, scores), colour) in enumerate(zip(variants.items(), itertools.cycle(PALETTE), strict=False)):
        known = [(_value(column), scores[column]) for column in columns if column in scores]
        if known:
            at, means = zip(*known, strict=True)
            heights, errors = [one.mean for one in means], [one.deviation for one in means]
            shifted = np.asarray(at) + step * (number - len(variants) / 2)
            axes.errorbar(
                shifted, heights, errors, fmt="o-", color=colour, label=variant, capsize=2, linewidth=1.4, markersize=4
            )
    axes.set_xticks(values, [f"{value:g}" for value in values])
    axes.set(xlabel=setting, ylabel=f"{RIGHT}, {task.replace('_', ' ')}")
    axes.legend(frameon=False, fontsize=8, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))


def _setting(column: str) -> tuple[str, float] | None:
    """The setting's name and value, of a column that has them."""
    before = column.rpartition(" ")[0]
    found = SETTING.match(before)
    return (found[1], float(found[2])) if found else None


def _value(column: str) -> float:
    """The setting's value; of a column without one a number below all."""
    setting = _setting(column)
    return setting[1] if setting else -1.0
