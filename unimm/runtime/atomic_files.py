"""Files that are whole or not there: a folder is written under another name, flushed to disk, then renamed.

Everything that we keep (checkpoints, models, stored codes) goes this way, so that an interrupt or a full disk never
leaves half a folder under a good name.
"""

import ctypes
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_AT_CURRENT_FOLDER, _RENAME_EXCHANGE = -100, 2
"""AT_FDCWD and RENAME_EXCHANGE of Linux' fcntl.h and fs.h, which no Python module names."""


@contextmanager
def whole_folder(final: Path, mark: str, what: str) -> Iterator[Path]:
    """A folder to fill; it takes the place of `final` when the block ends, and vanishes when the block raises.

    Raises:
        ValueError: what is there may not be replaced (see `check_replaceable`).
    """
    check_replaceable(final, mark, what)
    temporary = temporary_folder(final)
    try:
        yield temporary
        replace_folder(temporary, final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def check_replaceable(final: Path, mark: str, what: str) -> None:
    """Check, before long work begins, that only a folder of ours would be replaced.

    Raises:
        ValueError: `final` is there and not empty, but lacks the file `mark` by which `what` we write is recognised.
    """
    if final.is_file() or (final.is_dir() and any(final.iterdir()) and not (final / mark).is_file()):
        raise ValueError(f"{final} is there and is not {what}: choose another path.")


def temporary_folder(final: Path, name: str | None = None) -> Path:
    """An empty folder beside `final`, to be filled and then handed to `replace_folder`. name: where it is to have one of its
    own."""
    temporary = final.with_name(name or f".{final.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    _make_folder(temporary.parent)
    temporary.mkdir()
    return temporary


def replace_folder(temporary: Path, final: Path) -> None:
    """Flush every file of `temporary` to disk and rename the folder to `final`, replacing what was there."""
    for path in temporary.rglob("*"):
        if path.suffix == ".safetensors":
            path.chmod(_default_mode())
        flush(path)
    flush(temporary)
    old = final.with_name(f".{final.name}.old")
    if old.exists() and not final.exists():
        old.rename(final)  # a process was killed between the two renames below
    if final.exists() and _swap_names(temporary, final):
        flush(final.parent)
        shutil.rmtree(temporary, ignore_errors=True)
        return
    # The old folder goes only when the new one is in its place: whatever happens, one of them is there, whole.
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    temporary.rename(final)
    flush(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def _swap_names(one: Path, other: Path) -> bool:
    """Let two folders exchange their names at once, so that no moment is without either; False where system or disk cannot
    (only Linux can, by renameat2)."""
    try:
        renameat2 = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    return renameat2(_AT_CURRENT_FOLDER, os.fsencode(one), _AT_CURRENT_FOLDER, os.fsencode(other), _RENAME_EXCHANGE) == 0


def check_writable(path: Path) -> None:
    """Make the folder of a file that long work will end in, and see that it can be written there. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    is_new = not path.exists()
    with path.open("a", encoding="utf-8"):
        pass
    if is_new:
        path.unlink()


def write_json(path: Path, content: Any) -> None:
    """Readable JSON with a final newline; Chinese stays Chinese."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def replace_json(path: Path, content: Any) -> None:
    """`write_json` under another name, then renamed: a reader always finds the old file or the new one, whole."""
    temporary = path.with_name(f".{path.name}.tmp")
    write_json(temporary, content)
    temporary.replace(path)


def write_json_once(path: Path, content: dict[str, Any]) -> dict[str, Any]:
    """Write a file that several processes may write at the same time, each its own: the first one's stays, whole, and all get
    that.

    Raises:
        ValueError: the file system cannot do so.
    """
    kept = read_json(path)
    if kept is not None:
        return kept
    _make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        write_json(temporary, content)
        flush(temporary)
        os.link(temporary, path)  # unlike a renaming, it fails where another one was first
    except FileExistsError:
        pass
    except OSError as error:
        reason = error.strerror or str(error)
        raise ValueError(
            f"{path} cannot be written ({reason}): name a folder on a disk that can be, with hard links."
        ) from None
    finally:
        temporary.unlink(missing_ok=True)
    found = read_json(path)
    assert found is not None
    return found


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object of a file, None if there is no file.

    Raises:
        ValueError: the file holds something else.
    """
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}): copy or download it again.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no JSON object: copy or download it again.")
    return content


def _default_mode() -> int:
    """The permissions of a file that a program simply opens; safetensors writes its own for the owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def _make_folder(folder: Path) -> None:
    """Make a folder and those above it; each is flushed into the one that holds it."""
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        flush(folder.parent)


def flush(path: Path) -> None:
    """Have a file or a folder's list of files on the disk before anything else happens."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
