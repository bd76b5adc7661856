"""A short run on samples of two sequences, and the first step's gradients of the cases of `joint_toys`, for
`test_samples_in_processes`: train_pairs.py FOLDER STEPS MICRO_BATCHES."""

import sys
from collections import defaultdict
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from joint_toys import CASES, first_gradients, make_joint_trainer
from pairs import make_pairs
from safetensors.torch import save_file
from toys import make_config, make_trainer

from unimm.batch import Batch
from unimm.cli.compose import leave_group
from unimm.models.ports.base import LossSums
from unimm.training.objectives.likelihood import Likelihood


class Pairing(Likelihood):
    """Beside the likelihood a number of each sample that all of its sequences together give: another one where they are not in
    one batch."""

    def forward(self, batch: Batch) -> dict[str, LossSums]:
        terms = super().forward(batch)
        together = self.together(batch)
        return {**terms, "pairs": LossSums(together.sum(), torch.zeros(()), torch.tensor(float(len(together))))}

    def counts(self, batch: Batch) -> dict[str, torch.Tensor]:
        return {**super().counts(batch), "pairs": torch.tensor(float(len(self.together(batch))))}

    def together(self, batch: Batch) -> torch.Tensor:
        """For every sample the product of its sequences' lengths."""
        numbers = [
            (row, number) for row in range(len(batch.tokens)) for number in range(1, int(batch.documents[row].max()) + 1)
        ]
        lengths: dict[int, list[int]] = defaultdict(list)
        for (row, number), (sample, _) in zip(numbers, batch.samples.tolist(), strict=True):
            lengths[sample].append(int((batch.documents[row] == number).sum()))
        return torch.tensor([float(torch.tensor(each).prod()) for each in lengths.values()])


def write_gradients(folder: Path, name: str, micro_batches: int) -> None:
    """Of a case, and the objective's heads in one piece."""
    folder.mkdir(parents=True, exist_ok=True)
    trainer = make_joint_trainer(folder, name, micro_batches, device=None)
    gradients = first_gradients(trainer)
    trainer.objective.after_update()  # also of a temperature in shards

    def heads(model: torch.nn.Module) -> dict[str, torch.Tensor]:
        named = {f"{head}.{key}": tensor for head, one in trainer.heads.items() for key, tensor in one.state_dict().items()}
        return {key: tensor.clone() for key, tensor in named.items()}

    found = trainer.run_on_rank0(heads, torch.device("cpu"))
    if trainer.is_main:
        save_file({key: tensor.contiguous() for key, tensor in gradients.items()}, folder / "gradients.safetensors")
        save_file(found or {"none": torch.zeros(1)}, folder / "heads.safetensors")
    trainer.ranks.barrier()


if __name__ == "__main__":
    folder, steps, micro_batches = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    config = make_config(steps, num_micro_batches=micro_batches, num_positions=40, num_rows=8)
    trainer = make_trainer(folder, config, make_pairs(), Pairing, device=None)
    trainer.fit()
    if trainer.is_main:
        (folder / "processes").write_text(str(trainer.accelerator.num_processes))
    for name in CASES:
        write_gradients(folder / name, name, micro_batches)
    leave_group()
