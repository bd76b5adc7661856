"""Rules that watch a training's numbers: who learns by a reward may learn to please it and nothing else (reward hacking). Then
another judge's scores fall, rollouts grow alike, what was known is lost, or the policy runs away from where it began.

    watch:
      - {_target_: unimm.training.Rule, number: loss/kl, most: 0.5, action: stop}
      - {_target_: unimm.training.Rule, number: judge/vqa_score, max_drop: 0.05, action: stop}
      - {_target_: unimm.training.Rule, number: rollout/distinct, least: 0.9}

A rule looks at the mean of the last `window` reports; `max_drop` compares it with the mean of the first ones.
"""

import math
from dataclasses import dataclass, field
from typing import Any

from unimm.runtime.number_checks import check_number, check_whole

ACTIONS = ("warn", "stop")


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What a number may be.

    number: its name in metrics.jsonl, such as "loss/kl", "rollout/distinct" or "validation/shapes_answers".
    most, least: its bounds. max_drop: so far it may fall below what it was at first.
    window: reports that are averaged. action: "warn", once; or "stop": the training ends there, with its model.

    Raises ValueError for a rule that rules nothing.
    """

    number: str
    most: float | None = None
    least: float | None = None
    max_drop: float | None = None
    window: int = 1
    action: str = "warn"

    def __post_init__(self) -> None:
        given = {name: value for name in ("most", "least", "max_drop") if (value := getattr(self, name)) is not None}
        if not given:
            raise ValueError(f"The rule on {self.number} rules nothing: give it most, least or max_drop.")
        for name, value in given.items():
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise ValueError(f"watch: {name} of the rule on {self.number} is a number, not {value!r}.")
        if self.max_drop is not None:
            check_number(self, "max_drop")
        check_whole(self, 1, "window")
        if self.action not in ACTIONS:
            raise ValueError(f"Unknown action '{self.action}' of the rule on {self.number}: use one of {', '.join(ACTIONS)}.")

    def broken(self, values: list[float]) -> str | None:
        """Why a number that was reported so far breaks the rule, in words."""
        if len(values) < self.window:
            return None
        now, first = (sum(part) / self.window for part in (values[-self.window :], values[: self.window]))
        if self.most is not None and now > self.most:
            return f"{self.number} is {now:.4g}, above {self.most:g}"
        if self.least is not None and now < self.least:
            return f"{self.number} is {now:.4g}, below {self.least:g}"
        if self.max_drop is not None and first - now > self.max_drop:
            return f"{self.number} has fallen from {first:.4g} to {now:.4g}, by more than {self.max_drop:g}"
        return None


@dataclass
class Watch:
    """The rules of a run, and what was reported of their numbers so far.

    seen: the first and the last reports of each number. broken: rules that were reported.
    stopped: why the training ended, or ends.
    """

    rules: tuple[Rule, ...] = ()
    seen: dict[str, list[float]] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)
    stopped: str = ""

    def look(self, numbers: dict[str, float]) -> list[str]:
        """Take new numbers; returns what to tell of rules that they break for the first time."""
        told: list[str] = []
        for name in {rule.number for rule in self.rules} & numbers.keys():
            self.seen.setdefault(name, []).append(numbers[name])
        for rule in self.rules:
            reason = rule.broken(self.seen.get(rule.number, [])) if rule.number in numbers else None
            if reason is None or (reason_key := f"{rule.number} {rule.action}") in self.broken:
                continue
            self.broken.append(reason_key)
            told.append(f"{reason}{': the training ends here.' if rule.action == 'stop' else '.'}")
            if rule.action == "stop":
                self.stopped = reason
        return told

    def state(self) -> dict[str, Any]:
        """JSON-able, for checkpoints."""
        return {"seen": self.seen, "broken": self.broken, "stopped": self.stopped}

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        self.seen, self.broken, self.stopped = state["seen"], state["broken"], state["stopped"]
