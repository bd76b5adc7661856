"""A folder of pairs in the making: a part after another, which a kill cannot take back.

    preferences.jsonl      a pair a line, for `data=preferences` (`PreferenceJson`)
    pictures/              what it names
    judged.jsonl           every prompt, with the scores of all that was made of it, and why there is no pair
    settings.json          how it was made
    best_and_worst.png     the first pairs: the chosen one with a green frame, the rejected one with a red one

Until all is there it lies in `.NAME.unfinished` beside it (`ResumableFolder`): the same command goes on there. What is drawn
depends on the seed and the number of the prompt, not on where a run was stopped; in float32 to the bit.
"""

import json
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from unimm.data.image import decode_image
from unimm.eval.report.pictures import Tile, draw_grid
from unimm.rewards.pair_prompts import PairPrompt
from unimm.rewards.pairs import Judged, PairMaker, entries, pictures
from unimm.runtime.atomic_files import write_json
from unimm.runtime.resumable_folder import ResumableFolder

PREFERENCES, JUDGED, SETTINGS = "preferences.jsonl", "judged.jsonl", "settings.json"
PROMPTS_A_PART = 8
SHOWN = 16
"""So many pairs are shown in best_and_worst.png."""

Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]


def make_pairs(
    prompts: list[PairPrompt], maker: PairMaker, out: Path, told: dict[str, Any], image_tokenizer: str, progress: Progress
) -> dict[str, int]:
    """Make the folder `out`, or go on with it.

    Args:
        told: how it is made, JSON-able: the model, the judge, the prompts; a folder that was begun otherwise is refused.
        image_tokenizer: the fingerprint of the one that the codes are of.
        progress: called with a title and a number of prompts.

    Returns:
        How many prompts, pairs and lines there are, and for what reason how many prompts have no pair.

    Raises:
        ValueError: something else lies there, or it was begun in another way.
    """
    content = {**told, **asdict(maker.settings), "num_prompts": len(prompts)}
    folder = ResumableFolder(out, PREFERENCES, "pairs", content, lambda number: f"{number:05}.json")
    folder.begin()
    (folder.whole / "pictures").mkdir(exist_ok=True)
    numbers = range(-(-len(prompts) // PROMPTS_A_PART))
    missing = folder.missing(numbers)
    with progress("pairs", len(prompts)) as advance:
        advance(PROMPTS_A_PART * (len(numbers) - len(missing)))
        for number in missing:
            first = number * PROMPTS_A_PART
            some = prompts[first : first + PROMPTS_A_PART]
            _save(folder, number, maker(some, first), first, image_tokenizer, maker.settings.both_directions)
            advance(len(some))
    parts = [json.loads(folder.path(number).read_text(encoding="utf-8")) for number in numbers]
    counts = _gather(folder, parts, content)
    for number in numbers:
        folder.path(number).unlink()
    folder.finish()
    return counts


def _save(folder: ResumableFolder, number: int, judged: list[Judged], first: int, image_tokenizer: str, both: bool) -> None:
    """Pictures, and then the part that names them."""
    lines: list[dict[str, Any]] = []
    told: list[dict[str, Any]] = []
    for place, one in enumerate(judged):
        name = f"{first + place:06}"
        shown = pictures(one, name)
        if one.pairs and one.prompt.image is not None:
            shown[f"{name}.png"] = decode_image(one.prompt.image)
        for file, picture in shown.items():
            picture.save(folder.whole / "pictures" / file)
        lines += entries(one, name, image_tokenizer, both)
        told.append(_told(one))
    text = json.dumps({"pairs": lines, "judged": told}, ensure_ascii=False)
    folder.save(number, lambda path: path.write_text(text, encoding="utf-8"))


def _told(judged: Judged) -> dict[str, Any]:
    """A prompt and all that was made of it, without pictures."""
    made = [
        {
            "score": one.score,
            **({"answer": one.answer} if one.codes is None else {}),
            **({"near_miss": one.of} if one.of else {}),
        }
        for one in judged.candidates
    ]
    own = [one.codes for one in judged.candidates if one.codes is not None and one.of is None]
    distinct = {"num_distinct": len({tuple(one) for one in own})} if own else {}
    about = {"key": judged.prompt.key, "prompt": judged.prompt.prompt, "language": judged.prompt.language}
    return {**about, "pairs": [list(one) for one in judged.pairs], "reason": judged.reason, **distinct, "made": made}


def _gather(folder: ResumableFolder, parts: list[dict[str, Any]], content: dict[str, Any]) -> dict[str, int]:
    """Write what users read, out of the parts."""
    lines = [line for part in parts for line in part["pairs"]]
    judged = [one for part in parts for one in part["judged"]]
    if not lines:
        reasons = ", ".join(f"{count} times {reason}" for reason, count in Counter(one["reason"] for one in judged).items())
        raise ValueError(f"Of {len(judged)} prompts there is no pair ({reasons}): sample more or hotter, or lower --margin.")
    for name, some in ((PREFERENCES, lines), (JUDGED, judged)):
        text = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in some)
        folder.put(name, lambda path, text=text: path.write_text(text, encoding="utf-8"))
    folder.put(SETTINGS, lambda path: write_json(path, content))
    drawn = [line for line in lines if "chosen_image" in line][:SHOWN]
    if drawn:
        tiles = [tile for line in drawn for tile in _both(line, folder.whole)]
        folder.put("best_and_worst.png", lambda path: draw_grid(tiles, 8).save(path, format="PNG"))
    reasons = Counter(one["reason"] for one in judged if one["reason"])
    return {"prompts": len(judged), "pairs": sum(len(one["pairs"]) for one in judged), "lines": len(lines), **reasons}


def _both(line: dict[str, Any], folder: Path) -> list[Tile]:
    tiles = []
    for half, is_chosen in (("chosen", True), ("rejected", False)):
        with Image.open(folder / line[f"{half}_image"]) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        tiles.append(
            Tile(pixels, f"{line[f'{half}_score']:.2f} {line['prompt'] if is_chosen else line.get('near_miss', '')}", is_chosen)
        )
    return tiles
