"""GenEval 2 (arXiv 2512.16853; CC BY-NC 4.0): 800 prompts, one image each, questions about every part answered by Qwen3-VL-8B.

    prompts     geneval2_data.jsonl, a line {"prompt", "atom_count", "vqa_list", "skills"} each
    images      images/00000.png ..., and images.json, {prompt: path}, which evaluation.py takes
    results     the lists of evaluation.py --output_file, one a prompt in the order of the file: a score a question

Per prompt, Soft-TIFA GM is the geometric mean of its scores and AM the arithmetic one; totals are means over prompts.
"""

import json
import math
from pathlib import Path

from unimm.eval.benchmarks.benchmark import (
    Benchmark,
    Prompt,
    Row,
    ScoreTable,
    checked_prompt,
    mean_and_error,
    need,
    read_json_file,
    read_json_lines,
    refuse_twice,
)


class GenEval2(Benchmark):
    """See the module."""

    name = "geneval2"
    title = "GenEval 2"
    source = "github.com/facebookresearch/GenEval2 @a6e82d2"
    num_prompts = 800
    num_images = 1
    results = ("score_lists.json",)
    scorer = (
        "python evaluation.py --benchmark_data geneval2_data.jsonl --image_filepath_data {out}/images.json "
        "--method soft_tifa_gm --output_file {out}/score_lists.json"
    )

    def read(self, path: Path) -> list[Prompt]:
        """geneval2_data.jsonl; the scorer finds images by their prompts, so each may be there once."""
        found, seen = [], set()
        for number, content in read_json_lines(path):
            where = f"{path}, line {number}"
            text = checked_prompt(need(content, "prompt", str, where, self.title), where)
            refuse_twice(text, seen, where)
            questions = need(content, "vqa_list", list, where, self.title)
            facts = {
                "asked": content["prompt"],
                "skills": need(content, "skills", list, where, self.title),
                "atom_count": need(content, "atom_count", int, where, self.title),
            }
            if len(questions) != len(facts["skills"]):
                raise ValueError(f"{where}: {len(questions)} questions and {len(facts['skills'])} skills do not fit.")
            found.append(Prompt(f"{len(found):05}", text, len(found), facts))
        return found

    def files(self, prompt: Prompt, num_images: int, model_name: str) -> list[str]:
        """One image a prompt: the scorer takes no more."""
        if num_images != 1:
            raise ValueError(f"{self.title} takes one image a prompt, not {num_images}: leave --num-images out.")
        return [f"images/{prompt.key}.png"]

    def finish(self, prompts: list[Prompt], out: Path, num_images: int, model_name: str) -> dict[str, str]:
        """images.json."""
        paths = {prompt.facts["asked"]: str(out / file) for prompt in prompts for file in self.files(prompt, 1, model_name)}
        return {"images.json": json.dumps(paths, indent=2, ensure_ascii=False) + "\n"}

    def score(self, paths: list[tuple[str, Path]], prompts: list[Prompt], num_images: int) -> ScoreTable:
        """The lists of evaluation.py."""
        if len(paths) != 1:
            raise ValueError(f"{self.title} has one file of scores, not {len(paths)}.")
        path = paths[0][1]
        lists = _score_lists(path)
        expected = len(prompts) or self.num_prompts
        if len(lists) > expected:
            raise ValueError(f"{path} has scores of {len(lists)} prompts, there are {expected}: it is another prompt file's.")
        rows = [
            Row("Soft-TIFA GM", *_points([[_geometric_mean(scores)] for scores in lists])),
            Row("Soft-TIFA AM", *_points([[sum(scores) / len(scores)] for scores in lists])),
        ]
        by_skill: dict[str, list[list[float]]] = {}
        by_atoms: dict[int, list[list[float]]] = {}
        for prompt, scores in zip(prompts, lists, strict=False):
            if len(scores) != len(prompt.facts["skills"]):
                raise ValueError(f"{path}: prompt {prompt.number} has {len(scores)} scores, and it has other questions.")
            for skill in sorted({*prompt.facts["skills"]}):
                mine = [score for score, its in zip(scores, prompt.facts["skills"], strict=True) if its == skill]
                by_skill.setdefault(skill, []).append(mine)
            by_atoms.setdefault(prompt.facts["atom_count"], []).append([_geometric_mean(scores)])
        rows += [Row(f"{skill} (AM)", *_points(groups)) for skill, groups in sorted(by_skill.items())]
        rows += [Row(f"{count} atoms (GM)", *_points(groups)) for count, groups in sorted(by_atoms.items())]
        return ScoreTable("percent", rows[0], rows[1:], expected - len(lists), expected, "Qwen3-VL-8B-Instruct")


def _score_lists(path: Path) -> list[list[float]]:
    lists = read_json_file(path)
    is_form = isinstance(lists, list) and all(isinstance(scores, list) and scores for scores in lists) and lists
    if not is_form or not all(isinstance(score, int | float) for scores in lists for score in scores):
        raise ValueError(f"{path} is not what evaluation.py of GenEval 2 writes: a list of lists of scores.")
    return lists


def _geometric_mean(scores: list[float]) -> float:
    return math.exp(math.fsum(map(math.log, scores)) / len(scores)) if all(score > 0 for score in scores) else 0.0


def _points(groups: list[list[float]]) -> tuple[float, float | None, int]:
    mean, error, count = mean_and_error(groups)
    return 100 * mean, None if error is None else 100 * error, count
