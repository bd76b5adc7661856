"""Runs of the toy mixture for `test_sharding` to launch on one process or two: train_sharded.py FOLDER.

Every case of CASES in a folder of its own, one after the other in the same processes; whole.safetensors is what it ends with.
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from safetensors.torch import save_file
from toys import EVERYTHING, make_config, make_mixture, make_model, make_trainer

from unimm.cli.build import leave_group
from unimm.training.optim import OptimizerConfig
from unimm.training.sharding import Sharding
from unimm.training.stages import Stage

STEPS = 4
SEEING = replace(EVERYTHING, learns={part: 1.0 for part in EVERYTHING.learns if part != "vision"})


@dataclass(frozen=True)
class Case:
    """num_rows: of a step; two of two processes are one each, one with nothing but drawings and one without any.
    stops_at: it goes on from there by a checkpoint.
    """

    sharding: Sharding
    num_micro_batches: int = 1
    num_rows: int = 2
    stage: Stage = EVERYTHING
    muon: bool = False
    ema_decay: float | None = None
    num_steps: int = STEPS
    stops_at: int | None = None


CASES = {
    "ddp": Case(Sharding()),
    "ddp, 2 passes": Case(Sharding(), 2, 4, ema_decay=0.9),
    "fsdp": Case(Sharding("fsdp")),
    "fsdp, 2 passes": Case(Sharding("fsdp"), 2, 4, ema_decay=0.9),
    "hsdp, a copy each": Case(Sharding("hsdp", 1)),
    "hsdp, one copy": Case(Sharding("hsdp", 2), ema_decay=0.9),
    "fsdp, frozen tower": Case(Sharding("fsdp"), stage=SEEING, ema_decay=0.9),
    "fsdp, muon": Case(Sharding("fsdp"), muon=True, num_steps=1),
    "fsdp, uneven": Case(Sharding("fsdp"), num_rows=9, ema_decay=0.9, stops_at=2),
}


def run(folder: Path, case: Case, steps: int) -> None:
    """Train, or train on; then write the averaged model down in one piece."""
    optimizer = OptimizerConfig(muon_lr=0.02 if case.muon else None)
    config = make_config(
        steps,
        stage=case.stage,
        optimizer=optimizer,
        num_rows=case.num_rows,
        num_micro_batches=case.num_micro_batches,
        sharding=case.sharding,
        ema_decay=case.ema_decay,
        save_every=1,
        validate_every=2,
    )
    trainer = make_trainer(folder, config, make_mixture(), device=None, held_out=make_mixture(drop=0.0, seed=1))
    trainer.fit()
    with trainer.averaged():
        model = trainer.whole_model(make_model)
        assert (model is not None) == trainer.is_main
        if model is not None:
            save_file({name: tensor.clone() for name, tensor in model.state_dict().items()}, folder / "whole.safetensors")


if __name__ == "__main__":
    for name, case in CASES.items():
        if case.stops_at is not None:
            run(Path(sys.argv[1]) / name, case, case.stops_at)
        run(Path(sys.argv[1]) / name, case, case.num_steps)
    leave_group()
