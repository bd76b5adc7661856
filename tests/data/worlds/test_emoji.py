"""The world of emoji: pictures of a font, true words in two languages, held-out pairs; the classifier that reads drawings."""

from pathlib import Path

import numpy as np
import pytest

from unimm.data.worlds.emoji import EmojiSet, EmojiWorld
from unimm.data.worlds.emoji_judge import NOTHING, EmojiJudge
from unimm.data.worlds.emoji_language import describe
from unimm.data.worlds.emoji_pictures import Emoji, find_font, list_emoji
from unimm.data.worlds.emoji_scenes import SPLITS, is_held_out
from unimm.eval.tasks.emoji import check_font

NEEDED = "no font with emoji (fonts-noto-color-emoji), or no package emoji"
drawn = pytest.mark.skipif(not check_font(), reason=NEEDED)
FEW = 24


@pytest.fixture(scope="module")
def few() -> EmojiSet:
    return EmojiSet.open(num_emoji=FEW)


@drawn
def test_the_font_draws_what_is_listed() -> None:
    things = list_emoji(find_font(), "things")
    named = {one.characters: one for one in things}
    assert len(things) > 300 and len({one.english for one in things}) == len(things)
    assert (named["🐶"].a_name, named["🐶"].chinese_name) == ("a dog face", "狗脸")
    assert "bento" in named["🍱"].keywords
    pictures = [EmojiWorld(num_records=FEW, num_emoji=FEW)[index].image for index in range(FEW)]
    assert len({picture.tobytes() for picture in pictures}) == FEW
    assert all(picture.shape == (64, 64, 3) and picture.std() > 10 for picture in pictures)


@pytest.mark.parametrize(
    ("name", "said"),
    [("ant", "an ant"), ("unicorn", "a unicorn"), ("grapes", "grapes"), ("bus", "a bus"), ("bacon", "bacon"),
     ("nest with eggs", "a nest with eggs"), ("glass of milk", "a glass of milk"), ("rhinoceros", "a rhinoceros")],
)  # fmt: skip
def test_articles(name: str, said: str) -> None:
    assert Emoji("x", name, "某物").a_name == said


def test_a_flag_is_called_one() -> None:
    flag = Emoji("x", "Chad", "乍得", is_flag=True)
    assert (flag.a_name, flag.chinese_name) == ("the flag of Chad", "乍得的旗帜")


@drawn
@pytest.mark.parametrize("split", SPLITS)
def test_records_depend_on_their_index_alone_and_splits_differ(split: str) -> None:
    world, again = (EmojiWorld(split, 60, num_emoji=FEW) for _ in range(2))
    for index in (59, 3):
        one, other = world[index], again[index]
        assert np.array_equal(one.image, other.image)
        assert (one.captions, one.prompts, one.questions, one.text) == (
            other.captions,
            other.prompts,
            other.questions,
            other.text,
        )
    others = [EmojiWorld(name, 60, num_emoji=FEW)[59].image for name in SPLITS if name != split]
    assert not any(np.array_equal(world[59].image, image) for image in others)


@drawn
def test_held_out_pairs_are_shown_by_their_split_alone(few: EmojiSet) -> None:
    def pairs(split: str) -> list[bool]:
        scenes = [record.facts for record in map(EmojiWorld(split, 200, num_emoji=FEW).__getitem__, range(200))]
        shown = [[few.emoji[item.number] for item in scene.items] for scene in scenes if scene.relation]
        return [is_held_out(*both) for both in shown]

    assert all(pairs("held_out")) and len(pairs("held_out")) == 200
    assert all(pairs(split) and not any(pairs(split)) for split in ("train", "test"))
    every = [is_held_out(a, b) for a in few.emoji for b in few.emoji if a is not b]
    assert 0.03 < np.mean(every) < 0.2 and is_held_out(few.emoji[0], few.emoji[1]) == is_held_out(few.emoji[1], few.emoji[0])


@drawn
def test_words_say_what_is_there(few: EmojiSet) -> None:
    for index in range(FEW, FEW + 60):
        record = EmojiWorld(num_records=200, num_emoji=FEW)[index]
        scene, languages = record.facts, [text.language for text in record.captions]
        assert languages == ["en", "en", "zh", "zh"]
        shown = [few.emoji[item.number] for item in scene.items]
        for text in (*record.captions, *record.prompts[: 1 if len(shown) == 1 else None]):
            names = [one.a_name if text.language == "en" else one.chinese_name for one in shown]
            assert all(name[1:] in text.text for name in names), text
        answers = {(one.category, one.language): one for one in record.questions}
        assert answers["count", "en"].answer == str(len(shown))
        if scene.relation is None:
            assert f"a {answers['name', 'en'].answer}".endswith(shown[0].english)
        else:
            first, second = scene.items
            assert {"left": first.x < second.x, "right": first.x > second.x, "above": first.y < second.y,
                    "below": first.y > second.y}[scene.relation]  # fmt: skip
            found = answers["find", "en"]
            asked = next(one for one in shown if one.a_name in found.text)
            assert next(one for one in shown if one is not asked).a_name.endswith(found.answer)
        identity = answers["identity", "zh"]
        assert (identity.answer == "是") == any(one.chinese_name in identity.text for one in shown)


@drawn
def test_the_judge_reads_originals_alone_and_in_pairs_and_says_how_well(few: EmojiSet) -> None:
    judge = EmojiJudge(few, num_views=4)
    assert judge.accuracy > 0.95
    right = []
    for record in map(EmojiWorld("test", 60, num_emoji=FEW).__getitem__, range(60)):
        wanted = tuple(item.number for item in record.facts.items)
        relation = record.facts.relation
        right.append(
            (judge.read(record.image),) == wanted if relation is None else judge.read_pair(record.image, relation) == wanted
        )
    assert np.mean(right) > 0.95
    empty = np.full((64, 64, 3), 220, np.uint8)
    assert judge.read(empty) == NOTHING and judge.read_pair(empty, "left") == (NOTHING, NOTHING)
    assert judge.read(np.repeat(np.repeat(EmojiWorld(num_records=1, num_emoji=FEW)[0].image, 2, 0), 2, 1)) == 0


@drawn
def test_pictures_of_other_sizes(few: EmojiSet) -> None:
    record = EmojiWorld("test", 4, side=128, num_emoji=FEW)[1]
    assert record.image.shape == (128, 128, 3)
    assert describe(record.facts, few.emoji, "en")


@drawn
@pytest.mark.parametrize(
    ("settings", "told"),
    [({"split": "tset"}, "unknown split"), ({"subset": "some"}, "unknown subset"), ({"num_emoji": 10_000}, "lower num_emoji"),
     ({"font": "nowhere.ttf"}, "nowhere.ttf"), ({"categories": ["colour"]}, "unknown category"), ({"pairs": 2.0}, "pairs")],
)  # fmt: skip
def test_mistakes_are_told(settings: dict, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        EmojiWorld(**settings)


def test_a_missing_font_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("unimm.data.worlds.emoji_pictures.FONTS", (str(tmp_path / "none.ttf"),))
    monkeypatch.delenv("UNIMM_EMOJI_FONT", raising=False)
    with pytest.raises(ValueError, match="fonts-noto-color-emoji"):
        find_font()
