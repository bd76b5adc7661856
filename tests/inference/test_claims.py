"""What a text says is in an image: found by a rule, asked for, and left out again."""

import pytest

from unimm.data.worlds.shapes import ShapesWorld
from unimm.data.worlds.shapes_claims import ask_for_claim, name_claims
from unimm.data.worlds.shapes_language import parse_caption
from unimm.inference.claims import existence_questions, find_asked, find_claims, keep_claims, vote_of


@pytest.mark.parametrize(
    ("text", "claims"),
    [
        ("Two dogs chase a red ball on the grass.", ["two dogs chase", "a red ball", "the grass"]),
        ("A man riding a horse next to a brick building.", ["a man", "a horse", "a brick building"]),
        ("A group of people standing around 3 plates of food.", ["a group of people", "3 plates of food"]),
        ("The image shows a woman dressed in a long coat.", ["a woman", "a long coat"]),
        ("In the background there is an old car. The car is blue!", ["an old car", "the car"]),
        ("Nothing but a dark background.", []),
        ("一只黑色的猫坐在两张椅子旁边。", ["一只黑色的猫", "两张椅子"]),
        ("", []),
    ],
)
def test_claims_of_free_text(text: str, claims: list[str]) -> None:
    assert find_claims(text) == claims


def test_the_rule_finds_what_the_parser_of_shapes_finds() -> None:
    """In captions of the world of shapes, in both languages, each object once and none besides."""
    for index in range(150):
        for text in ShapesWorld("test", 150)[index].captions:
            found = [look for claim in find_claims(text.text) for look in parse_caption(claim)]
            assert sorted(map(str, found)) == sorted(map(str, parse_caption(text.text))), text.text


def test_claims_of_shapes_are_what_the_judge_reads() -> None:
    for text in ("Two large red circles to the left of an orange cross.", "两个大的红色圆形在一个橙色十字形的左边。"):
        claims = name_claims(text)
        assert len(claims) == 2 and [look for claim in claims for look in parse_caption(claim)] == parse_caption(text)
    assert ask_for_claim("two large red circles")[0] == "Is there a red circle?"
    assert ask_for_claim("一个橙色十字形")[0] == "有橙色十字形吗？"


@pytest.mark.parametrize(
    ("question", "asked"),
    [
        ("Is there a snowboard in the image?", "a snowboard"),
        ("Is there a red car?\nAnswer the question using a single word or phrase.", "a red car"),
        ("Do you see an orange cross?", "an orange cross"),
        ("Are there two dogs on this photo? Please answer yes or no.", "two dogs"),
        ("Is there a dog on the left?", None),
        ("Is there a dog in the first image?", None),
        ("Are there more than two dogs?", None),
        ("Is there a dog behind it in the picture?", None),
        ("Is there a dog? Look at the left half only.", None),
        ("有两只狗在左边吗？", None),
        ("图中有一只狗吗？请用一个词回答。", "一只狗"),
        ("Is there a dog to the left of a cat?", None),
        ("How many circles are there?", None),
        ("图中有红色圆形吗？", "红色圆形"),
        ("有没有狗？", "狗"),
        ("有几个红色圆形？", None),
    ],
)
def test_what_a_question_asks_for(question: str, asked: str | None) -> None:
    assert find_asked(question) == asked


def test_a_finder_of_ones_own_has_to_find_all_that_is_asked() -> None:
    """As in the world of shapes: what it names in fewer words is not what the question asks."""
    assert find_asked("Is there a red circle in the picture?", name_claims) == "a red circle"
    assert find_asked("图中有红色圆形吗？", name_claims) == "一个红色圆形"
    assert find_asked("Is there a red circle?", lambda text: ["circle"]) is None


def test_how_claims_are_asked_for() -> None:
    assert existence_questions("two dogs") == ["Are there two dogs in the picture?", "Do you see two dogs?"]
    assert existence_questions("the old car")[0] == "Is there an old car in the picture?"
    assert existence_questions("一只猫") == ["图中有猫吗？", "能看到猫吗？"]
    assert existence_questions("a {b}", ("See {a}?",)) == ["See a {b}?"]


def test_what_fails_is_left_out() -> None:
    """A sentence that makes a claim that failed becomes a list of its others; the rest stays as it is."""
    text = "A dog and a cat sit on a sofa. There is a lamp."
    assert keep_claims(text, {"cat"}) == "A dog and a sofa. There is a lamp."
    assert keep_claims(text, {"lamp"}) == "A dog and a cat sit on a sofa."
    assert keep_claims(text, {"dog", "cat", "sofa", "lamp"}) == text
    assert keep_claims("一个红色圆形在一个蓝色方块的左边。", {vote_of("一个蓝色方块")}) == "一个红色圆形。"
    assert vote_of("  The  Red Ball. ") == vote_of("a red ball") == "red ball"
