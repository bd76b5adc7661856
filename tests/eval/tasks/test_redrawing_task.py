"""The task that compares ways to draw: every prompt in every way, the first drawing the same, paired differences."""

import pytest
from conftest import tiny_image_tokenizer

from unimm.eval.suites import load_task
from unimm.eval.tasks.redrawing import Redrawing, read_way
from unimm.inference.engine import Engine
from unimm.inference.redrawing import Redraw


def test_ways_are_compared_on_the_same_prompts(tiny_engine: Engine) -> None:
    task = load_task('redrawing?n=3&ways=["best_of=2","redraw=1,paint"]')
    assert task.num_items == 9 and tiny_image_tokenizer().num_codes == 4
    result = task.run(tiny_engine, lambda example: None)
    assert {"one", "best_of=2", "best_of=2 less one", "redraw=1,paint, seconds"} <= result.other_scores.keys()
    assert len({example.prompt for example in result.examples}) == 3 and len(result.examples) == 9
    again = Redrawing(3, ways=["best_of=2", "redraw=1,paint"])
    assert [one.answer for one in again.ask(tiny_engine, [4, 2])] == [result.examples[4].answer, result.examples[2].answer]


def test_a_way_is_read() -> None:
    assert read_way("one") == {} and read_way("best_of=4") == {"best_of": 4}
    assert read_way("redraw=3,0.99") == {"redraw": Redraw(3, threshold=0.99)}
    assert read_way("redraw=2,paint,0.5") == {"redraw": Redraw(2, threshold=0.5, paint=True)}
    assert read_way("redraw=3") == {"redraw": Redraw(3)} and read_way("redraw=3,paint") == {"redraw": Redraw(3, paint=True)}
    for bad in ("twice", "best_of=x", "best_of=2,paint", "redraw=1,draw"):
        with pytest.raises(ValueError, match="A way is one"):
            read_way(bad)
    with pytest.raises(ValueError, match="category is one of"):
        Redrawing(category="cubes")
