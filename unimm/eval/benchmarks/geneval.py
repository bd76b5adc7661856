"""GenEval (arXiv 2310.11513): 553 prompts of six kinds, four images each, judged by a detector of objects.

    prompts     evaluation_metadata.jsonl, a line {"tag", "prompt", "include", ...} each
    images      00000/metadata.jsonl (that line), 00000/samples/0000.png ... 0003.png
    results     results.jsonl of evaluate_images.py, a line an image: filename, tag, correct, metadata

The total is the mean of the six kinds' shares of right images, as summary_scores.py has it.
"""

import json
from pathlib import Path

from unimm.eval.benchmarks.benchmark import (
    Benchmark,
    Prompt,
    Row,
    ScoreTable,
    checked_prompt,
    count_missing,
    mean_and_error,
    need,
    read_json_lines,
    refuse_twice,
    weighted_total,
)

TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")


class GenEval(Benchmark):
    """See the module."""

    name = "geneval"
    title = "GenEval"
    source = "github.com/djghosh13/geneval @af4902f"
    num_prompts = 553
    num_images = 4
    results = ("results.jsonl",)
    scorer = "python evaluation/evaluate_images.py {out} --outfile {out}/results.jsonl --model-path DETECTOR"

    def read(self, path: Path) -> list[Prompt]:
        """prompts/evaluation_metadata.jsonl."""
        found = []
        for number, content in read_json_lines(path):
            where = f"{path}, line {number}"
            text = checked_prompt(need(content, "prompt", str, where, self.title), where)
            need(content, "tag", str, where, self.title)
            need(content, "include", list, where, self.title)
            found.append(Prompt(f"{len(found):05}", text, len(found), content))
        return found

    def files(self, prompt: Prompt, num_images: int, model_name: str) -> list[str]:
        """A folder a prompt."""
        return [f"{prompt.key}/samples/{sample:04}.png" for sample in range(num_images)]

    def beside(self, prompt: Prompt) -> dict[str, str]:
        """The prompt's line; the scorer reads it as one JSON object."""
        return {f"{prompt.key}/metadata.jsonl": json.dumps(prompt.facts) + "\n"}

    def score(self, paths: list[tuple[str, Path]], prompts: list[Prompt], num_images: int) -> ScoreTable:
        """results.jsonl."""
        by_tag: dict[str, dict[str, list[float]]] = {}
        seen: set[str] = set()
        for path in (path for _, path in paths):
            for number, content in read_json_lines(path):
                where = f"{path}, line {number}"
                refuse_twice("/".join(Path(need(content, "filename", str, where, self.title)).parts[-3:]), seen, where)
                correct = need(content, "correct", bool, where, self.title)
                groups = by_tag.setdefault(need(content, "tag", str, where, self.title), {})
                groups.setdefault(need(content, "metadata", str, where, self.title), []).append(float(correct))
        rows = [Row(tag, *mean_and_error(by_tag[tag].values())) for tag in sorted(by_tag, key=_order)]
        tags = {prompt.facts["tag"] for prompt in prompts} or {*TAGS}
        total = weighted_total("overall", rows, dict.fromkeys(sorted(tags), 1 / len(tags)))
        expected = (len(prompts) or self.num_prompts) * num_images
        missing = max(expected - len(seen), 0)
        if prompts:
            missing = count_missing(seen, {file for prompt in prompts for file in self.files(prompt, num_images, "")}, paths)
        return ScoreTable("share", total, rows, missing, expected, "Mask2Former and CLIP")


def _order(tag: str) -> tuple[int, str]:
    return (TAGS.index(tag) if tag in TAGS else len(TAGS), tag)
