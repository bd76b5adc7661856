"""JSON lines as a data set: one object a line, with names for its fields and images as paths below a folder.

{"image": "cats/1.jpg", "caption": "A cat.", "question": "Which animal?", "answer": "a cat"}
"""

from pathlib import Path

from unimm.data.readers.fields import Fields
from unimm.data.readers.json_items import JsonFiles
from unimm.data.readers.paths import Paths, image_at
from unimm.data.records import Record


class JsonLines:
    """The entries of .jsonl files (of .json files, too, that hold one list), file after file.

    Args:
        paths: a file, a folder, a pattern, or a list of such.
        fields: which field is what.
        root: the folder that image paths start from; default: that of the file.

    Raises ValueError, at once where there is nothing or the first entry lacks a field, else when the bad entry is read.
    """

    def __init__(self, paths: Paths, fields: Fields, root: str | Path | None = None) -> None:
        self.files = JsonFiles(paths)
        self.fields = fields
        self.root = None if root is None else Path(root)
        _ = self[0]  # a wrong name or root is told now, not after the model is loaded

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Record:
        items, number, key = self.files.find(index)
        root = items.path.parent if self.root is None else self.root
        item, where = items[number], f"record {key}"
        try:
            return self.fields.record(item, key, where, lambda name: image_at(root, name, where))
        except ValueError as error:
            raise ValueError(f"{items.where(number)}: {error}") from None  # the line is counted only now: that takes a while
