"""Looking again, as a reward of answers: a model is asked of everything that an answer says is there whether it is (`claims`).

The answer is as good as its worst claim; one that says of nothing that it is there is asked about as a whole.
"""

from collections.abc import Callable
from functools import cached_property

from unimm.data.worlds.scenes import Scene
from unimm.data.worlds.shapes_claims import name_claims
from unimm.inference.claims import find_claims
from unimm.inference.engine import Engine
from unimm.rewards.response import Response, need_answer


class LookAgain:
    """engine: gives the engine that is asked, when it is first needed; it may be the one that answers."""

    def __init__(self, engine: Callable[[], Engine]) -> None:
        self._open = engine

    @cached_property
    def _engine(self) -> Engine:
        return self._open()

    def __call__(self, responses: list[Response]) -> list[float | None]:
        asked: list[tuple[int, str]] = []
        for place, one in enumerate(responses):
            answer = need_answer(one, "look_again")
            if one.image is None:
                raise ValueError("The reward 'look_again' looks at an image, and an answer is about none.")
            find = name_claims if isinstance(one.facts, Scene) else find_claims
            asked += [(place, claim) for claim in dict.fromkeys([*find(answer), answer]) if claim.strip()]
        images = [responses[place].image for place, _ in asked]
        found = self._engine.alignment(images, [claim for _, claim in asked]) if asked else []
        of_each: list[list[float]] = [[] for _ in responses]
        for (place, _), value in zip(asked, found, strict=True):
            of_each[place].append(value)
        return [min(values, default=None) for values in of_each]
