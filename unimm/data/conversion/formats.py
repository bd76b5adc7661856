"""The formats that records are converted into: what each can hold, how a part of it is written, and how it is read again.

    jsonl         OUT/data.jsonl, a line a record; images in OUT/images
    llava         OUT/data.json, LLaVA's list of conversations; images in OUT/images
    image_folder  OUT/metadata.jsonl with file_name and text, as Hugging Face's imagefolder has it; images in OUT/images
    webdataset    OUT/000000.tar, shards of KEY.jpg with KEY.txt (captions alone) or KEY.json
    parquet       OUT/000000.parquet, the image as `datasets` writes it, in groups of 100 rows

A part is a shard, or so many lines and a folder of their images, and ends at `shard_megabytes` of images; lines are put
together when all are there.
"""

import io
import json
import tarfile
from pathlib import Path
from typing import Any, ClassVar

from unimm.data.conversion.entries import SUFFIXES, CannotHoldError, Entry
from unimm.data.conversion.format import PARTS, Format

IMAGES = "images"
"""The folder of images beside lines; in it one for each part, named by its number with 5 digits."""

GROUP_ROWS = 100
"""Rows of a group of a Parquet table: a row costs its group to read."""


class _Named(Format):
    """Entries of named fields: JSON lines, Parquet, and the JSON of WebDataset."""

    caption: ClassVar[str] = "caption"
    plain: ClassVar[str] = "text"

    def values(self, entry: Entry) -> dict[str, Any]:
        """All fields but the image; what an entry has not is left out."""
        asked, answered = ([pair[place] for pair in entry.questions] for place in (0, 1))
        found = {
            "id": entry.key,
            self.caption: list(entry.captions) if self.contents.most_captions > 1 else "".join(entry.captions),
            "question": asked,
            "answer": answered,
            "conversations": list(entry.conversation),
            self.plain: entry.text,
            "texts": [part if isinstance(part, str) else None for part in entry.document],
            "language": entry.language if len(self.contents.languages) > 1 else "",
        }
        return {name: value for name, value in found.items() if value}

    def _pairs(self) -> dict[str, tuple[str, str]]:
        """What is called so in `data.fields`: the name of its field here, and the part that it is of."""
        return {
            "image": ("image", "image"),
            "caption": (self.caption, "captions"),
            "question": ("question", "questions"),
            "answer": ("answer", "questions"),
            "conversation": ("conversations", "conversation"),
            "text": (self.plain, "text"),
            "texts": ("texts", "document"),
        }

    def fields(self) -> dict[str, str]:
        """The fields that there are, by what they are called in `data.fields`."""
        counts, pairs = self.contents.counts, self._pairs()
        found = {name: own for name, (own, part) in pairs.items() if counts[part]}
        if len(self.contents.languages) > 1:
            found["language"] = "language"
        return found

    def overrides_of_fields(self, standard: dict[str, str | None]) -> list[str]:
        """standard: fields that are read where nothing is said."""
        fields = self.fields()
        changed = {name: fields.get(name) for name in (*standard, *fields) if fields.get(name) != standard.get(name)}
        words = [f"data.fields.{name}={'null' if own is None else own}" for name, own in changed.items()]
        if self.contents.language not in ("", "en"):
            words.append(f"data.fields.default_language={self.contents.language}")
        counts = self.contents.counts
        named = [*self._pairs().values(), *([("language", "language")] if "language" in fields else [])]
        some = sorted({own for own, part in named if 0 < counts[part] < self.contents.num_records})
        return words + ([f"data.fields.optional=[{','.join(some)}]"] if some else [])


class JsonLinesFormat(_Named):
    """JSON lines, and a folder of images."""

    name, holds, joined = "jsonl", PARTS, "data.jsonl"

    def write(self, entries: list[Entry], number: int, first: int, path: Path, folder: Path) -> None:
        lines = []
        for place, entry in enumerate(entries):
            names: list[Any] = write_images(entry, number, first + place, folder)
            if entry.document:
                names = [None if isinstance(part, str) else names[part] for part in entry.document]
            held = {"image": names[0] if self.contents.most_images == 1 and not entry.document else names} if names else {}
            lines.append(json.dumps(held | self.values(entry), ensure_ascii=False) + "\n")
        path.write_text("".join(lines), encoding="utf-8")

    def join(self, parts: list[Path], path: Path) -> None:
        """Put the lines of all parts together."""
        with path.open("wb") as file:
            for part in parts:
                file.write(part.read_bytes())

    def overrides(self, out: Path) -> list[str]:
        one = self.contents
        if one.all_hold_only("text") and not one.counts["image"] and len(one.languages) < 2:
            language = [f"data.language={one.language}"] if one.language not in ("", "en") else []
            return ["data=text", f"data.paths={out / self.joined}", *language]
        return [
            "data=jsonl",
            f"data.paths={out / self.joined}",
            *self.overrides_of_fields({"image": "image", "caption": "caption"}),
        ]


