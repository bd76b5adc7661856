"""COCO's captions, VQAv2's questions, MMC4's documents, folders of classes, data sets of the hub."""

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from users_files import CAPTIONS, make_annotated, make_parquet, make_pictures, write_lines

from unimm.data.readers.annotated import CocoCaptions, Mmc4, VqaQuestions
from unimm.data.readers.fields import Fields
from unimm.data.readers.image_folder import ImageFolder
from unimm.data.readers.parquet import Parquet


def test_coco_s_captions(tmp_path: Path) -> None:
    make_annotated(tmp_path)
    dataset = CocoCaptions(tmp_path / "captions.json")
    assert len(dataset) == 4 and dataset[2].key == "2.png" == dataset.key_at(2)
    assert [text.text for text in dataset[1].captions] == [CAPTIONS[1]] * 2 and dataset[1].image == tmp_path / "1.png"
    (tmp_path / "1.png").unlink()
    with pytest.raises(ValueError, match=r"record 1\.png: the image .* is not there"):
        dataset[1]
    held = json.loads((tmp_path / "captions.json").read_text())
    for changed, words in (
        ({**held, "annotations": [{"image_id": 99, "caption": "x"}]}, "lacks 99"),
        ({**held, "annotations": []}, "holds no captions"),
        ({"images": []}, "no list 'annotations'"),
        ([], "no list 'images'"),
    ):
        (tmp_path / "other.json").write_text(json.dumps(changed))
        with pytest.raises(ValueError, match=words):
            CocoCaptions(tmp_path / "other.json")
    with pytest.raises(ValueError, match=r"There is no file"):
        CocoCaptions(tmp_path / "none.json")


def test_vqa_s_questions(tmp_path: Path) -> None:
    make_annotated(tmp_path)
    questions, annotations = tmp_path / "questions.json", tmp_path / "annotations.json"
    dataset = VqaQuestions(questions, annotations)
    assert [(q.text, q.answer, q.category) for q in dataset[1].questions] == [
        ("Which 1?", "red", "what"),
        ("Which 3?", "red", "what"),
    ]
    assert dataset[1].image == tmp_path / "COCO_train2014_000000000001.jpg" and not dataset[1].is_dialogue
    annotations.write_text(json.dumps({"annotations": []}))
    with pytest.raises(ValueError, match=r"do not belong together"):
        VqaQuestions(questions, annotations)


def test_mmc4_s_documents(tmp_path: Path) -> None:
    make_annotated(tmp_path)
    dataset = Mmc4(tmp_path / "documents.jsonl")
    assert dataset[0].document == (0, CAPTIONS[0], 1, CAPTIONS[1], CAPTIONS[2])
    assert [one.image for one in dataset[0].images] == [tmp_path / "0.png", tmp_path / "1.png"]
    lines: list[dict[str, Any]] = [
        {"text_list": ["x"], "image_info": [{"image_name": "0.png", "matched_text_index": 3}]},
        {"text_list": ["x"], "image_info": [{"image_name": "gone.png", "matched_text_index": 0}]},
        {"text": "x"},
    ]
    good = json.loads((tmp_path / "documents.jsonl").read_text().splitlines()[0])
    bad = Mmc4(write_lines(tmp_path / "bad.jsonl", [good, *lines]))
    for number, words in ((1, "below 1"), (2, "is not there"), (3, "no lists text_list")):
        with pytest.raises(ValueError, match=words):
            bad[number]


def test_folders_of_classes(tmp_path: Path) -> None:
    folder = make_pictures(tmp_path / "photos", ("tabby_cat/1.png", "dog/a/2.png"))
    dataset = ImageFolder(folder, templates=["A photo of a {}.", "{}"])
    assert [text.text for text in dataset[1].captions] == ["A photo of a tabby cat.", "tabby cat"]
    assert dataset[0].captions[0].text == "A photo of a dog."
    with pytest.raises(ValueError, match=r"one {}"):
        ImageFolder(folder, templates=["A photo."])
    make_pictures(folder, ("alone.png",))
    with pytest.raises(ValueError, match=r"alone\.png lies in no folder of a class"):
        ImageFolder(folder, templates=["{}"])
    assert len(ImageFolder(folder, templates=["{}"], max_bad=0.5)) == 3


def test_a_data_set_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files that the hub lists for the split are downloaded and read; here its two functions are stood in for."""
    make_parquet(tmp_path / "data")
    for part, name in enumerate(("train-00000-of-00001", "test-00000-of-00001")):
        (tmp_path / f"data/part-{part}.parquet").rename(tmp_path / f"data/{name}.parquet")
    asked: list[Any] = []

    def list_files(repo: str, repo_type: str, revision: str | None) -> list[str]:
        if repo == "a/gone":
            raise OSError("404")
        return [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*.parquet"))]

    def download(repo: str, repo_type: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((repo, repo_type, revision, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "list_repo_files", list_files)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    fields = Fields(image="image", caption="text")
    train, test = Parquet("hf://datasets/a/b", fields), Parquet("hf://datasets/a/b/test", fields)
    assert [len(train), len(test)] == [2, 2] and train[0].captions[0].text == CAPTIONS[0] != test[0].captions[0].text
    assert asked[1] == ("a/b", "dataset", None, ["data/test-00000-of-00001.parquet"])
    for path, words in (
        ("hf://datasets/a/b/validation", "no Parquet files of a split 'validation', there is data/test-00000"),
        ("hf://datasets/a/gone", r"cannot be had \(404\)"),
        ("hf://datasets/a", "names no data set"),
    ):
        with pytest.raises(ValueError, match=words):
            Parquet(path, fields)
