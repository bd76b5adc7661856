"""Instructions with pictures before and after, as public data sets keep them.

    InstructPix2Pix   tables of the hub: original_image, edit_prompt, edited_image; or input_image
    InstructPix2Pix   its own folders: seeds.json, [["0000123", ["7", "8"]], ...]; 0000123/prompt.json, {"edit": "...", ...};
                      0000123/7_0.jpg before and 7_1.jpg after
    MagicBrush        tables: source_img, mask_img, instruction, target_img; a row a turn (sessions: `readers.magic_brush`)
    ImgEdit           tables: input_images, output_images (lists of paths), prompt; images from its .tar files, unpacked
    ImgEdit, several turns   {"data": [{"input_images": [...], "output_images": [...], "prompt": "..."}, ...]}, as JSON lines

A record's first image is the source, and `Record.edits` says which image becomes which. Masks are not needed to learn from.
Sources: timothybrooks/instruct-pix2pix, edit_dataset.py; osunlp/MagicBrush; PKU-YuanGroup/ImgEdit, README.md.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from unimm.data.readers.fields import Fields, missing
from unimm.data.readers.json_lines import JsonLines
from unimm.data.readers.parquet import Parquet
from unimm.data.readers.paths import Paths, check_index, image_at, locate, read_first, short
from unimm.data.records import ImageEdit, ImageLike, Record, RecordImage, Text


class EditTable:
    """The rows of .parquet and .arrow files, each an edit.

    Args:
        paths: a file, a folder, a pattern, or a list of such; or a data set of the hub, hf://datasets/USER/NAME/SPLIT.
        source, target: the columns of the images before and after: bytes, paths, or lists of one of these.
        instruction: the column of what is to be changed.
        root: the folder that image paths start from; default: that of the file.
        language: of the instructions.
        max_bad: the share of files that may be damaged or lack a column.

    Raises ValueError, at once where there is nothing or a column is not there, else when the bad row is read.
    """

    def __init__(
        self,
        paths: Paths,
        source: str = "original_image",
        target: str = "edited_image",
        instruction: str = "edit_prompt",
        root: str | Path | None = None,
        language: str = "en",
        max_bad: float = 0.0,
    ) -> None:
        asked = Fields(image=source, caption=instruction, default_language=language)
        self._sources = Parquet(paths, asked, root, max_bad=max_bad)
        self._targets = Parquet([*self._sources.files], Fields(image=target), root, max_bad=max_bad)
        if self._targets.files != self._sources.files:  # one lacks the target alone: rows must stay side by side
            self._sources = Parquet([*self._targets.files], asked, root)
        read_first(self)

    def __len__(self) -> int:
        return len(self._sources)

    def __getitem__(self, index: int) -> Record:
        before, after = self._sources[index], self._targets[index]
        for what, record in (("source", before), ("target", after)):
            if record.num_images != 1:
                raise ValueError(
                    f"record {record.key} has {record.num_images} {what} images: an edit is of one, leave the row out."
                )
        assert before.image is not None and after.image is not None
        edit = ImageEdit(before.captions)
        return Record(before.key, before.image, others=(RecordImage(after.image),), edits=(edit,))

    def key_at(self, index: int) -> str:
        """The key of a record, also of one that cannot be read."""
        return self._sources.key_at(index)


class EditLines(JsonLines):
    """The entries of .jsonl and .json files: an edit each, or in "data" a list of edits that follow one another.

    Args:
        paths: a file, a folder, a pattern, or a list of such.
        source, target: the fields of the images before and after: a path, or a list of one.
        instruction: the field of what is to be changed.
        root: the folder that image paths start from; default: that of the file.
        language: of the instructions.

    Raises ValueError, at once where there is nothing or the first entry is bad, else when the bad entry is read.
    """

    def __init__(
        self,
        paths: Paths,
        source: str = "input_images",
        target: str = "output_images",
        instruction: str = "prompt",
        root: str | Path | None = None,
        language: str = "en",
    ) -> None:
        self.names = (source, target, instruction)
        super().__init__(paths, Fields(image=source, caption=instruction, default_language=language), root)

    def __getitem__(self, index: int) -> Record:
        items, number, key = self.files.find(index)
        root, where = items.path.parent if self.root is None else self.root, f"record {key}"
        item, numbers = items[number], dict[str, int]()
        try:
            edits = [self._edit(turn, numbers, where) for turn in _turns(item, where)]
            first, *others = (image_at(root, name, where) for name in numbers)
        except ValueError as error:
            raise ValueError(f"{items.where(number)}: {error}") from None  # the line is counted only now: that takes a while
        return Record(key, first, others=tuple(RecordImage(one) for one in others), edits=tuple(edits))

    def _edit(self, turn: dict[str, Any], numbers: dict[str, int], where: str) -> ImageEdit:
        """An edit of images by their numbers, which those get that are new."""
        for name in self.names:
            if turn.get(name) is None:
                raise missing(name, list(turn), where)
        before, after = (_one_name(turn[name], name, where) for name in self.names[:2])
        text = turn[self.names[2]]
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{where}: the field '{self.names[2]}' holds {short(text)}, which is no instruction.")
        first, then = (numbers.setdefault(name, len(numbers)) for name in (before, after))
        return ImageEdit((Text(text.strip(), self.fields.default_language),), first, then)


class InstructPix2PixFolder:
    """InstructPix2Pix's own folders: a record for each pair of pictures.

    Args:
        folder: where seeds.json lies.
        language: of the instructions.

    Raises ValueError, at once where seeds.json is not as it should be, else when a bad pair is read.
    """

    def __init__(self, folder: str | Path, language: str = "en") -> None:
        self.folder, self.language = Path(folder), language
        seeds_file = self.folder / "seeds.json"
        try:
            listed = json.loads(seeds_file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"{seeds_file} cannot be read ({error}): name a folder of InstructPix2Pix.") from None
        if not isinstance(listed, list) or not listed or not all(map(_is_listed, listed)):
            raise ValueError(f"{seeds_file} is no list of [folder, [seeds]]: name a folder of InstructPix2Pix.")
        self._names = [(str(name), [str(seed) for seed in seeds]) for name, seeds in listed]
        self._ends = np.cumsum([len(seeds) for _, seeds in self._names])
        read_first(self)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Record:
        key = self.key_at(index)
        name, seed = key.rsplit("/", 1)
        where, told = f"record {key}", self.folder / name / "prompt.json"
        try:
            text = json.loads(told.read_text(encoding="utf-8")).get("edit")
        except (OSError, ValueError, AttributeError) as error:
            raise ValueError(f"{where}: {told} cannot be read ({error}): copy or download it again.") from None
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{where}: {told} says nothing under 'edit': take the folder out of seeds.json.")
        before, after = (self._image(name, f"{seed}_{number}.jpg", where) for number in range(2))
        edit = ImageEdit((Text(text.strip(), self.language),))
        return Record(key, before, others=(RecordImage(after),), edits=(edit,))

    def key_at(self, index: int) -> str:
        """The key of a record, also of one that cannot be read."""
        check_index(index, len(self))
        number, place = locate(self._ends, index)
        name, seeds = self._names[number]
        return f"{name}/{seeds[place]}"

    def _image(self, name: str, file: str, where: str) -> ImageLike:
        return image_at(self.folder / name, file, where)


def _is_listed(entry: Any) -> bool:
    return isinstance(entry, list) and len(entry) == 2 and isinstance(entry[1], list) and bool(entry[1])


def _turns(item: dict[str, Any], where: str) -> list[dict[str, Any]]:
    """The edits of an entry in their order."""
    turns = item.get("data", [item])
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, dict) for turn in turns):
        raise ValueError(f"{where}: 'data' is a list of edits, not {short(turns)}.")
    return turns


def _one_name(value: Any, name: str, where: str) -> str:
    """The path of an image, given as it is or as the only one of a list."""
    names = value if isinstance(value, list) else [value]
    if len(names) != 1 or not isinstance(names[0], str):
        raise ValueError(f"{where}: the field '{name}' names {short(value)}, and an edit is of one image: give one path.")
    return names[0]
