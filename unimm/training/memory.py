"""How much memory a process of a training needs, before one is started.

Weights, gradients, averages and what optimizers keep are counted by formula. What lies between forward and backward is
measured: the model's own code runs with fake tensors (`FakeTensorMode`), which have sizes and no content, and every allocation
is counted while it lives. Attention is taken to keep queries, keys, values and what it gives, as all fused kernels do; its
workspace, what the allocator wastes and the runtime's own (a GPU's context is about 1 GB) are not in it. Nor is a kind whose
loss is not by a vocabulary, such as a flow's, beside its positions in the trunk. Where processes share rows, it is the largest
share of each thing, and what an exchange sends and receives.

    before a step     weights, averages, optimizer state
    in a pass         + activations and logits, + gradients as they come, + layers that are gathered from shards
    in the update     + gradients, + Muon's products
"""

import copy
import weakref
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from unimm.batch import Batch
from unimm.models import attention, context_parallel, llama
from unimm.models.context_parallel import ContextGroup, SplitMask
from unimm.models.ports import vocabulary
from unimm.models.ports.pixels import PixelsPort
from unimm.models.ports.vocabulary import VocabularyPort
from unimm.models.unified import ROUND_LOSS_POSITIONS, UnifiedModel
from unimm.sequence import Kind
from unimm.training.activation_checkpointing import checkpoint_activations
from unimm.training.objectives.likelihood import Objective
from unimm.training.optimizers import parameter_groups
from unimm.training.trainable_parts import factors
from unimm.training.trainer_config import TrainerConfig


@dataclass(frozen=True)
class Memory:
    """Bytes of one process.

    activations: what passes need at most beside the others, with logits. gathered: weights that are whole only while they
    are used, in `activations`, too. update: what Muon needs beside the others. peak: of all that is there at once, at most.
    """

    weights: int
    frozen_weights: int
    gradients: int
    averages: int
    optimizer: int
    activations: int
    gathered: int
    update: int
    peak: int

    def parts(self) -> dict[str, int]:
        """By name."""
        return asdict(self)


