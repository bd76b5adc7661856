"""Data sets of the Hugging Face hub: their Parquet files, downloaded once into the hub's own cache and read where they lie.

`hf://datasets/USER/NAME`, `hf://datasets/USER/NAME/SPLIT`, or with a subset `hf://datasets/USER/NAME/SUBSET/SPLIT`; default:
the split train. A data set that is not stored as Parquet is taken from the hub's own conversion, where there is one. Where the
hub cannot be reached, what was downloaded before is read, if that is all of a split. Streaming is not offered: a run finds its
place again by the number of a record, and a stream has none, so that it could not be resumed exactly, nor drawn in a new order
each epoch.
Source: huggingface_hub, snapshot_download; huggingface.co/docs/dataset-viewer/parquet.
"""

import errno
import logging
import re
import secrets
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

from unimm.runtime.atomic_files import read_json, write_json

PREFIX = "hf://datasets/"
CONVERTED = "refs/convert/parquet"
"""The branch in which the hub keeps its own conversion."""

LIST = ".unimm_files.json"
"""In the cache, beside the files of a commit: which Parquet files it has, downloaded or not."""

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
    failure: Exception | None = None
    for revision in (None, CONVERTED):
        try:
            if failure is None:  # else nobody answered before
                tables = _tables(repo, revision) or tables
                chosen = _of_split(tables, repo, subset, split)
                if chosen:
                    return _download(repo, revision, tables, chosen)
                continue
        except RevisionNotFoundError:  # nothing was converted
            continue
        except Exception as error:  # of whatever kind: its HTTP client has errors of its own
            if isinstance(error, ValueError) and not isinstance(error, LocalEntryNotFoundError):
                raise
            if not _is_unreachable(error):
                raise ValueError(_reason(error, repo)) from None
            failure = error
        kept = _kept(repo, revision, subset, split)
        if kept:
            logger.warning(f"The hub cannot be reached: {repo} is read as it was downloaded before.")
            return kept
    if failure is not None:
        raise ValueError(_reason(failure, repo)) from None
    raise ValueError(_no_split(tables, repo, split))


def _tables(repo: str, revision: str | None) -> list[str]:
    """All Parquet files that the hub lists."""
    listed = huggingface_hub.list_repo_files(repo, repo_type="dataset", revision=revision)
    return [file for file in listed if file.lower().endswith(".parquet")]


def _download(repo: str, revision: str | None, tables: list[str], chosen: list[str]) -> list[str | Path]:
    """Download the chosen files, and leave word in the cache of all that there are, by which `_kept` knows whether it has all.

    Raises:
        LocalEntryNotFoundError: the connection broke, and not all of them were downloaded before.
    """
    folder = Path(huggingface_hub.snapshot_download(repo, repo_type="dataset", revision=revision, allow_patterns=chosen))
    files = [folder / file for file in chosen]
    absent = [file for file in files if not file.is_file()]
    if absent:  # some versions of the client give back what is there of a folder where the connection breaks
        raise LocalEntryNotFoundError(f"{len(absent)} of {len(files)} files were not downloaded")
    if _listed(folder) != tables:
        temporary = folder / f"{LIST}.{secrets.token_hex(4)}"  # other processes may be at it as well
        try:
            write_json(temporary, {"tables": tables})
            temporary.replace(folder / LIST)
        except OSError as error:
            logger.warning(f"{folder / LIST} cannot be written ({error.strerror}): {repo} is read only where the hub answers.")
    return [*files]


def _no_split(tables: list[str], repo: str, split: str) -> str:
    """Why there are no files of a split, in one sentence."""
    if _of(tables, f"partial-{split}"):
        return (
            f"The hub's own conversion of {repo} holds only the beginning of its split '{split}': download the data set itself "
            f"and name its files, or name that part, {PREFIX}{repo}/partial-{split}."
        )
    others = f", there is {', '.join(tables[:5])}" if tables else ""
    return f"{repo} has no Parquet files of a split '{split}'{others}: name another split, {PREFIX}{repo}/SPLIT."


def _subset_and_split(parts: list[str]) -> tuple[str, str]:
    """What stands behind a data set's name."""
    return (parts[0], parts[1]) if len(parts) > 1 else ("", parts[0] if parts else "train")


def _of_split(tables: Iterable[str], repo: str, subset: str, split: str) -> list[str]:
    """The files of a split.

    Raises:
        ValueError: they are of several subsets, and none is named.
    """
    chosen = _of(tables, split)
    if subset:
        return [file for file in chosen if subset in file.split("/")[:-1]]
    folders = sorted({file.split("/")[0] for file in chosen if "/" in file})
    if len(folders) > 1:
        few = ", ".join(folders[:5]) + (", ..." if len(folders) > 5 else "")
        raise ValueError(f"{repo} has several subsets ({few}): name one, {PREFIX}{repo}/{folders[0]}/{split}.")
    return chosen


def _of(tables: Iterable[str], split: str) -> list[str]:
    """The files whose name, or that of a folder of theirs, begins with a split's: `train-00000-of-00002`, `train/0000`; not
    `train_sft-00000-of-00001`, which is another split's."""
    return [file for file in tables if re.search(rf"(^|/){re.escape(split)}([-./]|$)", file)]


def _kept(repo: str, revision: str | None, subset: str, split: str) -> list[str | Path]:
    """The files of a split in the cache, if all of them are there by the list that `_download` left, or by their own count
    ("-00000-of-00003") where there is none; else none."""
    try:  # of no files: whether all are there is looked up below
        found = huggingface_hub.snapshot_download(
            repo, repo_type="dataset", revision=revision, allow_patterns=[], local_files_only=True
        )
    except Exception:  # of whatever kind: then it cannot be had, which is said
        return []
    folder = Path(str(found))
    tables = _listed(folder)
    if tables:
        chosen = _of_split(tables, repo, subset, split)
        is_whole = all((folder / file).is_file() for file in chosen)
    else:
        there = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*.parquet"))
        chosen = _of_split(there, repo, subset, split)
        counts = [re.search(r"-of-(\d+)", file) for file in chosen]
        is_whole = {int(count[1]) if count else -1 for count in counts} == {len(chosen)}
    return [folder / file for file in chosen] if is_whole else []


def _listed(folder: Path) -> list[str]:
    """All Parquet files of the commit that a folder of the cache is of; empty: it is not known."""
    try:
        return (read_json(folder / LIST) or {}).get("tables", [])
    except ValueError:  # damaged, so that it is not known
        return []


def _is_unreachable(error: Exception) -> bool:
    """Whether nobody answered, or no longer."""
    return not _is_of_disk(error) and (not isinstance(error, HfHubHTTPError) or isinstance(error, LocalEntryNotFoundError))


def _is_of_disk(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO)


def _reason(error: Exception, repo: str) -> str:
    """Why a data set cannot be had, in one sentence."""
    if isinstance(error, GatedRepoError):
        return f"The data set {repo} of the hub is gated: ask for access on its page, and log in with `hf auth login`."
    if isinstance(error, RepositoryNotFoundError):
        return f"There is no data set {repo} on the hub, or it is private: mend its name, or log in with `hf auth login`."
    said = " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
    if _is_of_disk(error):
        return f"The data set {repo} of the hub cannot be kept ({said}): make room, or set HF_HOME to a folder on another disk."
    silent = ", the hub does not answer" if _is_unreachable(error) else ""
    return f"The data set {repo} of the hub cannot be had ({said}){silent}: download it, and name its files."
