"""Steps: what one rank learns in each step, as batches. What a loader's workers make ahead."""

from dataclasses import dataclass

from torch.utils.data import Dataset as TorchDataset

from unimm.batch import Batch, collate
from unimm.data.mixture import Sample
from unimm.data.plan import Plan, PlanCursor, Planned


@dataclass(frozen=True)
class StepBatch:
    """One rank's share of a step.

    batches: a micro-batch for each forward pass. samples: what they hold. origin: the window of the plan that the step is in.
    """

    batches: list[Batch]
    samples: list[Sample]
    origin: PlanCursor

    def pin_memory(self) -> "StepBatch":
        """The same in page-locked memory, from where a GPU reads faster; a loader asks for it."""
        return StepBatch([batch.pin_memory() for batch in self.batches], self.samples, self.origin)


class Steps(TorchDataset):
    """The steps of one rank, by number: every `num_ranks`-th row of the plan, so that all ranks see all kinds.

    num_micro_batches: how many forward passes a step takes.

    Raises ValueError where a micro-batch would get no row at all.
    """

    def __init__(
        self, plan: Plan, num_micro_batches: int = 1, rank: int = 0, num_ranks: int = 1, num_steps: int = 1 << 40
    ) -> None:
        num_rows = plan.shape.num_rows
        if num_rows < num_ranks * num_micro_batches:
            raise ValueError(
                f"{num_rows} rows cannot be cut into {num_micro_batches} micro-batches for each of {num_ranks} processes: "
                f"raise trainer.num_rows to at least {num_ranks * num_micro_batches}."
            )
        self.plan = plan
        self.num_micro_batches = num_micro_batches
        self.rank = rank
        self.num_ranks = num_ranks
        self.num_steps = num_steps

    def __len__(self) -> int:
        return self.num_steps

    def __getitem__(self, step: int) -> StepBatch:
        rows = self.plan.rows(step, slice(self.rank, None, self.num_ranks))
        parts = [rows[micro :: self.num_micro_batches] for micro in range(self.num_micro_batches)]
        samples = [one.sample for row in rows for one in row]
        return StepBatch([self._collate(part) for part in parts], samples, self.plan.origin(step))

    def _collate(self, rows: list[list[Planned]]) -> Batch:
        for row in rows:
            for one in row:
                self.plan.mixture.check(one.sample)
        return collate([[one.sequence for one in row] for row in rows], self.plan.shape.num_positions)
