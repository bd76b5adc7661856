"""Zero-shot classes: each picture has one label, and colour and form are counted apart."""

from types import SimpleNamespace
from typing import Any

import pytest

from unimm.data.worlds.checker import read_objects
from unimm.eval.tasks.zero_shot import ENSEMBLE, LABELS, ShapesZeroShot


def run(confuses: dict[str, str], **words: Any) -> Any:
    """With an engine that reads the picture by the checker, and takes some classes for others."""
    asked = []

    def classify(images: list[Any], labels: list[str], templates: Any) -> list[dict[str, float]]:
        asked.append((tuple(labels), tuple(templates)))
        looks = [read_objects(image)[0] for image in images]
        names = [confuses.get(f"{one.colour} {one.form}", f"{one.colour} {one.form}") for one in looks]
        return [{label: float(label == name) for label in labels} for name in names]

    engine: Any = SimpleNamespace(classify=classify)
    result = ShapesZeroShot(100, **words).run(engine, lambda example: None)
    assert {labels for labels, _ in asked} == {LABELS} and len(set(LABELS)) == 32
    return result, asked[0][1]


def test_colour_and_form_are_counted_apart() -> None:
    result, templates = run({})
    assert (result.score, result.name, templates) == (1.0, "shapes_zero_shot", ENSEMBLE)
    confuses = {f"red {form}": f"blue {form}" for form in ("circle", "square", "triangle", "cross")}
    result, templates = run(confuses, ensemble=False)
    reds = sum(example.expected.startswith("red ") for example in result.examples)
    assert reds > 3 and result.score == pytest.approx(1 - reds / 100) and templates == ("a {}",)
    assert result.other_scores["colour"].value == result.score and result.other_scores["form"].value == 1.0
    assert result.name == "shapes_zero_shot_bare"
