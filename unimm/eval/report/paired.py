"""Evaluations beside each other, item by item: what is compared is what both were asked.

An evaluation is a folder of `unimm eval`: scores.json, and answers.jsonl with a line an item. Items of two evaluations are the
same where task, key and prompt are. Variants with several seeds have an item's mean over them, so that only items are counted
as chance (`significance`).
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from unimm.eval.report.ablation import (
    FINAL_SCORES,
    METRICS,
    MeanOverSeeds,
    Variants,
    evaluation_name,
    finite_scores,
    read_scores,
)
from unimm.eval.report.curves import read_metrics
from unimm.eval.report.significance import Difference, compare_items, holm

ANSWERS, SCORES = "answers.jsonl", "scores.json"
VALIDATION = "validation/"
SHARE = "share"

Item = tuple[str, str, int]
"""Key and prompt of an item, and the how many-th with both in its task it is."""

Items = dict[Item, float]
"""What a model got for each item: 0 or 1 where it is wrong or right, or another number."""

Answered = dict[str, dict[str, list[Items]]]
"""Items by variant and column, as `Variants` has the scores: a dict for each seed whose answers are there."""


def read_items(path: Path) -> dict[str, Items]:
    """The items of an answers.jsonl by task.

    Raises:
        ValueError: a line is none of `unimm eval`.
    """
    found: dict[str, Items] = {}
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                one = json.loads(line)
                task, key, prompt, value = one["task"], str(one["key"]), str(one.get("prompt", "")), _value_of(one)
            except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{path}, line {number}, is no answer as `unimm eval` writes them: evaluate again.") from error
            items, place = found.setdefault(task, {}), 0
            while (key, prompt, place) in items:
                place += 1
            items[key, prompt, place] = value
    return found


def _value_of(line: dict[str, Any]) -> float:
    """What an item counts: its own number where its task gives one, else whether it is right."""
    value = line.get("value")
    return float(line["correct"]) if value is None else float(value)


def _make_score(items: Items, task: dict[str, Any] | None) -> bool:
    """Whether a score is the mean of what its items got (or of means by category), so that differences of these say what is
    chance: CIDEr-D, or bits of all documents over all their bytes, is not."""
    if task is None or task.get("score") is None or not items:
        return False
    mean = sum(items.values()) / len(items)
    return task.get("unit", SHARE) == SHARE or abs(mean - task["score"]) <= 1e-3 * max(1.0, abs(task["score"]))


def find_units(runs: list[Path]) -> dict[str, tuple[str, bool]]:
    """The unit of each score and whether more of it is better, as evaluations say that are named or lie in a folder of runs; a
    score of which nothing is said is a share."""
    named = [folder / SCORES for path in runs if (folder := _scores_folder(path)) is not None]
    paths = named or [path for folder in runs for pattern in (f"*/{SCORES}", f"*/*/{SCORES}") for path in folder.glob(pattern)]
    tasks = {task: one for path in paths for task, one in read_scores(path)[1].items()}
    return {task: (str(one.get("unit", SHARE)), bool(one.get("higher_is_better", True))) for task, one in tasks.items()}


def find_answers(folder: Path) -> Answered:
    """The answers of all finished evaluations in a folder of runs VARIANT-SEED, as `find_variants` names them."""
    answered: Answered = {}
    for path in sorted(path for pattern in (f"*/{SCORES}", f"*/*/{SCORES}") for path in folder.glob(pattern)):
        if path.with_name(ANSWERS).is_file() and read_scores(path)[0]:
            variant, column = evaluation_name(str(path.parent.relative_to(folder)))
            tasks = read_scores(path)[1]
            for task, items in read_items(path.with_name(ANSWERS)).items():
                if not _make_score(items, tasks.get(task)):
                    continue
                answered.setdefault(variant, {}).setdefault(f"{column} {task}".strip(), []).append(items)
    return answered


def open_evaluations(paths: Iterable[Path]) -> tuple[Variants, Answered, list[str]]:
    """Evaluations that are named one by one: their folders, those of runs or of models with `scores`, or trainings, whose last
    validation then counts. By their names, with notes, a sentence each.

    Raises:
        ValueError: one holds no scores, or two are called alike.
    """
    named, notes = list(paths), []
    variants: Variants = {}
    answered: Answered = {}
    names = _short_names(named)
    for path, name in zip(named, names, strict=True):
        folder = _scores_folder(path)
        if folder is None:
            scores = _last_validation(path)
            notes.append(f"{name} was not evaluated: its scores are those of its last validation, on items of its own.")
        else:
            is_finished, tasks = read_scores(folder / SCORES)
            scores = finite_scores(tasks)
            notes += [] if is_finished else [f"{name} is not finished: the scores are of what it has so far."]
            answers = read_items(folder / ANSWERS) if (folder / ANSWERS).is_file() else {}
            answered[name] = {task: [items] for task, items in answers.items() if _make_score(items, tasks.get(task))}
        variants[name] = {task: MeanOverSeeds(score, 0.0, 1) for task, score in scores.items()}
    return variants, answered, notes


def is_evaluated(path: Path) -> bool:
    """Whether a folder is one evaluation, a run or a model, and no folder of runs."""
    return any((path / name).is_file() for name in (SCORES, METRICS, "config.json"))


def _scores_folder(path: Path) -> Path | None:
    """Where the scores of an evaluation, a run, or a run's model lie; None: there are none."""
    beside = [path, path / FINAL_SCORES, *([path.parent / FINAL_SCORES] if (path / "config.json").is_file() else [])]
    return next((folder for folder in beside if (folder / SCORES).is_file()), None)


