"""The first step's gradients of every case of `joint_toys`, for a test: train_joint.py FOLDER MICRO_BATCHES."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from joint_toys import CASES, first_gradients, make_joint_trainer
from safetensors.torch import save_file

from unimm.cli.compose import leave_group

folder, micro_batches = Path(sys.argv[1]), int(sys.argv[2])
for name in CASES:
    (folder / name).mkdir(parents=True, exist_ok=True)
    trainer = make_joint_trainer(folder / name, name, micro_batches, device=None)
    assert trainer.accelerator.num_processes == 2
    gradients = first_gradients(trainer)

    def written(model: torch.nn.Module, trainer=trainer) -> dict[str, torch.Tensor]:
        return {
            f"{head}.{key}": tensor.clone() for head, one in trainer.heads.items() for key, tensor in one.state_dict().items()
        }

    heads = trainer.run_on_rank0(written, torch.device("cpu"))
    if trainer.is_main:
        save_file({key: tensor.contiguous() for key, tensor in gradients.items()}, folder / name / "gradients.safetensors")
        save_file(heads or {"none": torch.zeros(1)}, folder / name / "heads.safetensors")
    trainer.ranks.barrier()
leave_group()
