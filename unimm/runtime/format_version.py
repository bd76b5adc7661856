"""Versions of what we write: `format_version` in a manifest or config. Where it is absent, the form is the first.

A version is raised where an older unimm would misread what is written; a new key that may be absent raises none.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

FORMAT_VERSION = "format_version"


def stamped(version: int, content: Mapping[str, Any]) -> dict[str, Any]:
    """The content with the version of its form."""
    return {FORMAT_VERSION: version, **content}


def check_format(content: Mapping[str, Any], known: int, path: Path, key: str = FORMAT_VERSION) -> None:
    """Refuse what a newer unimm wrote.

    known: the newest version that is read here. path: where the content was read, for the error.

    Raises:
        ValueError: the version is newer than that, or no number.
    """
    version = content.get(key, 1)
    if isinstance(version, bool) or not isinstance(version, int) or version > known:
        raise ValueError(
            f"{path} was written by a newer unimm ({key} {version}, this one reads up to {known}): update it with "
            f"`pip install -U unimm`."
        )
