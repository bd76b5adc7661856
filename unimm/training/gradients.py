"""The gradient of a step over its micro-batches and processes, the same however the step is cut.

Where the sums of an objective add up, each micro-batch is a forward and a backward pass. Where samples are compared with all
others of the step (`JointObjective`), it takes three turns (GradCache, arXiv 2101.06983):

    1. every micro-batch goes forward without a graph, and what it gives is gathered over micro-batches and processes;
    2. the loss of all of it, and its slope at what each micro-batch gave; every process computes the rows of its own;
    3. every micro-batch goes forward again, with the same random numbers, and backward from this slope.

So memory is that of one micro-batch and of the rows of a similarity matrix, and the gradient is that of a single batch. A step
of one micro-batch a process keeps the graph of its only forward pass.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from unimm.batch import Batch
from unimm.models.ports.base import LossSums
from unimm.training.finite import spread
from unimm.training.flops import FlopCount
from unimm.training.logbook import Read
from unimm.training.objectives.likelihood import JointObjective, Objective, is_observed
from unimm.training.sharding import no_exchange

Outcome = tuple[Read, dict[str, LossSums]]
"""What was read of a micro-batch, and its sums, without a graph."""


class Gathered(NamedTuple):
    """What the micro-batches of all processes give, by name, one after another; and which rows each of this process' gave."""

    outputs: dict[str, Tensor]
    rows: list[dict[str, slice]]


class StepGradient:
    """Computes the gradients of a step into the parameters.

    Args:
        objective: what is learned. wrapped: the same, as several processes hold it.
        weights: of each mean loss by name; 1 where it is not named.
        flop_count: of a micro-batch, where there is one.
    """

    def __init__(
        self,
        objective: Objective,
        wrapped: nn.Module,
        accelerator: Accelerator,
        weights: Mapping[str, float],
        flop_count: FlopCount | None = None,
    ) -> None:
        self.objective, self.wrapped, self.accelerator = objective, wrapped, accelerator
        self.weights, self.flop_count = weights, flop_count

    def backward(self, batches: list[Batch], totals: list[float] | None = None) -> tuple[Tensor, list[Outcome]]:
        """Forward and backward over the micro-batches of this process. Returns its share of the loss, and what came of each.

        totals: the `counts` of all processes, where they are known; else they are exchanged here.

        Raises:
            ValueError: a batch is none for this model.
        """
        counts = self.global_counts(batches, totals)
        batches = [self.objective.prepare(batch) for batch in batches]
        if isinstance(self.objective, JointObjective):
            return self._joint(self.objective, batches, counts)
        outcomes: list[Outcome] = []
        losses = []
        for number, micro_batch in enumerate(batches):
            read = self._read(micro_batch)
            with no_exchange(self.wrapped, self.accelerator) if number < len(batches) - 1 else nullcontext():
                terms: dict[str, LossSums] = self._forward(micro_batch)
                loss = self._weighted(terms, counts)
                # Gradients are averaged over ranks; the sums are already divided by global counts.
                self.accelerator.backward(spread(loss, self.accelerator.num_processes))
            outcomes.append((read, _without_graph(terms)))
            losses.append(loss.detach())
        return torch.stack(losses).sum(), outcomes

    def _joint(
        self, objective: JointObjective, batches: list[Batch], counts: dict[str, Tensor]
    ) -> tuple[Tensor, list[Outcome]]:
        device = self.accelerator.device
        reads = [self._read(batch) for batch in batches]
        keeps_graph = len(batches) == 1
        outputs: list[dict[str, Tensor]] = []
        random_states = []
        for batch in batches:
            random_states.append(_random_state(device))
            with nullcontext() if keeps_graph else torch.no_grad():
                outputs.append(self._forward(batch))
        gathered = gather(outputs, self.accelerator)
        leaves = {name: tensor.requires_grad_() for name, tensor in gathered.outputs.items() if tensor.is_floating_point()}
        outcomes: list[Outcome] = []
        losses = []
        for read, rows in zip(reads, gathered.rows, strict=True):
            terms = objective.joint_loss(gathered.outputs, rows)
            loss = self._weighted(terms, counts)
            if loss.requires_grad:
                spread(loss).backward()
            outcomes.append((read, _without_graph(terms)))
            losses.append(loss.detach())
        slopes = {name: self._summed(leaf) for name, leaf in leaves.items()}
        for number, (batch, rows) in enumerate(zip(batches, gathered.rows, strict=True)):
            with no_exchange(self.wrapped, self.accelerator) if number < len(batches) - 1 else nullcontext():
                if not keeps_graph:
                    _restore_random_state(random_states[number], device)
                again = outputs[0] if keeps_graph else self._forward(batch)
                parts = [(again[name] * slope[rows[name]]).sum() for name, slope in slopes.items() if again[name].requires_grad]
                if not parts:
                    raise ValueError("Nothing that this objective compares is trained in this stage: name such parts in it.")
                self.accelerator.backward(torch.stack(parts).sum() * self.accelerator.num_processes)
        return torch.stack(losses).sum(), outcomes

    def _read(self, batch: Batch) -> Read:
        self.objective.check(batch)
        context = self.objective.model.context
        return Read.of(batch, self.flop_count, 1 if context is None else context.count)

    def _forward(self, batch: Batch) -> Any:
        with self.accelerator.autocast():
            return self.wrapped(batch.to(self.accelerator.device))

    def _weighted(self, terms: dict[str, LossSums], counts: dict[str, Tensor]) -> Tensor:
        learned = ((name, term) for name, term in terms.items() if not is_observed(name))
        total: Any = sum(self.weights.get(name, 1.0) * term.loss / counts[name] for name, term in learned)
        return total

    def _summed(self, leaf: Tensor) -> Tensor:
        """The slope at what was gathered: every process has computed the share of its own rows."""
        slope = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        total = self.accelerator.reduce(slope, "sum")
        assert isinstance(total, Tensor)
        return total

    def counts(self, batches: list[Batch]) -> dict[str, Tensor]:
        """What this process adds to the counts that sums are divided by: of all its micro-batches, on the CPU. Rows that
        several share are counted by the first of them."""
        own = [self.objective.counts(batch) for batch in batches]
        context = self.objective.model.context
        times = float(context is None or context.number == 0)
        return {name: times * torch.stack([counted[name] for counted in own]).sum() for name in own[0]}

    def global_counts(self, batches: list[Batch], totals: list[float] | None = None) -> dict[str, Tensor]:
        """What each sum is divided by: its count over all micro-batches of all ranks, at least 1."""
        own = self.counts(batches)
        device = self.accelerator.device
        if totals is None:
            total: Any = self.accelerator.reduce(torch.stack(list(own.values())).to(device), "sum")
        else:
            total = torch.tensor(totals, dtype=torch.float32)
            total = (total.pin_memory() if device.type == "cuda" else total).to(device, non_blocking=True)
        return dict(zip(own, total.clamp(min=1.0), strict=True))


