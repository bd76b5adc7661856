"""Benchmarks of editing: an image and an instruction each, and files in which the scorers find what was made of it.

ImgEdit-Bench (arXiv 2505.20275), the basic part: 737 edits of nine kinds, marked from 1 to 5 by GPT-4o.

    prompts     basic_edit.json, or singleturn.json: {key: {"id": "animal/000342021.jpg", "prompt", "edit_type"}}; the images
                lie beside it, or in original_images/ or origin_images/ there
    images      <key>.png
    results     result.json: {key: "Brief reasoning: ...\\nPrompt Compliance: 4\\n..."}, as basic_bench.py writes it

GEdit-Bench (arXiv 2504.17761): 606 edits of eleven kinds in English and in Chinese, marked from 0 to 10 by VIEScore.

    prompts     its Parquet files (key, task_type, instruction, instruction_language, input_image, Intersection_exist)
    images      <model>/fullset/<task_type>/<language>/<key>.png, and the source beside it as <key>_SRCIMG.png
    results     <model>/<judge>/eval_results_new/<model>_combined_gpt_score.csv, as test_gedit_score.py writes it

The model edits the square at the centre of an image. It is laid over the source, so that an image comes back in its own size,
and what is beside the square is the source's.
"""

import csv
import io
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from unimm.data.image import decode_image
from unimm.data.records import ImageLike
from unimm.eval.benchmarks.benchmark import (
    Benchmark,
    Prompt,
    Row,
    ScoreTable,
    checked_name,
    checked_prompt,
    count_missing,
    mean_and_error,
    need,
    read_json_file,
    read_text,
    refuse_twice,
    weighted_total,
)

if TYPE_CHECKING:
    from unimm.inference.engine import Engine

POINTS = "points"
"""The unit of marks on a scale."""

IMGEDIT_FILES = ("basic_edit.json", "singleturn.json")
IMGEDIT_ROOTS = ("", "original_images", "origin_images", "singleturn")
GEDIT_KINDS = (
    *("background_change", "color_alter", "material_alter", "motion_change", "ps_human", "style_change"),
    *("subject-add", "subject-remove", "subject-replace", "text_change", "tone_transfer"),
)
GEDIT_COLUMNS = ("key", "task_type", "instruction", "instruction_language", "Intersection_exist")
GEDIT_IMAGE = "input_image"


class EditBenchmark(Benchmark):
    """What benchmarks of editing share: an image for every prompt, which is edited and laid over its source."""

    num_images = 1

    def check(self, engine: "Engine", prompt: Prompt) -> None:
        """ValueError: the model was not taught to edit, or the instruction is too long for it."""
        from unimm.inference.decode.request import Request

        num_codes = engine.image_tokenizer.num_codes
        blank, codes = Image.new("RGB", (8, 8)), np.zeros(num_codes, dtype=np.int64)
        engine.decoder.check(Request(engine.template.edit(blank, codes, prompt.text, num_codes=num_codes).opened()))

    def draw(
        self, engine: "Engine", prompts: list[Prompt], seeds: list[int], callback: Callable[[Any], None], **drawing: Any
    ) -> list[Image.Image]:
        """An image for each prompt, of its source's size."""
        from unimm.inference.windows_of_images import lay_over

        sources = [decode_image(self._source(prompt)) for prompt in prompts]
        texts = [prompt.text for prompt in prompts]
        edited = engine.edit_images(sources, texts, num_images=1, seed=seeds, callback=callback, **drawing)
        return [lay_over(source, image) for source, (image,) in zip(sources, edited, strict=True)]

    def _source(self, prompt: Prompt) -> ImageLike:
        if prompt.image is None:
            raise ValueError(f"Prompt {prompt.key} has no image to edit.")
        return prompt.image


