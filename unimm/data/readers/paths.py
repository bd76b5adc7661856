"""Where users' files are: files, folders and patterns -> sorted lists of files, and the image that an entry names.

The order of everything is that of the names, not of the file system, so that record 7 is the same on every machine. Names that
begin with a dot are the system's, not the user's, and are passed over; so are stored codes and features that lie among the
images, since what they hold (a picture, a manifest) is no data. Nothing stays open: a reader opens a file when a record
is asked for and closes it again, so that it can be pickled, forked and used from threads.
"""

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
"""What is taken for an image, by its name in small letters."""

Paths = str | Path | list[str | Path]
"""A file, a folder, a pattern with `*`, or a list of such."""


def find_files(paths: Paths, suffixes: tuple[str, ...]) -> list[Path]:
    """The files that are meant: those named, those of a folder and its sub-folders with these suffixes, those of a pattern.

    In the order given, sorted within a folder or pattern, each file once.

    Raises:
        ValueError: one of them leads to no file.
    """
    found: dict[Path, None] = {}
    for path in paths if isinstance(paths, list) else [paths]:
        files = list(_files_of(Path(path), suffixes))
        if not files:
            kinds = "" if Path(path).is_file() else f" ({', '.join(suffixes)})"
            raise ValueError(f"There is no file at {path}{kinds}: give a file, a folder or a pattern such as 'folder/*'.")
        found |= dict.fromkeys(files)
    if not found:
        raise ValueError(f"No file is named: give a file, a folder or a pattern ({', '.join(suffixes)}).")
    return list(found)


def short_names(files: Iterable[Path]) -> list[str]:
    """A name for each file that stays when their folder moves: its path below the folder that holds them all."""
    paths = [Path(os.path.abspath(file)) for file in files]  # noqa: PTH100 - links stay as the user named them
    top = Path(os.path.commonpath([path.parent for path in paths]))
    return [path.relative_to(top).as_posix() for path in paths]


def walk(folder: Path, _above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """Every file below a folder; links are followed, unless they lead back up."""
    real = folder.resolve()
    paths = sorted(folder.iterdir(), key=lambda path: path.name)
    if real in _above or (_above and _is_stored([path.name for path in paths])):
        return
    for path in paths:
        if path.name.startswith("."):
            continue
        if path.is_dir():
            yield from walk(path, (*_above, real))
        else:
            yield path


def image_at(root: Path, name: Any, where: str) -> Path:
    """The image that an entry names by its path below `root`, or by an absolute one.

    Raises:
        ValueError: it is not there; says which entry names it.
    """
    if isinstance(name, list | tuple):
        raise ValueError(f"{where}: there is a list of {len(name)} where one image is expected: write an entry for each image.")
    if not isinstance(name, str) or not name:
        raise ValueError(f"{where}: an image is named by its path, not by {short(name)}.")
    if name.startswith(("http://", "https://")):
        raise ValueError(f"{where}: the image {short(name)} is a web address: download it and name the file.")
    path = root / name
    try:
        if path.is_file():
            return path
    except OSError as error:  # a name that is too long, a folder that may not be read
        if not _is_encoded(name):
            problem = f"cannot be read ({error.strerror})"
            raise ValueError(f"{where}: the image {short(path)} {problem}: mend its path or its permissions.") from None
    if _is_encoded(name):
        raise ValueError(
            f"{where}: the image itself is written there as base64 ({short(name)}), which is not read: decode it into a file, "
            f"and name that."
        )
    raise ValueError(f"{where}: the image {short(path)} is not there: put it there, or name the folder of images with root=...")


def short(value: Any) -> str:
    """A user's value for a message: paths up to 300 characters, and of others the first 80."""
    shown, most = (str(value), 300) if isinstance(value, Path) else (repr(value), 80)
    return shown if len(shown) <= most else f"{shown[:most]}..."


def locate(ends: np.ndarray, index: int) -> tuple[int, int]:
    """Which of several files an index falls into, and where in there; `ends` (num_files,) are their cumulative lengths.

    Raises:
        IndexError: it falls behind the last.
    """
    check_index(index, int(ends[-1]))
    file = int(np.searchsorted(ends, index, side="right"))
    return file, index - (int(ends[file - 1]) if file else 0)


def check_index(index: int, length: int) -> None:
    """Raises IndexError outside 0..length - 1."""
    if not 0 <= index < length:
        raise IndexError(f"index {index} is outside 0..{length - 1}")


def _files_of(path: Path, suffixes: tuple[str, ...]) -> Iterator[Path]:
    if path.is_file():
        yield path
    elif path.is_dir():
        yield from (file for file in walk(path) if file.name.lower().endswith(suffixes))
    elif any(_is_pattern(part) for part in path.parts):
        first = next(number for number, part in enumerate(path.parts) if _is_pattern(part))
        matches = Path(*path.parts[:first]).glob("/".join(path.parts[first:]))
        yield from sorted((file for file in matches if file.is_file()), key=lambda file: file.as_posix())


def _is_encoded(name: str) -> bool:
    """Whether this is rather an image in base64, or a data: URI, than the path of one that is not there."""
    return name[:5].lower() == "data:" or re.fullmatch(r"[A-Za-z0-9+/_\s-]{64,}={0,2}\s*", name) is not None


def _is_stored(names: list[str]) -> bool:
    """Whether these are the files of stored codes or features."""
    return "manifest.json" in names and any(name.endswith(".safetensors") for name in names)


def _is_pattern(part: str) -> bool:
    return any(sign in part for sign in "*?[")
