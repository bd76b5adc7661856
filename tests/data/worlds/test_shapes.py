"""The shapes world: the same item for the same index, scenes as described, language that is true of the image."""

import subprocess
import sys
from collections import Counter, defaultdict
from itertools import combinations

import numpy as np
import pytest

from unimm.data.records import SHOWS, Record
from unimm.data.worlds.checker import read_objects
from unimm.data.worlds.scenes import (
    COLOURS,
    GAP,
    HELD_OUT_PAIRS,
    SIDE,
    SPLITS,
    TRAINING_PAIRS,
    Scene,
    Shape,
    find_place,
    find_relation,
    make_scene,
    render,
)
from unimm.data.worlds.shapes import ShapesWorld
from unimm.data.worlds.shapes_language import (
    MEANINGS,
    NUMBERS,
    PLACE_WORDS,
    READER,
    RELATION_WORDS,
    caption_is_exact,
    describe,
    fits,
    parse_caption,
)
from unimm.data.worlds.shapes_prompts import names_colours
from unimm.data.worlds.shapes_questions import ANSWERS, CATEGORIES, WITH_PLACES

NUM_RECORDS = 500


@pytest.fixture(scope="module")
def records() -> list[Record]:
    world = ShapesWorld("train", NUM_RECORDS)
    return [world[index] for index in range(NUM_RECORDS)]


def assert_same(a: Record, b: Record) -> None:
    assert (a.key, a.captions, a.questions, a.prompts, a.text, a.facts) == (
        b.key,
        b.captions,
        b.questions,
        b.prompts,
        b.text,
        b.facts,
    )
    np.testing.assert_array_equal(np.asarray(a.image), np.asarray(b.image))


@pytest.mark.parametrize("split", SPLITS)
def test_an_item_depends_on_its_index_alone(split):
    forwards = ShapesWorld(split, 40, seed=3)
    few = ShapesWorld(split, 20, seed=3)
    whole = [forwards[index] for index in range(40)]
    for index in (19, 0, 7):
        assert_same(few[index], whole[index])
    assert ShapesWorld(split, 40, seed=4)[5].facts != whole[5].facts


def test_items_are_the_same_in_another_process():
    code = "from unimm.data.worlds.shapes import ShapesWorld; r = ShapesWorld()[12345]; print(r.captions, r.questions)"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    record = ShapesWorld()[12345]
    assert other.stdout.strip() == f"{record.captions} {record.questions}"


def test_splits_are_disjoint_streams():
    streams = [{make_scene(0, split, index) for index in range(300)} for split in SPLITS]
    for a, b in combinations(streams, 2):
        assert not {scene for scene in a & b if scene.objects}


def test_the_world_is_a_data_set():
    world = ShapesWorld("validation", 3)
    assert len(world) == 3
    assert [record.key for record in world] == [f"shapes/validation/{index}" for index in range(3)]
    with pytest.raises(IndexError):
        world[3]
    with pytest.raises(ValueError, match="held_out"):
        ShapesWorld("heldout")
    with pytest.raises(ValueError, match="negative"):
        make_scene(-1, "train", 0)


@pytest.mark.parametrize("split", SPLITS)
def test_scenes_are_as_described(split):
    scenes = [make_scene(0, split, index) for index in range(1500)]
    for scene in scenes:
        assert len(scene.objects) <= 4
        assert max(scene.background) <= 40
        for item in scene.objects:
            assert all(item.radius <= value + 0.5 <= SIDE - item.radius for value in (item.x, item.y))
        for a, b in combinations(scene.objects, 2):
            apart = max(abs(a.x - b.x), abs(a.y - b.y)) - a.radius - b.radius
            assert apart >= GAP
        pairs = {(item.colour, item.form) for item in scene.objects}
        assert bool(pairs & set(HELD_OUT_PAIRS)) == (split == "held_out")
    shares = np.bincount([len(scene.objects) for scene in scenes], minlength=5) / len(scenes)
    assert shares[0] < 0.06 and shares[1:].min() > 0.08
    seen = {(item.colour, item.form) for scene in scenes for item in scene.objects}
    assert seen == {*TRAINING_PAIRS, *HELD_OUT_PAIRS} if split == "held_out" else seen == set(TRAINING_PAIRS)


def test_held_out_pairs_are_balanced():
    colours, forms = zip(*HELD_OUT_PAIRS, strict=True)
    assert len(set(colours)) == len(set(forms)) == 4


