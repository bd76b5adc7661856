"""Re-ranking: the scores are the engine's, and likelihood is that of the text's own tokens."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from unimm.batch import collate
from unimm.data.views import DESCRIBE
from unimm.inference.engine import Engine
from unimm.retrieval.rerank import Reranker
from unimm.sequence import Kind


@pytest.fixture
def images() -> list[Any]:
    rng = np.random.default_rng(1)
    return [Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)) for _ in range(3)]


TEXTS = ["a red circle", "two squares", "一个圆形"]


def test_alignment_is_the_engines(tiny_engine: Engine, images: list[Any]) -> None:
    scores = Reranker(tiny_engine, "alignment").scores(images, TEXTS)
    assert scores.tolist() == pytest.approx(tiny_engine.alignment(images, TEXTS))
    assert Reranker(tiny_engine).scores([], []).shape == (0,)


def test_both_are_added_up(tiny_engine: Engine, images: list[Any]) -> None:
    alone = [Reranker(tiny_engine, by).scores(images, TEXTS) for by in ("alignment", "likelihood")]
    described = [Reranker(tiny_engine).described(*pair) for pair in zip(images, TEXTS, strict=True)]
    lengths = np.array([one.num_targets for one in tiny_engine.loglikelihood(described)])
    assert Reranker(tiny_engine).scores(images, TEXTS) == pytest.approx(np.log(alone[0]) + alone[1] * lengths)


def test_only_chinese_is_asked_in_chinese(tiny_engine: Engine, images: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    chat = type(tiny_engine.template).chat
    monkeypatch.setattr(
        type(tiny_engine.template), "chat", lambda own, turns: asked.append(turns[0].content[1]) or chat(own, turns)
    )
    for text in ("a café", "the \u201cred\u201d one", "一个圆形"):
        Reranker(tiny_engine).described(images[0], text)
    assert asked == [DESCRIBE["en"][0], DESCRIBE["en"][0], DESCRIBE["zh"][0]]


def test_likelihood_is_the_mean_over_the_texts_tokens(tiny_engine: Engine, images: list[Any]) -> None:
    """Together as alone; and minus what training would have as its loss."""
    ranker = Reranker(tiny_engine, "likelihood")
    together = ranker.scores(images, TEXTS)
    for image, text, score in zip(images, TEXTS, together, strict=True):
        with torch.inference_mode():
            losses = tiny_engine.model(collate([[ranker.described(image, text)]]))
        assert score == pytest.approx(-float(losses[Kind.TEXT].loss / losses[Kind.TEXT].count), abs=1e-4)
    assert len({round(score, 3) for score in together}) == 3


def test_the_better_comes_first_and_equals_stay(tiny_engine: Engine, images: list[Any], monkeypatch: Any) -> None:
    ranker = Reranker(tiny_engine, "alignment")
    monkeypatch.setattr(Engine, "alignment", lambda self, images, texts: [0.5, 0.9, 0.5])
    assert ranker.order(images, TEXTS) == [1, 0, 2]


def test_what_cannot_be_ranked_is_one_sentence(tiny_engine: Engine, images: list[Any]) -> None:
    with pytest.raises(ValueError, match="one of both, alignment, likelihood"):
        Reranker(tiny_engine, "beauty")
    with pytest.raises(ValueError, match="text is empty"):
        Reranker(tiny_engine, "likelihood").scores(images[:1], [" "])
    with pytest.raises(ValueError, match="shorten it"):
        Reranker(tiny_engine, "likelihood").scores(images[:1], ["a red circle " * 100])
