"""Learning from rollouts: the first ratio is one, a run resumes to the bit, what has no reward is counted and costs no run."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rollout_toys import SETTINGS, make_prompts, make_rollout_trainer
from toys import make_mixture, make_template

from unimm.data.mixture import Mixture, Source
from unimm.data.prompts import DrawingPrompt, PromptSteps, ShapesPrompts
from unimm.data.worlds.drawing import Requirement
from unimm.data.worlds.scenes import HELD_OUT_PAIRS, make_scene, render
from unimm.inference.engine import Engine
from unimm.training.logbook import read_numbers
from unimm.training.loop import Gradient
from unimm.training.rollout_trainer import RolloutTrainer
from unimm.training.rollouts import RolloutConfig
from unimm.training.watch import Rule


def numbers(folder: Path) -> list[dict[str, Any]]:
    """What a run has logged, without what a clock says."""
    timed = ("speed/", "rollout/per_second", "rollout/share_of_step")
    lines = read_numbers(folder / "metrics.jsonl")
    return [{name: value for name, value in line.items() if not name.startswith(timed)} for line in lines]


def rewarded(name: str) -> RolloutConfig:
    return replace(SETTINGS, rewards={name: 1.0})


def is_moved(trainer: RolloutTrainer, folder: Path) -> bool:
    """Whether its weights are others than those of a fresh one."""
    fresh = make_rollout_trainer(folder, 1).model.state_dict()
    return any(not torch.equal(tensor, fresh[name]) for name, tensor in trainer.model.state_dict().items())


@pytest.mark.parametrize("guided", [False, True])
def test_the_first_update_is_of_ratio_one_and_the_second_is_not(
    guided: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In fp32, with drawings and answers, of rollouts that the engine made."""
    updates: list[dict[str, float]] = []
    apply = RolloutTrainer.apply_gradient

    def kept(self: RolloutTrainer, gradient: Gradient) -> None:
        sums = [one for _, one in gradient.outcome]
        names = ("policy/ratio_error", "policy/clipped")
        updates.append({})
        for name in names:
            loss, count = (sum(float(one[name][place]) for one in sums) for place in (0, 2))
            updates[-1][name] = loss / count
        apply(self, gradient)

    monkeypatch.setattr(RolloutTrainer, "apply_gradient", kept)
    settings = replace(SETTINGS, num_updates=2, guided_log_probs=guided, guidance_scale=3.0)
    make_rollout_trainer(tmp_path, 1, settings, make_prompts(asks=True), num_micro_batches=2).fit()
    first, second = updates
    assert first["policy/ratio_error"] <= 1e-5 and first["policy/clipped"] == 0
    assert second["policy/ratio_error"] > 1e-4


def test_it_resumes_to_the_bit(tmp_path: Path) -> None:
    rules = (Rule(number="reward/total", least=-1.0, window=2),)
    words: dict[str, Any] = {"mixture": make_prompts(asks=True), "objective": {"kl": 0.1}, "rules": rules}
    whole = make_rollout_trainer(tmp_path / "whole", 4, **words)
    whole.fit()
    make_rollout_trainer(tmp_path / "cut", 2, **words).fit()
    cut = make_rollout_trainer(tmp_path / "cut", 4, **words)
    assert cut.step == 2 and len(cut.watch.seen["reward/total"]) == 2
    cut.fit()
    expected = whole.tensors()
    assert cut.tensors().keys() == expected.keys()
    for name, tensor in cut.tensors().items():
        assert torch.equal(tensor, expected[name]), name
    assert numbers(tmp_path / "cut") == numbers(tmp_path / "whole") and len(numbers(tmp_path / "cut")) == 4
    assert cut.watch.state() == whole.watch.state()


def test_groups_whose_reward_fails_are_counted_and_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One prompt's rewards are no numbers; from the others is learned."""
    trainer = make_rollout_trainer(tmp_path / "a", 4, rewarded("rollout_toys:failing"))
    trainer.fit()
    told = numbers(tmp_path / "a")
    steps = PromptSteps(trainer.mixture, SETTINGS.num_prompts)
    num_red = sum(asked.text.startswith("red") for step in range(4) for asked in steps[step].asked)
    assert num_red > 0 and sum(line["rollout/lost"] for line in told) > 0
    assert sum(line["rollout/equal_groups"] for line in told) * SETTINGS.num_prompts == pytest.approx(num_red)
    assert "rollout_toys:failing" in caplog.text
    assert is_moved(trainer, tmp_path / "fresh")
    assert all(bool(torch.isfinite(tensor).all()) for tensor in trainer.model.state_dict().values())