class LlavaFormat(JsonLinesFormat):
    """LLaVA's list of conversations."""

    name, holds, joined = "llava", ("conversation", "questions"), "data.json"

    def check(self, entry: Entry) -> None:
        super().check(entry)
        if len(entry.questions) > 1:
            raise self._refusal(entry, "has several questions that do not lean on each other")
        if not entry.conversation and not entry.questions:
            raise self._refusal(entry, "has no conversation")

    def check_all(self) -> None:
        if len(self.contents.languages) > 1:
            raise CannotHoldError(
                f"Texts are in {', '.join(self.contents.languages)}, and llava says no languages: choose to=jsonl."
            )

    def values(self, entry: Entry) -> dict[str, Any]:
        if entry.conversation:
            return {"id": entry.key, "conversations": list(entry.conversation)}
        asked, answer = entry.questions[0]
        shown = "<image>\n" if len(entry.images) == 1 else ""
        turns = [{"from": "human", "value": f"{shown}{asked}"}, {"from": "gpt", "value": answer}]
        return {"id": entry.key, "conversations": turns}

    def join(self, parts: list[Path], path: Path) -> None:
        with path.open("wb") as file:
            file.write(b"[\n")
            is_first = True
            for part in parts:
                for line in part.read_bytes().splitlines():
                    file.write((b"" if is_first else b",\n") + line)
                    is_first = False
            file.write(b"\n]\n")

    def overrides(self, out: Path) -> list[str]:
        language = [f"data.language={self.contents.language}"] if self.contents.language not in ("", "en") else []
        return ["data=llava", f"data.paths={out / self.joined}", *language]


class ImageFolderFormat(JsonLinesFormat):
    """A folder of images with a table of their captions."""

    name, holds, images, joined = "image_folder", ("captions",), (1, 1), "metadata.jsonl"

    def check(self, entry: Entry) -> None:
        super().check(entry)
        if not entry.captions:
            raise self._refusal(entry, "has no caption")

    def check_all(self) -> None:
        if len(self.contents.languages) > 1:
            raise CannotHoldError(
                f"Captions are in {', '.join(self.contents.languages)}, and image_folder says no languages: choose to=jsonl."
            )

    def write(self, entries: list[Entry], number: int, first: int, path: Path, folder: Path) -> None:
        lines = []
        for place, entry in enumerate(entries):
            (name,) = write_images(entry, number, first + place, folder)
            first_text, *others = entry.captions
            text: Any = [first_text, *others] if others else first_text
            lines.append(json.dumps({"file_name": name, "text": text}, ensure_ascii=False) + "\n")
        path.write_text("".join(lines), encoding="utf-8")

    def overrides(self, out: Path) -> list[str]:
        language = [f"data.language={self.contents.language}"] if self.contents.language not in ("", "en") else []
        return ["data=image_folder", f"data.folder={out}", *language]


class WebDatasetFormat(_Named):
    """Shards of tar files."""

    name, holds, images = "webdataset", ("captions", "questions", "conversation"), (1, 1)
    is_shard, suffix = True, ".tar"

    @property
    def _is_plain(self) -> bool:
        """Whether there are captions alone, one of every image."""
        one = self.contents
        return one.most_captions == 1 and one.all_hold_only("captions") and len(one.languages) < 2

    def fields(self) -> dict[str, str]:
        return {"image": "image", "caption": "txt"} if self._is_plain else super().fields()

    def write(self, entries: list[Entry], number: int, first: int, path: Path, folder: Path) -> None:
        with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as shard:
            for place, entry in enumerate(entries):
                image, name = entry.images[0], f"{first + place:09}"
                told = (
                    {".txt": entry.captions[0]}
                    if self._is_plain
                    else {".json": json.dumps(self.values(entry), ensure_ascii=False)}
                )
                for suffix, content in {image.suffix: image.content, **{s: text.encode() for s, text in told.items()}}.items():
                    member = tarfile.TarInfo(f"{name}{suffix}")
                    member.size = len(content)
                    shard.addfile(member, io.BytesIO(content))

    def overrides(self, out: Path) -> list[str]:
        words = self.overrides_of_fields({"image": "image", "caption": "txt"})
        if self.fields().keys() == {"image"}:  # where nothing else is named, the images are
            words.append(f'data.fields.image="{";".join(suffix[1:] for suffix in dict.fromkeys(SUFFIXES.values()))}"')
        return ["data=webdataset", f"data.paths={out}", *words]


