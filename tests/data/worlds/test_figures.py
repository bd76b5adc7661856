"""The world of figures: every record the same again, true words in two languages, and a judge that reads the pictures."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageFilter

from unimm.data.worlds.figures import FIGURES, SPLITS, FiguresWorld, find_problem
from unimm.data.worlds.scenes import HELD_OUT_PAIRS, SIDE, render


def test_a_hundred_records_are_twenty_figures_at_five_places() -> None:
    world, again = FiguresWorld(), FiguresWorld()
    assert [world[index].facts.name for index in range(40)] == [*FIGURES] * 2 and len(FIGURES) == 20
    assert len({world[index].image.tobytes() for index in range(100)}) == 100
    assert all(np.array_equal(world[index].image, again[index].image) for index in (0, 99))
    assert world[3].key == "figures/train/3" and not np.array_equal(world[3].image, FiguresWorld("test")[3].image)
    for index in range(100):
        for part in world[index].facts.scene.objects:
            assert (part.colour, part.form) not in HELD_OUT_PAIRS
            assert part.radius < min(part.x, part.y) and max(part.x, part.y) < SIDE - part.radius


def test_words_are_true() -> None:
    record = FiguresWorld()[18]
    assert record.facts.name == "ice cream"
    assert {text.language for text in (*record.captions, *record.prompts)} == {"en", "zh"}
    assert all("an ice cream" in text.text.lower() or "冰淇淋" in text.text for text in (*record.captions, *record.prompts))
    assert [(question.answer, question.language) for question in record.questions] == [("ice cream", "en"), ("冰淇淋", "zh")]


def test_the_judge_reads_the_pictures() -> None:
    """Blurred and with noise, too; and not another figure, a part too few, or parts elsewhere."""
    world, rng = FiguresWorld("test", 40), np.random.default_rng(0)
    for index in range(40):
        record = world[index]
        name, scene = record.facts.name, record.facts.scene
        assert find_problem(record.image, name) is None
        blurred = Image.fromarray(record.image).filter(ImageFilter.GaussianBlur(0.5 * rng.random()))
        noisy = np.asarray(blurred) + rng.normal(0, 5, record.image.shape)
        assert find_problem(noisy.clip(0, 255).astype(np.uint8), name) is None
        other = next(one for one in FIGURES if one != name)
        assert find_problem(record.image, other)
        assert find_problem(render(replace(scene, objects=scene.objects[1:])), name)
        upside_down = tuple(replace(part, y=SIDE - 1 - part.y, x=SIDE - 1 - part.x) for part in scene.objects)
        if len({(part.size, part.colour, part.form) for part in scene.objects}) == len(scene.objects):
            said = find_problem(render(replace(scene, objects=upside_down)), name)
            assert said and said.endswith(", elsewhere")
    assert find_problem(np.full((64, 64, 3), 25, dtype=np.uint8), "house") == "shows nothing"


def test_what_is_not_there_is_said() -> None:
    with pytest.raises(ValueError, match=f"choose one of {', '.join(SPLITS)}"):
        FiguresWorld("zebra")
    with pytest.raises(IndexError, match=r"outside 0\.\.99"):
        FiguresWorld()[100]