class ImgEdit(EditBenchmark):
    """See the module."""

    name = "imgedit"
    title = "ImgEdit-Bench"
    source = "github.com/PKU-YuanGroup/ImgEdit @547185d"
    num_prompts = 737
    results = ("result.json",)
    scorer = (
        "python basic_bench.py --result_img_folder {out} --edit_json basic_edit.json --origin_img_root ORIGINAL_IMAGES "
        "--prompts_json prompts.json"
    )

    def read(self, path: Path) -> list[Prompt]:
        """The JSON file, or the folder in which it and the images lie."""
        file = next((path / name for name in IMGEDIT_FILES if (path / name).is_file()), path) if path.is_dir() else path
        content = read_json_file(file)
        if not isinstance(content, dict) or not content:
            raise ValueError(f"{file} is not {self.title}'s form, an object with an edit for each key.")
        found = []
        for key, one in content.items():
            where = f"{file}, {key}"
            if not isinstance(one, dict):
                raise ValueError(f"{where}: this is not {self.title}'s form, an object with id, prompt and edit_type.")
            image = _image_below(file.parent, need(one, "id", str, where, self.title), where)
            text = checked_prompt(need(one, "prompt", str, where, self.title), where)
            kind = need(one, "edit_type", str, where, self.title)
            found.append(Prompt(checked_name(key, where), text, len(found), {"id": one["id"], "edit_type": kind}, image))
        return found

    def files(self, prompt: Prompt, num_images: int, model_name: str) -> list[str]:
        """One image a key: the scorer takes no more."""
        _refuse_several(self, num_images)
        return [f"{prompt.key}.png"]

    def score(self, paths: list[tuple[str, Path]], prompts: list[Prompt], num_images: int) -> ScoreTable:
        """result.json; kinds are known from the export. The total is the mean over all edits."""
        marks: dict[str, float] = {}
        for _, path in paths:
            content = read_json_file(path)
            if not isinstance(content, dict) or not all(isinstance(one, str | dict) for one in content.values()):
                raise ValueError(f"{path} is not what {self.title}'s scorer writes, an object with a text for each key.")
            for key, text in content.items():
                if key in marks:
                    raise ValueError(f"{path}: {key} is there twice.")
                if (mark := _mark(text)) is not None:
                    marks[key] = mark
        expected = {prompt.key for prompt in prompts} or set(marks)
        missing = count_missing(set(marks), expected, paths) + (0 if prompts else max(self.num_prompts - len(marks), 0))
        kinds: dict[str, list[list[float]]] = {}
        for prompt in prompts:
            if prompt.key in marks:
                kinds.setdefault(prompt.facts["edit_type"], []).append([marks[prompt.key]])
        rows = [Row(kind, *mean_and_error(values)) for kind, values in sorted(kinds.items())]
        total = Row("overall", *mean_and_error([mark] for mark in marks.values())) if marks else None
        return ScoreTable(POINTS, total, rows, missing, len(marks) + missing)


class GEdit(EditBenchmark):
    """See the module."""

    name = "gedit"
    title = "GEdit-Bench"
    source = "github.com/stepfun-ai/Step1X-Edit @570eba6, prompts huggingface.co/datasets/stepfun-ai/GEdit-Bench"
    num_prompts = 1212
    results = ("*/*/eval_results_new/*_combined_gpt_score.csv", "*_combined_gpt_score.csv")
    scorer = (
        "python test_gedit_score.py --model_name {model} --save_path {out} --backbone gpt4o && "
        "python calculate_statistics.py --model_name {model} --save_path {out} --backbone gpt4o"
    )

    def read(self, path: Path) -> list[Prompt]:
        """A Parquet file, or the folder of them."""
        from unimm.data.readers.fields import Fields
        from unimm.data.readers.parquet import Parquet

        reader = Parquet(path, Fields(image=GEDIT_IMAGE, caption="instruction"))
        found, seen = [], set()
        for number, row in enumerate(_text_rows(reader.files, self.title)):
            where = f"{path}, row {number}"
            kind, language = row["task_type"], row["instruction_language"]
            if kind not in GEDIT_KINDS or language not in ("en", "cn"):
                raise ValueError(f"{where}: {self.title} has no edits of '{kind}' in '{language}'.")
            key = f"{kind}/{language}/{checked_name(str(row['key']), where)}"
            refuse_twice(key, seen, where)
            facts = {"intersection_exist": bool(row["Intersection_exist"])}
            text = checked_prompt(str(row["instruction"] or ""), where)
            found.append(Prompt(key, text, len(found), facts, reader[number].image))
        return found

    def files(self, prompt: Prompt, num_images: int, model_name: str) -> list[str]:
        """One image a key: the scorer takes no more."""
        _refuse_several(self, num_images)
        return [f"{model_name}/fullset/{prompt.key}.png"]

    def originals(self, prompt: Prompt, model_name: str) -> dict[str, ImageLike]:
        """The source, which the scorer looks for beside the result."""
        return {f"{model_name}/fullset/{prompt.key}_SRCIMG.png": self._source(prompt)}

    def score(self, paths: list[tuple[str, Path]], prompts: list[Prompt], num_images: int) -> ScoreTable:
        """Semantics, quality, and the root of their product, as means of kinds for each language; the total is English's."""
        found: dict[str, tuple[float, float, bool]] = {}
        for _, path in paths:
            table = csv.DictReader(io.StringIO(read_text(path), newline=""))
            if not {"edited_image", "sementics_score", "quality_score"} <= set(table.fieldnames or ()):
                raise ValueError(f"{path} is not what {self.title}'s scorer writes, a table with edited_image and two scores.")
            for number, row in enumerate(table, 1):
                where = f"{path}, row {number}"
                key = _gedit_key(row, where)
                if key in found:
                    raise ValueError(f"{where}: {key} is there twice.")
                try:
                    values = float(row["sementics_score"]), float(row["quality_score"])
                except (KeyError, TypeError, ValueError):
                    raise ValueError(f"{where}: this is not what {self.title}'s scorer writes.") from None
                found[key] = (*values, str(row.get("intersection_exist")).lower() in ("true", "1"))
        expected = {prompt.key for prompt in prompts} or set(found)
        missing = count_missing(set(found), expected, paths) + (0 if prompts else max(self.num_prompts - len(found), 0))
        rows: list[Row] = []
        for language in ("en", "cn"):
            for part in ("", " intersection"):
                rows += _gedit_rows(found, language, part)
        total = next((row for row in rows if row.label == "en overall"), None)
        return ScoreTable(POINTS, total, rows, missing, len(found) + missing)


