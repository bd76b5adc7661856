"""Swapped relations: pairs that differ in nothing but which object is where, and a score that no guesser gets."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from unimm.data.worlds.checker import read_objects
from unimm.data.worlds.scenes import find_relation
from unimm.data.worlds.shapes_language import RELATION_WORDS, parse_caption
from unimm.eval import SwappedRelations
from unimm.eval.tasks.relations import swapped_pairs
from unimm.retrieval.rerank import Reranker


def says_what_is_true(image: np.ndarray, text: str) -> bool:
    """By the checker of pixels and the reader of captions, for an English text."""
    found = read_objects(image)
    first, second = ([item for item in found if (item.colour, item.form) == look[1:]] for look in parse_caption(text))
    relation = next(name for name, words in RELATION_WORDS["en"].items() if any(word in text for word in words))
    return find_relation(first[0], second[0]) == relation


def test_a_text_is_true_of_its_own_picture_only() -> None:
    pairs = list(swapped_pairs(24, languages=("en",)))
    assert len({pair.key for pair in pairs}) == 24
    for pair in pairs:
        for number in (0, 1):
            assert says_what_is_true(pair.images[number], pair.texts[number])
            assert not says_what_is_true(pair.images[number], pair.texts[1 - number])
        assert sorted(pair.texts[0].split()) == sorted(pair.texts[1].split())
    assert [pair.language for pair in swapped_pairs(4)] == ["en", "zh", "en", "zh"]


def run(monkeypatch: pytest.MonkeyPatch, score: Any, num_items: int = 40) -> Any:
    monkeypatch.setattr(Reranker, "scores", lambda self, images, texts: np.array([*map(score, images, texts)]))
    return SwappedRelations(num_items, languages=["en"]).run(SimpleNamespace(), lambda example: None)  # pyright: ignore


def test_who_knows_is_right_and_who_guesses_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    knows = run(monkeypatch, says_what_is_true)
    assert (knows.score, knows.name) == (1.0, "swapped_relations")
    assert {name: one.value for name, one in knows.other_scores.items()} == {"image_score": 1, "group_score": 1, "single": 1}
    assert run(monkeypatch, lambda image, text: 0.5).score == 0.0
    text_alone = run(monkeypatch, lambda image, text: hash(text) % 97)
    assert text_alone.score == 0.0 and text_alone.other_scores["single"].value <= 0.5
    rng = np.random.default_rng(0)
    guesses = run(monkeypatch, lambda image, text: rng.random(), 400)
    assert 0.15 < guesses.score < 0.35 and 0.4 < guesses.other_scores["single"].value < 0.6


def test_two_towers_are_asked_for_vectors() -> None:
    """Here by the mean colour of a picture and the words of a text, which are the same in both."""
    engine = SimpleNamespace(
        embed_images=lambda images: np.stack([image.mean((0, 1)) for image in images]),
        embed_texts=lambda texts: np.stack([[float(word in text) for word in ("red", "green", "blue")] for text in texts]),
    )
    result = SwappedRelations(10, by="embedding", languages=["en"]).run(engine, lambda example: None)  # pyright: ignore
    assert (result.score, result.other_scores["image_score"].value) == (0.0, 0.0) and len(result.examples) == 10
    with pytest.raises(ValueError, match="by one of embedding, both, alignment, likelihood"):
        SwappedRelations(by="beauty")