def losses_of(objective: Objective, batch: Batch, accelerator: Accelerator) -> dict[str, LossSums]:
    """The sums of one batch of each process, without gradients: of a `JointObjective`, among the samples of all of these
    batches. Every process must call it."""
    with torch.no_grad(), accelerator.autocast():
        outputs = objective(objective.prepare(batch).to(accelerator.device))
    if not isinstance(objective, JointObjective):
        return outputs
    with torch.no_grad():
        gathered = gather([outputs], accelerator)
        return objective.joint_loss(gathered.outputs, gathered.rows[0])


def gather(own: list[dict[str, Tensor]], accelerator: Accelerator) -> Gathered:
    """What this process' micro-batches give, with that of all other processes, without a graph. Every process must call it.

    own: of each micro-batch the same names; tensors (n, ...) of any n.
    """
    names, rows = list(own[0]), [dict[str, slice]() for _ in own]
    sizes = torch.tensor([[sum(len(one[name]) for one in own) for name in names]], device=accelerator.device)
    sizes_RK: Any = accelerator.gather(sizes)
    outputs = {}
    for index, name in enumerate(names):
        counts = sizes_RK[:, index].tolist()
        outputs[name] = _all(torch.cat([one[name].detach() for one in own]), counts, accelerator)
        start = sum(counts[: accelerator.process_index])
        for one, places in zip(own, rows, strict=True):
            places[name] = slice(start, start + len(one[name]))
            start += len(one[name])
    return Gathered(outputs, rows)


def _all(tensor: Tensor, counts: list[int], accelerator: Accelerator) -> Tensor:
    """The rows of all processes, of which each has as many as counted."""
    most = max(counts)
    if accelerator.num_processes == 1 or most == 0:
        return tensor
    padding = tensor.new_zeros(most - len(tensor), *tensor.shape[1:])
    together: Any = accelerator.gather(torch.cat([tensor, padding]))
    return torch.cat([part[:count] for part, count in zip(together.split(most), counts, strict=True)])


def _without_graph(terms: dict[str, LossSums]) -> dict[str, LossSums]:
    return {name: LossSums(*(each.detach() for each in term)) for name, term in terms.items()}


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _restore_random_state(state: tuple[Tensor, Tensor | None], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)
