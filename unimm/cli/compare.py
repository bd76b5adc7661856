"""`unimm compare`: variants of an ablation, or any evaluations, beside each other: means over seeds, differences that chance
does not explain, and what others have published; a table, a plot, JSON."""

from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from unimm.eval.report.ablation import (
    RIGHT,
    VALUE,
    MeanOverSeeds,
    Variants,
    columns_of,
    find_numbers,
    find_variants,
    has_scores,
    plot,
)
from unimm.eval.report.paired import SHARE, Answered, compare_variants, find_answers, find_units, is_evaluated, open_evaluations
from unimm.eval.report.published import Benchmark, benchmarks, find_published
from unimm.eval.report.significance import Difference
from unimm.runtime.atomic_files import write_json

console = Console(highlight=False)
status = Console(stderr=True, highlight=False)

HERE = Path("runs/compare")
"""Where the files go that belong to no one folder of runs."""

CERTAIN = 0.05

SCORED_HERE = {"pope": "here, accuracy"}
"""What stands as the source of a score of ours, where it is another number than the published ones."""


Units = dict[str, tuple[str, bool]]
"""The unit of each score, and whether more of it is better."""


class Compared(NamedTuple):
    """Scores by variant and column, the items that they are of, and notes, a sentence each. label: what the numbers are."""

    variants: Variants
    answered: Answered
    notes: list[str]
    label: str
    units: Units


def run(
    runs: list[Path],
    tasks: list[str],
    out: Path | None,
    metrics: list[str] | None = None,
    baseline: str | None = None,
    published: bool = False,
) -> None:
    """Compare and show: scores; or numbers of the trainings, such as losses, where these are named or no run was evaluated.

    Args:
        runs: a folder of runs named VARIANT-SEED; or evaluations, runs and models, each by itself.
        tasks: scores to show; all of them where none is named.
        metrics: numbers that trainings reported, such as "loss/codes".
        out: folder of compare.json and compare.png; None: the folder of the runs.
        baseline: the variant that others are compared with; None: the first one.
        published: show what others have published, too.

    Raises:
        ValueError: there is nothing to compare, none of a name that is asked for, or both are asked for.
    """
    if tasks and metrics:
        raise ValueError("Scores (--task) and numbers of trainings (--metric) are shown one at a time: name one kind.")
    if not runs and not published:
        raise ValueError("Name a folder of runs, or the evaluations to compare; or add --published.")
    columns: list[str] = []
    variants: Variants = {}
    units: Units = {}
    if runs:
        compared = _read(runs, tasks, metrics or [], published)
        for note in compared.notes:
            status.print(note)
        variants, units, columns = compared.variants, compared.units, columns_of(compared.variants, tasks)
        _compare(compared, columns, baseline, out or (runs[0] if len(runs) == 1 and not is_evaluated(runs[0]) else HERE))
    if published:
        _show_published(tasks, columns, variants, units)


def _read(runs: list[Path], tasks: list[str], metrics: list[str], published: bool) -> Compared:
    if len(runs) > 1 or (published and is_evaluated(runs[0])):
        if metrics:
            raise ValueError("Numbers of trainings (--metric) are compared in a folder of runs: name that folder alone.")
        units = find_units(runs)
        return Compared(*open_evaluations(runs), _label(units), units)
    folder = runs[0]
    if metrics or not (tasks or has_scores(folder)):
        variants, notes = find_numbers(folder, metrics)
        notes = notes if metrics else ["No run was evaluated: these are the losses of the trainings.", *notes]
        return Compared(variants, {}, notes, VALUE, {})
    variants, notes = find_variants(folder)
    units = find_units(runs)
    return Compared(variants, find_answers(folder), notes, _label(units), units)


def _label(units: Units) -> str:
    return RIGHT if {unit for unit, _ in units.values()} <= {SHARE} else "score"


def _compare(compared: Compared, columns: list[str], baseline: str | None, out: Path) -> None:
    """Show the table, and write it and the plot."""
    variants = compared.variants
    baseline = next(iter(variants)) if baseline is None else baseline
    if baseline not in variants:
        raise ValueError(f"There is no '{baseline}' to compare with: choose among {', '.join(variants)}.")
    differences = compare_variants(compared.answered, baseline, columns)
    if compared.label != VALUE and (alone := _not_paired(variants, columns, baseline, differences)):
        status.print(
            f"Of {', '.join(alone)} and {baseline} no answers to the same items are here: chance is not told apart there."
        )
    _show(compared, columns, baseline, differences)
    out.mkdir(parents=True, exist_ok=True)
    plot(variants, columns, out / "compare.png", compared.label)
    write_json(out / "compare.json", _plain(variants, baseline, differences))
    console.print(f"{out / 'compare.png'}, {out / 'compare.json'}")


Differences = dict[tuple[str, str], tuple[Difference, float]]


def _not_paired(variants: Variants, columns: list[str], baseline: str, differences: Differences) -> list[str]:
    """The variants that have a score in common with the baseline, and no items of it."""
    base = variants[baseline]
    return [
        name
        for name, scores in variants.items()
        if name != baseline and any(c in scores and c in base and (name, c) not in differences for c in columns)
    ]


