"""Rewards by name, as a configuration or a command line names them.

checker, digit, caption, exact       of the built-in worlds, and of expected answers (`unimm.rewards.worlds`)
vqa_score, vqa_score:FOLDER          of the model itself, or of another: a folder, a hub id, or demo
look_again, look_again:FOLDER        of a model that is asked about each claim of an answer
clip_score:FOLDER                    of a CLIP: a folder or hub id
pkg.module:function                  the user's own: a function of a list of `Response`, or what makes one when it is called
                                     with the arguments behind a question mark, pkg.module:Class?threshold=0.5
"""

import difflib
from collections.abc import Callable
from typing import Any, cast

from unimm.eval.tasks_by_name import find_outside, read_arguments
from unimm.inference.engine import Engine
from unimm.rewards import worlds
from unimm.rewards.look_again import LookAgain
from unimm.rewards.models import ClipScore, VqaScore, open_engine
from unimm.rewards.response import Reward

CHECKED: dict[str, Reward] = {
    "checker": worlds.checker,
    "digit": worlds.digit,
    "caption": worlds.caption,
    "exact": worlds.exact,
}
VQA_SCORE, CLIP_SCORE, LOOK_AGAIN = "vqa_score", "clip_score", "look_again"
ASKS_A_MODEL = {VQA_SCORE: VqaScore, LOOK_AGAIN: LookAgain}
NAMES = (
    *CHECKED,
    VQA_SCORE,
    f"{VQA_SCORE}:FOLDER",
    LOOK_AGAIN,
    f"{LOOK_AGAIN}:FOLDER",
    f"{CLIP_SCORE}:FOLDER",
    "pkg.module:function",
)
"""What a reward may be named."""


def build_reward(name: str, engine: Callable[[], Engine] | None = None, device: str | None = None) -> Reward:
    """The reward of a name; a model that judges is loaded when it is first asked.

    Args:
        engine: gives the engine of the model that is trained or asked, for "vqa_score"; None: there is none.
        device: of another model that judges; None: the best that is here.

    Raises:
        ValueError: there is no reward of that name, or it lacks something.
    """
    kind, colon, rest = name.partition(":")
    if name in CHECKED:
        return CHECKED[name]
    if kind in ASKS_A_MODEL and (rest or not colon):
        if not rest and engine is None:
            raise ValueError(f"The reward '{kind}' asks a model: name it, {kind}:FOLDER.")
        return ASKS_A_MODEL[kind](open_engine(rest, device) if rest else _given(engine))
    if kind == CLIP_SCORE:
        if not rest:
            raise ValueError("The reward 'clip_score' needs a CLIP: name its folder or hub id, clip_score:FOLDER.")
        return ClipScore(rest, device)
    if colon:
        return _outside(name)
    close = difflib.get_close_matches(name, [*CHECKED, VQA_SCORE, LOOK_AGAIN, CLIP_SCORE], 1)
    hint = f"did you mean '{close[0]}'?" if close else f"choose one of {', '.join(NAMES)}."
    raise ValueError(f"There is no reward '{name}': {hint}")


def _given(engine: Callable[[], Engine] | None) -> Callable[[], Engine]:
    assert engine is not None
    return engine


def _outside(name: str) -> Reward:
    """The user's own function, or an object that their class makes."""
    place, mark, query = name.partition("?")
    made: Any = find_outside(place, "reward")
    if isinstance(made, type) or mark:
        arguments = read_arguments(query, name)
        try:
            made = made(**arguments)
        except TypeError as error:
            raise ValueError(f"The reward '{place}' cannot be made with these arguments: {error}.") from error
    if not callable(made):
        raise ValueError(f"'{place}' is no reward: it is of type {type(made).__name__}, and not a function of responses.")
    return cast(Reward, made)
