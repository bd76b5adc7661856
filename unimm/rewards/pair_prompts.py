"""What pairs are made of: prompts to draw, or images to describe, from the built-in world or from files.

shapes      drawing prompts of the shapes world, in the words of its benchmark and of other seeds; the checker judges them
captions    images of the shapes world to describe
FILE        a prompt a line (.txt), or JSON lines: {"prompt": ...} to draw, {"image": ..., "prompt": ...} to describe
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unimm.data.readers.prompt_files import PromptFiles
from unimm.data.records import ImageLike, Record
from unimm.data.views import DESCRIBE
from unimm.data.worlds.drawing import CATEGORIES, make_drawing_task
from unimm.data.worlds.shapes import ShapesWorld
from unimm.rewards.near_misses import asks_for_held_out

SHAPES, CAPTIONS = "shapes", "captions"
WORLDS = (SHAPES, CAPTIONS)

APART = 1_000_003
"""How far the seeds of the world's prompts lie from those of its benchmark."""


@dataclass(frozen=True)
class PairPrompt:
    """One prompt. image: what is described; None: it is drawn. facts: what a judge of the world needs to know."""

    key: str
    prompt: str
    language: str = "en"
    image: ImageLike | None = None
    facts: Any = None


def read_prompts(source: str, num: int | None, seed: int = 0, language: str = "en") -> list[PairPrompt]:
    """The first `num` prompts of a world, or of a file (None: all of it).

    Raises:
        ValueError: there is no such file, it holds nothing, or drawings and images are mixed in it.
    """
    if source == SHAPES:
        return [_drawing(index, seed) for index in range(num or 1000)]
    if source == CAPTIONS:
        return _described(num or 1000, seed)
    if not Path(source).is_file():
        raise ValueError(f"There are no prompts at {source}: name {', '.join(WORLDS)}, or a .txt or .jsonl file.")
    files = PromptFiles(source, language)
    prompts = [_of_record(files[index]) for index in range(len(files))]
    prompts = [one for one in prompts if not (one.image is None and asks_for_held_out(one.prompt))][:num]
    if not prompts:
        raise ValueError(f"{source} holds no prompts: write one a line.")
    if len({one.image is None for one in prompts}) > 1:
        raise ValueError(f"{source} holds prompts to draw and images to describe: give each a file of its own.")
    return prompts


def _of_record(record: Record) -> PairPrompt:
    said = record.prompts[0] if record.prompts else record.questions[0]
    return PairPrompt(record.key, said.text, said.language, record.image)


def _drawing(index: int, seed: int) -> PairPrompt:
    task = make_drawing_task(CATEGORIES[index % len(CATEGORIES)], index, APART + seed)
    return PairPrompt(f"shapes/prefer/{seed}/{index}", task.prompt.text, task.prompt.language, facts=task.requirement)


def _described(num: int, seed: int) -> list[PairPrompt]:
    world = ShapesWorld("train", num, APART + seed)
    languages = ("en", "zh")
    return [
        PairPrompt(record.key, DESCRIBE[said][0], said, record.image, record.facts)
        for index in range(num)
        for record, said in [(world[index], languages[index % 2])]
    ]
