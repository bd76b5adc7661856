"""Locating, judged: pairs of boxes by their overlap, what is not there, and heat maps against pixels."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from unimm.data.boxes import Box
from unimm.data.records import Phrase, Record
from unimm.data.worlds.shapes import ShapesWorld
from unimm.eval import HeatMaps, ShapesLocate, load_task
from unimm.eval.tasks.locating import Locate, best_pairs, named_pixels
from unimm.inference.locating import Located

N = 60


def run(task: Any, engine: SimpleNamespace) -> Any:
    return task.run(engine, lambda example: None)  # pyright: ignore


def engine_that(answers: Any) -> SimpleNamespace:
    """An engine that knows the world, and says what `answers` makes of the boxes of a phrase."""
    places = {}
    for index in range(N):
        record = ShapesWorld("test", num_records=N)[index]
        places |= {(record.image.tobytes(), one.text): one.boxes for one in record.phrases}

    def located(images, phrases):
        known = [places[image.tobytes(), phrase] for image, phrase in zip(images, phrases, strict=True)]
        return [Located("", answers([Box(*box) for box in boxes])) for boxes in known]

    return SimpleNamespace(located=located)


def test_who_knows_is_right_and_who_guesses_is_not() -> None:
    task = load_task(f"locate?num_items={N}")
    assert isinstance(task, ShapesLocate) and task.name == "locate"
    knows = run(task, engine_that(lambda boxes: boxes))
    assert knows.score == 1.0 and len(knows.examples) == N and 0 < knows.count < N
    assert {name: one.value for name, one in knows.other_scores.items()} == {
        "mean_iou": 1, "none_recall": 1, "none_precision": 1, "readable": 1,
    }  # fmt: skip
    never = run(task, engine_that(lambda boxes: []))
    assert never.score == 0 and never.other_scores["none_recall"].value == 1
    assert never.other_scores["none_precision"].value == pytest.approx((N - knows.count) / N)
    broken = run(task, engine_that(lambda boxes: None))
    assert broken.score == 0 and broken.other_scores["none_recall"].value == 0 and broken.other_scores["readable"].value == 0
    one_more = run(task, engine_that(lambda boxes: [*boxes, Box(0, 0, 5, 5)]))
    assert one_more.score == 0 and one_more.other_scores["mean_iou"].value == 1
    moved = run(task, engine_that(lambda boxes: [Box(b.x1 + 3, b.y1, b.x2 + 3, b.y2) for b in boxes]))
    assert moved.score == 1 and 0.5 < moved.other_scores["mean_iou"].value < 0.8


def test_boxes_of_a_resized_copy_are_compared_in_its_pixels() -> None:
    record = Record("r", np.zeros((16, 32, 3), np.uint8), phrases=(Phrase("x", ((80, 40, 160, 80),)),), image_size=(320, 160))
    engine = SimpleNamespace(located=lambda images, phrases: [Located("", [Box(8, 4, 16, 8)])])
    assert run(Locate("locate", [record], 1), engine).score == 1  # pyright: ignore[reportArgumentType]


def test_pairs_are_one_to_one() -> None:
    a, b = (0, 0, 10, 10), (20, 0, 30, 10)
    assert best_pairs((a, b), [b, a]) == [1, 1] and best_pairs((a, b), [a, a]) == [1, 0] and best_pairs((), [a]) == []


def test_heat_maps_are_held_against_pixels() -> None:
    task = HeatMaps(12)
    truth = {(record.image.tobytes(), one.text): named_pixels(one, record.facts) for record, one in task.items}

    def heat_map(images, phrases, by):
        return [truth[i.tobytes(), p].astype(np.float32) * 0.6 for i, p in zip(images, phrases, strict=True)]

    result = run(task, SimpleNamespace(heat_map=heat_map))
    assert result.score == 1 and result.name == "heat_map" and result.measures["threshold"] == 0.5
    assert result.other_scores["iou_at_0.7"].value == 0 and result.unit == "share"
    assert [phrase.language for _, phrase in task.items[:2]] == ["en", "zh"]
    assert load_task("heat_map?by=attention&n=3").name == "heat_map_attention"
    with pytest.raises(ValueError, match="similarity or attention"):
        HeatMaps(by="magic")
