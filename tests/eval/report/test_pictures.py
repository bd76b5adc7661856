import numpy as np
import pytest
from PIL import Image

from unimm.eval.report import pictures
from unimm.eval.report.pictures import (
    FRAME,
    GAP,
    LINE_HEIGHT,
    NUM_LINES,
    VERDICTS,
    Tile,
    draw_grid,
    find_font,
    picture_drawings,
    picture_reconstructions,
    picture_result,
    wrap,
    write_prompt,
)
from unimm.eval.task import Example, summarize

RED = np.full((64, 64, 3), (255, 0, 0), dtype=np.uint8)
BELOW = NUM_LINES * LINE_HEIGHT + 4


def drawing(correct=True, prompt="a red circle", original=None, language="en"):
    return Example("key", prompt, "1 red circle", "", correct, language=language, drawn=True, image=RED, original=original)


def test_sixteen_drawings_are_four_rows_of_four():
    picture = picture_drawings([drawing(n % 2 == 0) for n in range(16)])
    step_x, step_y = 192 + 2 * FRAME + GAP, 192 + 2 * FRAME + GAP + BELOW
    assert picture.size == (4 * step_x + GAP, 4 * step_y + GAP)
    assert picture.getpixel((GAP, GAP)) == VERDICTS[True] and picture.getpixel((GAP + step_x, GAP)) == VERDICTS[False]
    assert picture.getpixel((GAP + 100, GAP + 100)) == (255, 0, 0)
    text = np.asarray(picture)[GAP + 192 + 2 * FRAME : step_y, GAP:step_x]
    assert text.min() < 100  # something is written there


def test_reconstructions_stand_below_their_originals():
    picture = picture_reconstructions([drawing(original=RED // 2), drawing(original=RED // 2)])
    assert picture.getpixel((GAP + 100, GAP + 100)) == (127, 0, 0)
    assert picture.getpixel((GAP + 100, GAP + 300)) == (255, 0, 0)
    assert picture.size == (2 * (200 + GAP) + GAP, 2 * 192 + 2 * FRAME + 2 * GAP)


def test_large_images_keep_their_size_and_mixed_ones_are_refused():
    assert draw_grid([Tile(np.zeros((384, 384, 3), dtype=np.uint8))]).size == (412, 412)
    with pytest.raises(ValueError, match="one size"):
        draw_grid([Tile(RED), Tile(RED[:32])])
    with pytest.raises(ValueError, match="no images"):
        picture_drawings([])


def test_chinese_prompts_are_english_where_no_font_has_them(monkeypatch):
    monkeypatch.setattr(pictures, "has_chinese_font", lambda: False)
    assert write_prompt(drawing(prompt="一个红色圆形", language="zh")) == "[zh] 1 red circle"
    assert write_prompt(drawing(prompt="a red circle")) == "a red circle"
    monkeypatch.setattr(pictures, "has_chinese_font", lambda: True)
    assert write_prompt(drawing(prompt="一个红色圆形", language="zh")) == "一个红色圆形"


def test_without_any_fonts_pillow_brings_one(monkeypatch, tmp_path):
    (tmp_path / "NotoSansCJK.ttc").write_bytes(b"no font")
    monkeypatch.setattr(pictures, "_font_folders", lambda: [tmp_path, tmp_path / "missing"])
    for cached in (pictures._find_font, find_font):
        cached.cache_clear()
    try:
        assert not pictures.has_chinese_font()
        assert picture_drawings([drawing()]).size[0] > 192
    finally:
        for cached in (pictures._find_font, find_font):
            cached.cache_clear()


@pytest.mark.parametrize("text", ["a small red circle to the left of a large blue square and two crosses " * 3, "红" * 99])
def test_long_prompts_are_wrapped_and_cut(text):
    lines = wrap(text, 200)
    assert len(lines) == NUM_LINES and lines[-1].endswith("...")
    assert all(find_font().getlength(line) <= 215 for line in lines)
    assert wrap("a cat", 200) == ["a cat"] and wrap("", 200) == []


def test_pictures_are_made_of_results_that_are_images():
    assert isinstance(picture_result(summarize("drawings", [drawing()] * 3)), Image.Image)
    assert picture_result(summarize("answers", [Example("key", "?", "a", "a", True, image=RED)])) is None
