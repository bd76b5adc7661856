"""How several processes hold one model: whole in each (DDP), in shards (FSDP2), or in replicas of shards (HSDP); and how many
of them share rows (context parallelism), which changes nothing of that: gradients are summed over all processes.

PyTorch's `fully_shard` is called as it is: accelerate's wrapper needs the optimizers first and swaps their parameters, which
ours do not allow. A vision tower that is frozen stays whole in every process and takes part in no exchange; all else
is gathered layer by layer when it is needed. A batch without images, codes or text runs through the same modules with nothing
in them, so that all processes always exchange the same in the same order.

To be sampled, scored or written, a model in shards is put together on the first process (`FullModelGatherer`): before it is
cut, its form is kept, the modules without weights. The whole model is the form with the weights of the moment, gathered one by
one; only the first process holds it, which needs the memory for it beside its own shards, and frees it afterwards.
"""

import copy
import gc
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from unimm.models.context_parallel import ContextGroup
from unimm.models.llama import LLAMA_SHAPED
from unimm.runtime.number_checks import check_whole
from unimm.runtime.rank_sync import Ranks
from unimm.training.objectives.likelihood import Objective

STRATEGIES = ("ddp", "fsdp", "hsdp")

SPARE = 1.2
"""So many times its weights a model takes where it decodes, at least: keys, values, and what lies between layers."""

HEAD = "head "
"""What the names of heads begin with, beside the model."""

T = TypeVar("T")
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sharding:
    """How several processes hold one model.

    strategy: "ddp", "fsdp" or "hsdp". shard_size: of hsdp, how many processes share one replica, as a rule those of one
        machine.
    context_parallel_degree: so many neighbouring processes share the positions of rows; 1: each has whole rows.

    Raises ValueError for another strategy, or hsdp without its shard size.
    """

    strategy: str = "ddp"
    shard_size: int | None = None
    context_parallel_degree: int = 1

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise ValueError(f"Unknown sharding '{self.strategy}': use {', '.join(STRATEGIES)}.")
        if (self.strategy == "hsdp") != (self.shard_size is not None):
            raise ValueError("trainer.sharding.shard_size is how many processes share one copy: hsdp needs it, and only hsdp.")
        if self.shard_size is not None:
            check_whole(self, 1, "shard_size")
        check_whole(self, 1, "context_parallel_degree")

    def mesh_shape(self, num_processes: int) -> tuple[int, ...]:
        """Processes that hold shards, before them the copies.

        Raises:
            ValueError: the number of processes does not divide.
        """
        if self.shard_size is None:
            return (num_processes,)
        if num_processes % self.shard_size:
            raise ValueError(f"{num_processes} processes do not divide into copies of {self.shard_size}: change shard_size.")
        return (num_processes // self.shard_size, self.shard_size)


def num_groups(sharding: Sharding, num_processes: int) -> int:
    """How many groups of processes share rows; each is given samples of its own.

    Raises:
        ValueError: the number of processes does not divide.
    """
    degree = sharding.context_parallel_degree
    if degree > num_processes:
        raise ValueError(
            f"trainer.sharding.context_parallel_degree={degree} splits rows over {degree} processes, and the run has "
            f"{num_processes}: start more (torchrun --nproc_per_node {degree}), or lower it."
        )
    if num_processes % degree:
        raise ValueError(
            f"{num_processes} processes do not divide into groups of {degree} that share rows: change their number, or "
            f"trainer.sharding.context_parallel_degree."
        )
    return num_processes // degree


def check_context(objective: Objective, sharding: Sharding, num_positions: int) -> None:
    """Raises ValueError where rows of so many positions cannot be split for an objective and its model."""
    degree = sharding.context_parallel_degree
    if degree == 1:
        return
    name, key = type(objective).__name__, "trainer.sharding.context_parallel_degree"
    says = next(one for one in type(objective).__mro__ if {"forward", "splits_rows"} & vars(one).keys())
    if not vars(says).get("splits_rows"):
        raise ValueError(f"The objective {name} takes whole rows, since {objective.why_whole}: leave {key} at 1.")
    trunk = objective.model.config.trunk_config()
    if not objective.model.skips_unused_positions:
        raise ValueError(
            f"Rows are split for trunks of Llama's shape ({', '.join(LLAMA_SHAPED)}), and this one is {trunk.model_type}, with "
            f"layers of transformers: leave {key} at 1."
        )
    if num_positions % degree:
        raise ValueError(
            f"Rows of {num_positions} positions do not divide into {degree} equal parts: change trainer.num_positions to a "
            f"multiple of {degree}, such as {-(-num_positions // degree) * degree}, or {key}."
        )
    heads, of_keys = trunk.num_attention_heads, trunk.num_key_value_heads
    if heads % degree or (of_keys % degree and degree % of_keys):
        raise ValueError(
            f"While rows are split, attention splits its heads: {heads} heads with {of_keys} of keys do not divide by "
            f"{key}={degree}; take a divisor of both numbers, or one of the first that is a multiple of the second."
        )


def open_context(sharding: Sharding, ranks: Ranks, device: torch.device) -> ContextGroup | None:
    """The group of this process; all processes must call it. None where each has whole rows.

    Raises:
        ValueError: the processes do not divide into such groups.
    """
    count = sharding.context_parallel_degree
    shape = (num_groups(sharding, ranks.count), count)
    if count == 1:
        return None
    mesh = init_device_mesh(device.type, shape, mesh_dim_names=("groups", "context"))
    return ContextGroup(mesh.get_group("context"), ranks.number % count, count)


def shard(objective: Objective, sharding: Sharding, num_processes: int, device: torch.device, is_bf16: bool) -> None:
    """Cut an objective's parameters into shards, in place: each layer of the Transformer a unit, and each layer of a port's
    part that is trained, such as the vision tower, or of the objective's own; the rest is one. A frozen part with layers stays
    whole in every process.
    """
    shape = sharding.mesh_shape(num_processes)
    mesh = init_device_mesh(device.type, shape, mesh_dim_names=("copies", "shards")[-len(shape) :])
    model = objective.model
    # Gradients are summed in float32 whatever is computed in.
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32) if is_bf16 else MixedPrecisionPolicy()
    of_model = set(map(id, model.layers()))
    units, whole = [*model.trunk.layers, *(one for one in objective.layers() if id(one) not in of_model)], set[nn.Parameter]()
    for port in model.ports.values():
        for part in port.parts().values():
            inside = [unit for unit in port.units() if any(unit is module for module in part.modules())]
            is_frozen = not any(parameter.requires_grad for parameter in part.parameters())
            units += [] if is_frozen else inside
            whole |= set(part.parameters()) if is_frozen and inside else set()
    for unit in units:
        fully_shard(unit, mesh=mesh, mp_policy=policy)
    fully_shard(objective, mesh=mesh, mp_policy=policy, ignored_params=whole)


