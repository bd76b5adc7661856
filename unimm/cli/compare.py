"""`unimm compare`: arms of an ablation beside each other, means over seeds; a table, a plot, JSON."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from unimm.eval.arms import Over, columns_of, find_arms, plot
from unimm.files import write_json

console = Console(highlight=False)


def run(folder: Path, tasks: list[str], out: Path | None) -> None:
    """Compare and show.

    Args:
        tasks: scores to show; all of them where none is named.
        out: folder of compare.json and compare.png; None: the folder of the runs.

    Raises:
        ValueError: there are no scores, or none of a task that is asked for.
    """
    arms = find_arms(folder)
    columns = columns_of(arms, tasks)
    # Scores are many and arms are few: a line a score.
    table = Table("score", *arms, box=None)
    for column in columns:
        table.add_row(column.replace("_", " "), *(told(arm.get(column)) for arm in arms.values()))
    console.print(table)
    console.print("Means over seeds, ± their standard deviation.")
    out = out or folder
    out.mkdir(parents=True, exist_ok=True)
    plot(arms, columns, out / "compare.png")
    write_json(out / "compare.json", {arm: {c: over._asdict() for c, over in scores.items()} for arm, scores in arms.items()})
    console.print(f"{out / 'compare.png'}, {out / 'compare.json'}")


def told(over: Over | None) -> str:
    """A score over seeds, in words."""
    if over is None:
        return "-"
    return f"{over.mean:.3f}" + (f" ± {over.deviation:.3f}" if over.num_seeds > 1 else "")
