"""Rollouts as a step source: a step's prompts, what the policy made of each, and how good that is within its group.

    A = (R - mean of the group) / (standard deviation of the group + 1e-4)       GRPO (arXiv 2402.03300)
    A =  R - mean of the group                                                    Dr. GRPO (arXiv 2503.20783)

A group whose rewards are all equal teaches nothing: it is left out of the step and counted. Rewards and engine are the
caller's: here they are numbers.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch

from unimm.batch import collate
from unimm.data.packing import best_fit, share_out
from unimm.runtime.number_checks import check_number, check_whole
from unimm.sequence import Sequence
from unimm.training.objectives.grpo import RolloutBatch

EPSILON = 1e-4


@dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    """How rollouts are made.

    num_prompts: a step, over all processes. group_size: rollouts of each prompt.
    temperature, guidance_scale: of sampling; guidance is for drawings. guided_log_probs: whether guidance is part of the
        log-probabilities that are learned, too.
    normalize: whether advantages are divided by the group's standard deviation.
    num_updates: of the weights by the rollouts of one step.
    max_new_tokens: of an answer.
    rewards: weight of each by its name (`unimm.rewards`); one of weight 0 is not asked.
    dynamic: whether prompts whose groups still differ are likelier to be asked (`unimm.training.prompt_choice`); candidates:
        how many are looked at then for each that is.
    judges: other rewards, that are only reported, of a part of the rollouts: `judged` of each group.
    time_limit: seconds that a reward may take for the rollouts of one prompt; None: any.
    """

    num_prompts: int = 8
    group_size: int = 8
    temperature: float = 1.0
    guidance_scale: float = 5.0
    guided_log_probs: bool = False
    normalize: bool = True
    num_updates: int = 1
    max_new_tokens: int = 32
    rewards: Mapping[str, float] = field(default_factory=lambda: {"checker": 1.0})
    judges: tuple[str, ...] | list[str] = ()
    judged: int = 2
    time_limit: float | None = 60.0
    dynamic: bool = False
    candidates: int = 4

    def __post_init__(self) -> None:
        check_whole(self, 1, "num_prompts", "num_updates", "max_new_tokens", "judged", "candidates")
        check_whole(self, 2, "group_size")
        check_number(self, "temperature", "guidance_scale", above=0)
        check_number({f"rewards.{name}": weight for name, weight in self.rewards.items()})
        if not any(self.rewards.values()):
            raise ValueError("rollouts.rewards names nothing to learn by: give a reward its weight, such as {checker: 1.0}.")


@dataclass(frozen=True)
class Rollout:
    """One answer or drawing of the policy's own.

    sequence: closed, what was chosen is learned. prompt: number of its prompt in the run.
    rewards: of each kind, by name; total: their weighted sum, None where it must not be learned from.
    judged: what other judges say of it, by name. shown: what a person may look at: what was drawn (H, W, 3) uint8, or a text.
    """

    sequence: Sequence
    prompt: int
    text: str
    total: float | None
    rewards: dict[str, float] = field(default_factory=dict)
    judged: dict[str, float] = field(default_factory=dict)
    shown: Any = None

    @property
    def chosen(self) -> tuple[int, ...]:
        """The ids that were chosen."""
        return tuple(int(one) for one in self.sequence.segments[-1].content_ids)


class Made(NamedTuple):
    """The rollouts of a rank's step, by prompt. lost: prompts and rollouts that could not be used, counted by reason."""

    groups: list[list[Rollout]]
    lost: dict[str, int]


class Chosen(NamedTuple):
    """What is learned of a step: rollouts with their advantages; and how many groups taught nothing."""

    rollouts: list[Rollout]
    advantages: list[float]
    num_equal: int


def differs(group: list[Rollout]) -> bool | None:
    """Whether rewards of a group differ; None: fewer than two of it have one."""
    totals = [one.total for one in group if one.total is not None]
    return max(totals) - min(totals) >= 1e-12 if len(totals) >= 2 else None


def choose(groups: Iterable[list[Rollout]], normalize: bool) -> Chosen:
    """The rollouts that are learned from, with their advantages."""
    found = Chosen([], [], 0)
    for group in groups:
        usable = [one for one in group if one.total is not None]
        totals = np.array([one.total for one in usable], dtype=np.float64)
        if not differs(group):
            found = found._replace(num_equal=found.num_equal + 1)
            continue
        gains = totals - totals.mean()
        if normalize:
            gains /= totals.std(ddof=1) + EPSILON
        found.rollouts.extend(usable)
        found.advantages.extend(gains.tolist())
    return found


def pack(chosen: Chosen, num_positions: int, num_batches: int, pad_id: int, guided: bool) -> list[RolloutBatch]:
    """A rank's rollouts in rows, in so many micro-batches of about as many rows.

    guided: beside each drawing the same codes behind the null prompt.

    Raises:
        ValueError: a rollout is longer than a row.
    """
    samples = [_with_null(rollout.sequence, pad_id) if guided else (rollout.sequence,) for rollout in chosen.rollouts]
    lengths = [sum(one.length for one in sample) for sample in samples]
    width = max([num_positions, *lengths])  # a rollout and its twin are never cut apart
    rows = best_fit(lengths, width)
    batches = []
    for share in share_out([[number] for number in range(len(rows))], num_batches):
        held = [rows[number] for number in share] or [[]]
        documents = [[(index, place) for index in row for place in range(len(samples[index]))] for row in held]
        batch = collate([[samples[i][place] for i, place in row] for row in documents], width, samples=documents)
        advantages = [chosen.advantages[index] for row in documents for index, _ in row]
        batches.append(RolloutBatch.of(batch, torch.tensor(advantages, dtype=torch.float32)))
    return batches


def _with_null(sequence: Sequence, pad_id: int) -> tuple[Sequence, ...]:
    """A drawing with its null prompt; an answer alone."""
    null = sequence.unconditioned(pad_id)
    return (sequence,) if all(segment.condition is None for segment in sequence.segments) else (sequence, null)


def diversity(groups: Iterable[list[Rollout]]) -> tuple[list[float], list[float]]:
    """Of each group the share of rollouts that are like no other one, and the mean share of places in which two differ."""
    distinct, apart = [], []
    for group in groups:
        chosen = [one.chosen for one in group]
        if len(chosen) < 2:
            continue
        distinct.append(len(set(chosen)) / len(chosen))
        pairs = [(a, b) for place, a in enumerate(chosen) for b in chosen[:place]]
        apart.append(float(np.mean([_difference(a, b) for a, b in pairs])))
    return distinct, apart


def _difference(a: tuple[int, ...], b: tuple[int, ...]) -> float:
    """The share of places in which two differ; what one lacks differs."""
    longest = max(len(a), len(b))
    return 1 - sum(x == y for x, y in zip(a, b, strict=False)) / longest if longest else 0.0
