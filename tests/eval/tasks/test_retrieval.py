"""Retrieval: items that differ in what they say, ranks that count ties against the model, both ways."""

import pytest
import torch
from conftest import tiny_image_tokenizer, tiny_model, tiny_text_tokenizer

from unimm.checkpoints.bundle import DEFAULT, ModelBundle
from unimm.data.worlds.shapes import ShapesWorld
from unimm.eval.tasks.retrieval import Retrieval, ShapesRetrieval, ranks, recall, said_objects
from unimm.inference.engine import Engine
from unimm.models.contrastive import ContrastiveConfig


def make_engine() -> Engine:
    tokenizer = tiny_text_tokenizer()
    model = tiny_model(len(tokenizer))
    sizes = {"vocabulary_size": len(tokenizer), "vision_width": 32, "vision_heads": 2}
    head = ContrastiveConfig(dim=8, text_width=16, text_layers=1, text_heads=2, text_positions=30, **sizes).build()
    return Engine(ModelBundle(model, {DEFAULT: tiny_image_tokenizer()}, tokenizer, heads={"contrastive": head.eval()}))


def test_ranks_count_what_scores_as_high() -> None:
    scores = torch.tensor([[0.9, 0.1, 0.2], [0.5, 0.5, 0.1], [0.3, 0.2, 0.1]])
    assert ranks(scores).tolist() == [0, 1, 2]
    assert [recall(ranks(scores), k) for k in (1, 2, 3)] == pytest.approx([1 / 3, 2 / 3, 1])
    assert ranks(torch.zeros(4, 4)).tolist() == [3, 3, 3, 3]


def test_towers_are_scored_both_ways() -> None:
    """The score is that of similarities computed one by one, and every answer is one of the captions."""
    engine, task, seen = make_engine(), ShapesRetrieval(12), []
    result = task.run(engine, seen.append)
    items = task.items()
    assert len({said_objects(*item) for item in items}) == len(items) == result.count == len(seen) == task.num_items
    images, texts = task._embed(engine, items)
    scores = [[float(text @ image) for image in images] for text in texts]
    own = [sum(score >= row[number] for score in row) == 1 for number, row in enumerate(scores)]
    assert result.score == pytest.approx(sum(own) / len(own))
    assert result.other_scores.keys() == {f"{way}_r{k}" for way in ("text_to_image", "image_to_text") for k in (1, 5, 10)} - {
        "text_to_image_r1"
    }
    found = [result.other_scores[f"image_to_text_r{k}"].value for k in (1, 5, 10)]
    assert found == sorted(found) and result.unit == "share"
    assert {example.answer for example in seen} <= {text.text for _, text in items}
    assert any(label.endswith("objects") for label in result.details)


def test_what_cannot_be_found_is_said(tiny_engine: Engine) -> None:
    with pytest.raises(ValueError, match="needs 40 images whose captions in 'en' differ, and there are 8: ask for fewer"):
        Retrieval("few", ShapesWorld("test", num_records=8), 40).items()
    with pytest.raises(ValueError, match="This model has no contrastive heads"):
        ShapesRetrieval(4).run(tiny_engine, print)
