"""What each of several processes writes into a checkpoint, and reads of one that any number of them wrote.

Nothing is gathered and nothing asked: every process computes the same table. What lies in shards is written where they lie; of
what several processes hold alike (all of DDP's, the copies of HSDP, frozen towers, counters) one writes it, so that all have
about as much to write. Where a shard begins is what the planner of torch.distributed.checkpoint says.
"""

from collections.abc import Mapping

from torch import Tensor, nn
from torch.distributed.checkpoint.default_planner import create_default_local_save_plan
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.placement_types import Replicate

from unimm.checkpoints.tensor_shards import Part, StoredTensors
from unimm.training.sharding import like


def own_parts(tensors: Mapping[str, Tensor], number: int, count: int) -> dict[str, Part]:
    """What process `number` of `count` writes of tensors that all hold, whole or in shards; where they lie, as they are."""
    loads, own = [0] * count, dict[str, Part]()
    # The largest first: what comes after them evens out.
    for name, tensor in sorted(tensors.items(), key=lambda item: (-item[1].nbytes, item[0])):
        writers = min(_holders(tensor, count), key=lambda ranks: max(loads[rank] for rank in ranks))
        for rank in writers:
            loads[rank] += tensor.numel() * tensor.element_size() // len(writers)
        if number in writers:
            own[name] = _own_part(tensor)
    return {name: part for name, part in own.items() if part.tensor.numel() or not tensors[name].numel()}


def read_like(tensors: Mapping[str, Tensor], name: str, pattern: Tensor) -> Tensor:
    """One of stored tensors, cut as `pattern` is: then only what this process holds of it is read."""
    if not isinstance(pattern, DTensor) or not isinstance(tensors, StoredTensors):
        return like(tensors[name], pattern)
    if tensors.shapes[name] != tuple(pattern.shape):
        raise RuntimeError(f"{name} has the shape {tensors.shapes[name]}, not {tuple(pattern.shape)}")
    own = _own_part(pattern)
    local = tensors.read(name, own.begins, tuple(own.tensor.shape)).to(pattern.device)
    return DTensor.from_local(
        local, pattern.device_mesh, pattern.placements, run_check=False, shape=pattern.shape, stride=pattern.stride()
    )


def load_stored(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """`load_state_dict` with stored tensors, into a module that may be cut.

    Raises:
        RuntimeError: names or shapes do not fit.
    """
    own = module.state_dict()
    module.load_state_dict({name: read_like(tensors, name, own[name]) if name in own else tensors[name] for name in tensors})


def _holders(tensor: Tensor, count: int) -> list[list[int]]:
    """The copies of a tensor: of each the processes that hold it together."""
    if not isinstance(tensor, DTensor):
        return [[rank] for rank in range(count)]
    repeated = [axis for axis, placement in enumerate(tensor.placements) if isinstance(placement, Replicate)]
    cut = [axis for axis in range(tensor.device_mesh.ndim) if axis not in repeated]
    ranks = tensor.device_mesh.mesh.permute(*repeated, *cut)
    num_shards = 1
    for axis in cut:
        num_shards *= tensor.device_mesh.size(axis)
    return ranks.reshape(-1, num_shards).tolist()


def _own_part(tensor: Tensor) -> Part:
    """What this process holds of a tensor."""
    if not isinstance(tensor, DTensor):
        return Part.whole(tensor.detach())
    (item,) = create_default_local_save_plan({"": tensor}, is_coordinator=False).items
    assert item.tensor_data is not None
    return Part(tensor.to_local().detach(), tuple(item.tensor_data.chunk.offsets), tuple(tensor.shape))
