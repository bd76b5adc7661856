"""The loss on samples that nothing learns from, shared out among the processes of a run."""

from collections.abc import Callable, Iterator

import torch
from accelerate import Accelerator

from unimm.batch import Batch, collate
from unimm.data.mixture import Mixture, Sample
from unimm.data.packing import best_fit
from unimm.data.plan import measured
from unimm.sequence import Sequence
from unimm.training.objectives.base import Objective


class HeldOut:
    """Every record of every source of a mixture once, always in the same words.

    Args:
        mixture: of held-out records; a source of weight 0 is left out, else weights do not count.
        num_positions: row length T.
        num_rows: rows of one forward pass.
    """

    def __init__(self, mixture: Mixture, num_positions: int, num_rows: int) -> None:
        self.mixture, self.num_positions, self.num_rows = mixture, num_positions, num_rows
        self._rows: list[list[Sample]] | None = None

    def losses(
        self, objective: Objective, weights: dict[str, float], accelerator: Accelerator, is_stopped: Callable[[], bool]
    ) -> dict[str, float] | None:
        """The mean of each loss, as loss_NAME, and their weighted sum, as loss; None where it was stopped.

        Every process calls it at the same step, and gets the same. The objective is in eval mode.
        """
        sums: dict[str, torch.Tensor] = {}
        for batch in self._batches(accelerator.process_index, accelerator.num_processes):
            if is_stopped():
                return None
            objective.check(batch)
            with torch.no_grad(), accelerator.autocast():
                terms = objective(batch.to(accelerator.device))
            for name, term in terms.items():
                row = torch.stack([term.loss.float(), term.count.float()])
                sums[name] = sums[name] + row if name in sums else row
        together = accelerator.reduce(torch.stack(list(sums.values())), "sum")
        assert isinstance(together, torch.Tensor)
        means = {name: float(loss / count) for name, (loss, count) in zip(sums, together, strict=True) if count > 0}
        total = sum(weights.get(name, 1.0) * mean for name, mean in means.items())
        return {"loss": total, **{f"loss_{name}": mean for name, mean in means.items()}}

    def _batches(self, rank: int, num_ranks: int) -> Iterator[Batch]:
        """A rank's share, as many batches as the others': shards are gathered for each of them. Missing rows are padding."""
        if self._rows is None:
            self._rows = self._pack()
        for start in range(0, len(self._rows), self.num_rows * num_ranks):
            rows = self._rows[start : start + self.num_rows * num_ranks][rank::num_ranks]
            sequences = [[self._open(sample) for sample in row] for row in rows]
            yield collate(sequences, self.num_positions, self.num_rows)

    def _open(self, sample: Sample) -> Sequence:
        self.mixture.check(sample)
        return self.mixture.sequence(sample, self.num_positions)

    def _pack(self) -> list[list[Sample]]:
        """Which samples share a row."""
        active = [(number, source) for number, source in enumerate(self.mixture.sources) if source.weight > 0]
        samples = [(number, n) for number, source in active for n in range(len(source.dataset))]
        lengths = [measured(self.mixture, sample, self.num_positions).length for sample in samples]
        return [[samples[index] for index in row] for row in best_fit(lengths, self.num_positions)]
