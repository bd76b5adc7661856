"""`unimm compare`: arms of an ablation beside each other, means over seeds; a table, a plot, JSON."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from unimm.eval.report.ablation import MeanOverSeeds, columns_of, find_arms, plot
from unimm.runtime.atomic_files import write_json

console = Console(highlight=False)
status = Console(stderr=True, highlight=False)


def run(folder: Path, tasks: list[str], out: Path | None) -> None:
    """Compare and show.

    Args:
        tasks: scores to show; all of them where none is named.
        out: folder of compare.json and compare.png; None: the folder of the runs.

    Raises:
        ValueError: there are no scores, or none of a task that is asked for.
    """
    arms, notes = find_arms(folder)
    for note in notes:
        status.print(note)
    columns = columns_of(arms, tasks)
    # A line an arm below its score: as wide as a terminal, however many arms and scores there are.
    table = Table("score", "arm", "share right", "seeds", box=None)
    for column in columns:
        table.add_section()
        known = [(arm, told[column]) for arm, told in arms.items() if column in told]
        for place, (arm, over) in enumerate(known):
            table.add_row("" if place else column.replace("_", " "), arm, say(over), str(over.num_seeds))
    console.print(table)
    console.print("Means over seeds, ± their standard deviation.")
    out = out or folder
    out.mkdir(parents=True, exist_ok=True)
    plot(arms, columns, out / "compare.png")
    write_json(out / "compare.json", {arm: {c: over._asdict() for c, over in scores.items()} for arm, scores in arms.items()})
    console.print(f"{out / 'compare.png'}, {out / 'compare.json'}")


def say(over: MeanOverSeeds) -> str:
    """A score over seeds, in words."""
    return f"{over.mean:.3f}" + (f" ± {over.deviation:.3f}" if over.num_seeds > 1 else "")
