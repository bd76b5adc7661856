"""What `unimm train` puts together where a policy learns from its own rollouts: trainer, engine, rewards and rules."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from unimm.cli.compose import build
from unimm.cli.learner import Learner
from unimm.inference.engine import Engine
from unimm.models.unified import UnifiedModel
from unimm.rewards.rollouts import RolloutMaker, show_rollouts
from unimm.training.objectives.grpo import GRPO
from unimm.training.objectives.likelihood import Objective
from unimm.training.rollout_trainer import RolloutTrainer
from unimm.training.rollouts import RolloutConfig
from unimm.training.trainer import Trainer, TrainerConfig
from unimm.training.watch import Watch


def check_rollouts(config: DictConfig) -> None:
    """Raises ValueError where rollouts and objective do not go together, before anything is read."""
    is_grpo = str(config.objective._target_).endswith(".GRPO")
    if config.rollouts is None and is_grpo:
        raise ValueError("GRPO learns from rollouts: add rollouts=default, or an experiment such as +experiment=grpo/shapes.")
    if config.rollouts is None:
        return
    if not is_grpo:
        raise ValueError("Rollouts are learned from by GRPO: add objective=grpo, or leave rollouts out.")
    if config.init_from is None:
        raise ValueError("Rollouts are those of a trained model: add init_from=FOLDER.")
    if config.held_out:
        raise ValueError("Rollouts have no held-out loss: leave held_out out; validation.tasks score the model.")
    if config.lora is not None and config.objective.kl and config.stage.lr_scales:
        raise ValueError(
            "With adapters the reference is the model without them, and the stage "
            f"'{config.stage.name}' trains whole parts, too: take stage=adapters, or objective.kl=0."
        )


def make_trainer(
    config: DictConfig, learner: Learner, objective: Objective, settings: TrainerConfig, out: Path, **callbacks: Any
) -> Trainer:
    """The trainer of a stage: of a plan of data, or of rollouts."""
    if config.rollouts is None:
        return Trainer(objective, learner.mixture, settings, out, config.device, **callbacks)
    assert isinstance(objective, GRPO)
    rollouts: RolloutConfig = build(config.rollouts)
    objective.temperature = rollouts.temperature
    objective.guidance_scale = rollouts.guidance_scale if rollouts.guided_log_probs else 1.0

    def open_engine(model: UnifiedModel) -> Engine:
        return Engine(learner.bundle_of(model))

    make = RolloutMaker(rollouts, open_engine, config.seed, settings.num_positions, config.device)
    watch = Watch(tuple(build(rule) for rule in config.watch))
    more = {**callbacks, "device": config.device, "held_out": None}
    return RolloutTrainer(objective, learner.mixture, settings, out, rollouts, make, watch, show_rollouts, **more)