def _show(compared: Compared, columns: list[str], baseline: str, differences: Differences) -> None:
    # A line a variant below its score: as wide as a terminal, however many variants and scores there are.
    of_trainings = compared.label == VALUE
    table = Table("metric" if of_trainings else "score", "variant", compared.label, "seeds", box=None)
    for title in (f"less {baseline}, 95 %", "p") if differences else ():
        table.add_column(title, no_wrap=True)
    for column in columns:
        table.add_section()
        known = [(variant, scores[column]) for variant, scores in compared.variants.items() if column in scores]
        for place, (variant, score) in enumerate(known):
            words = ["" if place else _title(column, compared.units), variant, say(score), str(score.num_seeds)]
            if found := differences.get((variant, column)):
                words += say_difference(*found)
            table.add_row(*words)
    console.print(table)
    console.print("Means over seeds, ± their standard deviation.")
    if differences:
        tests = " and ".join(sorted({one.test for one, _ in differences.values()}, reverse=True))
        console.print(
            f"Differences over the items that both were asked, their 95 % intervals, and p ({tests}; Holm over all "
            f"{len(differences)} shown): * where chance does not explain one. Seeds of the trainings are not in them."
        )


def _title(column: str, units: Units) -> str:
    """A score as it is called, with its unit and direction where it is no share of right answers."""
    unit, higher_is_better = units.get(column.split()[-1], (SHARE, True))
    notes = [*([unit] if unit != SHARE else []), *(["lower is better"] if not higher_is_better else [])]
    return column.replace("_", " ") + (f" ({', '.join(notes)})" if notes else "")


def say(score: MeanOverSeeds) -> str:
    """A score with its deviation over seeds."""
    return f"{score.mean:.3f}" + (f" ± {score.deviation:.3f}" if score.num_seeds > 1 else "")


def say_difference(one: Difference, p: float) -> tuple[str, str]:
    """A difference with its interval, and its p value, with a star where it is certain."""
    low, high = one.interval
    return f"{one.value:+.3f} ({low:+.3f} to {high:+.3f})", f"{p:.3f}{'*' if p < CERTAIN else ''}" if p >= 1e-3 else "<.001*"


def _plain(variants: Variants, baseline: str, differences: Differences) -> dict[str, Any]:
    content: dict[str, Any] = {name: {c: one._asdict() for c, one in scores.items()} for name, scores in variants.items()}
    for (variant, column), (one, p) in differences.items():
        content[variant][column]["against"] = {"baseline": baseline, **one._asdict(), "p_holm": p}
    return content


def _show_published(tasks: list[str], columns: list[str], variants: Variants, units: Units) -> None:
    """What others have published of the benchmarks that are named, or that there are scores of; of all without any."""
    known = benchmarks()
    own = {name: column for column in columns if (name := column.split()[-1].partition("/")[0]) in known}
    if columns and not own:
        status.print(f"Nothing published is kept of these scores; there is of {', '.join(known)} (--task).")
        return
    figures = find_published(list(own) if own else tasks)
    names = list(dict.fromkeys(figure.benchmark for figure in figures))
    cited = list(dict.fromkeys(figure.origin for figure in figures))
    for name in names:
        benchmark = known[name]
        parts = benchmark.parts if len(names) == 1 else ()
        table = Table("model", "score", "source", *(part.replace("_", "\n") for part in parts), box=None, padding=(0, 1, 0, 0))
        table.columns[0].no_wrap = True
        for variant, scores in variants.items():
            words = {column.split()[-1]: _in_unit(score.mean, column, benchmark, units) for column, score in scores.items()}
            shown = [next((said for column, said in words.items() if _is_part(column, name, part)), "") for part in parts]
            if name in words or any(shown):
                table.add_row(variant, words.get(name, "-"), SCORED_HERE.get(name, "here"), *shown)
        for figure in (one for one in figures if one.benchmark == name):
            shown = (_number(figure.parts.get(part)) for part in parts)
            source = f"\\[{cited.index(figure.origin) + 1}]"
            table.add_row(figure.model, _number(figure.value), source, *shown)
        direction = "higher" if benchmark.higher_is_better else "lower"
        console.print(f"\n{benchmark.title}: {benchmark.unit}, {direction} is better", table, sep="\n")
    for number, origin in enumerate(cited, 1):
        console.print(f"[{number}] {origin}", markup=False)


def _in_unit(score: float, column: str, benchmark: Benchmark, units: Units) -> str:
    unit, _ = units.get(column.split()[-1], (SHARE, True))
    return f"{benchmark.of_share(score) if unit == SHARE else score:.4g}"


def _is_part(column: str, benchmark: str, part: str) -> bool:
    """Whether a score is that of a part of a benchmark: "t2i-compbench/color_(BLIP-VQA)" is that of color."""
    name, _, label = column.partition("/")
    return name == benchmark and label.partition("_(")[0] == part


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"
