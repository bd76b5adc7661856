import time
from collections import Counter, defaultdict

import numpy as np
import pytest
from PIL import Image

from unimm.data.worlds.digits import DigitJudge, DigitsWorld, load_scans, reduce_to_scan, render, split_scans
from unimm.data.worlds.digits_language import CAPTIONS, LANGUAGES, PROMPTS, WORDS, drawing_prompt, parse_caption

WORLD = DigitsWorld(num_records=4000)


@pytest.fixture(scope="module")
def judge():
    return DigitJudge()


def same(one, other):
    return np.array_equal(one.image, other.image) and all(
        getattr(one, name) == getattr(other, name) for name in ("key", "captions", "prompts", "questions", "text", "facts")
    )


def test_splits_are_fixed_disjoint_and_balanced():
    scans = split_scans()
    assert sorted(np.concatenate(list(scans.values()))) == list(range(1797))
    assert {split: len(part) for split, part in scans.items()} == {"train": 796, "validation": 100, "test": 901}
    assert scans["test"][:5].tolist() == [1445, 574, 761, 320, 1152]  # scores of all versions are about the same scans
    digits = load_scans()[1]
    whole, test = np.bincount(digits), np.bincount(digits[scans["test"]])
    assert (np.abs(whole - 2 * test) <= 1).all()
    assert (np.bincount(digits[scans["validation"]]) == 10).all()


def test_records_depend_on_seed_split_and_index_alone():
    for index in (3999, 0, 800):
        assert same(WORLD[index], DigitsWorld(num_records=index + 1)[index])
    assert not np.array_equal(WORLD[800].image, DigitsWorld(num_records=801, seed=1)[800].image)
    assert np.array_equal(WORLD[0].image, DigitsWorld(seed=1)[0].image)  # the seed does not change the split
    keys = [record.key for split in ("train", "validation", "test") for record in DigitsWorld(split)]
    assert len(set(keys)) == len(keys) == 1797


def test_only_further_training_views_are_augmented():
    values = load_scans()[0]
    for split in ("train", "validation", "test"):
        for record in list(DigitsWorld(split))[:20]:
            assert np.array_equal(record.image, render(values[record.facts.scan]))
    first, second, third = WORLD[5], WORLD[5 + 796], WORLD[5 + 2 * 796]
    assert first.facts == second.facts == third.facts
    assert not np.array_equal(first.image, second.image) and not np.array_equal(second.image, third.image)


@pytest.mark.parametrize("split, options", [("test", {}), ("validation", {}), ("train", {"augment": False})])
def test_more_records_than_scans_need_augmentation(split, options):
    with pytest.raises(ValueError, match="without augmentation: ask for at most"):
        DigitsWorld(split, num_records=5000, **options)
    with pytest.raises(ValueError, match="choose one of train, validation, test"):
        DigitsWorld("held_out")
    with pytest.raises(IndexError):
        DigitsWorld(split, num_records=3)[3]


def test_images():
    for record in (WORLD[0], WORLD[3000]):
        image = record.image
        assert image.shape == (64, 64, 3) and image.dtype == np.uint8
        assert (image[..., 0] == image[..., 1]).all() and (image[..., 0] == image[..., 2]).all()
        assert image.min() == 20 and image.max() > 150
    edges = [
        np.concatenate([r.image[0], r.image[-1], r.image[:, 0], r.image[:, -1]])
        for r in map(WORLD.__getitem__, range(0, 4000, 7))
    ]
    assert np.max(edges) < 100 and np.mean(np.max(edges, axis=(1, 2)) < 30) > 0.97  # digits stay inside


def test_a_drawn_scan_reduces_to_itself():
    values = load_scans()[0][:200]
    errors = [np.abs(reduce_to_scan(render(scan)) - scan).mean() for scan in values]
    assert np.mean(errors) < 0.05
    empty = render(np.zeros((8, 8)))
    assert (empty == 20).all() and (reduce_to_scan(empty) == 0).all()


