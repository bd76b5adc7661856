"""Where users' files are: files, folders and patterns -> sorted lists of files, and the image that an entry names.

The order of everything is that of the names, not of the file system, so that record 7 is the same on every machine. Names that
begin with a dot are the system's, not the user's, and are passed over; so are stored codes and features that lie among the
images, since what they hold (a picture, a manifest) is no data. Nothing stays open: a reader opens a file when a record
is asked for and closes it again, so that it can be pickled, forked and used from threads.
"""

import logging
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from unimm.data.image_forms import looks_like_base64, plain_form
from unimm.data.records import Dataset, ImageLike, UnreadImage, Video

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"),
    *(".avif", ".avifs", ".heic", ".heif"),
)
"""What is taken for an image, by its name in small letters."""

PACKED = (".gz", ".bz2", ".xz", ".zst", ".lz4", ".zip")

NUM_FIRST = 4
"""Records that are read when a data set is opened."""

logger = logging.getLogger(__name__)
T = TypeVar("T")

Paths = str | Path | list[str | Path]
"""A file, a folder, a pattern with `*` or `{000..123}`, or a list of such."""


def find_files(paths: Paths, suffixes: tuple[str, ...]) -> list[Path]:
    """The files that are meant: those named, those of a folder and its sub-folders with these suffixes, those of a pattern.

    In the order given, sorted within a folder or pattern, each file once.

    Raises:
        ValueError: one of them leads to no file.
    """
    found: dict[Path, None] = {}
    for path in (one for given in (paths if isinstance(paths, list) else [paths]) for one in _without_braces(str(given))):
        files = list(_files_of(Path(path), suffixes))
        if not files:
            kinds = "" if Path(path).is_file() else f" ({', '.join(suffixes)})"
            raise ValueError(f"There is no file at {path}{kinds}: give a file, a folder or a pattern such as 'folder/*'.")
        packed = [file for file in files if _is_packed(file, suffixes)]
        if packed:
            raise ValueError(f"{packed[0]} is compressed: unpack it, so that records can be found by their places.")
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


def image_at(root: Path, value: Any, where: str) -> ImageLike:
    """The image that an entry names by its path below `root`, or by an absolute one; or the one that it holds itself, as
    base64, a data: URI or bytes. So is `{"bytes": ..., "path": ...}` or `{"url": ...}`, as tables and messages have it.

    A path of Windows, and names whose accents are written otherwise (NFC, NFD), are found, too. `{"video": ...}` is a video:
    what it names or holds, a folder or a list of frames, with `num_frames` and `fps` of its own where it says so.

    Raises:
        ValueError: it is not there; says which entry names it.
    """
    if isinstance(value, Mapping) and value.get("video") is not None:
        return _video_at(root, value, where)
    if isinstance(value, Mapping):
        value = next((value[key] for key in ("bytes", "path", "url") if value.get(key)), dict(value))
    if isinstance(value, bytes) and value:
        return value
    if isinstance(value, list | tuple):
        raise ValueError(f"{where}: there is a list of {len(value)} where one image is expected: write a flat list of images.")
    if not isinstance(value, str) or not value:
        raise ValueError(f"{where}: an image is named by its path, not by {short(value)}.")
    if value[:8].lower().startswith(("http://", "https://")):
        raise ValueError(f"{where}: the image {short(value)} is a web address: download it and name the file.")
    name = value.removeprefix("file://")
    path = root / name
    try:
        if path.is_file():
            return path
        if _is_encoded(value):
            return EncodedImage(value, where)
        found = next((one for one in _other_spellings(root, name) if one.is_file()), None)
    except (OSError, ValueError) as error:  # a name that is too long, a null character, a folder that may not be read
        if _is_encoded(value):
            return EncodedImage(value, where)
        problem = f"cannot be read ({getattr(error, 'strerror', None) or error})"
        raise ValueError(f"{where}: the image {short(path)} {problem}: mend its path or its permissions.") from None
    if found is None:
        mend = "put it there, or name the folder of images with root=..."
        raise ValueError(f"{where}: the image {short(path)} is not there: {mend}")
    return found


def _video_at(root: Path, value: Mapping[str, Any], where: str) -> Video:
    """The video of `{"video": ..., "num_frames": ..., "fps": ...}`, unopened."""
    from unimm.data.video.sources import open_video

    held, fps = value["video"], value.get("fps")
    if isinstance(held, list | tuple):
        source: Any = [image_at(root, one, where) for one in held]
    elif isinstance(held, str) and (root / held).is_dir():
        source = root / held
    else:
        try:
            source = image_at(root, held, where)
        except ValueError as error:
            raise ValueError(str(error).replace("the image ", "the video ").replace("of images", "of videos")) from None
    source = source.read() if isinstance(source, UnreadImage) else source
    try:
        return open_video(source, num_frames=value.get("num_frames"), choice=None if fps is None else "fps", fps=fps)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


