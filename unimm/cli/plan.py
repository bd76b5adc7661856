"""`unimm plan`: which samples share which row of which step of a training, stored once for all its ranks and workers.

It takes the arguments of `unimm train`, and `trainer.plan=FOLDER` says where to; the training then takes the same.
"""

from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console

from unimm.cli.compose import build, run_with_hydra, seed_everything
from unimm.cli.learner import open_learner
from unimm.cli.progress import steps_bar
from unimm.data.packing import RowLayout
from unimm.data.stored_plan import store_plan
from unimm.training.trainer import TrainerConfig


def plan(config: DictConfig) -> Path:
    """Plan all steps of a training, and write the plan.

    Returns:
        Its folder, `trainer.plan`.

    Raises:
        ValueError: the folder or the number of steps is missing, or something that is named is not there.
    """
    trainer: TrainerConfig = build(config.trainer)
    if trainer.plan is None:
        raise ValueError("Say where to write the plan: trainer.plan=FOLDER.")
    num_steps = trainer.budget.max_steps
    if num_steps is None:
        raise ValueError(
            "A budget in minutes cannot be planned: say trainer.budget.max_steps=N trainer.budget.max_minutes=null."
        )
    seed_everything(config.seed)
    mixture = open_learner(config, with_weights=False).mixture
    with steps_bar("planning", num_steps) as progress:
        shape = RowLayout(trainer.num_positions, trainer.num_rows)
        fill = store_plan(trainer.plan, mixture, shape, num_steps, trainer.num_workers, progress)
    Console(highlight=False).print(f"{num_steps:,} steps of {trainer.num_rows} rows, {fill:.1%} of their positions filled")
    return Path(trainer.plan)


def main(argv: list[str] | None = None) -> None:
    """The command: the arguments of `unimm train` in, a plan out."""
    run_with_hydra("train", lambda config: print(plan(config)), argv, command="plan")


if __name__ == "__main__":
    main()