def find_looks(text: str) -> list:
    """The looks that a question names; "object" and 图形 stand for any form."""
    looks, pending = [], {}
    text = text.lower()
    for choice in ("small or large", "large or small", "是大还是小", "是小的还是大的"):
        text = text.replace(choice, "")
    for noun in ("objects", "object", "图形"):
        text = text.replace(noun, " THING ")
    for word in text.replace("THING", "\0").split("\0"):
        for name in READER.findall(word):
            slot, meaning = MEANINGS[name]
            pending[slot] = meaning
            if slot == "form":
                looks.append((pending.get("size"), pending.get("colour"), meaning))
                pending = {}
        looks.append((pending.get("size"), pending.get("colour"), None))
        pending = {}
    return looks[:-1]


def test_training_never_speaks_of_a_held_out_pair(records):
    for record in records:
        assert record.text is not None
        texts = [record.text.text, *(text.text for text in record.captions + record.prompts)]
        looks = [look for text in texts for look in parse_caption(text)]
        looks += [look for question in record.questions for look in find_looks(question.text)]
        said = {(colour, form) for _, colour, form in looks}
        assert not said & set(HELD_OUT_PAIRS)


def test_render_paints_the_colours():
    scene = Scene((Shape("large", "orange", "cross", 20, 30),), (10, 11, 12))
    image = render(scene)
    assert image.shape == (SIDE, SIDE, 3) and image.dtype == np.uint8
    assert tuple(image[30, 20]) == COLOURS["orange"]
    assert tuple(image[0, 0]) == (10, 11, 12)


def test_captions_say_exactly_what_is_there(records):
    for record in records:
        assert Counter(text.language for text in record.captions) == {"en": 3, "zh": 3}
        looks = sorted(describe(item) for item in record.facts.objects)
        for caption in record.captions:
            assert sorted(parse_caption(caption.text)) == looks, caption
            assert caption_is_exact(caption.text, record.facts), caption


def test_prompts_are_true_of_the_whole_scene(records):
    for record in records:
        for prompt in record.prompts:
            said = Counter(parse_caption(prompt.text))
            assert sum(said.values()) == len(record.facts.objects), prompt
            for look, count in said.items():
                assert sum(fits(item, look) for item in record.facts.objects) == count, prompt


@pytest.mark.parametrize(
    "caption",
    [
        "A small red circle and a large blue.",
        "A small red circle, a large blue and a large blue square.",
        "A small red circle.",
        "A red circle and a large blue square.",
        "Two small red circles and a large blue square.",
        "A small red circle, a large blue square and a small green cross.",
        "A small red small circle and a large blue square.",
        "",
    ],
)
def test_wrong_captions_are_not_exact(caption):
    scene = Scene((Shape("small", "red", "circle", 10, 10), Shape("large", "blue", "square", 40, 40)))
    assert caption_is_exact("There is a small red circle left of a big blue square", scene)
    assert not caption_is_exact(caption, scene)


def test_an_empty_scene_wants_to_be_called_empty():
    assert caption_is_exact("图中什么都没有。", Scene(()))
    assert caption_is_exact("An empty picture.", Scene(()))
    assert not caption_is_exact("", Scene(()))
    assert not caption_is_exact("Nothing but a red circle.", Scene(()))


