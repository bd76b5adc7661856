"""The world of pages: the same pages every time, all that stands on them can be seen, and every answer is what stands there."""

import logging
from itertools import product

import numpy as np
import pytest

from unimm.data.worlds import pages_drawing
from unimm.data.worlds.pages import PagesWorld
from unimm.data.worlds.pages_content import CATEGORIES, KINDS, SPLITS, Layout, make_generator, make_page, pie_side
from unimm.data.worlds.pages_drawing import CHINESE_FONTS, MISSING, find_chinese_font, find_font, render
from unimm.data.worlds.pages_language import ASKED, CAPTIONS, COLUMNS, LABELS, LANGUAGES, TREND, WORDS
from unimm.data.worlds.scenes import COLOURS, FORMS
from unimm.data.worlds.shapes_language import WORDS as SHAPE_WORDS

HAS_CHINESE = find_chinese_font() is not None
KNOWN = LANGUAGES if HAS_CHINESE else ("en",)


def test_a_page_depends_on_its_number_alone() -> None:
    one, other = PagesWorld("train", 20, 3), PagesWorld("train", 10, 3)
    for index in (0, 7):
        first, again = one[index], other[index]
        assert first.key == again.key and first.facts == again.facts and first.questions == again.questions
        assert np.array_equal(first.image, again.image)
    assert one[0].key != PagesWorld("train", 20, 3, kinds=["pie"])[0].key, "another page has another name"
    facts = {repr(PagesWorld(split, 3, seed)[0].facts) for split, seed in product(SPLITS, (0, 1))}
    assert len(facts) == 6
    with pytest.raises(IndexError):
        one[20]


def test_pages_have_all_kinds_sizes_languages_and_questions() -> None:
    world = PagesWorld("train", 300, sizes=((256, 128), (128, 192)))
    records = [world[index] for index in range(300)]
    pages = [record.facts for record in records]
    assert {page.kind for page in pages} == {*KINDS} and {page.language for page in pages} == {*KNOWN}
    assert {record.image.shape for record in records[:20]} == {(128, 256, 3), (192, 128, 3)}
    assert {question.category for record in records for question in record.questions} == {*CATEGORIES}
    assert all(record.captions[0].language == record.facts.language for record in records)


def test_answers_are_what_stands_on_the_page() -> None:
    world = PagesWorld("test", 200)
    for index in range(200):
        page, questions = world[index].facts, world[index].questions
        assert all(question.answer and question.language == page.language for question in questions)
        values = dict(zip(page.names, page.values, strict=False))
        for question in questions:
            named = [name for name in page.names if name in question.text]
            if question.category == "text_all":
                assert question.answer.split("\n") == list(page.names)
            elif question.category == "text_read":
                place = next(int(letter) for letter in question.text if letter.isdigit())
                assert page.names[place - 1] == question.answer
            elif question.category in ("bars_value", "line_value", "pie_share"):
                assert f"{values[max(named, key=len)][0]}" == question.answer.removesuffix("%")
            elif question.category in ("bars_highest", "line_highest", "pie_largest"):
                assert values[question.answer] == max(page.values)
            elif question.category == "line_trend":
                first, second = sorted(named, key=lambda name: -len(name))[:2] if page.language == "en" else (None, None)
                if first is not None:
                    order = sorted((first, second), key=question.text.index)
                    rises = values[order[1]] > values[order[0]]
                    assert question.answer == TREND["en"][not rises]
            elif question.category == "table_highest":
                column = next(place for place, name in enumerate(page.columns) if name in question.text)
                assert values[question.answer][column] == max(row[column] for row in page.values)


def test_nothing_leaves_its_page() -> None:
    """The margin of every page is paper: no letter is cut off."""
    for language in KNOWN:
        for kind, size in (*product(KINDS, ((256, 128), (192, 192), (128, 256))), *[("text", (64, 64))] * 3):
            layout = Layout((size,), (language,), (kind,), 14)
            for index in range(4):
                page = make_page(make_generator(0, "train", index, "page"), layout)
                font = find_font() if language == "en" else find_chinese_font()
                assert font is not None
                image = render(page, font)
                assert image.shape == (size[1], size[0], 3) and image.dtype == np.uint8
                frame = np.ones(image.shape[:2], dtype=bool)
                frame[1:-1, 1:-1] = False
                assert (image[frame] == page.paper).all(), (language, kind, size, index)
                assert (image != page.paper).any()


def test_no_page_tells_what_other_worlds_hold_out() -> None:
    """Pairs of colour and form that the shapes world holds out: no page names a colour or a form at all."""
    told = {word for words in (WORDS, LABELS, COLUMNS) for language in LANGUAGES for word in words[language]}
    assert not told & {*COLOURS, *FORMS}
    named = [spelled for name in (*COLOURS, *FORMS) for spelled in SHAPE_WORDS["zh"][name]]
    assert not any(name in word for name in named for word in told)
    said = [*ASKED["en"].values(), *CAPTIONS["en"].values(), *ASKED["zh"].values(), *CAPTIONS["zh"].values()]
    assert not any(name in sentence.lower() for name in (*COLOURS, *FORMS, *named) for sentence in said)


def test_english_alone_where_no_font_has_chinese(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.delenv("UNIMM_CHINESE_FONT", raising=False)
    monkeypatch.setattr(pages_drawing, "CHINESE_FONTS", ("/nowhere.ttc",))
    with caplog.at_level(logging.WARNING):
        world = PagesWorld("train", 30)
    assert {world[index].facts.language for index in range(30)} == {"en"}
    assert caplog.messages == [f"There are English pages alone. {MISSING}"] and CHINESE_FONTS
    with pytest.raises(ValueError, match="install fonts-wqy-microhei"):
        PagesWorld("train", 30, languages=["zh"])
    with pytest.raises(ValueError, match="does not draw '茶'"):
        PagesWorld("train", 30, chinese_font=find_font())


def test_a_world_that_cannot_be_is_refused() -> None:
    for settings, reason in (
        ({"split": "rest"}, "unknown split 'rest'"),
        ({"kinds": ["maps"]}, "unknown kind 'maps'"),
        ({"categories": []}, "Name at least one category"),
        ({"languages": ["de"]}, "unknown language 'de'"),
        ({"sizes": [[64, 64]]}, "from 126 .* to 4096"),
        ({"sizes": [[60, 64]], "kinds": ["text"]}, "from 63 .* to 4096"),
        ({"font_size": 4}, "font_size is a whole number of at least 8"),
        ({"font": "nowhere.ttf"}, "no font file nowhere.ttf"),
    ):
        with pytest.raises(ValueError, match=reason):
            PagesWorld(**{"split": "train", "num_records": 3, **settings})


def test_a_pie_has_room_on_the_smallest_pages() -> None:
    world = PagesWorld("train", 40, sizes=[[126, 126], [127, 126], [126, 127]], kinds=["pie"], languages=["en"])
    for index in range(40):
        page = world[index].facts
        assert pie_side(page, len(page.names))[0] >= 3 * page.font_size and world[index].image.shape[0] >= 126
