"""Prompts of files: lines of text, and JSON lines with images or without."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unimm.data import DrawingPrompt, PromptFiles, QuestionPrompt


def test_lines_of_text_are_drawn_and_blank_ones_are_none(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_bytes("\ufeffa red circle\r\n\r\n  ein Hund  \n画一个圆形".encode())
    prompts = PromptFiles(tmp_path / "prompts.txt", language="zh")
    asked = [DrawingPrompt().ask(prompts[index], np.random.default_rng(0)) for index in range(len(prompts))]
    assert [one.text for one in asked] == ["a red circle", "ein Hund", "画一个圆形"] and all(one.draws for one in asked)
    assert prompts[2].key == prompts.key_at(2) == "prompts.txt/3" and prompts[0].prompts[0].language == "zh"


def test_images_are_asked_about(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), "red").save(tmp_path / "one.png")
    entries = [{"image": "one.png", "prompt": "Which colour?", "answer": "red"}, {"image": "one.png", "language": "zh"}]
    (tmp_path / "ask.jsonl").write_text("\n".join(map(json.dumps, entries)), encoding="utf-8")
    prompts = PromptFiles(tmp_path / "ask.jsonl")
    asked = [QuestionPrompt().ask(prompts[index], np.random.default_rng(0)) for index in range(2)]
    assert (asked[0].text, asked[0].facts, asked[0].draws) == ("Which colour?", "red", False)
    assert asked[1].image is not None and prompts[1].questions[0].language == "zh" and asked[1].text


def test_what_holds_no_prompts_says_so(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n \n", encoding="utf-8")
    with pytest.raises(ValueError, match="holds no prompts: write one a line"):
        PromptFiles(tmp_path / "empty.txt")
    (tmp_path / "bad.txt").write_bytes(b"a circle\n\xff\xfe")
    with pytest.raises(ValueError, match="is no UTF-8 text"):
        PromptFiles(tmp_path / "bad.txt")
    (tmp_path / "nothing.jsonl").write_text('{"caption": "a dog"}\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"nothing.jsonl.*there is no 'prompt'"):
        PromptFiles(tmp_path / "nothing.jsonl")[0]
    (tmp_path / "language.jsonl").write_text('{"prompt": "a dog", "language": ["en"]}\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"line 1: 'language' is a word"):
        PromptFiles(tmp_path / "language.jsonl")[0]
    with pytest.raises(ValueError, match="not both at once"):
        PromptFiles([tmp_path / "bad.txt", tmp_path / "nothing.jsonl"])
