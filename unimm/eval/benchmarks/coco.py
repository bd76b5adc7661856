"""MS-COCO 30K: zero-shot FID and CLIPScore, one image each for 30,000 captions of the validation images of 2014.

    prompts     captions_val2014.json ({"images", "annotations": [{"id", "image_id", "caption"}]}); of each image the first
                caption, of these 30,000 chosen by a hash of their numbers; or a text file with a caption a line
    images      images/<image_id, 12 digits>.png
    captions    captions.jsonl, a line {"file", "caption"} each, which `unimm score` reads

Papers choose other captions, resize otherwise and use other reference images: figures compare only where these are the same.
"""

import json
from pathlib import Path

from unimm.eval.benchmarks.benchmark import (
    Benchmark,
    Prompt,
    ScoreTable,
    checked_prompt,
    read_json_file,
    read_text,
)


class Coco(Benchmark):
    """See the module."""

    name = "coco"
    title = "COCO-30K"
    source = "captions_val2014.json of annotations_trainval2014.zip, cocodataset.org"
    num_prompts = num_chosen = 30_000
    num_images = 1
    results = ()
    scorer = "unimm score {out}/images --reference val2014 --captions {out}/captions.jsonl --size 256"

    def read(self, path: Path) -> list[Prompt]:
        """captions_val2014.json, or captions a line."""
        if path.suffix == ".txt":
            lines = [line for line in read_text(path).splitlines() if line.strip()]
            found = [Prompt(f"{number:012}", line.strip(), number) for number, line in enumerate(lines)]
        else:
            content = read_json_file(path)
            annotations = content.get("annotations") if isinstance(content, dict) else None
            try:
                by_id = sorted((int(one["id"]), int(one["image_id"]), one["caption"]) for one in annotations or [])
            except (TypeError, KeyError, ValueError):
                by_id = []
            first: dict[int, str] = {}
            for number, image_id, caption in by_id:
                first.setdefault(image_id, checked_prompt(str(caption), f"{path}, annotation {number}"))
            found = [Prompt(f"{key:012}", first[key], number) for number, key in enumerate(sorted(first))]
        if not found:
            raise ValueError(f"{path} is not {self.title}'s form: COCO's captions as JSON, or a .txt with a caption a line.")
        return found

    def files(self, prompt: Prompt, num_images: int, model_name: str) -> list[str]:
        """One image a caption, named as COCO's, or numbered."""
        if num_images == 1:
            return [f"images/{prompt.key}.png"]
        return [f"images/{prompt.key}_{sample}.png" for sample in range(num_images)]

    def finish(self, prompts: list[Prompt], out: Path, num_images: int, model_name: str) -> dict[str, str]:
        """captions.jsonl."""
        lines = [
            json.dumps({"file": file.removeprefix("images/"), "caption": prompt.text}, ensure_ascii=False)
            for prompt in prompts
            for file in self.files(prompt, num_images, model_name)
        ]
        return {"captions.jsonl": "".join(f"{line}\n" for line in lines)}

    def score(self, paths: list[tuple[str, Path]], prompts: list[Prompt], num_images: int) -> ScoreTable:
        """There is nothing to read: `unimm score` computes FID and CLIPScore."""
        raise ValueError(f"{self.title} has no scorer of its own: {self.scorer}.")
