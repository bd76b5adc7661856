"""OneIG-Bench (arXiv 2506.07977): 1,120 English or 1,320 Chinese prompts, four images each in one picture, five scorers.

    prompts     OneIG-Bench.csv (category, id, prompt_en, ...) or OneIG-Bench-ZH.csv (prompt_cn)
    images      images/<anime|human|object|text|reasoning|multilingualism>/<model>/<id>.webp, 2 x 2
    results     <alignment|diversity|reasoning|style>_prompt_score_<EN|ZH>_<time>.csv, and text_score_<EN|ZH>_<time>.csv

The text score is made of sums over all images, so its file has one number and no error. The mean of all five is ours.
"""

import csv
import io
import re
from pathlib import Path

from unimm.eval.benchmarks.benchmark import (
    Benchmark,
    Prompt,
    Row,
    ScoreTable,
    checked_name,
    checked_prompt,
    mean_and_error,
    read_text,
    refuse_twice,
)

FOLDERS = {
    "Anime_Stylization": "anime",
    "Portrait": "human",
    "General_Object": "object",
    "Text_Rendering": "text",
    "Knowledge_Reasoning": "reasoning",
    "Multilingualism": "multilingualism",
}
DIMENSIONS = ("alignment", "text", "reasoning", "style", "diversity")
RESULT = re.compile(r"(?P<dimension>alignment|diversity|reasoning|style)_prompt_score_|(?P<text>text)_score_")


class OneIG(Benchmark):
    """See the module."""

    name = "oneig"
    title = "OneIG-Bench"
    source = "github.com/OneIG-Bench/OneIG-Benchmark @41b4983"
    num_prompts = 1120
    num_images = 4
    is_grid = True
    results = ("results/*_prompt_score_*.csv", "results/text_score_*.csv", "*_prompt_score_*.csv", "text_score_*.csv")
    scorer = "bash run_overall.sh, with IMAGE_DIR={out}/images and MODEL_NAMES=({model})"

    def read(self, path: Path) -> list[Prompt]:
        """OneIG-Bench.csv or OneIG-Bench-ZH.csv."""
        rows = list(csv.DictReader(io.StringIO(read_text(path), newline="")))
        column = next((name for name in ("prompt_en", "prompt_cn") if rows and name in rows[0]), None)
        if column is None or not {"category", "id"} <= rows[0].keys():
            raise ValueError(f"{path} is not {self.title}'s form, a table with category, id and prompt_en or prompt_cn.")
        found, seen = [], set()
        for number, row in enumerate(rows, 1):
            where = f"{path}, row {number}"
            if row["category"] not in FOLDERS:
                raise ValueError(f"{where}: {self.title} has no category '{row['category']}'.")
            key = f"{FOLDERS[row['category']]}/{checked_name(row['id'] or '', where)}"
            refuse_twice(key, seen, where)
            found.append(Prompt(key, checked_prompt(row[column] or "", where), len(found), {"id": row["id"]}))
        return found

    def files(self, prompt: Prompt, num_images: int, model_name: str) -> list[str]:
        """One grid."""
        folder, _, key = prompt.key.partition("/")
        return [f"images/{folder}/{model_name}/{key}.webp"]

    def score(self, paths: list[tuple[str, Path]], prompts: list[Prompt], num_images: int) -> ScoreTable:
        """The tables of the five scorers; a dimension that is missing counts as one missing item."""
        found: dict[str, Row] = {}
        for _, path in paths:
            match = RESULT.match(path.name)
            if match is None:
                raise ValueError(f"{path} is none of {self.title}'s results, DIMENSION_prompt_score_... or text_score_....")
            dimension = match["dimension"] or match["text"]
            if dimension in found:
                raise ValueError(f"{path}: {dimension} is there twice.")
            found[dimension] = _read_dimension(path, dimension)
        rows = [found[dimension] for dimension in DIMENSIONS if dimension in found]
        mean = (
            Row("mean of five", sum(row.value for row in rows) / len(rows), None, 0) if len(rows) == len(DIMENSIONS) else None
        )
        return ScoreTable("share", mean, rows, len(DIMENSIONS) - len(rows), len(DIMENSIONS))


def _read_dimension(path: Path, dimension: str) -> Row:
    rows = list(csv.DictReader(io.StringIO(read_text(path), newline="")))
    try:
        if dimension == "text":
            (value,) = (float(row["text score"]) for row in rows)
            return Row(dimension, value, None, 0)
        _, column = rows[0]
        return Row(dimension, *mean_and_error([float(row[column])] for row in rows if row[column]))
    except (KeyError, ValueError, IndexError, TypeError):
        raise ValueError(f"{path} is not what OneIG-Bench's scorers write for one model.") from None