@dataclass(frozen=True)
class EncodedImage(UnreadImage):
    """An image that an entry holds as base64 or as a data: URI, decoded when it is opened."""

    text: str
    where: str = field(compare=False)

    def __str__(self) -> str:
        return f"of {self.where}"

    def read(self) -> bytes:
        """Its bytes. Raises ValueError where the text is no base64."""
        is_uri = self.text.lstrip()[:5].lower() == "data:"
        content = plain_form(self.text if is_uri else {"type": "image", "base64": self.text})
        assert isinstance(content, bytes)
        return content


def _other_spellings(root: Path, name: str) -> Iterator[Path]:
    """How else a file of this name may be called on this disk."""
    for plain in dict.fromkeys((name, name.replace("\\", "/"))):
        for form in ("NFC", "NFD"):
            yield root / unicodedata.normalize(form, plain)


def read_first(dataset: Dataset) -> None:
    """Raises ValueError where none of the first records can be read: then something is wrong with all of them."""
    first: Exception | None = None
    for index in range(min(len(dataset), NUM_FIRST)):
        try:
            _ = dataset[index]
            return
        except (ValueError, OSError) as error:
            first = first or error
    if first is not None:
        raise first


def sound_files(files: list[Path], check: Callable[[Path], T], max_bad: float) -> tuple[list[Path], list[T]]:
    """The files that pass a check, and what it gives; the others are left out with a warning, if they are few.

    Raises:
        ValueError: more than a share of `max_bad` of the files do not, or none does; says what is wrong with the first.
    """
    found: dict[Path, T] = {}
    bad: list[Exception] = []
    for file in files:
        try:
            found[file] = check(file)
        except (ValueError, OSError) as error:
            bad.append(error)
            if len(bad) > max_bad * len(files):
                raise
    if bad and not found:
        raise bad[0]
    if bad:
        logger.warning(f"{len(bad):,} of {len(files):,} files cannot be used and are left out: {' '.join(map(str, bad[:5]))}")
    return list(found), list(found.values())


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
        files = list(walk(path))
        chosen = [file for file in files if file.name.lower().endswith(suffixes)]
        packed = [file for file in files if _is_packed(file, suffixes)]
        if chosen and packed:
            few = ", ".join(map(str, packed[:3]))
            logger.warning(f"{len(packed):,} compressed files are not read, unpack those that are not there twice: {few}")
        yield from chosen or packed
    elif any(is_pattern(part) for part in path.parts):
        first = next(number for number, part in enumerate(path.parts) if is_pattern(part))
        matches = Path(*path.parts[:first]).glob("/".join(path.parts[first:]))
        yield from sorted((file for file in matches if file.is_file()), key=lambda file: file.as_posix())


def _is_packed(file: Path, suffixes: tuple[str, ...]) -> bool:
    """Whether it is one of the files of these names in compressed form."""
    name = file.name.lower()
    plain, dot, last = name.rpartition(".")
    return (dot and f".{last}" in PACKED and plain.endswith(suffixes)) or (name.endswith(".tgz") and ".tar" in suffixes)


def _without_braces(path: str) -> Iterator[str]:
    """The paths that a shell, or webdataset, makes of "{000..123}" and "{a,b}"; a file that is called so is itself."""
    found = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{},]*(?:,[^{},]*)+))\}", path)
    if found is None or Path(path).exists():
        yield path
        return
    first, last, words = found.groups()
    numbers = [] if words is not None else range(int(first), int(last) + 1)
    for one in words.split(",") if words is not None else (f"{number:0{len(first)}}" for number in numbers):
        yield from _without_braces(path[: found.start()] + one + path[found.end() :])


def _is_encoded(name: str) -> bool:
    """Whether this is an image in base64, or a data: URI, rather than the path of one that is not there."""
    return name.lstrip()[:5].lower() == "data:" or looks_like_base64(name)


def _is_stored(names: list[str]) -> bool:
    """Whether these are the files of stored codes or features."""
    return "manifest.json" in names and any(name.endswith(".safetensors") for name in names)


def is_pattern(part: str) -> bool:
    """Whether a part of a path is a pattern."""
    return any(sign in part for sign in "*?[")
