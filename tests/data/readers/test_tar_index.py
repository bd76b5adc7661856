"""The index of a shard: built once, kept whole, trusted only for the shard that it was built of."""

import os
from pathlib import Path

import pytest
from users_files import make_shard, make_shards

from unimm.data.readers import tar_index, web_dataset
from unimm.data.readers.web_dataset import WebDataset


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The shards that an index was built of."""
    names: list[str] = []

    def count(shard: Path, cache: Path | None) -> tar_index.TarIndex:
        names.append(shard.name)
        return tar_index.build_index(shard, cache)

    monkeypatch.setattr(web_dataset, "build_index", count)
    return names


def test_built_once_and_again_where_the_shard_has_changed(tmp_path: Path, built: list[str]) -> None:
    folder = make_shards(tmp_path / "shards")
    records = [WebDataset(folder)[index] for index in range(4)]
    assert built == ["000.tar", "001.tar"]
    assert {path.name for path in folder.iterdir()} == {"000.tar", "001.tar", "000.tar.index", "001.tar.index"}
    assert [WebDataset(folder)[index] for index in range(4)] == records and len(built) == 2
    make_shard(folder / "001.tar", {"z.png": b"image", "z.txt": b"Z."})
    changed = WebDataset(folder)
    assert built[2:] == ["001.tar"] and len(changed) == 3 and changed[2].image.read() == b"image"
    os.utime(folder / "000.tar", (1, 1))
    assert WebDataset(folder)[0] == records[0] and built[3:] == ["000.tar"]
    (folder / "000.tar.index").write_bytes(b"half an ind")
    assert WebDataset(folder)[0] == records[0] and built[4:] == ["000.tar"]
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_a_read_only_folder_is_indexed_elsewhere(
    tmp_path: Path, home: Path, built: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may write anywhere, so the folder refuses by a patch."""
    folder = make_shards(tmp_path / "shards")
    save = tar_index.save_file

    def refuse(tensors, path: Path, metadata) -> None:
        if path.parent == folder:
            raise PermissionError(13, "read-only", str(path))
        save(tensors, path, metadata)

    monkeypatch.setattr(tar_index, "save_file", refuse)
    records = [WebDataset(folder)[index] for index in range(4)]
    assert {path.suffix for path in folder.iterdir()} == {".tar"} and len(list(home.rglob("*.index"))) == 2
    assert [WebDataset(folder)[index] for index in range(4)] == records and len(built) == 2


def test_no_place_at_all_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    folder = make_shards(tmp_path / "shards")

    def refuse(*_args) -> None:
        raise PermissionError(13, "read-only")

    monkeypatch.setattr(tar_index, "save_file", refuse)
    assert len(WebDataset(folder)) == 4
    assert "cannot be kept" in caplog.text


def test_a_cache_folder_may_be_named(tmp_path: Path) -> None:
    folder = make_shards(tmp_path / "shards")
    WebDataset(folder, cache=tmp_path / "cache")
    assert {path.suffix for path in folder.iterdir()} == {".tar"} and len(list((tmp_path / "cache").iterdir())) == 2


def test_a_name_that_is_not_utf_8(tmp_path: Path, built: list[str]) -> None:
    make_shard(tmp_path / "a.tar", {"caf\udce9.png": b"image", "caf\udce9.txt": b"One."})
    for _ in range(2):
        record = WebDataset(tmp_path)[0]
        assert record.key == "a.tar/caf\udce9" and record.captions[0].text == "One."
    assert built == ["a.tar"]
