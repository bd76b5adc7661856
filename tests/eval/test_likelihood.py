"""Texts cut into windows, every token scored once, as lm-evaluation-harness cuts them."""

import numpy as np
import pytest

from unimm.data.template import Turn
from unimm.eval.likelihood import continuation, text_sequences, text_windows
from unimm.inference.engine import Engine


@pytest.mark.parametrize("size", [1, 3, 4, 5, 8, 9, 11])
def test_windows_score_every_token_once_with_all_the_context_there_is_room_for(size: int) -> None:
    ids = list(range(100, 100 + size))
    windows = list(text_windows(ids, 1, 4))
    assert [token for _, scored in windows for token in scored] == ids
    assert windows[0][0] == [1]
    flat, place = [1, *ids], 1
    for context, scored in windows:
        place += len(scored)
        assert context + scored == flat[place - len(context) - len(scored) : place]
        assert len(context) + len(scored) == min(5, place)
    assert max(one.length for one in text_sequences(ids, 1, 5)) <= 5 and text_sequences([], 1, 5) == []


def test_windows_are_lm_eval_s() -> None:
    utils = pytest.importorskip("lm_eval.utils", reason="lm-eval is not installed: pip install 'unimm[lm-eval]'")
    for size in (1, 4, 5, 11):
        ids = np.arange(size).tolist()
        theirs = map(utils.make_disjoint_window, utils.get_rolling_token_windows(ids, 99, 4, 1))
        assert list(text_windows(ids, 99, 4)) == list(theirs)


def test_an_answer_is_scored_behind_its_question(tiny_engine: Engine, picture) -> None:
    """What the model writes by itself has the log-probability that it had when it was written."""
    messages = [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "What colour?"}]}]
    written = tiny_engine.complete(messages, 6, logprobs=True)
    given = tiny_engine.template.chat([Turn("user", (tiny_engine.template.look(picture), "What colour?"))], 6)
    (scored,) = tiny_engine.loglikelihood([continuation(given, list(written.ids))])
    assert scored.logprob == pytest.approx(sum(written.logprobs), abs=1e-3) and scored.is_greedy
