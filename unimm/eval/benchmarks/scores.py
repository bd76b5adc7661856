"""Results of a benchmark's own scorer as one table, and as a scores.json like that of `unimm eval`.

    scores.json     {"finished": nothing is missing, "tasks": {name: {"score", "interval", "count", "unit", "standard_error",
                    "details", "measures"}}, "benchmark", "missing", "expected", "judge", "results", "export"}

Which items there should be is known from the export, or else the whole benchmark is expected. Missing items are an error, but
where the caller asks for a part.
"""

from pathlib import Path
from typing import Any

from unimm.eval.benchmarks.benchmark import Benchmark, Prompt, Row, ScoreTable, interval_of
from unimm.eval.benchmarks.export import MANIFEST, WHAT, digest_of, read_export
from unimm.runtime.atomic_files import check_replaceable, read_json, replace_json

SCORES = "scores.json"


def score(benchmark: Benchmark, files: list[str], out: Path, partial: bool = False) -> ScoreTable:
    """Read a scorer's results, and write out/scores.json.

    Args:
        files: paths of results, folders with them, or LABEL=PATH; none: what lies in `out`.
        out: the export's folder; or, where there is none, a folder for scores.json.
        partial: whether items may be missing.

    Raises:
        ValueError: there are no results, they have another form, items are missing, or `out` is something else's folder.
    """
    manifest, prompts = _export_of(benchmark, out)
    paths = find_results(benchmark, files or [str(out)])
    num_images = manifest["settings"]["num_images"] if manifest else benchmark.num_images
    table = benchmark.score(paths, prompts, num_images)
    if table.missing and not partial:
        raise ValueError(
            f"{', '.join(str(path) for _, path in paths)}: {table.missing:,} of {table.expected:,} items are missing: "
            "score them, or add --partial."
        )
    out.mkdir(parents=True, exist_ok=True)
    replace_json(out / SCORES, _as_json(benchmark, table, paths, manifest))
    return table


def find_results(benchmark: Benchmark, files: list[str]) -> list[tuple[str, Path]]:
    """Labels and paths of a scorer's results. ValueError: there are none."""
    found = []
    for text in files:
        label, sign, name = text.partition("=")
        path = Path(name if sign and not Path(text).exists() else text)
        label = label if sign and not Path(text).exists() else ""
        if path.is_dir():
            inside = sorted({one for pattern in benchmark.results for one in path.glob(pattern)})
            if not inside:
                raise ValueError(
                    f"{path} holds no results of {benchmark.title} ({', '.join(benchmark.results) or 'no files'}): "
                    f"{benchmark.scorer_line(path, read_json(path / MANIFEST))}."
                )
            found += [(label, one) for one in inside]
        elif path.is_file():
            found.append((label, path))
        else:
            raise ValueError(f"{path}: there is no such file.")
    return found


def _export_of(benchmark: Benchmark, out: Path) -> tuple[dict[str, Any], list[Prompt]]:
    """What was exported there, or nothing."""
    if (out / MANIFEST).is_file():
        manifest, prompts = read_export(out)
        if manifest["benchmark"] != benchmark.name:
            raise ValueError(f"{out} is an export of {manifest['benchmark']}, not of {benchmark.name}: name another --out.")
        return manifest, prompts
    known = read_json(out / SCORES) or {}
    if known.get("benchmark") != benchmark.name:
        check_replaceable(out, MANIFEST, WHAT)
    return {}, []


def _as_json(
    benchmark: Benchmark, table: ScoreTable, paths: list[tuple[str, Path]], manifest: dict[str, Any]
) -> dict[str, Any]:
    name = benchmark.name + table.edition
    if table.total is None:
        tasks = {f"{name}/{row.label.replace(' ', '_')}": _task(row, [], table.unit) for row in table.rows}
    else:
        tasks = {name: _task(table.total, table.rows, table.unit)}
    return {
        "finished": not table.missing,
        "tasks": tasks,
        "benchmark": benchmark.name,
        "source": benchmark.source,
        "missing": table.missing,
        "expected": table.expected,
        "judge": table.judge,
        "results": [{"file": path.name, "label": label, "sha256": digest_of(path)} for label, path in paths],
        "export": manifest,
    }


def _task(row: Row, parts: list[Row], unit: str) -> dict[str, Any]:
    """As `unimm eval` writes a task, with a unit and standard errors."""
    details = {part.label: _numbers(part, unit) for part in parts}
    return _numbers(row, unit) | {"details": details, "measures": {}, "seconds": 0.0}


def _numbers(row: Row, unit: str) -> dict[str, Any]:
    numbers = {"score": row.value, "interval": interval_of(row.value, row.error), "count": row.count}
    return numbers | {"standard_error": row.error, "unit": unit, "higher_is_better": True}
