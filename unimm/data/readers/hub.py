"""Data sets of the Hugging Face hub: their Parquet files, downloaded once into the hub's own cache and read where they lie.

`hf://datasets/USER/NAME`, `hf://datasets/USER/NAME/SPLIT`, or with a subset `hf://datasets/USER/NAME/SUBSET/SPLIT`; default:
the split train. A data set that is not stored as Parquet is taken from the hub's own conversion, where there is one. Where the
hub cannot be reached, what was downloaded before is read. Streaming is not offered: a run finds its place again by the number
of a record, and a stream has none, so that it could not be resumed exactly, nor drawn in a new order each epoch.
Source: huggingface_hub, snapshot_download; huggingface.co/docs/dataset-viewer/parquet.
"""

import logging
import re
from collections.abc import Iterable
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

PREFIX = "hf://datasets/"
CONVERTED = "refs/convert/parquet"
"""The branch in which the hub keeps its own conversion."""

logger = logging.getLogger(__name__)


def is_on_hub(path: object) -> bool:
    """Whether a path names a data set of the hub."""
    return isinstance(path, str) and path.startswith(PREFIX)


def hub_files(path: str) -> list[str | Path]:
    """The Parquet files of a split, downloaded where they are not in the cache.

    Raises:
        ValueError: there is no such data set or split, it has several subsets, or it cannot be had.
    """
    owner, name, *rest = [*path.removeprefix(PREFIX).strip("/").split("/"), ""]
    repo, (subset, split) = f"{owner}/{name}", _subset_and_split([part for part in rest if part])
    if not owner or not name or len(rest) > 3:
        raise ValueError(f"{path} names no data set of the hub: write {PREFIX}USER/NAME, or {PREFIX}USER/NAME/SPLIT.")
    tables: list[str] = []
    for revision in (None, CONVERTED):
        try:
            listed = huggingface_hub.list_repo_files(repo, repo_type="dataset", revision=revision)
            tables = [file for file in listed if file.lower().endswith(".parquet")] or tables
            chosen = _of_split(tables, repo, subset, split)
            if chosen:
                folder = huggingface_hub.snapshot_download(repo, repo_type="dataset", revision=revision, allow_patterns=chosen)
                return [Path(folder) / file for file in chosen]
        except RevisionNotFoundError:  # nothing was converted
            continue
        except ValueError:
            raise
        except Exception as error:  # of whatever kind: its HTTP client has errors of its own
            kept = _kept(repo, revision, subset, split) if _is_unreachable(error) else []
            if kept:
                logger.warning(f"The hub cannot be reached: {repo} is read as it was downloaded before.")
                return kept
            raise ValueError(_reason(error, repo)) from None
    others = f", there is {', '.join(tables[:5])}" if tables else ""
    raise ValueError(f"{repo} has no Parquet files of a split '{split}'{others}: name another split, {PREFIX}{repo}/SPLIT.")


def _subset_and_split(parts: list[str]) -> tuple[str, str]:
    """What stands behind a data set's name."""
    return (parts[0], parts[1]) if len(parts) > 1 else ("", parts[0] if parts else "train")


def _of_split(tables: Iterable[str], repo: str, subset: str, split: str) -> list[str]:
    """The files of a split.

    Raises:
        ValueError: they are of several subsets, and none is named.
    """
    chosen = [file for file in tables if split in re.split(r"[-_./]", file)]
    if subset:
        return [file for file in chosen if subset in file.split("/")[:-1]]
    folders = sorted({file.split("/")[0] for file in chosen if "/" in file})
    if len(folders) > 1:
        few = ", ".join(folders[:5]) + (", ..." if len(folders) > 5 else "")
        raise ValueError(f"{repo} has several subsets ({few}): name one, {PREFIX}{repo}/{folders[0]}/{split}.")
    return chosen


def _kept(repo: str, revision: str | None, subset: str, split: str) -> list[str | Path]:
    """The files of a split in the cache, if all of them are there by their own count ("-00000-of-00003"); else none."""
    try:
        pattern = f"{f'*{subset}/' if subset else ''}*{split}*.parquet"
        found = huggingface_hub.snapshot_download(
            repo, repo_type="dataset", revision=revision, allow_patterns=[pattern], local_files_only=True
        )
    except Exception:  # of whatever kind: then it cannot be had, which is said
        return []
    folder = Path(str(found))
    tables = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*.parquet"))
    chosen = _of_split(tables, repo, subset, split)
    counts = {int(count[1]) for file in chosen if (count := re.search(r"-of-(\d+)", file))}
    return [folder / file for file in chosen] if not counts or counts == {len(chosen)} else []


def _is_unreachable(error: Exception) -> bool:
    """Whether nobody answered."""
    return not isinstance(error, HfHubHTTPError) or isinstance(error, LocalEntryNotFoundError)


def _reason(error: Exception, repo: str) -> str:
    """Why a data set cannot be had, in one sentence."""
    if isinstance(error, GatedRepoError):
        return f"The data set {repo} of the hub is gated: ask for access on its page, and log in with `hf auth login`."
    if isinstance(error, RepositoryNotFoundError):
        return f"There is no data set {repo} on the hub, or it is private: mend its name, or log in with `hf auth login`."
    said = " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
    silent = ", the hub does not answer" if _is_unreachable(error) else ""
    return f"The data set {repo} of the hub cannot be had ({said}){silent}: download it, and name its files."