def test_turning_and_moving():
    dot = np.zeros((8, 8))
    dot[0, 4] = 1  # above the middle, half a cell to the right
    y, x = np.argwhere(render(dot)[..., 0] > 150).mean(axis=0)
    turned_y, turned_x = np.argwhere(render(dot, degrees=90)[..., 0] > 150).mean(axis=0)
    assert y < 16 and x == pytest.approx(34.5, abs=1)
    assert turned_x > 48 and turned_y == pytest.approx(34.5, abs=1)  # clockwise
    moved = np.argwhere(render(dot, shift=(3, 5))[..., 0] > 150).mean(axis=0)
    assert moved == pytest.approx([y + 5, x + 3])


def test_language_is_right_about_the_digit():
    for index in range(0, 4000, 11):
        record = WORLD[index]
        digit = record.facts.digit
        for text in (*record.captions, *record.prompts):
            assert parse_caption(text.text) == digit, text
        assert Counter(text.language for text in record.captions) == {"en": 3, "zh": 3}
        assert len({text.text for text in record.captions}) == 6
        for question in record.questions:
            assert question.answer == answer(question, digit), question


def answer(question, digit):
    """The answer, found from the question's words alone."""
    text = question.text.lower()
    if question.category == "digit":
        return str(digit)
    if question.category == "parity":
        truth = (digit % 2 == 0) == ("even" in text or "偶" in text)
    else:
        named = parse_caption(text)
        larger = any(word in text for word in ("larger", "greater", "more", "大"))
        truth = named == digit if question.category == "identity" else digit > named if larger else digit < named
    return {"en": ("no", "yes"), "zh": ("否", "是")}[question.language][truth]


def test_yes_and_no_are_balanced():
    answers = defaultdict(Counter)
    for index in range(4000):
        for question in WORLD[index].questions:
            answers[question.category, question.language][question.answer] += 1
    assert len(answers) == 8
    for (category, language), counts in answers.items():
        yes = counts["yes"] + counts["是"]
        if category != "digit":
            assert abs(yes / 4000 - 0.5) < 0.03, (category, language)
        else:
            assert set(counts) == set("0123456789")


def test_every_wording_parses():
    for language in LANGUAGES:
        for pattern in (*CAPTIONS[language], *PROMPTS[language]):
            for digit in range(10):
                for word in (str(digit), WORDS[language][digit]):
                    assert parse_caption(pattern.format(word=word, one=f"a {word}")) == digit
    texts = {drawing_prompt(3, index).text for index in range(16)}
    assert len(texts) == 16 and drawing_prompt(3, 0) == drawing_prompt(3, 16)
    assert drawing_prompt(8, 4).text == "an eight, written by hand"


@pytest.mark.parametrize(
    "text, digit",
    [
        ("", None), ("a digit", None), ("Seven", 7), ("７", 7), ("seven 7 七", 7), ("seven or eight", None), ("17", None),
        ("a one", 1), ("someone wrote nothing", None), ("一张图片", None), ("一个数字八", 8), ("这是一", 1), ("12345", None),
    ],
)  # fmt: skip
def test_parse_caption(text, digit):
    assert parse_caption(text) == digit


def test_plain_sentences_are_true():
    for index in range(300):
        sentence = WORLD[index].text
        words = WORDS[sentence.language]
        named = sorted(
            (sentence.text.lower().index(word), number) for number, word in enumerate(words) if word in sentence.text.lower()
        )
        (_, first), (_, second) = named
        rising = any(word in sentence.text for word in ("less", "小", "后面"))
        assert first < second if rising else first > second, sentence


def test_judge_reads_unseen_scans(judge):
    started = time.perf_counter()
    assert judge.accuracy >= 0.97
    assert time.perf_counter() - started < 20  # about a second, and two on a busy machine
    assert judge.accuracy == DigitJudge().accuracy


def test_judge_reads_drawings(judge):
    records = list(DigitsWorld("test", num_records=150))
    clean = [judge.read(record.image) == record.facts.digit for record in records]
    noise = np.random.default_rng(0).normal(0, 8, (64, 64, 3))
    noisy = [judge.read((r.image + noise).clip(0, 255).astype(np.uint8)) == r.facts.digit for r in records]
    assert np.mean(clean) >= 0.97 and np.mean(noisy) >= 0.96
    image = Image.fromarray(records[0].image)
    assert judge.read(image) == judge.read(image.resize((128, 128))) == records[0].facts.digit
