"""Retrieval in two steps: what the towers found first is put in the order of the unified model, and nothing else is."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from unimm.eval.tasks import reranking
from unimm.eval.tasks.reranking import RerankedRetrieval
from unimm.eval.tasks.retrieval import ShapesRetrieval
from unimm.retrieval.rerank import Reranker

NUM = 12


def run(monkeypatch: pytest.MonkeyPatch, is_found: bool, first: int = 3) -> Any:
    """With towers that find the next item, or one far away, and a unified model that knows: it scores a match highest."""
    items = ShapesRetrieval(NUM).items()
    texts = [text.text for _, text in items]
    eye = np.eye(NUM, dtype=np.float32)
    asked: list[str] = []
    towers = SimpleNamespace(
        embed_texts=lambda given: 0.9 * eye * is_found + np.roll(eye, 1, 1) - 0.5 * eye * (not is_found),
        embed_images=lambda given: eye,
    )
    monkeypatch.setattr(reranking, "load_towers", lambda name, device: towers)

    def scores(self: Reranker, images: list[Any], given: list[str]) -> np.ndarray:
        asked.extend(given)
        own = items[texts.index(given[0])][0].image
        return np.array([float(np.array_equal(image, own)) for image in images])

    monkeypatch.setattr(Reranker, "scores", scores)
    engine: Any = SimpleNamespace(device="cpu")
    result = RerankedRetrieval(NUM, "towers", first=first).run(engine, lambda example: None)
    assert len(asked) == NUM * first
    return result


def test_a_second_look_finds_what_came_second(monkeypatch: pytest.MonkeyPatch) -> None:
    result = run(monkeypatch, True)
    assert (result.score, result.other_scores["towers_r1"].value, result.other_scores["towers_r5"].value) == (1, 0, 1)
    assert result.count == NUM and result.name == "reranked_retrieval"
    assert all(example.answer == example.expected for example in result.examples)


def test_what_the_towers_did_not_find_is_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    result = run(monkeypatch, False)
    assert result.score == 0 and result.other_scores["towers_r10"].value == 0
    assert {example.reason for example in result.examples} == {f"its own image came {NUM}."}
