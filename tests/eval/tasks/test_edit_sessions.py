"""Sessions of edits: what is not free counts as preserved where it is equal, and chains go on from the model's own results."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from users_files import make_magic_brush

from unimm.eval.tasks.edit_sessions import EditSessions, distances
from unimm.inference.engine import Engine


@pytest.fixture(scope="module")
def editor(tiny_engine: Engine) -> Engine:
    return Engine(replace(tiny_engine.bundle, prompt_format=replace(tiny_engine.bundle.prompt_format, edits="codes_last")))


def test_distances() -> None:
    before, free = np.zeros((4, 4, 3), dtype=np.uint8), np.zeros((4, 4), dtype=bool)
    free[:2] = True
    inside = before.copy()
    inside[0] = 255
    assert distances(inside, before, inside, free) == {"preserved": 1.0, "l1": 0.0, "l2": 0.0}
    outside = before.copy()
    outside[3] = 51
    found = distances(outside, before, before, free)
    assert (
        found["preserved"] == pytest.approx(0.9) and found["l1"] == pytest.approx(0.05) and found["l2"] == pytest.approx(0.01)
    )
    with pytest.raises(ValueError, match="one size"):
        distances(before, before, np.zeros((2, 4, 3), dtype=np.uint8), free)


def test_all_turns_are_made_from_the_sources_or_in_a_chain(editor: Engine, tmp_path: Path) -> None:
    folder = make_magic_brush(tmp_path)
    results = {}
    for chain in (False, True):
        task = EditSessions(str(folder), chain=chain)
        examples = list(task.ask(editor, [0, 1]))
        result = task.score(examples)
        assert [one.category for one in examples] == ["2 turns", "1 turn"] and 0.0 <= result.score <= 1.0
        assert {*result.other_scores} == {"l1", "l2"} and not result.other_scores["l1"].higher_is_better
        results[chain] = examples
    assert np.array_equal(results[False][1].image, results[True][1].image), "a single turn is the same"  # pyright: ignore[reportArgumentType]
    assert not np.array_equal(results[False][0].image, results[True][0].image)  # pyright: ignore[reportArgumentType]
    assert EditSessions(str(folder), num_items=1).num_items == 1
    named = EditSessions(str(folder), chain=True, source_bias=2, image_guidance_scale=1.5)
    assert named.name == "edit_sessions_chained_image_guidance_1.5_source_bias_2"
