"""Prompts are chosen by what came of them: the same on any number of processes and after an interruption, and none for good."""

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from rollout_toys import SETTINGS, make_rollout_trainer
from toys import make_template

from unimm.data.mixture import Mixture, Source
from unimm.data.prompts import Asked, DrawingPrompt, Prompts, ShapesPrompts
from unimm.runtime.rank_sync import Ranks
from unimm.training.logbook import read_numbers
from unimm.training.prompt_choice import PromptChoice
from unimm.training.rollouts import Rollout, differs


class Shared:
    """So many processes in one: a sum waits until all have given theirs."""

    def __init__(self, number: int, count: int, told: list[list[float]]) -> None:
        self.number, self.count, self.told = number, count, told

    def all_sum(self, numbers: list[float]) -> list[float]:
        return [sum(column) for column in zip(*self.told, strict=True)] if self.told else numbers


def candidates(step: int, count: int = 16) -> Prompts:
    """Of two families in turn."""
    numbers = list(range(step * count, (step + 1) * count))
    asked = [Asked(f"world/{'easy' if number % 2 else 'hard'}/{number}", "a", True) for number in numbers]
    return Prompts([(0, number) for number in numbers], numbers, asked, [])


def is_hard(asked: Asked) -> bool:
    return "/hard/" in asked.key


def play(num_steps: int, choice: PromptChoice, first: int = 0) -> list[list[int]]:
    chosen = []
    for step in range(first, first + num_steps):
        own = choice.choose(candidates(step), Ranks())
        chosen.append(own.numbers)
        choice.learn({number: is_hard(asked) for number, asked in zip(own.numbers, own.asked, strict=True)}, Ranks())
    return chosen


def test_prompts_of_a_family_that_still_differs_are_likelier_and_none_is_left_out() -> None:
    chosen = play(60, PromptChoice(4, 0))
    assert all(len(set(one)) == 4 for one in chosen)
    late = [number % 2 == 0 for one in chosen[20:] for number in one]
    assert 0.8 < sum(late) / len(late) < 1.0
    assert chosen == play(60, PromptChoice(4, 0)) != play(60, PromptChoice(4, 1))


def test_its_own_last_group_counts_more_than_its_family() -> None:
    choice = PromptChoice(2, 0)
    play(20, choice)
    assert choice.weight("world/hard/new") > 0.8 > 0.2 > choice.weight("world/easy/new")
    choice.alike |= {"world/hard/solved": True, "world/easy/failed": False}
    assert choice.weight("world/easy/failed") > 0.7 > 0.3 > choice.weight("world/hard/solved")


def test_it_goes_on_and_shares_as_one() -> None:
    whole, cut = PromptChoice(4, 3), PromptChoice(4, 3)
    expected = play(12, whole)
    assert play(5, cut) == expected[:5]
    again = PromptChoice(4, 3)
    again.restore(cut.state())
    assert play(7, again, 5) == expected[5:] and again.state() == whole.state()
    two = [PromptChoice(4, 3), PromptChoice(4, 3)]
    for step, numbers in enumerate(expected):
        told: list[list[float]] = []
        own = [one.choose(candidates(step), cast(Any, Shared(rank, 2, told))) for rank, one in enumerate(two)]
        assert sorted(own[0].numbers + own[1].numbers) == numbers and len(own[0].numbers) == 2
        found = [{n: is_hard(a) for n, a in zip(one.numbers, one.asked, strict=True)} for one in own]
        for one in found:
            told.append([0.0 if number not in one else 1.0 + one[number] for number in numbers])
        for rank, one in enumerate(two):
            one.learn(found[rank], cast(Any, Shared(rank, 2, told)))
    assert two[0].state() == two[1].state() == whole.state()


def test_a_group_differs_where_two_rewards_do() -> None:
    def group(*totals: float | None) -> list[Rollout]:
        return [Rollout(cast(Any, None), 0, "a", total) for total in totals]

    assert [differs(group(1.0, one, None)) for one in (1.0, 0.0)] == [False, True] and differs(group(1.0, None)) is None


@pytest.mark.parametrize("candidates", [1, 3])
def test_a_run_resumes_to_the_bit(candidates: int, tmp_path: Path) -> None:
    settings = replace(SETTINGS, num_prompts=2, group_size=2, dynamic=True, candidates=candidates)
    words: dict[str, Any] = {"mixture": Mixture([Source("shapes", ShapesPrompts(60), DrawingPrompt())], make_template())}
    words["num_positions"] = 128
    whole = make_rollout_trainer(tmp_path / "whole", 4, settings, **words)
    whole.fit()
    make_rollout_trainer(tmp_path / "cut", 2, settings, **words).fit()
    cut = make_rollout_trainer(tmp_path / "cut", 4, settings, **words)
    assert cut.step == 2 and cut.choice is not None and len(cut.choice.alike) == 4
    cut.fit()
    expected = whole.tensors()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in cut.tensors().items())
    assert whole.choice is not None and cut.choice.state() == whole.choice.state()
    last = read_numbers(tmp_path / "cut" / "metrics.jsonl")[-1]
    assert last["rollout/differing_groups"] + last["rollout/equal_groups"] == 1.0
