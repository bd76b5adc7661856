"""Scaling: how the loss falls with the parameters of the trunk and with the tokens learned from, fitted to runs.

    L(N, D) = floor + A / N**alpha + B / D**beta        Hoffmann et al. 2022 (arXiv 2203.15556), their third approach

N counts the trunk alone, without embeddings, heads and vision tower; D the tokens of all steps, without padding. A run's loss
is its mean over the last tenth of its reports: meant for data that no run sees twice, where a training loss is also the loss on
unseen data, and for schedules that have come to their end.
"""

import itertools
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import yaml
from scipy.optimize import least_squares
from scipy.special import softmax

from unimm.checkpoints.folder import load_model
from unimm.eval.report.curves import GREY, PALETTE, read_metrics
from unimm.runtime.atomic_files import read_json

LAST = 0.1
"""Share of a run's reports that its loss is the mean of."""

HUBER = 1e-3
"""From which deviation of a log loss on it counts linearly: runs that went wrong bend the fit less."""

MAX_TICKS = 6
"""Lengths that are written below a plot."""

MAX_COLUMNS = 4
"""Panels beside each other in a plot."""

LEAST_RUNS = 6
"""A law has five numbers."""

SAME_LENGTH = 0.1
"""Runs whose tokens differ by less than this part count as of one length: they vary a little with how full rows were."""

STARTS = ((-6.0, -2.0, 0.0), (-2.0, 2.0), (0.2, 0.6), (-2.0, 2.0), (0.2, 0.6))
"""Where the search begins: log floor, log A, alpha, log B, beta; the best end counts, as the sum has several valleys."""

BOUNDS = ((-12.0, -12.0, 0.01, -12.0, 0.01), (3.0, 12.0, 3.0, 12.0, 3.0))

NEAR_EDGE = 1e-3
"""So near a bound a number counts as lying on it."""


@dataclass(frozen=True)
class Run:
    """A finished training: its name, N, D, its losses by kind, and its scores by task where it was evaluated."""

    name: str
    parameters: int
    positions: float
    losses: dict[str, float]
    scores: dict[str, float]


@dataclass(frozen=True)
class Law:
    """The five numbers, in nats; N and D are absolute counts."""

    floor: float
    a: float
    alpha: float
    b: float
    beta: float

    def __call__(self, parameters: float, positions: float) -> float:
        """The loss that the law expects."""
        return self.floor + self.a / parameters**self.alpha + self.b / positions**self.beta

    @property
    def undetermined(self) -> list[str]:
        """Which of floor, alpha and beta lie on the edge of what is searched."""
        edges = {"floor": (0, np.log(self.floor)), "alpha": (2, self.alpha), "beta": (4, self.beta)}
        return [
            name
            for name, (place, value) in edges.items()
            if min(abs(value - BOUNDS[0][place]), abs(value - BOUNDS[1][place])) < NEAR_EDGE
        ]

    def point(self, log_n: float, log_d: float) -> np.ndarray:
        """What the search moves: log floor, log of the second term at that N, alpha, log of the third at that D, beta."""
        logs = np.log([self.floor, self.a, self.b])
        point = [logs[0], logs[1] - self.alpha * log_n, self.alpha, logs[2] - self.beta * log_d, self.beta]
        return np.clip(point, *BOUNDS)

    @classmethod
    def at(cls, point: np.ndarray, log_n: float, log_d: float) -> "Law":
        """The law of a point."""
        log_floor, log_a, alpha, log_b, beta = point
        numbers = np.exp([log_floor, log_a + alpha * log_n, log_b + beta * log_d])
        return cls(float(numbers[0]), float(numbers[1]), float(alpha), float(numbers[2]), float(beta))


