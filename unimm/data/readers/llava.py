"""Conversations in JSON as a data set: a list (or lines) of entries in any of the forms that tools for fine-tuning write.

    LLaVA            {"image": "coco/7.jpg", "conversations": [{"from": "human", "value": "<image>\\nWhat is it?"}, ...]}
    ShareGPT         {"images": ["1.png", "2.png"], "conversations": [...], "system": "..."}
    OpenAI, ms-swift {"messages": [{"role": "user", "content": "<image><image>Which is older?"}, ...], "images": [...]}
    Alpaca           {"instruction": "...", "input": "...", "output": "...", "history": [["...", "..."]], "images": [...]}
    ms-swift         {"query": "...", "response": "...", "history": [], "images": [...]}
    LLaVA-Video      {"video": "clips/7.mp4", "conversations": [{"from": "human", "value": "<image>\\nWhat happens?"}, ...]}
    ms-swift         {"messages": [{"role": "user", "content": "<video>What happens?"}, ...], "videos": ["7.mp4"]}

A list of names of images under `video` is one clip's frames; any other list is one of several videos.

A conversation becomes questions in their order, which the view `Dialogue` keeps. Entries without an image are conversations in
text. Ids are not unique in LLaVA's own mixture, so a record's key counts entries instead. What an entry holds beside that and
would be lost (sounds, tools, rejected answers) is refused.
Source: haotian-liu/LLaVA, docs/Finetune_Custom_Data.md; modelscope/ms-swift, Custom-dataset.md; hiyouga/LLaMA-Factory,
data/README.md.
"""

from pathlib import Path
from typing import Any

from unimm.data.readers.conversations import ASSISTANT, USER
from unimm.data.readers.fields import Fields, listed_videos
from unimm.data.readers.json_lines import JsonLines
from unimm.data.readers.paths import Paths

TURNS = ("conversations", "messages", "conversation")
IMAGES, VIDEOS = ("image", "images"), ("video", "videos")
ASKED, ANSWERED = ("query", "instruction", "prompt"), ("response", "output")
REFUSED = (
    *("audio", "audios", "tools", "objects"),
    *("rejected", "chosen", "rejected_response", "rejected_messages", "kto_tag", "label"),
)
"""Of what a conversation here cannot hold; an entry in which it is not empty says something else."""


class LlavaJson(JsonLines):
    """Conversations of LLaVA's files, and of others'.

    Args:
        paths: a .json or .jsonl file, a folder, a pattern, or a list of such.
        root: the folder that image paths start from; default: that of the file.
        language: that all of it is in.

    Raises ValueError, at once where there is nothing or the first entry is bad, else when the bad entry is read.
    """

    def __init__(self, paths: Paths, root: str | Path | None = None, language: str = "en") -> None:
        names = {"image": "image", "conversation": "conversations", "system": "system"}
        fields = Fields(**names, default_language=language, optional=("image", "system"))
        super().__init__(paths, fields, root)

    def entry(self, item: dict[str, Any], where: str) -> dict[str, Any]:
        """Turns, images and system of an entry of any form."""
        refused = [name for name in REFUSED if item.get(name)]
        if refused:
            raise ValueError(f"{where} has '{refused[0]}', which is not read: take it out of the entry, or the entry out.")
        videos = _one_of(item, VIDEOS, where)
        if item.get("video") or not isinstance(videos, list):
            videos = listed_videos(videos)
        else:  # under "videos" each entry is a clip of its own
            videos = [{"video": one} for one in videos]
        images = _with_videos(_one_of(item, IMAGES, where), videos)
        turns = _one_of(item, TURNS, where)
        if turns is None and any(item.get(name) for name in ANSWERED):
            turns = _of_fields(item, where)
        if turns is None:  # empty, or not there
            turns = next((item[name] for name in TURNS if name in item), None)
        found = {"image": images, "conversations": turns, "system": item.get("system") or None}
        return {name: value for name, value in found.items() if value is not None} or item


def _with_videos(images: Any, videos: list[dict[str, Any]]) -> Any:
    """Images, and behind them videos as `image_at` knows them."""
    if not videos:
        return images
    pictures = [] if images is None else images if isinstance(images, list) else [images]
    return [*pictures, *videos]


def _one_of(item: dict[str, Any], names: tuple[str, ...], where: str) -> Any:
    """What an entry holds under one of several names."""
    held = [name for name in names if item.get(name)]
    if len(held) > 1:
        raise ValueError(f"{where} has both '{held[0]}' and '{held[1]}': leave one of them out.")
    return item[held[0]] if held else None


def _of_fields(item: dict[str, Any], where: str) -> list[dict[str, Any]]:
    """Turns of a question and its answer in fields of their own, and of those before."""
    asked, answer = _one_of(item, ASKED, where), _one_of(item, ANSWERED, where)
    if item.get("input"):
        asked = f"{asked}\n{item['input']}" if asked else item["input"]
    pairs = [*(item.get("history") or []), [asked, answer]]
    if not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
        raise ValueError(f"{where}: the history is a list of pairs, [question, answer].")
    return [{"role": role, "content": text} for pair in pairs for role, text in zip((USER, ASSISTANT), pair, strict=True)]
