"""`unimm compare`: variants of an ablation beside each other, means over seeds; a table, a plot, JSON."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from unimm.eval.report.ablation import MeanOverSeeds, columns_of, find_variants, plot
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
    variants, notes = find_variants(folder)
    for note in notes:
        status.print(note)
    columns = columns_of(variants, tasks)
    # A line a variant below its score: as wide as a terminal, however many variants and scores there are.
    table = Table("score", "variant", "share right", "seeds", box=None)
    for column in columns:
        table.add_section()
        known = [(variant, scores[column]) for variant, scores in variants.items() if column in scores]
        for place, (variant, score) in enumerate(known):
            table.add_row("" if place else column.replace("_", " "), variant, say(score), str(score.num_seeds))
    console.print(table)
    console.print("Means over seeds, ± their standard deviation.")
    out = out or folder
    out.mkdir(parents=True, exist_ok=True)
    plot(variants, columns, out / "compare.png")
    write_json(
        out / "compare.json",
        {variant: {c: score._asdict() for c, score in scores.items()} for variant, scores in variants.items()},
    )
    console.print(f"{out / 'compare.png'}, {out / 'compare.json'}")


def say(score: MeanOverSeeds) -> str:
    """A score with its deviation over seeds."""
    return f"{score.mean:.3f}" + (f" ± {score.deviation:.3f}" if score.num_seeds > 1 else "")
