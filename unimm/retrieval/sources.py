"""What can be indexed: a folder of images, or data as the readers know it; and the images that hits of an index stand for."""

from pathlib import Path

from unimm.data.readers.csv_table import CsvTable
from unimm.data.readers.fields import Fields
from unimm.data.readers.image_folder import ImageFolder
from unimm.data.readers.json_lines import JsonLines
from unimm.data.readers.parquet import Parquet
from unimm.data.readers.paths import IMAGE_SUFFIXES, walk
from unimm.data.readers.web_dataset import WebDataset
from unimm.data.records import Dataset, ImageLike, key_at, unchecked
from unimm.retrieval.index import Hit, Index

KINDS = {
    (".jsonl", ".json"): lambda path: JsonLines(path, Fields(image="image", caption="caption", optional=("caption",))),
    (".csv", ".tsv"): lambda path: CsvTable(path, Fields(image="image", caption="caption", optional=("caption",))),
    (".parquet", ".arrow"): lambda path: Parquet(path, Fields(image="image", caption="text", optional=("text",))),
    (".tar",): lambda path: WebDataset(path, Fields(caption="txt", optional=("txt",))),
}
"""How files are read, by their suffixes, with the names of fields that the configurations have (conf/data)."""


def open_images(path: str | Path) -> Dataset:
    """The records of a folder of images, of a file of records (.jsonl, .csv, .parquet, .tar), or of a folder of such files.

    Raises:
        ValueError: there is nothing of the kind.
    """
    where = Path(path)
    names = [file.name.lower() for file in walk(where)] if where.is_dir() else [str(path).lower()]
    if not where.is_dir() and not where.exists() and "*" not in str(path) and "{" not in str(path):
        raise ValueError(f"There is no folder or file {path}: name a folder of images, or a file of records.")
    if not any(name.endswith(IMAGE_SUFFIXES) for name in names):
        for suffixes, read in KINDS.items():
            if any(name.endswith(suffixes) for name in names):
                return read(str(path))
    if where.is_file():
        kinds = ", ".join(suffix for suffixes in KINDS for suffix in suffixes)
        raise ValueError(f"{path} is no folder and none of {kinds}: put images into a folder, and name that.")
    return ImageFolder(where, captions=False)


def images_of(index: Index, hits: list[Hit]) -> list[ImageLike]:
    """The images that hits stand for, to look at or to rank again: their files, or what the data holds under their keys.

    Raises:
        ValueError: one of them is not there any more.
    """
    images: dict[str, ImageLike] = {hit.key: hit.path for hit in hits if hit.path is not None}
    missing = {hit.key for hit in hits} - images.keys()
    if missing:
        dataset = open_images(index.manifest.source)
        for number in range(len(dataset)):
            if (key := key_at(dataset, number)) in missing and (image := unchecked(dataset, number).image) is not None:
                images[key] = image
    gone = next((hit.key for hit in hits if hit.key not in images), None)
    if gone is not None:
        raise ValueError(f"{gone} is not there any more: repeat the `unimm index` line for {index.folder}.")
    return [images[hit.key] for hit in hits]
