"""Code that a folder names is imported where it is ours, registered, named by the user, or allowed; else a sentence says so."""

import os
import sys
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest

from unimm.runtime import plugins
from unimm.runtime.plugins import code_is_allowed, import_target, take_allow_code, trust


@pytest.fixture(autouse=True)
def nothing_is_trusted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """But us; and there is a package in the folder that the command runs in."""
    monkeypatch.setattr(plugins, "_trusted", {"unimm"})
    monkeypatch.setattr("sys.path", [*sys.path])
    monkeypatch.setenv("UNIMM_ALLOW_CODE", "0")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "their_parts.py").write_text("class Part: ...\nimport_me = 1\n")
    (tmp_path / "their_broken.py").write_text("import nothing_of_that_name\n")
    plugins._registered.cache_clear()


def test_a_package_is_allowed_by_name_by_installation_or_by_wish(monkeypatch: pytest.MonkeyPatch) -> None:
    assert code_is_allowed("unimm") and not code_is_allowed("theirs")
    assert code_is_allowed("theirs", allow_code=True) and not code_is_allowed("theirs")
    trust(["theirs.data.Set"])
    assert code_is_allowed("theirs") and not code_is_allowed("others")
    points = EntryPoints([EntryPoint("others", "others.parts:Part", plugins.GROUP)])
    monkeypatch.setattr(plugins, "entry_points", lambda group: points.select(group=group))
    plugins._registered.cache_clear()
    assert code_is_allowed("others")
    plugins._registered.cache_clear()


def test_the_option_is_taken_from_anywhere_on_the_line() -> None:
    assert take_allow_code(["caption", "a.png"]) == ["caption", "a.png"] and not code_is_allowed("theirs")
    assert take_allow_code(["caption", "--allow-code", "a.png"]) == ["caption", "a.png"]
    assert code_is_allowed("theirs") and os.environ["UNIMM_ALLOW_CODE"] == "1"
    assert import_target("their_parts.Part", "x/config.json").__name__ == "Part"  # beside what is installed, from here


def test_what_is_missing_is_said() -> None:
    with pytest.raises(ValueError, match=r"x/config.json needs code of the package 'their_parts' .* only if you allow it"):
        import_target("their_parts.Part", "x/config.json")
    trust(["their_parts.Part", "their_broken.Part"])
    assert import_target("their_parts.Part", "x/config.json").__name__ == "Part"
    for path, sentence in (
        ("their_parts.Other", "their_parts has no 'Other': install the version that has it"),
        ("their_parts.inner.Part", "there is no module 'their_parts.inner'"),
        ("their_broken.Part", "cannot be imported: No module named 'nothing_of_that_name'; install what it needs"),
        ("Part", "names 'Part', which is no import path"),
    ):
        with pytest.raises(ValueError, match=sentence):
            import_target(path, "x/config.json", allow_code=True)
