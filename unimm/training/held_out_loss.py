"""The loss on held-out samples, which the processes of a run share."""

from collections.abc import Callable, Iterator

import torch
from accelerate import Accelerator

from unimm.batch import Batch
from unimm.data.mixture import Mixture, SampleId
from unimm.data.packing import WHOLE, SampleSize, best_fit, split_sample
from unimm.data.plan import Planned, collate_rows, measured, open_rows
from unimm.training.gradients import losses_of
from unimm.training.objectives.likelihood import Objective, is_observed

Row = list[tuple[SampleId, int]]
"""What a row holds: samples, and which part of each (`unimm.data.packing.WHOLE`: all of it)."""


class HeldOut:
    """Every record of every source of a mixture once, always with the same choices of its view.

    Args:
        mixture: of held-out records; a source that never comes is left out, else weights do not count.
        num_positions: row length T.
        num_rows: rows of one forward pass.
    """

    def __init__(self, mixture: Mixture, num_positions: int, num_rows: int) -> None:
        self.mixture, self.num_positions, self.num_rows = mixture, num_positions, num_rows
        self._packed: tuple[list[Row], list[list[Row]]] | None = None

    def losses(
        self, objective: Objective, weights: dict[str, float], accelerator: Accelerator, is_stopped: Callable[[], bool]
    ) -> dict[str, float] | None:
        """The mean of each loss, as loss_NAME, and their weighted sum, as loss; None where it was stopped.

        Every process calls it at the same step, and gets the same. The objective is in eval mode. Processes that share rows
        share their batches.
        """
        sums: dict[str, torch.Tensor] = {}
        sharing = 1 if objective.model.context is None else objective.model.context.count
        for _, batch in self.batches(accelerator.process_index // sharing, accelerator.num_processes // sharing):
            if is_stopped():
                return None
            objective.check(batch)
            for name, term in losses_of(objective, batch, accelerator).items():
                row = torch.stack([term.loss.float(), term.count.float()])
                sums[name] = sums[name] + row if name in sums else row
        together = accelerator.reduce(torch.stack(list(sums.values())), "sum")
        assert isinstance(together, torch.Tensor)
        means = {name: float(loss / count) for name, (loss, count) in zip(sums, together, strict=True) if count > 0}
        total = sum(weights.get(name, 1.0) * mean for name, mean in means.items() if not is_observed(name))
        return {"loss": total, **{f"loss_{name.replace('/', '_')}": mean for name, mean in means.items()}}

    def batches(self, rank: int, num_ranks: int) -> Iterator[tuple[float, Batch]]:
        """A rank's share, as many batches as the others': shards are gathered for each of them. Missing rows are padding. With
        each batch comes how much is done after it, 0 to 1."""
        if self._packed is None:
            self._packed = self._pack()
        rows, groups = self._packed
        first_rows = range(0, len(rows), self.num_rows * num_ranks)
        first_groups = range(0, len(groups), num_ranks)
        total = len(first_rows) + len(first_groups)
        for number, start in enumerate(first_rows, 1):
            yield number / total, self._collate(rows[start : start + self.num_rows * num_ranks][rank::num_ranks])
        for number, start in enumerate(first_groups, 1 + len(first_rows)):
            own = groups[start : start + num_ranks][rank : rank + 1]
            yield number / total, self._collate(own[0] if own else [])

    def _collate(self, rows: list[Row]) -> Batch:
        planned = [[self._planned(*one) for one in row] for row in rows]
        return collate_rows(open_rows(self.mixture, planned, {}), self.num_positions, max(self.num_rows, len(rows)))

    def _planned(self, name: SampleId, part: int) -> Planned:
        return Planned.of(name, self.mixture.sample(name, self.num_positions), part, self.num_positions)

    def _pack(self) -> tuple[list[Row], list[list[Row]]]:
        """Rows of samples that fit into one, and the rows of each sample that takes several, which share a batch."""
        names = [(source, n) for source in self.mixture.used for n in range(len(self.mixture.sources[source].dataset))]
        sizes = [SampleSize.of(measured(self.mixture, name, self.num_positions)) for name in names]
        num_parts = [len(split_sample(size.lengths, self.num_positions)) for size in sizes]
        whole = [(name, size.length) for name, size, count in zip(names, sizes, num_parts, strict=True) if not count]
        rows = best_fit([length for _, length in whole], self.num_positions)
        groups = [[[(name, part)] for part in range(count)] for name, count in zip(names, num_parts, strict=True) if count]
        return [[(whole[index][0], WHOLE) for index in row] for row in rows], groups