TEXT_ALONE = (
    "~data.sources.draw",
    "~data.sources.talk.view.num_turns",
    "~data.sources.talk.view.caption_share",
    "data.sources.talk.view._target_=unimm.data.PlainText",
)
"""What makes the data of tables that of plain text: nothing is drawn, or talked about."""


class ParquetFormat(_Named):
    """Tables, an image as a struct of its bytes and its name."""

    name, holds, caption, plain = "parquet", PARTS, "text", "plain_text"
    is_shard, suffix = True, ".parquet"

    def write(self, entries: list[Entry], number: int, first: int, path: Path, folder: Path) -> None:
        import pyarrow
        import pyarrow.parquet

        schema = self._schema(pyarrow)
        rows = [self._row(entry, first + place) for place, entry in enumerate(entries)]
        columns = {name: [row.get(name) for row in rows] for name in schema.names}
        pyarrow.parquet.write_table(pyarrow.table(columns, schema=schema), path, row_group_size=GROUP_ROWS)

    def _row(self, entry: Entry, place: int) -> dict[str, Any]:
        held: list[Any] = [
            {"bytes": image.content, "path": f"{place:09}-{number}{image.suffix}"} for number, image in enumerate(entry.images)
        ]
        if entry.document:
            held = [None if isinstance(part, str) else held[part] for part in entry.document]
        row = self.values(entry)
        if self.contents.has_parts:
            row["conversations"] = [_in_parts(turn) for turn in row.get("conversations", [])] or None
        return row | ({"image": held if self._has_lists else held[0]} if held else {})

    @property
    def _has_lists(self) -> bool:
        return self.contents.most_images > 1 or self.contents.counts["document"] > 0

    def _schema(self, pyarrow: Any) -> Any:
        text = pyarrow.string()
        image = pyarrow.struct([("bytes", pyarrow.binary()), ("path", text)])
        said = pyarrow.list_(pyarrow.struct([("type", text), ("text", text)])) if self.contents.has_parts else text
        kinds = {
            "image": pyarrow.list_(image) if self._has_lists else image,
            "caption": pyarrow.list_(text) if self.contents.most_captions > 1 else text,
            "question": pyarrow.list_(text),
            "answer": pyarrow.list_(text),
            "conversation": pyarrow.list_(pyarrow.struct([("from", text), ("value", said)])),
            "text": text,
            "texts": pyarrow.list_(text),
            "language": text,
        }
        return pyarrow.schema([("id", text), *((own, kinds[name]) for name, own in self.fields().items())])

    def overrides(self, out: Path) -> list[str]:
        words = self.overrides_of_fields({"image": "image", "caption": "text"})
        if self.contents.all_hold_only("text") and not self.contents.counts["image"]:  # nothing to draw, nor to talk about
            words += TEXT_ALONE
        return ["data=parquet", f"data.paths={out}", *words]


def _in_parts(turn: dict[str, Any]) -> dict[str, Any]:
    """A turn whose words are a list of parts, as all turns of a column are where one of them is."""
    value = turn["value"]
    return {**turn, "value": [{"type": "text", "text": value}] if isinstance(value, str) else value}


def write_images(entry: Entry, number: int, place: int, folder: Path) -> list[str]:
    """Write the images of a record below `folder`; gives their paths there. number: of the part. place: of the record."""
    names = []
    for order, image in enumerate(entry.images):
        more = f"-{order}" if order else ""
        name = f"{IMAGES}/{number:05}/{place:09}{more}{image.suffix}"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(image.content)
        names.append(name)
    return names
