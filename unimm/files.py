"""Files that are whole or not there: a folder is written under another name, flushed to disk, then renamed.

Everything that we write for keeps (checkpoints, models, stored codes) goes this way, so that an interrupt or a full disk never
leaves half a folder under a good name.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def whole_folder(final: Path) -> Iterator[Path]:
    """A folder to fill; it takes the place of `final` when the block ends, and vanishes when the block raises."""
    temporary = temporary_folder(final)
    try:
        yield temporary
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    replace_folder(temporary, final)


def temporary_folder(final: Path) -> Path:
    """An empty folder beside `final`, to be filled and then handed to `replace_folder`."""
    temporary = final.with_name(f".{final.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    return temporary


def replace_folder(temporary: Path, final: Path) -> None:
    """Flush every file of `temporary` to disk and rename the folder to `final`, replacing what was there."""
    for path in temporary.rglob("*"):
        _flush(path)
    _flush(temporary)
    shutil.rmtree(final, ignore_errors=True)
    temporary.rename(final)
    _flush(final.parent)


def write_json(path: Path, content: Any) -> None:
    """Readable JSON with a final newline; Chinese stays Chinese."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