@pytest.mark.parametrize(("reward", "num_lost"), [("constant", 0), ("raising", SETTINGS.num_prompts)])
def test_steps_that_teach_nothing_change_nothing(reward: str, num_lost: int, tmp_path: Path) -> None:
    """All rollouts are alike, or none has a reward."""
    trainer = make_rollout_trainer(tmp_path / "a", 2, rewarded(f"rollout_toys:{reward}"))
    trainer.fit()
    for line in numbers(tmp_path / "a"):
        assert line["rollout/equal_groups"] == 1 and line["rollout/empty_steps"] == 1 and line["rollout/lost"] == num_lost
    assert trainer.step == 2 and not is_moved(trainer, tmp_path / "fresh")


def test_prompts_name_no_held_out_pair() -> None:
    prompts = ShapesPrompts(600)
    for index in range(len(prompts)):
        facts = prompts[index].facts
        assert isinstance(facts, Requirement) and facts.category != "held_out"
        assert not any(f"{colour} {form}" in prompts[index].prompts[0].text for colour, form in HELD_OUT_PAIRS)


def test_a_drawing_of_a_held_out_pair_is_not_learned_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever was asked for: the checker does not judge it, and the trainer leaves it out."""
    held, known = (render(make_scene(0, split, 0)) for split in ("held_out", "train"))

    def decoded(self: Engine, codes: torch.Tensor) -> list[Image.Image]:
        return [Image.fromarray(np.asarray(held if place == 0 else known)) for place in range(len(codes))]

    monkeypatch.setattr(Engine, "decode_codes", decoded)
    mixture = Mixture([Source("shapes", ShapesPrompts(12), DrawingPrompt())], make_template())
    trainer = make_rollout_trainer(tmp_path, 1, rewarded("checker"), mixture, num_positions=128)
    made = trainer.make(trainer.model.eval(), trainer.data()[0])
    assert len(made.groups) == SETTINGS.num_prompts
    for group in made.groups:
        assert group[0].total is None and all(one.total in (0.0, 1.0) for one in group[1:])
    assert sum(made.lost.values()) == SETTINGS.num_prompts


@pytest.mark.parametrize(("action", "num_steps"), [("warn", 4), ("stop", 2)])
def test_a_broken_rule_warns_once_or_ends_the_training(
    action: str, num_steps: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rules = (Rule(number="rollout/distinct", most=0.0, window=2, action=action),)
    trainer = make_rollout_trainer(tmp_path, 4, rules=rules)
    trainer.fit()
    assert len(numbers(tmp_path)) == trainer.step == num_steps
    assert caplog.text.count("rollout/distinct is 1, above 0") == 1
    assert bool(trainer.watch.stopped) == (action == "stop") and (tmp_path / "checkpoints").is_dir()


def test_views_that_ask_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="asks nothing: rollouts need prompts"):
        make_rollout_trainer(tmp_path, 1, mixture=make_mixture()).fit()


def test_a_reward_that_fails_on_and_on_ends_the_run_and_what_was_learned_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unimm.rewards.guarded.MAX_FAILURES", 2)
    monkeypatch.setattr("rollout_toys.constant", lambda responses: broken(responses))
    calls: list[int] = []

    def broken(responses: list[Any]) -> list[float | None]:
        calls.append(len(responses))
        if len(calls) > 2 * SETTINGS.num_prompts:
            raise RuntimeError("no more")
        return [float(number) for number in range(len(responses))]

    with pytest.raises(ValueError, match=r"The reward 'rollout_toys:constant' failed 3 times in a row.*no more"):
        make_rollout_trainer(tmp_path, 4, rewarded("rollout_toys:constant")).fit()
    assert make_rollout_trainer(tmp_path, 4, rewarded("rollout_toys:constant")).step == 2