def find_runs(folder: Path) -> tuple[list[Run], list[str]]:
    """The finished trainings of unified models in a folder or its folders, and the names of those that are not finished.

    Raises:
        ValueError: there is none, or what one left cannot be read.
    """
    folders = sorted(path.parent for pattern in ("metrics.jsonl", "*/metrics.jsonl") for path in folder.glob(pattern))
    finished = [one for one in folders if (one / "model").is_dir()]
    if not finished:
        raise ValueError(f"{folder} holds no finished trainings (FOLDER/metrics.jsonl, FOLDER/model): name the folder of runs.")
    return [read_run(one) for one in finished], [one.name for one in folders if one not in finished]


def read_run(folder: Path) -> Run:
    """What a training left in its folder.

    Raises:
        ValueError: it is not one of a unified model.
    """
    series = read_metrics(folder / "metrics.jsonl")
    trainer = (yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8")) or {}).get("trainer", {})
    losses = {name.removeprefix("loss/"): _end(points) for name, points in series.items() if name.startswith("loss/")}
    if not losses or "data/fill" not in series or "num_rows" not in trainer:
        raise ValueError(f"{folder} is no training of a unified model: its metrics.jsonl has no losses of filled rows.")
    fills = series["data/fill"]
    model = load_model(folder / "model").model
    scored = read_json(folder / "scores" / "scores.json") or {"tasks": {}}
    return Run(
        name=folder.name,
        parameters=sum(parameter.numel() for parameter in model.parts()["trunk"].parameters()),
        positions=fills[-1][0] * trainer["num_rows"] * trainer["num_positions"] * fmean(fill for _, fill in fills),
        losses=losses,
        scores={task: score["score"] for task, score in scored["tasks"].items()},
    )


def fit(runs: list[Run], kind: str, near: Law | None = None) -> Law:
    """The law whose logarithm deviates least from that of the runs' losses of a kind, by the sum of Huber's loss.

    near: a law to search from, instead of everywhere.

    Raises:
        ValueError: the runs are too few, or too much alike, to determine its five numbers.
    """
    known = [run for run in runs if kind in run.losses]
    if near is None:
        _check_enough(known, kind)
    log_n, log_d, log_loss = (
        np.log([value(run) for run in known])
        for value in (lambda run: run.parameters, lambda run: run.positions, lambda run: run.losses[kind])
    )
    # Counts are taken from the middle of those there are, so that A and alpha are not all but the same number.
    middle_n, middle_d = log_n.mean(), log_d.mean()
    far_n, far_d = log_n - middle_n, log_d - middle_d

    def terms(point: np.ndarray) -> np.ndarray:
        log_floor, log_a, alpha, log_b, beta = point
        return np.stack([np.full_like(log_n, log_floor), log_a - alpha * far_n, log_b - beta * far_d])

    def apart(point: np.ndarray) -> np.ndarray:
        return np.logaddexp.reduce(terms(point)) - log_loss

    def slopes(point: np.ndarray) -> np.ndarray:
        of_floor, of_n, of_d = softmax(terms(point), axis=0)
        return np.stack([of_floor, of_n, -of_n * far_n, of_d, -of_d * far_d], axis=1)

    starts = itertools.product(*STARTS) if near is None else [near.point(middle_n, middle_d)]
    options: dict[str, Any] = {"jac": slopes, "bounds": BOUNDS, "loss": "huber", "f_scale": HUBER, "x_scale": "jac"}
    best = min((least_squares(apart, start, **options) for start in starts), key=lambda end: end.cost)
    return Law.at(best.x, middle_n, middle_d)


def fit_without_each(runs: list[Run], kind: str) -> list[Law]:
    """The laws of all runs but one, for every one: how far a single run moves what the law says.

    Raises:
        ValueError: without one the runs are too few, or too much alike, to determine a law.
    """
    known = [run for run in runs if kind in run.losses]
    whole = fit(known, kind)
    others = [[*known[:left], *known[left + 1 :]] for left in range(len(known))]
    if any(why_not_enough(rest) for rest in others):
        raise ValueError(
            f"Without one of them, the {len(known)} runs with a loss of {kind} determine no law, so the uncertainty "
            f"of a prediction is unknown: train more, at least {LEAST_RUNS + 1}, two of each size."
        )
    return [fit(rest, kind, whole) for rest in others]


def why_not_enough(runs: list[Run]) -> str | None:
    """What these runs lack to determine a law; None: nothing."""
    sizes, lengths = {run.parameters for run in runs}, count_lengths(runs)
    if len(runs) >= LEAST_RUNS and len(sizes) >= 3 and lengths >= 3:
        return None
    return f"{len(runs)} runs of {len(sizes)} sizes and {lengths} lengths"


def count_lengths(runs: list[Run]) -> int:
    """How many lengths the runs have: from one to the next it is SAME_LENGTH or more."""
    lengths = 0
    last = 0.0
    for positions in sorted(run.positions for run in runs):
        if positions > last * (1 + SAME_LENGTH):
            lengths, last = lengths + 1, positions
    return lengths


def _check_enough(runs: list[Run], kind: str) -> None:
    if why := why_not_enough(runs):
        raise ValueError(
            f"{why} with a loss of {kind} do not determine a law: train at least {LEAST_RUNS}, of 3 sizes and 3 lengths."
        )


def plot(runs: list[Run], laws: dict[str, Law], path: Path) -> None:
    """Losses against tokens, a colour a size, with the law's curves, a panel a kind; then scores, where there are any, a
    panel a task. The suffix says which format."""
    from matplotlib.figure import Figure

    sizes = sorted({run.parameters for run in runs})
    lengths = sorted({float(f"{run.positions:.2g}") for run in runs})
    reach = np.geomspace(min(lengths) / 1.3, max(lengths) * 1.3, 50)
    tasks = sorted({task for run in runs for task in run.scores})
    num_panels = len(laws) + len(tasks)
    num_rows = -(-num_panels // MAX_COLUMNS)
    num_columns = -(-num_panels // num_rows)
    figure = Figure(figsize=(4.6 * num_columns, 3.6 * num_rows), layout="constrained")
    panels = list(figure.subplots(num_rows, num_columns, squeeze=False).flat)
    for axes, (kind, law) in zip(panels, laws.items(), strict=False):
        for size, colour in zip(sizes, itertools.cycle(PALETTE)):
            same = [run for run in runs if run.parameters == size and kind in run.losses]
            axes.plot(reach, [law(size, length) for length in reach], color=colour, linewidth=1.2, alpha=0.7)
            positions, losses = [run.positions for run in same], [run.losses[kind] for run in same]
            axes.plot(positions, losses, "o", color=colour, label=short(size))
        _finish(axes, lengths, f"loss of {kind}, nats")
    for axes, task in zip(panels[len(laws) :], tasks, strict=False):
        for size, colour in zip(sizes, itertools.cycle(PALETTE)):
            same = sorted((run.positions, run.scores[task]) for run in runs if run.parameters == size and task in run.scores)
            positions, scores = [position for position, _ in same], [score for _, score in same]
            axes.plot(positions, scores, "o-", color=colour, label=short(size), linewidth=1.2)
        axes.set_ylim(bottom=0)
        _finish(axes, lengths, f"share right, {task.replace('_', ' ')}")
    for axes in panels[num_panels:]:
        axes.set_visible(False)
    figure.savefig(path, dpi=150)


def _finish(axes: Any, lengths: list[float], title: str) -> None:
    axes.set(xscale="log", xlabel="tokens learned from", ylabel=title)
    ticks = lengths[:: -(-len(lengths) // MAX_TICKS)]
    axes.set_xticks(ticks, [short(length) for length in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.15)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(title="trunk", frameon=False, fontsize=8, title_fontsize=8)
    axes.tick_params(colors=GREY)


def short(count: float) -> str:
    """A count as people say it: 1.2M, 20B."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return f"{count:.3g}"


def _end(points: list[tuple[int, float]]) -> float:
    """The mean over the last reports."""
    return fmean(value for _, value in points[-max(1, round(LAST * len(points))) :])