def _last_validation(path: Path) -> dict[str, float]:
    series = read_metrics(path / METRICS) if (path / METRICS).is_file() else {}
    ends = {name.removeprefix(VALIDATION): points[-1][1] for name, points in series.items() if name.startswith(VALIDATION)}
    if not ends:
        raise ValueError(f"{path} holds no scores: `unimm eval --model MODEL --out {path / FINAL_SCORES}` makes some.")
    return ends


def _short_names(paths: list[Path]) -> list[str]:
    """What to call evaluations: the last parts of their paths, as many as tell them apart.

    Raises:
        ValueError: two are the same.
    """
    parts = [[part for part in path.parts if part != FINAL_SCORES] or [str(path)] for path in paths]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(one[-length:]) for one in parts]
        if len(set(names)) == len(names):
            return names
    raise ValueError("The same evaluation is named twice: name each once.")


def compare_variants(answered: Answered, baseline: str, columns: list[str]) -> dict[tuple[str, str], tuple[Difference, float]]:
    """How each variant differs from the baseline, by variant and column, where both were asked the same; with p values by Holm
    over all of these."""
    found: dict[tuple[str, str], Difference] = {}
    for variant, column, own, base in _pairs(answered, baseline, columns):
        if shared := [item for item in base if item in own]:
            found[variant, column] = compare_items([base[item] for item in shared], [own[item] for item in shared])
    adjusted = holm(one.p for one in found.values())
    return {place: (one, p) for (place, one), p in zip(found.items(), adjusted, strict=True)}


def _pairs(answered: Answered, baseline: str, columns: list[str]) -> Iterator[tuple[str, str, Items, Items]]:
    """Variant, column, the variant's items and the baseline's."""
    base = {column: _mean_items(seeds) for column, seeds in answered.get(baseline, {}).items() if column in columns}
    for variant, by_column in answered.items():
        for column, seeds in by_column.items():
            if variant != baseline and column in base:
                yield variant, column, _mean_items(seeds), base[column]


def _mean_items(seeds: list[Items]) -> Items:
    """Each item that all seeds have, with the mean of what they got."""
    shared = [item for item in seeds[0] if all(item in others for others in seeds[1:])]
    return {item: sum(items[item] for items in seeds) / len(seeds) for item in shared}