def say_where(item: Shape, english: bool) -> str:
    """The third of the picture an object is in, in words of its own grammar."""
    down = 0 if item.y < SIDE / 3 else 1 if item.y < 2 * SIDE / 3 else 2
    across = 0 if item.x < SIDE / 3 else 1 if item.x < 2 * SIDE / 3 else 2
    if (down, across) == (1, 1):
        return "in the middle" if english else "中间"
    if down == 1 or across == 1:
        words = ("at the top", "顶部"), ("at the bottom", "底部"), ("on the left", "左侧"), ("on the right", "右侧")
        return words[down // 2 if across == 1 else 2 + across // 2][0 if english else 1]
    if english:
        return f"at the {('top', '', 'bottom')[down]} {('left', '', 'right')[across]}"
    return f"{'左 右'[across]}{'上 下'[down]}角"


def answer_from_image(question, objects: list[Shape]) -> str:
    """The answer by the checker's objects and the question's words alone."""
    english = question.language == "en"
    found = [[item for item in objects if fits(item, look)] for look in find_looks(question.text)]
    yes_no = {flag: ANSWERS[question.language]["yes" if flag else "no"] for flag in (True, False)}
    if question.category == "count":
        return str(len(found[0]))
    if question.category == "existence":
        return yes_no[bool(found[0])]
    assert all(len(items) == 1 for items in found), question
    if question.category in ("colour", "shape", "size"):
        value = getattr(found[0][0], "form" if question.category == "shape" else question.category)
        answers = {"small": "小", "large": "大"} | {
            meaning: word for word, (_, meaning) in reversed(MEANINGS.items()) if not word.isascii()
        }
        return value if english else answers[value]
    if question.category == "place":
        return say_where(found[0][0], english)
    if question.category == "find":
        where = say_where(found[0][0], english)
        return f"{question.text[:-1].split(' the ')[1]} {where.split(' the ')[1]}" if english else question.text[2:-1] + where
    a, b = (items[0] for items in found)
    if question.text.startswith("On which side"):
        a, b = b, a
    far = "x" if abs(a.x - b.x) > abs(a.y - b.y) else "y"
    first = getattr(a, far) < getattr(b, far)
    relation = {("x", True): "left", ("x", False): "right", ("y", True): "above", ("y", False): "below"}[far, first]
    if question.answer not in yes_no.values():
        return ANSWERS[question.language][relation]
    return yes_no[any(words in question.text for words in RELATION_WORDS[question.language][relation])]


@pytest.mark.parametrize(("split", "places"), [("train", True), ("train", False), ("held_out", False)])
def test_answers_are_what_the_checker_sees(split, places):
    world = ShapesWorld(split, NUM_RECORDS, places=places)
    num_asked = 0
    for record in world:
        objects = read_objects(np.asarray(record.image))
        for question in record.questions:
            assert answer_from_image(question, objects) == question.answer, (question, objects)
            num_asked += 1
    assert num_asked > 7 * NUM_RECORDS


def test_a_guesser_who_does_not_look_scores_low():
    answers = defaultdict(Counter)
    for record in ShapesWorld("train", 1500, places=True):
        for question in record.questions:
            answers[question.category, question.language][question.answer] += 1
    assert set(answers) == {(category, language) for category in WITH_PLACES for language in ("en", "zh")}
    blind = {key: max(counts.values()) / sum(counts.values()) for key, counts in answers.items()}
    total = sum(sum(counts.values()) for counts in answers.values())
    overall = sum(max(counts.values()) for counts in answers.values()) / total
    print(f"blind majority: {overall:.3f} overall, " + ", ".join(f"{key}: {blind[key]:.2f}" for key in sorted(blind)))
    highest = {
        "colour": 0.2,
        "shape": 0.32,
        "size": 0.54,
        "count": 0.4,
        "existence": 0.54,
        "relation": 0.4,
        "place": 0.2,
        "find": 0.03,
    }
    assert all(share <= highest[category] for (category, _), share in blind.items())
    assert overall < 0.4


def test_places_are_asked_for_and_named_where_they_are_wanted():
    for places, expected in ((True, WITH_PLACES), (False, CATEGORIES)):
        records = list(ShapesWorld("train", 200, places=places))
        assert {question.category for record in records for question in record.questions} == set(expected)
        prompts = [prompt.text for record in records for prompt in record.prompts]
        assert any(prompt.endswith(("at the top left", "at the top right")) for prompt in prompts) == places
        for record in records:
            for prompt in record.prompts:
                assert sum(Counter(parse_caption(prompt.text)).values()) == len(record.facts.objects), prompt


def test_a_lesson_asks_where_things_are_and_says_it_after_their_name():
    """The first: two things that differ in more than size, in English, named by colour and form. The second: up to four."""
    for record in ShapesWorld("train", 200, lesson="find_one_of_two"):
        first, second = record.facts.objects
        assert (first.colour, first.form) != (second.colour, second.form)
        named = {f"{item.colour} {item.form}": find_place(item) for item in (first, second)}
        for question in record.questions:
            name = next(name for name in named if question.text.endswith(f" the {name}."))
            assert (question.answer, question.category, question.language) == (f"{name} {named[name]}", "find", "en")
    kinds = Counter()
    for record in ShapesWorld("train", 300, lesson="find"):
        places = {PLACE_WORDS[language][find_place(item)] for item in record.facts.objects for language in ("en", "zh")}
        places |= {find_place(item) for item in record.facts.objects}
        assert all(question.answer.endswith(tuple(places)) for question in record.questions)
        assert (
            len({(item.colour, item.form) for item in record.facts.objects}) == len(record.facts.objects) and record.questions
        )
        kinds.update((question.category, question.language, len(record.facts.objects)) for question in record.questions)
    assert {kind[:2] for kind in kinds} == {(kind, lang) for kind in ("find", "place") for lang in ("en", "zh")}
    assert {kind[2] for kind in kinds} == {1, 2, 3, 4}
    with pytest.raises(ValueError, match="unknown lesson 'maths': choose one of find_one_of_two, find, relate"):
        ShapesWorld("train", 2, lesson="maths")
    with pytest.raises(ValueError, match="a lesson shows no pairs that are held out"):
        ShapesWorld("held_out", 2, lesson="find")


def test_a_lesson_in_relating_asks_how_two_things_lie_to_each_other():
    asked = Counter()
    for record in ShapesWorld("train", 200, lesson="relate"):
        asked.update((question.category, question.answer) for question in record.questions)
    assert {category for category, _ in asked} == {"relation"}
    assert set(ANSWERS["en"].values()) | set(ANSWERS["zh"].values()) == {answer for _, answer in asked}


def test_a_lesson_in_putting_says_where_everything_is_of_the_same_images():
    said = Counter()
    for usual, lesson in zip(ShapesWorld("train", 200), ShapesWorld("train", 200, lesson="put"), strict=True):
        assert lesson.facts == usual.facts  # so codes that are stored of one are those of the other
        for prompt in lesson.prompts:
            places = [PLACE_WORDS[prompt.language][find_place(item)] for item in lesson.facts.objects]
            placed = all(prompt.text.count(place) >= places.count(place) for place in places)
            said[placed, len(places) == 2] += 1
            assert placed or len(places) == 2, prompt  # two may be said to lie left of each other instead
    assert said[True, True] > said[False, True] > 0 and said[True, False] > 0


def test_prompts_that_teach_name_colours_without_a_form_and_everything_in_its_own_way():
    """So that a colour can be put on a form that it was never seen on; benchmarks and other trainings never ask so."""
    for places in (False, True):
        prompts = [prompt.text for record in ShapesWorld("train", 300, places=places) for prompt in record.prompts]
        looks = [parse_caption(prompt) for prompt in prompts]
        assert any(form is None for found in looks for _, _, form in found) == places
        assert any(len({tuple(word is None for word in look) for look in found}) > 1 for found in looks) == places


def test_a_lesson_in_naming_has_the_same_images_and_seldom_a_form_without_a_colour():
    counts = Counter()
    for usual, lesson in zip(ShapesWorld("train", 300, places=True), ShapesWorld("train", 300, lesson="name"), strict=True):
        assert lesson.facts == usual.facts  # so codes that are stored of one are those of the other
        for name, record in (("usual", usual), ("lesson", lesson)):
            looks = [look for prompt in record.prompts for look in parse_caption(prompt.text)]
            counts[name] += sum(colour is None and form is not None for _, colour, form in looks)
    assert 0 < counts["lesson"] < 0.5 * counts["usual"]


def test_a_lesson_in_arranging_says_how_two_things_lie_to_each_other_or_where_they_are():
    for record in ShapesWorld("train", 200, lesson="arrange"):
        a, b = record.facts.objects
        assert (a.colour, a.form) != (b.colour, b.form)
        for prompt in record.prompts:
            words = {word for ways in RELATION_WORDS[prompt.language].values() for word in ways}
            words |= set(PLACE_WORDS[prompt.language].values())
            assert any(word in prompt.text for word in words), prompt


def test_a_lesson_in_relating_in_chinese_has_the_images_of_arranging_and_says_how_they_lie():
    related = Counter()
    words = {word for ways in RELATION_WORDS["zh"].values() for word in ways}
    for arranged, record in zip(
        ShapesWorld("train", 200, lesson="arrange"), ShapesWorld("train", 200, lesson="relate_in_chinese"), strict=True
    ):
        assert record.facts == arranged.facts  # so codes that are stored of one are those of the other
        assert {prompt.language for prompt in record.prompts} == {"zh"}
        is_clear = find_relation(*record.facts.objects) is not None
        for prompt in record.prompts:
            related[is_clear, "在" in prompt.text and any(word in prompt.text for word in words)] += 1
    assert related[True, True] > 200 and related[True, True] > 5 * related[True, False]
    assert related[False, True] == 0


def test_a_lesson_in_counting_shows_things_that_are_alike_and_says_how_many():
    counted = Counter()
    for record in ShapesWorld("train", 200, lesson="count"):
        assert len({item.form for item in record.facts.objects}) == 1
        for prompt in record.prompts:
            number = NUMBERS[prompt.language][len(record.facts.objects)]
            counted[number in prompt.text or "两" in prompt.text] += 1
    assert counted[True] > 2 * counted[False] > 0  # of several colours, each is counted


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("draw two small red circles", True),
        ("a picture of a red circle and a big object", False),
        ("two crosses to the left of a cyan cross", False),
        ("一幅画：一个红色的小方块和两个蓝色图形", True),
        ("画一个方块", False),
        ("There is nothing in the picture.", True),
    ],
)
def test_a_prompt_is_vague_where_it_leaves_a_colour_open(text, named):
    assert names_colours(text) == named


