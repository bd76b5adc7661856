"""`unimm scaling`: what runs of several sizes and lengths say about larger ones; a table, a plot, JSON."""

from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from unimm.eval.scaling import Law, Run, find_runs, fit, fit_without_each, plot, short
from unimm.files import write_json

console = Console(highlight=False)
status = Console(stderr=True)


def run(folder: Path, predict: list[str], out: Path | None) -> None:
    """Fit and show.

    Args:
        predict: "N:D" each, the counts of a run to come, such as 1e9:20e9.
        out: folder of scaling.json and scaling.png; None: the folder of the runs.

    Raises:
        ValueError: there are too few runs, or a prediction is asked for in other words.
    """
    wanted = [read_counts(words) for words in predict]
    runs, unfinished = find_runs(folder)
    if unfinished:
        status.print(f"Left out, for they are not finished: {', '.join(unfinished)}.")
    kinds = sorted({kind for run in runs for kind in run.losses}, reverse=True)  # text first
    with status.status(f"Fitting {len(runs)} runs"):
        laws = {kind: fit(runs, kind) for kind in kinds}
        others = {kind: fit_without_each(runs, kind) for kind in kinds if wanted}
    show_runs(sorted(runs, key=lambda run: (run.parameters, run.positions)), laws)
    for kind, law in laws.items():
        console.print(f"{kind}: {law.floor:.3g} + {law.a:.3g} / N^{law.alpha:.2f} + {law.b:.3g} / D^{law.beta:.2f}")
    predictions = []
    for parameters, positions in wanted:
        for kind, law in laws.items():
            spread = sorted(other(parameters, positions) for other in others[kind])
            told = {"kind": kind, "parameters": parameters, "positions": positions, "loss": law(parameters, positions)}
            predictions.append({**told, "without_one_run": [spread[0], spread[-1]]})
            console.print(
                f"{kind} at {short(parameters)} parameters and {short(positions)} positions: {told['loss']:.3g} "
                f"({spread[0]:.3g} to {spread[-1]:.3g} without one of the runs)"
            )
    out = out or folder
    out.mkdir(parents=True, exist_ok=True)
    plot(runs, laws, out / "scaling.png")
    content = {"runs": [asdict(run) for run in runs], "laws": {kind: asdict(law) for kind, law in laws.items()}}
    write_json(out / "scaling.json", {**content, "predictions": predictions})
    console.print(f"{out / 'scaling.png'}, {out / 'scaling.json'}")


def read_counts(words: str) -> tuple[float, float]:
    """N and D of "N:D".

    Raises:
        ValueError: these are no two positive numbers.
    """
    try:
        parameters, positions = (float(word) for word in words.split(":"))
    except ValueError:
        parameters = positions = 0.0
    if parameters <= 0 or positions <= 0:
        raise ValueError(f"'{words}' is no run to predict: give PARAMETERS:POSITIONS, such as 1e9:20e9.")
    return parameters, positions


def show_runs(runs: list[Run], laws: dict[str, Law]) -> None:
    """A line a run: its size, its length, its losses and what the law says of them; below, a line a score."""
    losses = Table("run", "trunk", "positions", *(f"{kind} (law)" for kind in laws), box=None)
    for one in runs:
        told = [f"{one.losses[kind]:.3f} ({law(one.parameters, one.positions):.3f})" for kind, law in laws.items()]
        losses.add_row(one.name, short(one.parameters), short(one.positions), *told)
    console.print(losses)
    scored = [one for one in runs if one.scores]
    if not scored:
        return
    scores = Table("score", *(one.name for one in scored), box=None)
    for task in sorted({task for one in scored for task in one.scores}):
        scores.add_row(task, *(f"{one.scores[task]:.3f}" if task in one.scores else "" for one in scored))
    console.print(scores)
