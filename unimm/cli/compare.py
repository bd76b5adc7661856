"""`unimm compare`: variants of an ablation beside each other, means over seeds; a table, a plot, JSON."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from unimm.eval.report.ablation import RIGHT, VALUE, MeanOverSeeds, columns_of, find_numbers, find_variants, has_scores, plot
from unimm.runtime.atomic_files import write_json

console = Console(highlight=False)
status = Console(stderr=True, highlight=False)


def run(folder: Path, tasks: list[str], out: Path | None, metrics: list[str] | None = None) -> None:
    """Compare and show: scores; or numbers of the trainings, such as losses, where these are named or no run was evaluated.

    Args:
        tasks: scores to show; all of them where none is named.
        metrics: numbers that trainings reported, such as "loss/codes".
        out: folder of compare.json and compare.png; None: the folder of the runs.

    Raises:
        ValueError: there are neither scores nor trainings, none of a name that is asked for, or both are asked for.
    """
    if tasks and metrics:
        raise ValueError("Scores (--task) and numbers of trainings (--metric) are shown one at a time: name one kind.")
    of_trainings = bool(metrics) or not (tasks or has_scores(folder))
    variants, notes = find_numbers(folder, metrics or []) if of_trainings else find_variants(folder)
    if of_trainings and not metrics:
        notes = ["No run was evaluated: these are the losses of the trainings.", *notes]
    label = VALUE if of_trainings else RIGHT
    for note in notes:
        status.print(note)
    columns = columns_of(variants, tasks)
    # A line a variant below its score: as wide as a terminal, however many variants and scores there are.
    table = Table("metric" if of_trainings else "score", "variant", label, "seeds", box=None)
    for column in columns:
        table.add_section()
        known = [(variant, scores[column]) for variant, scores in variants.items() if column in scores]
        for place, (variant, score) in enumerate(known):
            table.add_row("" if place else column.replace("_", " "), variant, say(score), str(score.num_seeds))
    console.print(table)
    console.print("Means over seeds, ± their standard deviation.")
    out = out or folder
    out.mkdir(parents=True, exist_ok=True)
    plot(variants, columns, out / "compare.png", label)
    write_json(
        out / "compare.json",
        {variant: {c: score._asdict() for c, score in scores.items()} for variant, scores in variants.items()},
    )
    console.print(f"{out / 'compare.png'}, {out / 'compare.json'}")


def say(score: MeanOverSeeds) -> str:
    """A score with its deviation over seeds."""
    return f"{score.mean:.3f}" + (f" ± {score.deviation:.3f}" if score.num_seeds > 1 else "")