def test_prompts_say_whether_they_are_vague_and_captions_never_are():
    records = [ShapesWorld("train", 100)[index] for index in range(100)]
    assert not any(caption.vague for record in records for caption in record.captions)
    assert {prompt.vague for record in records for prompt in record.prompts} == {True, False}
    assert all(prompt.vague != names_colours(prompt.text) for record in records for prompt in record.prompts)


def test_recoloured_scenes_are_the_same_in_other_colours():
    """Half of the objects, now and then in the colour they had; nothing that is held out."""
    changed = []
    for usual, other in zip(ShapesWorld("train", 400), ShapesWorld("train", 400, recoloured=True), strict=True):
        assert usual.key == other.key and usual.facts.background == other.facts.background
        for a, b in zip(usual.facts.objects, other.facts.objects, strict=True):
            assert (a.size, a.form, a.x, a.y) == (b.size, b.form, b.x, b.y) and (b.colour, b.form) in TRAINING_PAIRS
            changed.append(a.colour != b.colour)
    assert 0.38 < np.mean(changed) < 0.48


def test_a_lesson_in_listing_shows_many():
    assert {len(record.facts.objects) for record in ShapesWorld("train", 50, lesson="list_many")} == {3, 4}


def test_a_lesson_in_matching_asks_whether_a_picture_shows_what_a_prompt_says():
    """What is said is counted, and where there are two things how they lie to each other; one thing is wrong, or none. What a
    prompt names tells nothing of the answer."""
    asked, by_details = Counter(), Counter()
    before, after = SHOWS.split("{}")
    for record in ShapesWorld("train", 600, lesson="match"):
        objects = record.facts.objects
        for question in record.questions:
            prompt = question.text.removeprefix(before).removesuffix(after)
            looks = parse_caption(prompt)
            details = {tuple(word is not None for word in look) for look in looks}
            assert len(details) == 1  # all objects are named by the same attributes
            shown = Counter(tuple(w if d else None for w, d in zip(describe(o), *details, strict=True)) for o in objects)
            is_true = Counter(looks) == shown
            told = [r for r, words in RELATION_WORDS[question.language].items() if any(word in prompt for word in words)]
            if is_true and told:
                first, second = (next(item for item in objects if fits(item, look)) for look in looks)
                is_true = find_relation(first, second) == told[0]
            assert question.answer == ("yes" if is_true else "no"), (question, objects)
            assert all((colour, form) not in HELD_OUT_PAIRS for _, colour, form in looks)
            asked[question.answer, question.language, bool(told), len(looks) == len(objects)] += 1
            by_details[details.pop(), question.answer] += 1
    for named in ((False, True, True), (False, False, True), (True, True, True), (False, True, False)):
        no, yes = by_details[named, "no"], by_details[named, "yes"]
        assert 0.44 < no / (no + yes) < 0.56, (named, no, yes)
    no = {key[1:] for key in asked if key[0] == "no"}
    assert no >= {(lang, told, True) for lang in ("en", "zh") for told in (True, False)} | {("en", False, False)}


def test_no_torch_is_needed():
    code = "import sys, unimm.data.worlds.shapes, unimm.data.worlds.drawing; print('torch' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "False"
