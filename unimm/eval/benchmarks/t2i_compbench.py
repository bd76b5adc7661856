"""T2I-CompBench++ (arXiv 2307.06350): eight categories of 300 prompts, ten images each, a scorer a category.

    prompts     the folder examples/dataset, of which <category>_val.txt are read; or such a file: a prompt a line
    images      <category>/samples/<prompt>_<000000>.png; the number runs on over all images of a category
    results     vqa_result.json of a category's scorer, [{"question_id": number, "answer": score}]

The category of a vqa_result.json is a folder in its path, or is named before it: color=vqa_result.json.
"""

from pathlib import Path

from unimm.eval.benchmarks.benchmark import (
    Benchmark,
    Prompt,
    Row,
    ScoreTable,
    checked_prompt,
    mean_and_error,
    read_json_file,
    read_text,
)

CATEGORIES = ("color", "shape", "texture", "spatial", "3d_spatial", "numeracy", "non_spatial", "complex")
PROMPTS_OF_A_CATEGORY = 300

SCORERS = {
    "annotation_blip": "BLIP-VQA",
    "annotation_obj_detection_2d": "UniDet 2D",
    "annotation_obj_detection_3d": "UniDet 3D",
    "annotation_num": "UniDet numeracy",
    "annotation_clip": "CLIP",
    "annotation_3_in_1": "3-in-1",
}
"""What the folders that results lie in say of the scorer."""

MAX_NAME_BYTES = 255
"""Of a file's name, on the file systems of today."""


class T2ICompBench(Benchmark):
    """See the module."""

    name = "t2i-compbench"
    title = "T2I-CompBench"
    source = "github.com/Karine-Huang/T2I-CompBench @1b70949"
    num_prompts = len(CATEGORIES) * PROMPTS_OF_A_CATEGORY
    num_images = 10
    results = tuple(
        f"{above}{folder}/vqa_result.json" for above in ("", "*/") for folder in ("annotation_*", "labels/annotation_*")
    )
    scorer = "python BLIP_vqa.py --out_dir {out}/color/ (shape, texture; the other categories have scorers of their own)"

    def read(self, path: Path) -> list[Prompt]:
        """A folder with files <category>_val.txt, or one of them."""
        paths = [path]
        if path.is_dir():
            paths = [file for name in CATEGORIES if (file := path / f"{name}_val.txt").is_file()]
        names = [f"{name}_val.txt" for name in CATEGORIES]
        if not paths or any(file.name not in names for file in paths):
            raise ValueError(f"{path} is not {self.title}'s form, {', '.join(names)} or a folder of these.")
        found = []
        for file in paths:
            category = file.name.removesuffix("_val.txt")
            lines = [line.split("\t")[0] for line in read_text(file).splitlines() if line.strip()]
            for number, line in enumerate(lines):
                where = f"{file}, prompt {number + 1}"
                text = _checked(checked_prompt(line, where), where)
                found.append(Prompt(f"{category}/{number}", text, number, {"category": category}))
        if not found:
            raise ValueError(f"{path} is empty.")
        return found

    def files(self, prompt: Prompt, num_images: int, model_name: str) -> list[str]:
        """Named by the prompt, which scorers read from there."""
        first, folder = prompt.number * num_images, f"{prompt.facts['category']}/samples"
        return [f"{folder}/{prompt.text}_{number:06}.png" for number in range(first, first + num_images)]

    def score(self, paths: list[tuple[str, Path]], prompts: list[Prompt], num_images: int) -> ScoreTable:
        """A vqa_result.json a category."""
        sizes: dict[str, int] = {}
        for prompt in prompts:
            sizes[prompt.facts["category"]] = sizes.get(prompt.facts["category"], 0) + 1
        sizes = sizes or dict.fromkeys(CATEGORIES, PROMPTS_OF_A_CATEGORY)
        rows, found = [], dict.fromkeys(sizes, 0)
        for label, path in paths:
            category, scorer = self._category(label, path), _scorer(path)
            if category not in sizes:
                raise ValueError(f"{path} is of {category}, of which this export has no prompts.")
            answers = _answers(path)
            if (most := sizes[category] * num_images) <= max(answers):
                raise ValueError(f"{path} has a question_id of {max(answers)}, and {category} has {most:,} images.")
            groups: dict[int, list[float]] = {}
            for number, answer in answers.items():
                groups.setdefault(number // num_images, []).append(answer)
            row = Row(f"{category} ({scorer})" if scorer else category, *mean_and_error(groups.values()))
            if row.label in {other.label for other in rows}:
                raise ValueError(f"{path}: {row.label} is there twice.")
            rows.append(row)
            found[category] = max(found[category], len(answers))
        missing = sum(size * num_images - found[category] for category, size in sizes.items())
        order = {category: place for place, category in enumerate(CATEGORIES)}
        rows.sort(key=lambda row: order[row.label.split(" ")[0]])
        return ScoreTable("share", None, rows, missing, sum(sizes.values()) * num_images)

    def _category(self, label: str, path: Path) -> str:
        named = [label] if label else [part for part in reversed(path.absolute().parts) if part in CATEGORIES]
        if not named or named[0] not in CATEGORIES:
            raise ValueError(f"{path}: say which category it is of, such as color={path}; there are {', '.join(CATEGORIES)}.")
        return named[0]


def _checked(text: str, where: str) -> str:
    if any(letter in text for letter in "/\\\0_") or text.startswith("."):
        raise ValueError(f"{where}: a prompt that names files has no '/' and no '_', which the scorers split names at.")
    if len(f"{text}_000000.png".encode()) > MAX_NAME_BYTES:
        raise ValueError(f"{where}: the prompt is too long for the name of a file, which the scorers read it from.")
    return text


def _scorer(path: Path) -> str:
    return next((SCORERS[part] for part in reversed(path.parts) if part in SCORERS), "")


def _answers(path: Path) -> dict[int, float]:
    content = read_json_file(path)
    try:
        numbers = [(int(one["question_id"]), float(one["answer"])) for one in content]
    except (TypeError, KeyError, ValueError):
        numbers = []
    if not numbers:
        raise ValueError(f"{path} is not what T2I-CompBench's scorers write: a list of question_id and answer.")
    if len(dict(numbers)) < len(numbers):
        raise ValueError(f"{path} has a question_id twice.")
    return dict(numbers)
