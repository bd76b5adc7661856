"""`unimm scaling`: what runs of several sizes and lengths say about larger ones; a table, a plot, JSON."""

import math
from dataclasses import asdict
from pathlib import Path
from statistics import fmean

from rich.console import Console
from rich.table import Table

from unimm.eval.report.scaling_law import Law, Run, find_runs, fit, fit_without_each, plot, short, why_not_enough
from unimm.runtime.atomic_files import write_json

console = Console(highlight=False)
status = Console(stderr=True)


def run(folder: Path, predict: list[str], out: Path | None) -> None:
    """Fit and show.

    Args:
        predict: "N:D" each, the counts of a run to come, such as 1e9:20e9.
        out: folder of scaling.json and scaling.png; None: the folder of the runs.

    Raises:
        ValueError: there are too few runs, or a prediction is written in another form.
    """
    asked = [read_counts(text) for text in predict]
    runs, unfinished = find_runs(folder)
    if unfinished:
        status.print(f"Left out, since they are not finished: {', '.join(unfinished)}.")
    kinds = sorted({kind for run in runs for kind in run.losses}, reverse=True)  # text first
    known_by = {kind: [run for run in runs if kind in run.losses] for kind in kinds}
    if any(not why_not_enough(known) for known in known_by.values()):  # where none is enough for a law, the fit says so
        for kind in kinds:
            if why := why_not_enough(known_by[kind]):
                status.print(f"No law of {kind}, since it takes more than {why}.")
                del known_by[kind]
    with status.status(f"Fitting {len(runs)} runs"):
        laws = {kind: fit(known, kind) for kind, known in known_by.items()}
        others = {kind: fit_without_each(known, kind) for kind, known in known_by.items() if asked}
    show_runs(sorted(runs, key=lambda run: (run.parameters, run.positions)), laws)
    for kind, law in laws.items():
        console.print(f"{kind}: {law.floor:.3g} + {law.a:.3g} / N^{law.alpha:.2f} + {law.b:.3g} / D^{law.beta:.2f}")
        if law.undetermined:
            status.print(
                f"These runs do not determine {' and '.join(law.undetermined)} of {kind}: "
                f"it lies on the edge of what is searched."
            )
    predictions = []
    for parameters, positions in asked:
        for kind, law in laws.items():
            spread = sorted(other(parameters, positions) for other in others[kind])
            prediction = {"kind": kind, "parameters": parameters, "positions": positions, "loss": law(parameters, positions)}
            predictions.append({**prediction, "without_one_run": [spread[0], spread[-1]]})
            console.print(
                f"{kind} at {short(parameters)} parameters and {short(positions)} tokens: {prediction['loss']:.3g} "
                f"({spread[0]:.3g} to {spread[-1]:.3g} without one of the runs)"
            )
    out = out or folder
    out.mkdir(parents=True, exist_ok=True)
    plot(runs, laws, out / "scaling.png")
    content = {"runs": [asdict(run) for run in runs], "laws": {kind: asdict(law) for kind, law in laws.items()}}
    write_json(out / "scaling.json", {**content, "predictions": predictions})
    console.print(f"{out / 'scaling.png'}, {out / 'scaling.json'}")


def read_counts(text: str) -> tuple[float, float]:
    """N and D of "N:D".

    Raises:
        ValueError: these are no two positive numbers.
    """
    try:
        parameters, positions = (float(part) for part in text.split(":"))
    except ValueError:
        parameters = positions = 0.0
    if not (0 < parameters < math.inf and 0 < positions < math.inf):
        raise ValueError(f"'{text}' is no run to predict: give PARAMETERS:TOKENS, such as 1e9:20e9.")
    return parameters, positions


def show_runs(runs: list[Run], laws: dict[str, Law]) -> None:
    """A line a run: its size, its length, its losses and what the law says of them; below, scores by size and length."""
    losses = Table("run", "trunk", "tokens", *(f"{kind} (law)" for kind in laws), box=None)
    for one in runs:
        cells_of_run = [
            f"{one.losses[kind]:.3f} ({law(one.parameters, one.positions):.3f})" if kind in one.losses else "-"
            for kind, law in laws.items()
        ]
        losses.add_row(one.name, short(one.parameters), short(one.positions), *cells_of_run)
    console.print(losses)
    tasks = sorted({task for one in runs for task in one.scores})
    if not tasks:
        return
    # Sizes below each other and lengths beside each other: as wide as a terminal, however many runs there are.
    cells: dict[tuple[str, int, str], list[float]] = {}
    for one in runs:
        for task, score in one.scores.items():
            cells.setdefault((task, one.parameters, f"{one.positions:.2g}"), []).append(score)
    lengths = sorted({length for _, _, length in cells}, key=float)
    scores = Table("score", "trunk", *(short(float(length)) for length in lengths), box=None)
    for task in tasks:
        scores.add_section()
        for place, size in enumerate(sorted({size for known, size, _ in cells if known == task})):
            row = [f"{fmean(cells[task, size, length]):.3f}" if (task, size, length) in cells else "-" for length in lengths]
            scores.add_row("" if place else task.replace("_", " "), short(size), *row)
    console.print(scores)
