"""A folder that is made file by file, for hours, by one process or several, and goes on where it stopped.

    .NAME.unfinished/            beside NAME, until it is whole
        begun.json               what is being made, and how, so that nothing else is continued
        00007.sha256             its file is whole, and has this hash
        whole/                   what will be NAME
        kept/                    files with the same settings of other content, to reuse

A file is written beside `whole`, flushed to disk and moved there, and only then proved: what a kill has left half-written is
never read. The first process begins and finishes the folder; its files any process writes, each its own.
"""

import hashlib
import secrets
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from unimm.runtime.atomic_files import check_replaceable, flush, read_json, replace_folder, write_json
from unimm.runtime.folder_lock import leave, occupy

BEGUN = "begun.json"


class ResumableFolder:
    """A folder in the making.

    Args:
        final: where it will lie.
        mark, what: as `unimm.runtime.atomic_files.check_replaceable` has them.
        content: says what is being made, JSON-able; the same content is the same folder.
        of: names in the content that say what it is made of, and not how: where these differ, files that were made before are
            kept to take from.
        name: of file number n.

    Raises:
        ValueError: something else lies there, or files were begun that are made in another way.
    """

    def __init__(
        self,
        final: Path,
        mark: str,
        what: str,
        content: dict[str, Any],
        name: Callable[[int], str],
        of: tuple[str, ...] = (),
    ) -> None:
        check_replaceable(final, mark, what)
        self.final, self.content = final, content
        self._name = name
        self.workspace = workspace_of(final)
        self.whole, self._kept = self.workspace / "whole", self.workspace / "kept"
        begun = begun_content(final)
        self._is_other = begun is not None and begun != content
        differ = sorted(key for key in {*(begun or {}), *content} - {*of} if begun and begun.get(key) != content.get(key))
        if begun and differ and (self.kept() or any(self.workspace.glob("*.sha256"))):
            raise ValueError(
                f"{final} was begun with another {', '.join(differ)} ({begun.get(differ[0])}, now {content.get(differ[0])}): "
                f"repeat the command with the same settings to go on, or remove {self.workspace} to start over."
            )
        self._is_made_otherwise = bool(differ)

    def begin(self) -> None:
        """Create the workspace, or find what was made; by the first process, before the others look.

        Raises:
            ValueError: another process is making this folder.
        """
        occupy(self.workspace, lambda _: None, patience=0)  # what was looked at above may be another when it has ended
        if self._is_made_otherwise:
            self.drop()
            occupy(self.workspace, lambda _: None, patience=0)
        self.whole.mkdir(parents=True, exist_ok=True)
        for left in self.workspace.glob("*.tmp"):
            left.unlink()
        if self._is_other:
            self.set_all_aside()
        if self._is_other or not (self.workspace / BEGUN).is_file():
            self._write(self.workspace / BEGUN, lambda path: write_json(path, self.content))

    def kept(self) -> list[Path]:
        """Files with the same settings of other content."""
        return sorted(self._kept.glob("*.safetensors"))

    def keep(self, write: Callable[[Path], object]) -> None:
        """Write a file for reuse by the next attempt."""
        self._kept.mkdir(exist_ok=True)
        self._write(self._kept / f"{secrets.token_hex(8)}.safetensors", write)

    def begun(self, numbers: Iterable[int]) -> list[int]:
        """Those files of these that were there whole when they were written; only looks for their hashes."""
        return [number for number in numbers if self._proof(number).is_file()]

    def missing(self, numbers: Iterable[int], advance: Callable[[int], object] = lambda _: None) -> list[int]:
        """Those files of these that are not there whole; reads every byte of the others, and calls `advance(1)` after each."""
        found = []
        for number in numbers:
            if not self._proof(number).is_file():
                found.append(number)
                continue
            if not self._is_proved(number):
                found.append(number)
            advance(1)
        return found

    def path(self, number: int) -> Path:
        """Where a file lies."""
        return self.whole / self._name(number)

    def put(self, name: str, write: Callable[[Path], object]) -> Path:
        """Write a file without a number, unless it is there; by the first process. `write` is given a path.

        Returns:
            Where it lies.
        """
        path = self.whole / name
        if not path.is_file():
            self._write(path, write)
        return path

    def save(self, number: int, write: Callable[[Path], object]) -> None:
        """Write a file and its proof."""
        proof = self._proof(number)
        proof.unlink(missing_ok=True)
        self._write(self.path(number), write)
        digest = _digest(self.path(number))
        self._write(proof, lambda path: path.write_text(digest))

    def set_aside(self, number: int) -> None:
        """Keep a file for reuse, and make it again: something in it is missing."""
        self._kept.mkdir(exist_ok=True)
        self._proof(number).unlink(missing_ok=True)
        if self.path(number).is_file():
            self.path(number).replace(self._kept / f"{secrets.token_hex(8)}.safetensors")

    def finish(self) -> None:
        """Give the folder its place; by the first process, when all files are there."""
        replace_folder(self.whole, self.final)
        self.drop()

    def drop(self) -> None:
        """Remove everything that was made."""
        drop_workspace(self.final)

    def set_all_aside(self) -> None:
        """Whole files become files for reuse; what has no number is dropped. By the first process, before the others look."""
        self._kept.mkdir(exist_ok=True)
        for proof in sorted(self.workspace.glob("*.sha256")):
            if self._is_proved(int(proof.stem)):
                self.path(int(proof.stem)).replace(self._kept / f"{secrets.token_hex(8)}.safetensors")
            proof.unlink()
        shutil.rmtree(self.whole)
        self.whole.mkdir()

    def _write(self, path: Path, write: Callable[[Path], object]) -> None:
        temporary = self.workspace / f"{path.name}.tmp"
        write(temporary)
        flush(temporary)
        temporary.replace(path)
        flush(path.parent)

    def _is_proved(self, number: int) -> bool:
        proof, path = self._proof(number), self.path(number)
        return proof.is_file() and path.is_file() and proof.read_text() == _digest(path)

    def _proof(self, number: int) -> Path:
        return self.workspace / f"{number:05}.sha256"


def workspace_of(final: Path) -> Path:
    """Where a folder is made until it is whole."""
    return final.with_name(f".{final.name}.unfinished")


def drop_workspace(final: Path) -> None:
    """Remove what a folder is made of, and let others make it."""
    shutil.rmtree(workspace_of(final), ignore_errors=True)
    leave(workspace_of(final))


def begun_content(final: Path) -> dict[str, Any] | None:
    """The content of what was begun there, None where nothing was."""
    return read_json(workspace_of(final) / BEGUN)


def same_content(one: dict[str, Any] | None, other: dict[str, Any], free: tuple[str, ...]) -> bool:
    """Whether two say the same, but for what is free; None says nothing."""
    return one is not None and all(one.get(key) == value for key, value in other.items() if key not in free)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
