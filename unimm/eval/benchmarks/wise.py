"""WISE (arXiv 2503.07265): 1,000 prompts that need knowledge of the world, one image each, judged by a language model.

    prompts     data_verified/*.json (since 2026-04-19 the default) or WISE_legacy/data/*.json:
                [{"Prompt", "Explanation", "Category", "Subcategory", "prompt_id"}]
    images      1.png ... 1000.png
    results     *_scores_results.jsonl of vllm_eval.py (score: 0 or 1) or gpt_eval.py (consistency, realism, aesthetic_quality)

Categories go by the prompt's number. The total weighs them as calculate_verified.py and Calculate.py do.
"""

from pathlib import Path
from typing import NamedTuple

from unimm.eval.benchmarks.benchmark import (
    Benchmark,
    Prompt,
    Row,
    ScoreTable,
    checked_prompt,
    count_missing,
    mean_and_error,
    need,
    read_json_file,
    read_json_lines,
    refuse_twice,
    weighted_total,
)

LEFT_OUT = ("merge.json", "_rewrite.json")
"""Ends of names of files in the benchmark's folders that repeat the others' prompts."""


class _Edition(NamedTuple):
    """last: the last number of each category, in their order, and its weight in the total."""

    last: dict[str, tuple[int, float]]
    judge: str


VERIFIED = _Edition(
    {
        "CULTURE": (400, 0.4),
        "TIME": (520, 0.12),
        "SPACE": (640, 0.12),
        "BIOLOGY": (760, 0.12),
        "PHYSICS": (880, 0.12),
        "CHEMISTRY": (1000, 0.12),
    },
    "WISE_Verified: 0 or 1, meant for Qwen3.5-35B-A3B",
)
LEGACY = _Edition(
    {
        "CULTURE": (400, 0.4),
        "TIME": (567, 0.167),
        "SPACE": (700, 0.133),
        "BIOLOGY": (800, 0.1),
        "PHYSICS": (900, 0.1),
        "CHEMISTRY": (1000, 0.1),
    },
    "WISE of 2025: (0.7 consistency + 0.2 realism + 0.1 aesthetic quality) / 2, meant for GPT-4o-2024-05-13",
)


class WISE(Benchmark):
    """See the module."""

    name = "wise"
    title = "WISE"
    source = "github.com/PKU-YuanGroup/WISE @eb51174"
    num_prompts = 1000
    num_images = 1
    results = ("*_scores_results.jsonl", "Results*/*_scores_results.jsonl")
    scorer = "IMAGE_DIR={out} bash eval_qwen.sh"

    def read(self, path: Path) -> list[Prompt]:
        """A file, or a folder with the files of all categories."""
        paths = [path]
        if path.is_dir():
            paths = [file for file in sorted(path.glob("*.json")) if not file.name.endswith(LEFT_OUT)]
        found, seen = [], set()
        for file in paths:
            content = read_json_file(file)
            if not isinstance(content, list):
                raise ValueError(f"{file}: this is not {self.title}'s form, a list of prompts.")
            for number, one in enumerate(content):
                where = f"{file}, entry {number}"
                if not isinstance(one, dict):
                    raise ValueError(f"{where}: this is not {self.title}'s form, a list of prompts.")
                key = str(need(one, "prompt_id", int, where, self.title))
                refuse_twice(key, seen, where)
                text = checked_prompt(need(one, "Prompt", str, where, self.title), where)
                found.append(Prompt(key, text, len(found), {name: one.get(name) for name in ("Category", "Subcategory")}))
        if not found:
            raise ValueError(f"{path} is not {self.title}'s form: there are no prompts in it.")
        return found

    def files(self, prompt: Prompt, num_images: int, model_name: str) -> list[str]:
        """One image a prompt: the scorer takes no more."""
        if num_images != 1:
            raise ValueError(f"{self.title} takes one image a prompt, not {num_images}: leave --num-images out.")
        return [f"{prompt.key}.png"]

    def score(self, paths: list[tuple[str, Path]], prompts: list[Prompt], num_images: int) -> ScoreTable:
        """The lines of vllm_eval.py or gpt_eval.py."""
        scores: dict[int, float] = {}
        editions = set()
        for path in (path for _, path in paths):
            for number, content in read_json_lines(path):
                where = f"{path}, line {number}"
                key = need(content, "prompt_id", int, where, self.title)
                if key in scores:
                    raise ValueError(f"{where}: prompt {key} is there twice.")
                is_verified = "score" in content
                editions.add(is_verified)
                scores[key] = self._score(content, is_verified, where)
        if len(editions) > 1:
            raise ValueError(f"{self.title}'s results are of two editions, with 'score' and with 'consistency': give one's.")
        edition = VERIFIED if True in editions else LEGACY
        rows, first = [], 1
        for name, (last, _) in edition.last.items():
            mine = [[scores[key]] for key in range(first, last + 1) if key in scores]
            if mine:
                rows.append(Row(name, *mean_and_error(mine)))
            first = last + 1
        expected = {prompt.key for prompt in prompts} or {str(number) for number in range(1, self.num_prompts + 1)}
        missing = count_missing({*map(str, scores)}, expected, paths)
        total = weighted_total("overall", rows, {name: weight for name, (_, weight) in edition.last.items()})
        return ScoreTable(
            "share", total, rows, missing, len(expected), edition.judge, "_verified" if edition is VERIFIED else ""
        )

    def _score(self, content: dict, is_verified: bool, where: str) -> float:
        if is_verified:
            score = need(content, "score", (int, float), where, self.title)
            if score not in (0, 1):
                raise ValueError(f"{where}: a score of {self.title} is 0 or 1, not {score}.")
            return float(score)
        names = ("consistency", "realism", "aesthetic_quality")
        values = [need(content, name, (int, float), where, self.title) for name in names]
        return sum(weight * value for weight, value in zip((0.7, 0.2, 0.1), values, strict=True)) / 2
