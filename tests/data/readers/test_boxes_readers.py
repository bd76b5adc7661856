"""COCO's detections and referring expressions: what is read, and what is refused in one sentence."""

import json
from pathlib import Path

import pytest
from users_files import make_annotated, write_lines

from unimm.data.conversion.entries import CannotHoldError, entry_of
from unimm.data.readers.boxes import CocoObjects, RefCoco
from unimm.data.records import Phrase
from unimm.eval.tasks.locating import RefCocoLocate


def test_coco_s_boxes(tmp_path: Path) -> None:
    make_annotated(tmp_path)
    path = tmp_path / "instances.json"
    dataset = CocoObjects(path)
    assert len(dataset) == 4 and dataset[1].key == "1.png" and dataset[1].image_size == (20, 16)
    assert dataset[1].phrases == (Phrase("square", ((2, 3, 10, 9),), "en", "square", "one"), Phrase("dog", category="none"))
    held = json.loads(path.read_text())
    held["annotations"] += [
        {"id": 8, "image_id": 10, "category_id": 1, "bbox": [0, 0, 4, 4]},
        {"id": 9, "image_id": 11, "category_id": 2, "bbox": [0, 0, 4, 4], "iscrowd": 1},
        {"id": 10, "image_id": 12, "category_id": 2, "bbox": [40, 0, 4, 4]},
        {"id": 11, "image_id": 13, "category_id": 2, "bbox": [18.0, 0, 2.6, 16]},
    ]
    path.write_text(json.dumps(held))
    dataset = CocoObjects(path, num_absent=0)
    assert [(one.category, len(one.boxes)) for one in dataset[0].phrases] == [("several", 2)]
    assert [one.text for one in dataset[1].phrases] == ["square"]
    with pytest.raises(ValueError, match=r"record 2\.png, 'dog': The box \(40, 0, 44, 4\) reaches out of the picture"):
        dataset[2]
    assert dataset[3].phrases[1].boxes == ((18, 0, 20, 16),)
    path.write_text(json.dumps({**held, "annotations": [{"image_id": 10}]}))
    with pytest.raises(ValueError, match="lacks 'category_id'"):
        CocoObjects(path)


def test_entries_of_one_image_and_boxes_without_area(tmp_path: Path) -> None:
    """Two entries of a file_name are one image, so neither says that what the other has is absent."""
    make_annotated(tmp_path)
    path = tmp_path / "instances.json"
    held = json.loads(path.read_text())
    held["images"].append({"id": 99, "file_name": "0.png", "width": 20, "height": 16})
    held["annotations"] += [
        {"id": 20, "image_id": 99, "category_id": 2, "bbox": [1, 1, 4, 4]},
        {"id": 21, "image_id": 11, "category_id": 2, "bbox": [5, 5, 0, 3]},
    ]
    path.write_text(json.dumps(held))
    dataset = CocoObjects(path)
    assert len(dataset) == 4 and dataset.num_without_area == 1
    assert {one.text: one.category for one in dataset[0].phrases} == {"square": "one", "dog": "one"}
    assert [one.text for one in dataset[1].phrases] == ["square"]
    held["images"][-1]["width"] = 21
    path.write_text(json.dumps(held))
    with pytest.raises(ValueError, match=r"the entries of 0\.png differ in width and height"):
        CocoObjects(path)


def test_the_same_words_for_two_objects(tmp_path: Path) -> None:
    """One phrase to learn, two to score."""
    make_annotated(tmp_path)
    said = {"image": "0.png", "sent": "square", "width": 20, "height": 16}
    path = write_lines(tmp_path / "two.jsonl", [{**said, "bbox": [1, 1, 5, 5]}, {**said, "bbox": [8, 8, 12, 12]}])
    assert [one.category for one in RefCoco(path)[0].phrases] == ["several"]
    task = RefCocoLocate(path, num_items=2)
    assert [task._item(number)[1].boxes for number in (0, 1)] == [((1, 1, 5, 5),), ((8, 8, 12, 12),)]


def test_a_conversion_does_not_lose_boxes(tmp_path: Path) -> None:
    make_annotated(tmp_path)
    record = CocoObjects(tmp_path / "instances.json")[0]
    with pytest.raises(CannotHoldError, match=r"phrases with boxes, which no file holds: leave it out, leave_out=\[phrases\]"):
        entry_of(record)
    assert entry_of(record, ("phrases",)).key == "0.png"


def test_referring_expressions(tmp_path: Path) -> None:
    make_annotated(tmp_path)
    lines = RefCoco(tmp_path / "refs.jsonl")
    assert lines[0].phrases == (Phrase("the square", ((2, 3, 10, 9),), "en", "the square", "one"),)
    refs = [
        {"ann_id": 0, "image_id": 10, "split": "train", "sentences": [{"sent": "left one"}, {"raw": "It"}]},
        {"ann_id": 1, "image_id": 11, "split": "val", "sentences": ["other"]},
        {"ann_id": [-1], "image_id": 10, "split": "train", "sentences": [{"sent": "a cat"}]},
    ]
    (tmp_path / "refs.json").write_text(json.dumps(refs))
    read = RefCoco(tmp_path / "refs.json", tmp_path / "instances.json", split="train")
    assert len(read) == 1 and [(one.text, one.boxes) for one in read[0].phrases] == [
        ("left one", ((2, 3, 10, 9),)),
        ("It", ((2, 3, 10, 9),)),
        ("a cat", ()),
    ]
    for arguments, words in (
        ((tmp_path / "refs.json",), r"line 1 is no referring expression \(its boxes stand in COCO's instances.json"),
        ((tmp_path / "refs.json", tmp_path / "instances.json", None, "testA"), "no entries of the split 'testA'"),
        ((tmp_path / "none.json",), "There is no file"),
        ((write_lines(tmp_path / "bad.jsonl", [{"image": "0.png", "sent": "x", "bbox": [1, 2]}]),), "line 1 is no referring"),
    ):
        with pytest.raises(ValueError, match=words):
            RefCoco(*arguments)
    reversed_box = [{"image": "0.png", "sent": "x", "bbox": [9, 9, 2, 2], "width": 20, "height": 16}]
    with pytest.raises(ValueError, match=r"record 0\.png, 'x': The box .* has no area"):
        RefCoco(write_lines(tmp_path / "reversed.jsonl", reversed_box))
