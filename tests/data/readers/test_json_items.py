"""Entries of JSON files by index are what json itself reads, wherever the windows of the first reading end."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unimm.data.readers import json_lines
from unimm.data.readers.json_lines import JsonFiles, JsonItems

VALUES = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.text('a é中"\\{}[],:\n\u2028😀', max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("kü", max_size=3), inner, max_size=3),
    max_leaves=6,
)
ITEMS = st.lists(st.dictionaries(st.text('kü"', max_size=3), VALUES, max_size=3), min_size=1, max_size=6)


@given(items=ITEMS, indent=st.sampled_from([None, 0, 2]), escape=st.booleans(), window=st.integers(1, 40), bom=st.booleans())
def test_a_list_and_lines_are_read_as_they_were_written(
    items: list[dict], indent: int | None, escape: bool, window: int, bom: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("json")
    encoding = "utf-8-sig" if bom else "utf-8"
    (folder / "a.json").write_text(json.dumps(items, indent=indent, ensure_ascii=escape), encoding=encoding)
    lines = "\n \n".join(json.dumps(item, ensure_ascii=escape) for item in items)
    (folder / "b.jsonl").write_text(lines, encoding=encoding)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_lines, "_WINDOW", window)
        for path in (folder / "a.json", folder / "b.jsonl"):
            found = JsonItems(path)
            assert [found[index] for index in range(len(found))] == items
            assert found.where(len(items) - 1).startswith(f"{path}, line ")


def test_files_follow_each_other(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for name, content in {"b/x.jsonl": '{"n": 2}\n{"n": 3}', "a.json": '[{"n": 0}, {"n": 1}]', "c.jsonl": '{"n": 4}'}.items():
        (tmp_path / name).write_text(content)
    files = JsonFiles(tmp_path)
    found = [files.find(index) for index in range(len(files))]
    assert [items[number]["n"] for items, number, _ in found] == [0, 1, 2, 3, 4]
    assert [key for *_, key in found] == ["a.json/0", "a.json/1", "b/x.jsonl/0", "b/x.jsonl/1", "c.jsonl/0"]
    some = JsonFiles([tmp_path / "c.jsonl", str(tmp_path / "*.json"), tmp_path / "c.jsonl"])
    assert [some.find(index)[2] for index in range(len(some))] == ["c.jsonl/0", "a.json/0", "a.json/1"]
