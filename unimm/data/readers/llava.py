"""LLaVA's JSON as a data set: a list (or lines) of entries with `image`, where there is one, and `conversations`.

    {"id": "7", "image": "coco/7.jpg", "conversations": [{"from": "human", "value": "<image>\\nWhat is it?"}, ...]}

A conversation becomes questions in their order, which the view `Dialogue` keeps. Entries without an image are conversations in
text. Ids are not unique in LLaVA's own mixture, so a record's key counts entries instead.
Source: haotian-liu/LLaVA, docs/Finetune_Custom_Data.md.
"""

from pathlib import Path

from unimm.data.readers.fields import Fields
from unimm.data.readers.json_lines import JsonLines
from unimm.data.readers.paths import Paths


class LlavaJson(JsonLines):
    """Conversations of LLaVA's files.

    Args:
        paths: a .json or .jsonl file, a folder, a pattern, or a list of such.
        root: the folder that image paths start from; default: that of the file.
        language: that all of it is in.

    Raises ValueError, at once where there is nothing or the first entry is bad, else when the bad entry is read.
    """

    def __init__(self, paths: Paths, root: str | Path | None = None, language: str = "en") -> None:
        fields = Fields(image="image", conversation="conversations", default_language=language, optional=("image",))
        super().__init__(paths, fields, root)