@contextmanager
def no_exchange(module: nn.Module, accelerator: Accelerator) -> Iterator[None]:
    """Backward passes in here add to the gradients of this process alone; the first one after it exchanges them."""
    if not isinstance(module, FSDPModule):
        with accelerator.no_sync(module):
            yield
        return
    module.set_requires_gradient_sync(False)
    yield
    module.set_requires_gradient_sync(True)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor in one piece, wherever its shards are; all processes must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: torch.Tensor) -> torch.Tensor:
    """What this process holds of a tensor, without its history; writing to it changes the tensor."""
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gather(tensors: dict[str, torch.Tensor], keep: bool, device: torch.device | str = "cpu") -> dict[str, torch.Tensor]:
    """Tensors in one piece, one after another, on the device, for the processes that `keep` them; the others get none. What was
    never cut stays where it is. All processes must call it.
    """
    gathered = {}
    for name, tensor in tensors.items():
        in_one_piece = whole(tensor)
        if keep and in_one_piece is not tensor:
            # Of rows that do not divide it is a view of something longer, which cannot be written into a file as it is.
            is_part = in_one_piece.untyped_storage().nbytes() > in_one_piece.nbytes
            in_one_piece = in_one_piece.to(device, copy=is_part)
        if keep:
            gathered[name] = in_one_piece
    return gathered


def let_go(module: nn.Module) -> None:
    """Back to shards what a forward without a backward pass has left in one piece: the outermost unit, which waits for its
    backward pass, and would go on with these values even where its shards have other ones by then.
    """
    for unit in module.modules():
        if isinstance(unit, FSDPModule):
            unit.reshard()


def with_heads(model: nn.Module, heads: Mapping[str, nn.Module]) -> nn.ModuleDict:
    """What is put together in one piece: the model and the objective's heads, by their names behind `HEAD`."""
    return nn.ModuleDict({"model": model, **{HEAD + name: head for name, head in heads.items()}})


def like(tensor: torch.Tensor, pattern: torch.Tensor) -> torch.Tensor:
    """A whole tensor, the same in all processes, cut as `pattern` is."""
    if not isinstance(pattern, DTensor):
        return tensor
    return distribute_tensor(tensor.to(pattern.device), pattern.device_mesh, pattern.placements, src_data_rank=None)


class FullModelGatherer:
    """Puts a model in shards together again on the first process.

    model: before it is cut, compiled or set to checkpoint activations.
    """

    def __init__(self, model: nn.Module) -> None:
        self._form = _with_parameters(model, lambda _, parameter: torch.empty_like(parameter, device="meta"))
        self._has_warned = False

    def run_on_rank0(self, model: nn.Module, function: Callable[[Any], T], is_first: bool, device: torch.device) -> T | None:
        """What a function returns for the whole model, on the first process, in eval mode and without gradients; the others get
        None at once. Every process must call it.

        device: where the whole model is to lie; where a GPU has no memory for it, it lies on the CPU.
        """
        weights = model.state_dict()
        names = [name for name, _ in self._form.named_parameters()]  # tied ones once
        if is_first:
            device = self._with_room(device, sum(weights[name].numel() * weights[name].element_size() for name in names))
        gathered = gather({name: weights[name] for name in names}, is_first, device)
        if not is_first:
            return None
        whole = _with_parameters(self._form, lambda name, _: gathered.pop(name)).to(device).eval()
        try:
            return function(whole)
        finally:
            del whole
            gc.collect()  # engines and decoders may lie in circles
            if device.type == "cuda":
                torch.cuda.empty_cache()

    def _with_room(self, device: torch.device, num_bytes: int) -> torch.device:
        if device.type != "cuda":
            return device
        free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        if SPARE * num_bytes <= free:
            return device
        if not self._has_warned:
            self._has_warned = True
            logger.warning(
                f"The whole model takes {num_bytes / 1e9:.1f} GB, and the first process has {free / 1e9:.1f} GB left on "
                f"{device}: it is sampled and scored on the CPU, which takes long. To do without, say trainer.sample_every=0 "
                f"trainer.validate_every=0."
            )
        return torch.device("cpu")


def _with_parameters(model: nn.Module, make: Callable[[str, nn.Parameter], torch.Tensor]) -> nn.Module:
    """A copy of a model with other tensors for its parameters, which are not trainable; what is tied stays tied."""
    others: dict[int, Any] = {
        id(parameter): nn.Parameter(make(name, parameter), requires_grad=False) for name, parameter in model.named_parameters()
    }
    return copy.deepcopy(model, others)
