"""Data sets of the Hugging Face hub: their Parquet files, downloaded once into the hub's own cache and read where they lie.

`hf://datasets/USER/NAME`, or `hf://datasets/USER/NAME/SPLIT`; default: the split train. A data set that is not stored as
Parquet is taken from the hub's own conversion, where there is one. Streaming is not offered: a run finds its place again by the
number of a record, and a stream has none, so that it could not be resumed exactly, nor drawn in a new order each epoch.
Source: huggingface_hub, snapshot_download; huggingface.co/docs/dataset-viewer/parquet.
"""

import re
from pathlib import Path

import huggingface_hub

PREFIX = "hf://datasets/"
CONVERTED = "refs/convert/parquet"
"""The branch in which the hub keeps its own conversion."""


def is_on_hub(path: object) -> bool:
    """Whether a path names a data set of the hub."""
    return isinstance(path, str) and path.startswith(PREFIX)


def hub_files(path: str) -> list[str | Path]:
    """The Parquet files of a split, downloaded where they are not in the cache.

    Raises:
        ValueError: there is no such data set or split, or it cannot be had.
    """
    owner, name, split = [*path.removeprefix(PREFIX).strip("/").split("/"), "", ""][:3]
    repo, split = f"{owner}/{name}", split or "train"
    if not owner or not name:
        raise ValueError(f"{path} names no data set of the hub: write {PREFIX}USER/NAME, or {PREFIX}USER/NAME/SPLIT.")
    try:
        for revision in (None, CONVERTED):
            listed = huggingface_hub.list_repo_files(repo, repo_type="dataset", revision=revision)
            tables = [file for file in listed if file.lower().endswith(".parquet")]
            chosen = [file for file in tables if split in re.split(r"[-_./]", file)]
            if chosen:
                folder = huggingface_hub.snapshot_download(repo, repo_type="dataset", revision=revision, allow_patterns=chosen)
                return [Path(folder) / file for file in chosen]
    except Exception as error:  # of whatever kind: its HTTP client has errors of its own
        reason = " ".join(str(error).split())[:200].rstrip(".")
        raise ValueError(f"The data set {repo} of the hub cannot be had ({reason}): download it, and name its files.") from None
    others = f", there is {', '.join(tables[:5])}" if tables else ""
    raise ValueError(f"{repo} has no Parquet files of a split '{split}'{others}: name another split, {PREFIX}{repo}/SPLIT.")
