"""Readers of edits: every public form gives a source, a target and what was asked for; mistakes end in one sentence."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from users_files import make_edits, picture_bytes, write_lines

from unimm.data.image import decode_image
from unimm.data.readers.edits import EditLines, EditTable, InstructPix2PixFolder
from unimm.data.records import Record


def shown(image: Any) -> bytes:
    return decode_image(image).tobytes()


PICTURES = [shown(picture_bytes(number)) for number in range(4)]


def seen(record: Record) -> list[tuple[int, int, str]]:
    """Its edits: which picture becomes which, and why."""
    images = [PICTURES.index(shown(one.image)) for one in record.images]
    return [(images[one.source], images[one.target], one.instructions[0].text) for one in record.edits]


def write_pictures(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(4):
        (folder / f"{number}.png").write_bytes(picture_bytes(number))
    return folder


def test_tables_of_instruct_pix2pix_and_magicbrush(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    table = EditTable(make_edits(tmp_path / "one"))
    assert [seen(table[index]) for index in range(2)] == [[(0, 2, "make it red")], [(1, 3, "remove the cat")]]
    assert table.key_at(1) == table[1].key
    rows = [{"bytes": picture_bytes(number), "path": None} for number in range(2)]
    columns = {"img_id": ["7", "7"], "turn_index": [1, 2], "source_img": rows, "mask_img": rows, "target_img": rows[::-1]}
    (tmp_path / "two").mkdir()
    pyarrow.parquet.write_table(pyarrow.table({**columns, "instruction": ["a", "b"]}), tmp_path / "two" / "train.parquet")
    brush = EditTable(tmp_path / "two", "source_img", "target_img", "instruction")
    assert [seen(record) for record in (brush[0], brush[1])] == [[(0, 1, "a")], [(1, 0, "b")]]
    with pytest.raises(ValueError, match="has no 'edit_prompt'"):
        EditTable(tmp_path / "two")


@pytest.mark.parametrize("lacking", ["original_image", "edited_image"])
def test_a_table_that_is_left_out_is_left_out_of_both_sides(tmp_path: Path, lacking: str) -> None:
    import pyarrow.parquet

    make_edits(tmp_path)
    whole = pyarrow.parquet.read_table(tmp_path / "edits.parquet")
    pyarrow.parquet.write_table(whole.drop_columns([lacking]), tmp_path / "a.parquet")
    table = EditTable(tmp_path, max_bad=0.5)
    assert [seen(table[index]) for index in range(len(table))] == [[(0, 2, "make it red")], [(1, 3, "remove the cat")]]


def test_imgedit_in_tables_and_lines(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    write_pictures(tmp_path / "images" / "a")
    names = ("input_images", "output_images", "prompt")
    rows = dict(zip(names, ([["a/0.png"], ["a/1.png"]], [["a/1.png"], ["a/2.png"]], ["redden", "remove it"]), strict=True))
    pyarrow.parquet.write_table(pyarrow.table(rows), tmp_path / "add_part0.parquet")
    table = EditTable(tmp_path / "add_part0.parquet", *names, root=tmp_path / "images")
    assert [seen(table[0]), seen(table[1])] == [[(0, 1, "redden")], [(1, 2, "remove it")]]

    turns = [
        {"input_images": ["a/0.png"], "output_images": ["a/1.png"], "prompt": "first"},
        {"input_images": ["a/1.png"], "output_images": ["a/2.png"], "prompt": "then"},
    ]
    write_lines(tmp_path / "turns.jsonl", [{"data": turns}, turns[0]])
    lines = EditLines(tmp_path / "turns.jsonl", root=tmp_path / "images")
    assert lines[0].num_images == 3 and seen(lines[0]) == [(0, 1, "first"), (1, 2, "then")]
    assert seen(lines[1]) == [(0, 1, "first")]


def test_instruct_pix2pix_folders(tmp_path: Path) -> None:
    for name, seeds in (("0001", [7, 8]), ("0002", [9])):
        write_pictures(tmp_path / name)
        for place, seed in enumerate(seeds):
            for number in range(2):
                (tmp_path / name / f"{seed}_{number}.jpg").write_bytes(picture_bytes(2 * place + number))
        (tmp_path / name / "prompt.json").write_text(json.dumps({"input": "x", "edit": f"edit {name}", "output": "y"}))
    (tmp_path / "seeds.json").write_text(json.dumps([["0001", ["7", "8"]], ["0002", ["9"]]]))
    folder = InstructPix2PixFolder(tmp_path)
    assert [folder[index].key for index in range(len(folder))] == ["0001/7", "0001/8", "0002/9"]
    assert seen(folder[1]) == [(2, 3, "edit 0001")] and seen(folder[2]) == [(0, 1, "edit 0002")]
    (tmp_path / "0002" / "prompt.json").write_text("{")
    with pytest.raises(ValueError, match=r"0002.*prompt\.json cannot be read"):
        folder[2]
    (tmp_path / "seeds.json").write_text("{}")
    with pytest.raises(ValueError, match=r"seeds\.json is no list"):
        InstructPix2PixFolder(tmp_path)


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ({"input_images": ["0.png"], "output_images": ["1.png"]}, "prompt"),
        ({"input_images": ["0.png", "1.png"], "output_images": ["1.png"], "prompt": "a"}, "an edit is of one image"),
        ({"input_images": ["0.png"], "output_images": ["1.png"], "prompt": " "}, "no instruction"),
        ({"input_images": ["0.png"], "output_images": ["nine.png"], "prompt": "a"}, r"nine\.png is not there"),
        ({"data": []}, "a list of edits"),
    ],
)
def test_a_bad_entry_is_named_with_its_line(tmp_path: Path, entry: dict, told: str) -> None:
    write_pictures(tmp_path)
    write_lines(tmp_path / "edits.jsonl", [entry])
    with pytest.raises(ValueError, match=rf"edits\.jsonl, line 1.*{told}"):
        EditLines(tmp_path / "edits.jsonl")


def test_records_are_learned_from(tmp_path: Path) -> None:
    """The two images of a record are coded apart, and the view learns the second."""
    from toys import make_template

    from unimm.data.edit_view import Edit
    from unimm.data.prompt_format import PromptFormat
    from unimm.data.template import Template

    toy = make_template()
    template = Template(toy.tokenizer, PromptFormat(edits="codes_first"), toy.image_size, toy.num_positions)
    record = EditTable(make_edits(tmp_path))[0].with_codes(np.arange(4), np.arange(4)[::-1])
    sequence = Edit(0.0, 0.0, 0.0)(record, template, np.random.default_rng(0))
    assert sequence.segments[-1].ids == (3, 2, 1, 0) and sequence.segments[-1].learn
