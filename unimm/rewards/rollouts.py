"""Rollouts made by the engine, with rewards: prompts in, groups of answers and drawings with numbers out.

The engine decodes with the parameters that are trained, as they are now. The noise of rollout i of prompt n is keyed by
(seed, n, i): the same alone, in any batch, and after an interruption.
"""

from collections.abc import Callable, Iterable

import numpy as np
import torch

from unimm.data.prompts import Asked, Prompts
from unimm.eval.report.pictures import Tile, draw_grid
from unimm.inference.decode.request import Request
from unimm.inference.decode.sampling import Sampling
from unimm.inference.engine import Engine
from unimm.models.unified import UnifiedModel
from unimm.rewards.guarded import GuardedReward
from unimm.rewards.names import build_reward
from unimm.rewards.response import Response
from unimm.sequence import Sequence
from unimm.training.logbook import Logbook
from unimm.training.rollouts import Made, Rollout, RolloutConfig

SHOWN = 8
"""Rollouts of each kind in one picture."""

SEEDS = 1_000_003


class RolloutMaker:
    """Makes the rollouts of a rank's prompts.

    Args:
        open_engine: an engine of a model in eval mode.
        num_positions: of a row: longer rollouts are left out.
    """

    def __init__(
        self,
        config: RolloutConfig,
        open_engine: Callable[[UnifiedModel], Engine],
        seed: int,
        num_positions: int,
        device: str | None = None,
    ) -> None:
        self.config, self.seed, self.num_positions = config, seed, num_positions
        self._open = open_engine
        self._engine: Engine | None = None
        self.rewards = self._guarded((name for name, weight in config.rewards.items() if weight), device)
        self.judges = self._guarded(config.judges, device)

    def _guarded(self, names: Iterable[str], device: str | None) -> dict[str, GuardedReward]:
        return {name: GuardedReward(name, build_reward(name, self.engine, device), self.config.time_limit) for name in names}

    def engine(self) -> Engine:
        """Of the model that is trained; there when rollouts are made."""
        assert self._engine is not None
        return self._engine

    def __call__(self, model: UnifiedModel, prompts: Prompts) -> Made:
        if self._engine is None or self._engine.model is not model:
            self._engine = self._open(model)
        made = Made([], {})
        opened: list[tuple[int, Asked, Sequence]] = []
        for number, asked in zip(prompts.numbers, prompts.asked, strict=True):
            try:
                sequence = self._opened(asked)
            except ValueError as error:
                _count(made.lost, f"prompt {asked.key}: {error}")
                continue
            opened.append((number, asked, sequence))
        for (number, asked, _), sequences in zip(opened, self._fill(opened), strict=True):
            made.groups.append(self._reward(number, asked, sequences, made.lost))
        return made

    def _opened(self, asked: Asked) -> Sequence:
        engine = self.engine()
        limit = engine.image_tokenizer.num_codes if asked.draws else self.config.max_new_tokens
        sequence = asked.open(engine.template, limit)
        factor = 2 if asked.draws and self.config.guided_log_probs else 1
        most = min(engine.model.config.max_positions, self.num_positions // factor)
        if sequence.length > most:
            raise ValueError(f"it takes {sequence.length} positions with what follows it, and there is room for {most}")
        return sequence.opened()

    def _fill(self, opened: list[tuple[int, Asked, Sequence]]) -> list[list[Sequence]]:
        """The group of each prompt, closed."""
        size, config = self.config.group_size, self.config
        requests = [
            Request(
                sequence,
                Sampling(temperature=config.temperature, seed=self.seed * SEEDS + number, index=index),
                config.guidance_scale if asked.draws else 1.0,
            )
            for number, asked, sequence in opened
            for index in range(size)
        ]
        filled = self.engine().decoder.fill(requests)
        closed = [request.sequence.fill(ids, learn=True) for request, ids in zip(requests, filled, strict=True)]
        return [closed[start : start + size] for start in range(0, len(closed), size)]

    def _reward(self, number: int, asked: Asked, sequences: list[Sequence], lost: dict[str, int]) -> list[Rollout]:
        responses = self._responses(asked, sequences)
        parts: dict[str, list[float | None] | None] = {name: reward(responses) for name, reward in self.rewards.items()}
        few = self.config.judged
        judged = {name: judge(responses[:few]) for name, judge in self.judges.items()}
        for name, values in parts.items():
            if values is None:
                _count(lost, f"prompt {asked.key}: the reward '{name}' failed: {self.rewards[name].last_reason}")
            elif refused := sum(value is None for value in values):
                _count(lost, f"rollouts that the reward '{name}' does not judge", refused)
        group = []
        for index, (response, sequence) in enumerate(zip(responses, sequences, strict=True)):
            own = {name: None if values is None else values[index] for name, values in parts.items()}
            known = {name: value for name, value in own.items() if value is not None}
            total = sum(self.config.rewards[name] * value for name, value in known.items()) if len(known) == len(own) else None
            said = {
                name: value
                for name, values in judged.items()
                if values and index < few and (value := values[index]) is not None
            }
            shown = response.drawn if asked.draws else response.answer
            group.append(Rollout(sequence, number, asked.text, total, known, said, shown))
        return group

    def _responses(self, asked: Asked, sequences: list[Sequence]) -> list[Response]:
        engine = self.engine()
        ids = [np.asarray(sequence.segments[-1].content_ids) for sequence in sequences]
        common = {"image": asked.image, "facts": asked.facts, "key": asked.key}
        if asked.draws:
            images = engine.decode_codes(torch.from_numpy(np.stack(ids)))
            return [Response(asked.text, drawn=np.asarray(image), **common) for image in images]
        texts = [engine.tokenizer.decode([int(one) for one in own]).strip() for own in ids]
        return [Response(asked.text, answer=text, **common) for text in texts]


def show_rollouts(step: int, groups: list[list[Rollout]], logbook: Logbook) -> None:
    """The rollouts with the highest and the lowest rewards of a step: a picture of drawings, a text of answers."""
    known = [rollout for group in groups for rollout in group if rollout.total is not None]
    ordered = sorted(known, key=lambda one: -_total(one))
    chosen = ordered if len(ordered) <= 2 * SHOWN else [*ordered[:SHOWN], *ordered[-SHOWN:]]
    drawn = [one for one in chosen if isinstance(one.shown, np.ndarray)]
    if drawn:
        tiles = [Tile(one.shown, f"{_said(one)} {one.text}") for one in drawn]
        logbook.picture(step, "best_and_worst", draw_grid(tiles, SHOWN))
    if said := [one for one in chosen if isinstance(one.shown, str)]:
        lines = [f"{_said(one)} {one.text}\n    -> {one.shown}" for one in said]
        logbook.text(step, "best_and_worst_answers", "\n".join(lines))


def _said(rollout: Rollout) -> str:
    """Its reward; and what that is made of, where several rewards or judges were asked."""
    parts = [f"{name.partition(':')[0]} {value:.2f}" for name, value in (rollout.rewards | rollout.judged).items()]
    return f"{_total(rollout):.2f}" + (f" ({', '.join(parts)})" if len(parts) > 1 else "")


def _total(rollout: Rollout) -> float:
    return rollout.total or 0.0


def _count(lost: dict[str, int], reason: str, count: int = 1) -> None:
    lost[reason] = lost.get(reason, 0) + count
