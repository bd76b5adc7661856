"""DocVQA's and ChartQA's files: asked, scored as the papers score, and refused where they are others."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unimm.eval import suites
from unimm.eval.scorers.documents import anls, is_relaxed_match
from unimm.eval.tasks.document_files import ChartQaFiles, DocVqaFiles


class Saying:
    """Gives the same answers to any questions."""

    def __init__(self, *answers: str) -> None:
        self.answers = answers

    def answer(self, images: list, questions: list[str], max_new_tokens: int) -> list[str]:
        assert all(Path(image).is_file() for image in images) and all("single word" in text for text in questions)
        return list(self.answers)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pages").mkdir()
    for name in ("a.png", "b.png"):
        Image.fromarray(np.zeros((20, 40, 3), dtype=np.uint8)).save(tmp_path / "pages" / name)
    asked = [
        {"questionId": 7, "question": "What is the date?", "image": "documents/a.png", "answers": ["3 May 1984", "May 3"]},
        {"questionId": 9, "question": "Who signed?", "image": "documents/b.png", "answers": ["J. Smith"]},
    ]
    (tmp_path / "val.json").write_text(json.dumps({"dataset_name": "docvqa", "data": asked}))
    (tmp_path / "test_human.json").write_text(json.dumps([{"imgname": "a.png", "query": "How many?", "label": "40"}]))
    (tmp_path / "test_augmented.json").write_text(json.dumps([{"imgname": "b.png", "query": "Which?", "label": "Spain"}]))
    return tmp_path


def test_documents_are_scored_by_anls(folder: Path) -> None:
    task = suites.load_task(f"docvqa?questions={folder / 'val.json'}&images={folder / 'pages'}")
    assert isinstance(task, DocVqaFiles) and task.num_items == 2
    result = task.run(Saying("3 may 1985", "nobody"), lambda _: None)  # pyright: ignore[reportArgumentType]
    assert result.score == pytest.approx((0.9 + 0.0) / 2)
    assert anls("May 3", ["3 May 1984", "May 3"]) == 1.0 and anls("", [""]) == 1.0 and anls("", ["x"]) == 0.0
    assert anls("abcd", ["abxy"]) == 0.5 and anls("abcd", ["axyz"]) == 0.0


def test_charts_are_scored_by_relaxed_accuracy(folder: Path) -> None:
    task = suites.load_task(f"chartqa?paths={folder}/test_*.json&images={folder / 'pages'}")
    assert isinstance(task, ChartQaFiles)
    said = {"40": "41.9", "Spain": "spain"}
    answers = [said[question.answers[0]] for question in task._questions]
    result = task.run(Saying(*answers), lambda _: None)  # pyright: ignore[reportArgumentType]
    assert result.score == 1.0 and {*result.details} == {"human", "augmented"}
    assert is_relaxed_match("42%", "0.42") and is_relaxed_match("-38", "-40") and not is_relaxed_match("42.1", "40")
    assert is_relaxed_match("0", "0") and not is_relaxed_match("0.0", "0") and not is_relaxed_match("forty", "40")
    assert not is_relaxed_match("1_0", "10")


def test_other_files_are_refused(folder: Path) -> None:
    (folder / "bare.json").write_text(json.dumps({"data": [{"questionId": 1, "question": "?", "image": "a.png"}]}))
    for name, reason in (("bare.json", "'answers' is missing"), ("test_human.json", "has no list 'data'")):
        with pytest.raises(ValueError, match=reason):
            DocVqaFiles(str(folder / name))
    with pytest.raises(ValueError, match="has no imgname"):
        ChartQaFiles(str(folder / "val.json"))
    with pytest.raises(ValueError, match="2 of 2 images are not in"):
        DocVqaFiles(str(folder / "val.json"))
