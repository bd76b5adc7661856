"""Numbers between two reports of a run: sums over steps and, in a report, over ranks: what is logged is the global mean."""

from typing import NamedTuple

import torch
from accelerate import Accelerator

from unimm.batch import Batch
from unimm.models.ports.base import LossSums
from unimm.training.flops import FlopCount


class Read(NamedTuple):
    """How much of something was gone through: elements that are no padding, places for them, images, operations."""

    elements: int
    places: int
    images: int
    flops: int

    @classmethod
    def of(cls, batch: Batch, flop_count: FlopCount | None = None) -> "Read":
        """Of a batch that still lies in main memory."""
        return cls(batch.num_elements, batch.tokens.numel(), batch.num_images, flop_count.of(batch) if flop_count else 0)


class Meter:
    """What was learned, how much was read and how long it took, since the last report.

    peak_flops: what the device of a rank computes in a second at most; None leaves MFU out.
    """

    def __init__(self, peak_flops: float | None = None) -> None:
        self.grad_norm = 0.0
        self.peak_flops = peak_flops
        self._clear()

    def add_batch(self, read: Read, tallies: dict[str, LossSums]) -> None:
        """One micro-batch and what came of it."""
        for name, tally in tallies.items():
            row = torch.stack([tally.loss.detach(), tally.correct, tally.count]).float()
            self._tallies[name] = self._tallies[name] + row if name in self._tallies else row
        self._read += torch.tensor(read, dtype=torch.float64)

    def add_time(self, seconds: float, waited: float) -> None:
        """One step's seconds, and how many of them it waited for data."""
        self._time += torch.tensor([seconds, waited])

    def report(self, rate: float, accelerator: Accelerator) -> dict[str, float]:
        """Means over all ranks for the logbook; starts a new count. Every rank must call it at the same step."""
        rows = [*self._tallies.values(), self._read, self._time / accelerator.num_processes]
        together = accelerator.reduce(torch.cat([row.float().to(accelerator.device) for row in rows]), "sum")
        assert isinstance(together, torch.Tensor)
        *tallies, read, time = together.split([len(row) for row in rows])
        values = _means(dict(zip(self._tallies, tallies, strict=True)), read, time)
        if self.peak_flops and "speed/tflops_per_second" in values:
            values["speed/mfu"] = 1e12 * values["speed/tflops_per_second"] / accelerator.num_processes / self.peak_flops
        self._clear()
        return values | {"optim/grad_norm": self.grad_norm, "optim/rate_factor": rate}

    def note(self) -> str:
        """One line for the progress bar: this rank's own numbers."""
        values = _means(self._tallies, self._read, self._time)
        losses = " ".join(f"{name.removeprefix('loss/')} {v:.3f}" for name, v in values.items() if name.startswith("loss/"))
        speed = f"{values['speed/tokens_per_second']:,.0f} tok/s {values['speed/images_per_second']:,.0f} img/s"
        return f"loss {losses} | {speed}"

    def _clear(self) -> None:
        self._tallies: dict[str, torch.Tensor] = {}
        self._read = torch.zeros(len(Read._fields), dtype=torch.float64)
        self._time = torch.zeros(2)  # seconds, seconds of waiting


def _means(tallies: dict[str, torch.Tensor], read: torch.Tensor, time: torch.Tensor) -> dict[str, float]:
    """The numbers as they are logged, from sums."""
    values = {}
    for name, row in tallies.items():
        loss, correct, count = row.tolist()
        if count:
            values[f"loss/{name}"] = loss / count
            values[f"accuracy/{name}"] = correct / count
    elements, places, images, flops = read.tolist()
    seconds, waited = time.clamp(min=1e-9).tolist()
    if flops:
        values["speed/tflops_per_second"] = flops / seconds / 1e12
    return values | {
        "speed/tokens_per_second": elements / seconds,
        "speed/images_per_second": images / seconds,
        "speed/data_wait": waited / seconds,
        "data/fill": elements / max(places, 1),
    }
