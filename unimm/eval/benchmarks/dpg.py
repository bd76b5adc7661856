"""DPG-Bench (ELLA, arXiv 2403.05135): 1,065 long prompts, four images each in one picture, questions answered by mPLUG-large.

    prompts     the folder dpg_bench/prompts, a file <id>.txt each
    images      images/<id>.png, 2 x 2; the scorer reads every file of that folder, so nothing else is in it
    results     the text of compute_dpg_bench.py --res-path: a line an image, then the scores of categories

The total is the mean over prompts. Scores of categories stand in the results without what their errors could be told from.
"""

import re
from pathlib import Path

from unimm.eval.benchmarks.benchmark import (
    Benchmark,
    Prompt,
    Row,
    ScoreTable,
    checked_name,
    checked_prompt,
    count_missing,
    mean_and_error,
    read_text,
)

CATEGORY = re.compile(r"\t(?P<name>[^:]+): (?P<value>[-+.\deE]+|nan)$")


class DPG(Benchmark):
    """See the module."""

    name = "dpg"
    title = "DPG-Bench"
    source = "github.com/TencentQQGYLab/ELLA @3c228f1"
    num_prompts = 1065
    num_images = 4
    is_grid = True
    results = ("*results*.txt",)
    scorer = (
        "accelerate launch dpg_bench/compute_dpg_bench.py --image-root-path {out}/images --resolution {size} "
        "--pic-num {num_images} --res-path {out}/results.txt"
    )

    def read(self, path: Path) -> list[Prompt]:
        """dpg_bench/prompts."""
        if not path.is_dir():
            raise ValueError(f"{path} is not {self.title}'s form, a folder of files <id>.txt.")
        found = []
        for file in sorted(path.glob("*.txt"), key=_natural):
            key = checked_name(file.stem, str(file))
            text = checked_prompt(read_text(file), str(file))
            if len(text.splitlines()) > 1:
                raise ValueError(f"{file}: this is not {self.title}'s form, one prompt on one line in each file.")
            found.append(Prompt(key, text, len(found)))
        if not found:
            raise ValueError(f"{path} is not {self.title}'s form, a folder of files <id>.txt: there is none.")
        return found

    def files(self, prompt: Prompt, num_images: int, model_name: str) -> list[str]:
        """One grid; the scorer cuts at most four images out of it."""
        if num_images > 4:
            raise ValueError(f"{self.title} takes at most 4 images a prompt, not {num_images}.")
        return [f"images/{prompt.key}.png"]

    def score(self, paths: list[tuple[str, Path]], prompts: list[Prompt], num_images: int) -> ScoreTable:
        """The text that compute_dpg_bench.py writes."""
        scores: dict[str, float] = {}
        categories: list[Row] = []
        for path in (path for _, path in paths if not path.name.endswith("_detail.txt")):
            level = ""
            for number, line in enumerate(read_text(path).splitlines(), 1):
                if line.endswith("category scores:"):
                    level = line.split()[0]
                elif (match := CATEGORY.match(line)) is not None:
                    label = match["name"] if level == "L1" else f"{level} {match['name']}"
                    categories.append(Row(label, float(match["value"]), None, 0))
                elif (found := _image_line(line)) is not None:
                    key, score = found
                    if key in scores:
                        raise ValueError(f"{path}, line {number}: {key} is there twice.")
                    scores[key] = score
        if not scores:
            names = ", ".join(str(path) for _, path in paths)
            raise ValueError(f"{names}: this is not what compute_dpg_bench.py writes, a line 'PATH, SCORE, ..., MEAN' each.")
        mean, error, count = mean_and_error([score] for score in scores.values())
        total = Row("overall", 100 * mean, None if error is None else 100 * error, count)
        expected = {prompt.key for prompt in prompts}
        missing = count_missing({*scores}, expected, paths) if expected else max(self.num_prompts - count, 0)
        rows = [row for row in categories if not row.label.startswith("L2")]
        return ScoreTable("percent", total, rows, missing, len(expected) or self.num_prompts, "mPLUG-large")


def _image_line(line: str) -> tuple[str, float] | None:
    """The key and the mean of a line of an image; paths may hold commas."""
    parts = line.split(", ")
    numbers: list[float] = []
    while parts and (number := _number(parts[-1])) is not None:
        numbers.insert(0, number)
        parts.pop()
    if len(numbers) < 2 or not parts:
        return None
    return Path(", ".join(parts)).name.split(".")[0], numbers[-1]


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _natural(path: Path) -> tuple[int, int, str]:
    return (0, int(path.stem), "") if path.stem.isdecimal() else (1, 0, path.stem)
