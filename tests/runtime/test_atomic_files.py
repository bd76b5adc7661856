"""Folders that take the place of others: whatever happens, one of them is there, whole."""

from pathlib import Path

import pytest

from unimm.runtime import atomic_files
from unimm.runtime.atomic_files import replace_folder, temporary_folder


def filled(folder: Path, word: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "word").write_text(word)
    return folder


@pytest.mark.parametrize("can_swap", [True, False])
def test_a_folder_takes_the_place_of_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can_swap: bool) -> None:
    if not can_swap:
        monkeypatch.setattr(atomic_files, "_swap_names", lambda one, other: False)
    final = tmp_path / "model"
    for word in ("first", "second"):
        replace_folder(filled(temporary_folder(final), word), final)
        assert (final / "word").read_text() == word
        assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_names_are_exchanged_at_once_where_the_system_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = filled(tmp_path / "one", "one"), filled(tmp_path / "other", "other")
    if not atomic_files._swap_names(one, other):
        pytest.skip("this system or this disk cannot")
    assert (one / "word").read_text() == "other" and (other / "word").read_text() == "one"
    renames: list[Path] = []
    monkeypatch.setattr(Path, "rename", lambda self, to: renames.append(self))
    replace_folder(one, other)
    assert not renames and (other / "word").read_text() == "other" and not one.exists()


def test_what_was_put_away_when_a_process_was_killed_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where names cannot be exchanged, a kill between two renames leaves the old folder under another name."""
    monkeypatch.setattr(atomic_files, "_swap_names", lambda one, other: False)
    final = tmp_path / "model"
    filled(tmp_path / ".model.old", "old")
    new = filled(temporary_folder(final), "new")
    rename = Path.rename

    def fail_at_the_new(self: Path, to: Path) -> Path:
        assert any((path / "word").is_file() for path in (final, tmp_path / ".model.old"))
        if self == new:
            raise OSError("no room")
        return rename(self, to)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="no room"):
        patch.setattr(Path, "rename", fail_at_the_new)
        replace_folder(new, final)
    assert (tmp_path / ".model.old" / "word").read_text() == "old"
    replace_folder(new, final)
    assert (final / "word").read_text() == "new" and not (tmp_path / ".model.old").exists()