def _image_below(folder: Path, name: str, where: str) -> Path:
    """A source image below the prompts' folder. ValueError: it is not there, or leads out of it."""
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(f"{where}: '{name}' leads out of the folder of the images.")
    for root in IMGEDIT_ROOTS:
        if (folder / root / name).is_file():
            return folder / root / name
    raise ValueError(f"{where}: there is no image {folder / name}: put the prompt file beside the benchmark's images.")


def _refuse_several(benchmark: Benchmark, num_images: int) -> None:
    if num_images != 1:
        raise ValueError(f"{benchmark.title} takes one image a prompt, not {num_images}: leave --num-images out.")


def _mark(text: Any) -> float | None:
    """The mean of the marks in a judge's answer, lines that end in ": 4", to two digits as step1_get_avgscore.py has it."""
    found = [int(match) for match in re.findall(r"^\s*[^:\n]+: (\d+)\s*$", text, re.MULTILINE)] if isinstance(text, str) else []
    return round(sum(found) / len(found), 2) if found else None


def _text_rows(files: list[Path], title: str) -> list[dict[str, Any]]:
    """The columns of text of Parquet files, file after file. ValueError: one has other columns."""
    import pyarrow.parquet as parquet

    rows: list[dict[str, Any]] = []
    for file in files:
        try:
            rows += parquet.read_table(file, columns=list(GEDIT_COLUMNS)).to_pylist()
        except (ValueError, KeyError, OSError) as error:
            raise ValueError(f"{file} is not {title}'s form, a table with {', '.join(GEDIT_COLUMNS)} ({error}).") from None
        if rows and set(rows[-1]) != set(GEDIT_COLUMNS):
            raise ValueError(f"{file} is not {title}'s form, a table with {', '.join(GEDIT_COLUMNS)}.")
    return rows


def _gedit_key(row: dict[str, Any], where: str) -> str:
    """kind/language/key, from the path of the edited image."""
    parts = str(row.get("edited_image") or "").replace("\\", "/").split("/")[-3:]
    if len(parts) != 3 or parts[0] not in GEDIT_KINDS:
        raise ValueError(f"{where}: this is not what GEdit-Bench's scorer writes: edited_image names no file of an export.")
    return "/".join((*parts[:2], parts[2].rpartition(".")[0]))


def _gedit_rows(found: dict[str, tuple[float, float, bool]], language: str, part: str) -> list[Row]:
    """The three means of a language, over the kinds that it has; none where it has not all of them."""
    rows: list[Row] = []
    measures: dict[str, Callable[[float, float], float]] = {
        "semantics": lambda semantics, _: semantics,
        "quality": lambda _, quality: quality,
        "overall": lambda semantics, quality: math.sqrt(semantics * quality),
    }
    for name, measure in measures.items():
        kinds: dict[str, list[list[float]]] = {}
        for key, (semantics, quality, is_intersection) in found.items():
            kind, own_language, _ = key.split("/")
            if own_language == language and (is_intersection or not part):
                kinds.setdefault(kind, []).append([measure(semantics, quality)])
        of_kinds = [Row(kind, *mean_and_error(values)) for kind, values in kinds.items()]
        total = weighted_total(f"{language}{part} {name}", of_kinds, dict.fromkeys(GEDIT_KINDS, 1 / len(GEDIT_KINDS)))
        if total is not None:
            rows.append(total)
    return rows
