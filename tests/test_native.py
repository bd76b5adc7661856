"""Our own C++ is compiled once, kept for this processor, and never half read."""

import ctypes
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from unimm import native
from unimm.native import load_library

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++")

SOURCE = 'extern "C" int twice(int x) { return 2 * x; }'


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "twice.cpp"
    path.write_text(SOURCE)
    return path


def kept(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "unimm" / "native").iterdir())


def test_compiled_once_and_anew_when_something_changes(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_library(source).twice(21) == 42
    (first,) = kept(tmp_path)
    changed = first.stat().st_mtime_ns
    assert load_library(source).twice(4) == 8
    assert kept(tmp_path) == [first] and first.stat().st_mtime_ns == changed
    source.write_text(SOURCE.replace("2 *", "3 *"))
    assert load_library(source).twice(21) == 63
    monkeypatch.setattr(native, "_processor", lambda: b"another")
    assert load_library(source).twice(21) == 63
    assert len(kept(tmp_path)) == 3


def test_several_at_once(source: Path, tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        assert [library.twice(1) for library in pool.map(load_library, [source] * 4)] == [2] * 4
    assert len(kept(tmp_path)) == 1


def test_without_a_place_to_keep_it(source: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("not a folder")
    library = load_library(source)
    assert isinstance(library, ctypes.CDLL) and library.twice(21) == 42


def test_what_is_kept_and_damaged_is_made_again(source: Path, tmp_path: Path) -> None:
    """As after a crash. Another process makes the first one: one that has loaded a file would not read it again."""
    code = f"from pathlib import Path; from unimm.native import load_library; load_library(Path({str(source)!r}))"
    subprocess.run([sys.executable, "-c", code], check=True)
    (only,) = kept(tmp_path)
    size = only.stat().st_size
    only.write_bytes(b"")
    assert load_library(source).twice(21) == 42
    assert kept(tmp_path) == [only] and only.stat().st_size == size


def test_nobodys_home(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", nowhere)
    assert load_library(source).twice(21) == 42


def test_what_cannot_be_compiled(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source.write_text("int twice(int x) { return y; }")
    with pytest.raises(OSError, match=r"\+\+ does not compile twice\.cpp: .*‘?y"):
        load_library(source)
    assert not (tmp_path / "cache").exists()
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(OSError, match=r"no C\+\+ compiler no-such-compiler: install g\+\+"):
        load_library(source)
    monkeypatch.setenv("CXX", "g++ 'x")
    with pytest.raises(OSError, match="names no compiler"):
        load_library(source)
    monkeypatch.setenv("CXX", " ")  # as if it were not there
    source.write_text(SOURCE)
    assert load_library(source).twice(21) == 42