@dataclass(frozen=True)
class PassSizes:
    """What a micro-batch asks of a model in one process.

    num_positions: of a row; a process holds an equal part where several share rows. elements: positions of each kind. learned:
    positions that predict each kind. looked: images that go through the vision tower. stored: the shape of the features that
    others have.
    """

    num_rows: int
    num_positions: int
    elements: dict[Kind, int]
    learned: dict[Kind, int]
    looked: int
    stored: tuple[int, ...]

    @classmethod
    def of(cls, batch: Batch, model: UnifiedModel, num_sharing: int = 1) -> "PassSizes":
        """Of a batch that so many processes share: the largest number of each."""
        num_rows, num_positions = batch.tokens.shape

        def most(is_there_BT: Tensor) -> int:
            return max(int(part.sum()) for part in is_there_BT.chunk(num_sharing, 1))

        num_stored, *of_image = batch.images.features.shape
        return cls(
            num_rows,
            num_positions,
            {kind: most(batch.kinds == kind) for kind in model.ports},
            {kind: most(port.is_read(batch)) for kind, port in model.predicted_ports.items()},
            -(-len(batch.images.pixels) // num_sharing),
            (-(-num_stored // num_sharing), *of_image),
        )


@dataclass(frozen=True)
class Machine:
    """Where it is to run: so many processes, on "cuda" or "cpu", in bfloat16 or float32."""

    num_processes: int
    device: str
    is_bf16: bool

    @property
    def muon_dtype(self) -> torch.dtype:
        """Of Muon's products."""
        return torch.bfloat16 if self.is_bf16 or self.device == "cuda" else torch.float32


def estimate(objective: Objective, config: TrainerConfig, sizes: PassSizes, machine: Machine) -> Memory:
    """The memory of one process.

    Args:
        objective: with what its stage trains set to be trained; its weights may lie on the meta device.
        config: how it is trained and shared.
        sizes: of its largest micro-batch.
        machine: where.
    """
    is_sharded = config.sharding.strategy != "ddp" and machine.num_processes > 1
    shards = config.sharding.mesh_shape(machine.num_processes)[-1] if is_sharded else 1
    learned = [p for p in objective.parameters() if p.requires_grad]
    frozen = [p for p in objective.parameters() if not p.requires_grad]
    frozen += [p for module in objective.frozen.values() for p in module.parameters()]
    weights, kept, gradients = _bytes(learned) // shards, _bytes(frozen), _bytes(learned) // shards
    averages = weights if config.ema_decay is not None else 0
    learning = factors(objective.parts(), config.stage)
    groups = parameter_groups(objective.parts(), learning, config.optimizer, objective.hidden_parts())
    state = sum((2 if name == "adamw" else 1) * _bytes(one["params"]) for name in groups for one in groups[name]) // shards
    update = max((_muon_bytes(one["params"], machine.muon_dtype) for one in groups["muon"]), default=0)
    num_passes, degree = min(2, config.num_micro_batches), config.sharding.context_parallel_degree
    in_pass = measure_passes(objective, sizes, num_passes, config.activation_checkpointing, machine, degree)
    gathered = 0
    if shards > 1:  # the layer that is used and the one that is fetched meanwhile, and a gradient that leaves in float32
        largest = max(_bytes(layer.parameters()) for layer in objective.layers())
        gathered = 2 * largest // (2 if machine.is_bf16 else 1) + largest
        in_pass += gradients + gathered - _bytes(learned)
    peak = weights + kept + averages + state + max(in_pass, gradients + update)
    return Memory(weights, kept, gradients, averages, state, max(0, in_pass - gradients), gathered, update, peak)


def measure_passes(
    objective: Objective, sizes: PassSizes, num_passes: int, checkpointing: str, machine: Machine, num_sharing: int = 1
) -> int:
    """Bytes beside weights at most, from before the first pass to the end of the last: activations, logits, and gradients,
    which stay where there are several passes. num_sharing: processes that share rows."""
    stand_ins = (
        (context_parallel, "all_to_all", _receive),
        (attention, "attend_within_documents", _attend),
        (llama, "attend_within_documents", _attend),
        (F, "scaled_dot_product_attention", _attend_plainly),
    )
    chunk = vocabulary.CHUNK_LOGITS.get(machine.device, vocabulary.CHUNK_LOGITS["cpu"])
    with ExitStack() as stack:
        for one in stand_ins:
            stack.enter_context(mock.patch.object(*one))
        stack.enter_context(mock.patch.dict(vocabulary.CHUNK_LOGITS, cpu=chunk))
        stack.enter_context(torch.random.fork_rng(devices=[]))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        fake = _fake_copy(objective)
        fake.model.set_attention("documents")
        checkpoint_activations(fake.layers(), checkpointing)
        counted = stack.enter_context(AllocationPeak())
        for _ in range(num_passes):
            with torch.autocast("cpu", torch.bfloat16) if machine.is_bf16 else nullcontext():
                loss = _loss(fake.model, sizes, num_sharing)
            if loss.requires_grad:
                loss.backward()
            del loss
    return counted.peak


class AllocationPeak(TorchDispatchMode):
    """Counts the bytes of tensors that are made in this context and still live, and the most there were."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {one.untyped_storage()._cdata for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)}
        result = func(*args, **(kwargs or {}))
        for one in tree_leaves(result):
            if isinstance(one, Tensor):
                self._count(one.untyped_storage(), before)
        return result

    def _count(self, storage: Any, before: set[int]) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in before or key in self._known:
            return
        self._known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def _loss(model: UnifiedModel, sizes: PassSizes, num_sharing: int) -> Tensor:
    """As the model computes it, of a batch's sizes: where things stand is content, which fake tensors do not have."""
    num_all = sizes.num_rows * sizes.num_positions // num_sharing
    embeddings_ND = torch.zeros(num_all, model.width)
    for kind, port in model.ports.items():
        values_nD = _embeddings(port, sizes, sizes.elements[kind], num_sharing)
        if values_nD is not None:
            embeddings_ND = embeddings_ND.to(values_nD.dtype).index_put((_ids(len(values_nD)),), values_nD)
    positions_M = _ids(min(-(-sum(sizes.learned.values()) // ROUND_LOSS_POSITIONS) * ROUND_LOSS_POSITIONS, num_all))
    embeddings_BTD = embeddings_ND.view(sizes.num_rows, -1, model.width)
    positions_BT = _ids(sizes.num_rows * sizes.num_positions).view(sizes.num_rows, -1)
    mask = _ids(1) if num_sharing == 1 else SplitMask(_ids(1), ContextGroup(None, 0, num_sharing))
    hidden_MD = model.hidden(embeddings_BTD, mask, positions_BT, loss_positions_M=positions_M)
    losses = []
    for kind, port in model.predicted_ports.items():
        if isinstance(port, VocabularyPort):
            targets_n = _ids(sizes.learned[kind])
            losses.append(port.loss(hidden_MD[targets_n], targets_n, torch.zeros(len(targets_n))).loss)
    return torch.stack(losses).sum()


def _ids(num: int) -> Tensor:
    return torch.zeros(num, dtype=torch.long)


def _receive(x_n: Tensor, sent: list[int], received: list[int], group: Any) -> Tensor:
    return x_n.contiguous().new_empty(sum(received), *x_n.shape[1:])


def _embeddings(port: Any, sizes: PassSizes, num: int, num_sharing: int) -> Tensor | None:
    if isinstance(port, VocabularyPort):
        return port.embed(_ids(num))
    if not isinstance(port, PixelsPort):
        return None
    side = port.tower.config.image_size
    features_NPC = port.features(torch.zeros(sizes.looked, 3, side, side))
    if sizes.stored[0]:
        features_NPC = torch.cat([features_NPC, torch.zeros(sizes.stored).to(features_NPC.dtype)])
    embeddings_nD = port.projector(features_NPC).flatten(0, 1)
    if num_sharing > 1:
        return ContextGroup(None, 0, num_sharing).exchange(embeddings_nD, [len(embeddings_nD)], [num])
    return embeddings_nD if len(embeddings_nD) == num else embeddings_nD[_ids(num)]


class _Attend(torch.autograd.Function):
    """Keeps what a fused kernel keeps."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        seen = q.new_empty(*q.shape[:-1], v.shape[-1])
        ctx.save_for_backward(q, k, v, seen, q.new_empty(q.shape[:-1], dtype=torch.float32))
        return seen

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return tuple(torch.empty_like(one) for one in ctx.saved_tensors[:3])


def _attend(q_MHE: Tensor, k_NGE: Tensor, v_NGE: Tensor, *_: Any) -> Tensor:
    return _Attend.apply(q_MHE.contiguous(), k_NGE.contiguous(), v_NGE.contiguous())  # pyright: ignore[reportReturnType]


def _attend_plainly(query: Tensor, key: Tensor, value: Tensor, *_: Any, **more: Any) -> Tensor:
    return _Attend.apply(query, key, value)  # pyright: ignore[reportReturnType]


def _fake_copy(objective: Objective) -> Objective:
    """A copy whose parameters and buffers are fake, on a CPU: in a context of fake tensors."""
    memo: dict[int, Any] = {}
    for parameter in objective.parameters():
        made = nn.Parameter(torch.empty(parameter.shape, dtype=parameter.dtype), requires_grad=parameter.requires_grad)
        memo[id(parameter)] = made
    for buffer in objective.buffers():
        memo[id(buffer)] = torch.empty(buffer.shape, dtype=buffer.dtype)
    frozen, objective.frozen = objective.frozen, {}
    try:
        return copy.deepcopy(objective, memo)
    finally:
        objective.frozen = frozen


def _muon_bytes(parameters: list[nn.Parameter], dtype: torch.dtype) -> int:
    """What Muon's step needs for the largest set of matrices of one shape: their new momentum and its stack, and in the dtype
    of the products what goes in, what comes out, and a sum."""
    by_shape: dict[torch.Size, int] = {}
    for one in parameters:
        by_shape[one.shape] = by_shape.get(one.shape, 0) + one.numel()
    return max(by_shape.values(), default=0) * (2 * 4 + 3 * dtype.itemsize)


def _bytes(parameters: Any) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in parameters)
