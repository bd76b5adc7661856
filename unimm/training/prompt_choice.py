"""Which prompts a policy is asked: rather those whose groups still differ, since a group whose rewards are all alike teaches
nothing and costs as much (the waste that DAPO filters out after it was made, arXiv 2503.14476; here it is mostly not made).

Of a step's candidates, each drawn from the stream of prompts as always, some are chosen at random without replacement, with
weights

    w = max(LEAST, 1 - p),   p = OWN * q + (1 - OWN) * f where the prompt was asked before, else f

q is whether its last group was all alike, and f the share of such groups among the last ones of its family: prompts whose keys
are the same up to the last slash, such as one category of drawings. So prompts that come once are known by their family. None
is ever left out for good: what was learned may be forgotten.

The noise of a choice is keyed by (seed, number of the prompt), and the history is that of all processes, so that any number of
them chooses the same, and a run that goes on chooses as one that was never stopped.
"""

import math
from typing import Any

import numpy as np

from unimm.data.prompts import Prompts
from unimm.runtime.rank_sync import Ranks

LEAST, OWN, FADE = 0.05, 0.75, 0.9
"""The least weight; how much a prompt's own last group counts beside its family; and how much older groups of a family do, each
time that a newer one comes."""

UNKNOWN, ALIKE, DIFFERS = 0.0, 1.0, 2.0


def family_of(key: str) -> str:
    """What prompts are known by that come once."""
    return key.rpartition("/")[0]


class PromptChoice:
    """Chooses prompts of a step, and remembers what came of them.

    num_prompts: that a step asks, over all processes. seed: of the noise.
    """

    def __init__(self, num_prompts: int, seed: int) -> None:
        self.num_prompts, self.seed = num_prompts, seed
        self.alike: dict[str, bool] = {}
        self.families: dict[str, list[float]] = {}
        self._asked: list[tuple[int, str]] = []

    def weight(self, key: str) -> float:
        """How likely a prompt is to be chosen, beside others."""
        alike, total = self.families.get(family_of(key), (0.0, 0.0))
        share = (alike + 0.5) / (total + 1.0)
        if key in self.alike:
            share = OWN * self.alike[key] + (1 - OWN) * share
        return max(LEAST, 1 - share)

    def choose(self, candidates: Prompts, ranks: Ranks) -> Prompts:
        """This process' share of those that are asked. candidates: of the whole step, the same on every process."""
        scores = [
            math.log(self.weight(asked.key)) + self._noise(number)
            for number, asked in zip(candidates.numbers, candidates.asked, strict=True)
        ]
        order = sorted(range(len(scores)), key=lambda place: -scores[place])  # Gumbel: the largest of w + noise
        chosen = sorted(order[: self.num_prompts])
        self._asked = [(candidates.numbers[place], candidates.asked[place].key) for place in chosen]
        own = chosen[ranks.number :: ranks.count]
        return Prompts(
            [candidates.names[place] for place in own],
            [candidates.numbers[place] for place in own],
            [candidates.asked[place] for place in own],
            candidates.unusable if ranks.number == 0 else [],
        )

    def learn(self, differs: dict[int, bool], ranks: Ranks) -> None:
        """What came of the prompts that this process has asked, by number: whether the rewards of a group differ. Every
        process calls it."""
        own = [UNKNOWN if number not in differs else DIFFERS if differs[number] else ALIKE for number, _ in self._asked]
        for (_, key), found in zip(self._asked, ranks.all_sum(own), strict=True):
            if found == UNKNOWN:
                continue
            self.alike[key] = found == ALIKE
            alike, total = self.families.get(family_of(key), (0.0, 0.0))
            self.families[family_of(key)] = [FADE * alike + (found == ALIKE), FADE * total + 1.0]

    def state(self) -> dict[str, Any]:
        """JSON-able."""
        named = {name: [key for key, one in self.alike.items() if one == (name == "alike")] for name in ("alike", "differs")}
        return {**named, "families": self.families}

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        self.alike = {**dict.fromkeys(state["alike"], True), **dict.fromkeys(state["differs"], False)}
        self.families = dict(state["families"])

    def _noise(self, number: int) -> float:
        """Of a Gumbel distribution."""
        rng = np.random.Generator(np.random.Philox(key=self.seed, counter=[0, number, 0, 0]))
        return -math.log(-math.log(max(float(rng.random()), 1e-300)))
