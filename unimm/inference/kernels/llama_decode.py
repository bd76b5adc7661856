"""The decode-only forward of a Llama-shaped trunk: one position of every row at a time, or a few of some, with as few
operations as the device allows.

`transformers`' trunk serves every size and length; a decode step is always the same few products over few positions, so the
engine owns that one forward for trunks of Llama's shape (Llama, Qwen2, Qwen3): queries, keys and values as one product,
gate and up as one, weights arranged once, attention over the used part of the cache alone. How each of these is computed, the
device's `DecodeKernels` say. Other trunks go through `transformers`. Token for token the same in float32
(tests/inference/kernels/test_llama_decode.py).

Shapes: R rows, P new positions of all of them (one each, if nothing else is said), W of one row at most, D trunk width, V
vocabulary.
"""

import logging
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

from unimm.inference.decode.kv_cache import RowCacheLayer
from unimm.inference.decode.ragged_cache import KeyValueCache, RaggedCache
from unimm.inference.kernels.cpu_decode import CpuDecode, make_cpu_decode
from unimm.inference.kernels.decode_kernels import DecodeKernels, LayerKernels, fused_norm, kernels_of
from unimm.inference.kernels.quantized_linear import QUANTIZED, Linear
from unimm.inference.kernels.step_inputs import StepInputs, Windows
from unimm.models.llama import LLAMA_SHAPED, is_llama_shaped
from unimm.models.lora import adapted_layers
from unimm.models.unified import UnifiedModel
from unimm.runtime.devices import free_memory
from unimm.sequence import Kind

logger = logging.getLogger(__name__)

T = TypeVar("T")


class DecodeModel:
    """The decode step of a unified model: embed ids, a position of each through the trunk, one head.

    Where kernels have copies of the model's weights, these are made with it: make it again when the model's have changed
    (`is_current`).

    weights: decode with copies of the trunk's weights in fewer bits, one of `QUANTIZED` ("int8" of the heads, too).
        ValueError: the device, dtype or trunk has no such products.
    kernels: how it is computed [default: PyTorch's, for the model's device].
    reads_in_place: whether it has no copies of weights.
    """

    def __init__(self, model: UnifiedModel, weights: str | None = None, kernels: DecodeKernels | None = None) -> None:
        self.model, self._ports = model, model.vocabulary_ports
        self.kernels = kernels = kernels or kernels_of(next(model.parameters()).device)
        self.layers: list[_Layer] | None = None
        self.heads: dict[Kind, Linear] = {}
        # What adapters add is in no weight yet.
        is_known = is_llama_shaped(model.trunk) and not adapted_layers(model.trunk)
        if weights is not None:
            _check_weights(weights, model, is_known)
        kernels.check(weights, is_known)
        # Arranged weights lie beside the model's, which on a CPU are mostly pages of its file that may go.
        if kernels.has_copies and weights is None and not _has_room_for_copies(model):
            logger.warning("Too little memory is free for arranged copies of the weights: decoding goes on without, slower.")
        else:
            if is_known:
                self.layers = [_Layer(layer) for layer in kernels.layers(model.trunk.layers, weights)]
            of_heads = weights if weights == "int8" else None
            if kernels.has_copies or of_heads:
                self.heads = {kind: _chain(kernels, port.head, of_heads) for kind, port in model.vocabulary_ports.items()}
        self.cpu: CpuDecode | None = make_cpu_decode(model, [one.kernels for one in self.layers]) if self.layers else None
        self.reads_in_place = not kernels.has_copies and weights is None
        self._versions = self._read_versions()

    @property
    def num_calls(self) -> int:
        """Of kernels of our own, so far."""
        return self.kernels.launches + (self.cpu.num_calls if self.cpu is not None else 0)

    def is_current(self) -> bool:
        """Whether it computes with the model's weights as they are: its copies are of these; or it reads them where they lie,
        so that they may change there, also between replays of a captured step."""
        return self._versions == self._read_versions()

    def _read_versions(self) -> list[Any]:
        return [one.data_ptr() for one in self.model.parameters()] if self.reads_in_place else weight_versions(self.model)

    def embed(self, kind: Kind, ids_n: torch.Tensor) -> torch.Tensor:
        """ids (n,) -> (n, D)."""
        return self._ports[kind].embed(ids_n)

    def sample(self, kind: Kind, hidden_nD: torch.Tensor, choose: Callable[[torch.Tensor], T]) -> T:
        """One step of sampling of the rows that fill `kind`: as `VocabularyPort.sample`."""
        if kind in self.heads:
            return choose(self.heads[kind](hidden_nD))
        return self._ports[kind].sample(hidden_nD, choose)

    def advance(
        self,
        embeddings_PD: torch.Tensor,
        positions_P: torch.Tensor,
        used: int,
        cache: KeyValueCache,
        windows: Windows | None = None,
        turned_P: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """New positions of every row, written at their places in the cache: (P, D) -> hidden states (P, D).

        used: slots that any row needs, these positions included. windows: rows with several positions; None: one each.
        turned_P: by which they are rotated; None: their own.
        """
        if self.cpu is not None and isinstance(cache, RaggedCache):
            cache.prepare(slice(0, len(embeddings_PD) if windows is None else windows.num_rows), positions_P[:, None], used)
            return self.cpu.advance(embeddings_PD, positions_P, cache, None if windows is None else windows.rows_P)
        if self.layers is None or isinstance(cache, RaggedCache):
            return self._advance_by_transformers(embeddings_PD, positions_P, used, cache, windows, turned_P)
        turned_P = positions_P if turned_P is None else turned_P
        cos_P1d, sin_P1d = self.model.trunk.rotary_emb(embeddings_PD[:, None], turned_P[:, None])
        step = StepInputs(cos_P1d, sin_P1d, positions_P, used, windows)
        cache.prepare(slice(0, step.num_rows), positions_P[:, None], used, None if windows is None else windows.rows_P[:, None])
        hidden_PD = embeddings_PD
        for layer, store in zip(self.layers, cache.layers, strict=True):
            assert isinstance(store, RowCacheLayer)
            hidden_PD = layer(hidden_PD, step, store)
        return fused_norm(self.model.trunk.norm)(hidden_PD)

    def _advance_by_transformers(
        self,
        embeddings_PD: torch.Tensor,
        positions_P: torch.Tensor,
        used: int,
        cache: KeyValueCache,
        windows: Windows | None,
        turned_P: torch.Tensor | None,
    ) -> torch.Tensor:
        given = embeddings_PD, positions_P, positions_P if turned_P is None else turned_P
        if windows is None:
            embeddings_RWD, positions_RW, turned_RW = (one[:, None] for one in given)
        else:  # a place without a position computes the last one of its row once more, which changes nothing
            embeddings_RWD, positions_RW, turned_RW = (windows.spread(one) for one in given)
        cache.prepare(slice(0, len(positions_RW)), positions_RW, used)
        seen_RWS = torch.arange(used, device=positions_P.device) <= positions_RW[..., None]
        hidden_RWD = self.model.hidden(embeddings_RWD, seen_RWS[:, None], turned_RW, cache)
        return hidden_RWD[:, 0] if windows is None else windows.gather(hidden_RWD)


class _Layer:
    """One decoder layer over the new positions of rows, by the kernels of a device."""

    def __init__(self, kernels: LayerKernels) -> None:
        self.kernels = kernels

    def __call__(self, x_PD: torch.Tensor, step: StepInputs, store: RowCacheLayer) -> torch.Tensor:
        kernels = self.kernels
        x_PD = kernels.add_output(x_PD, kernels.attend(kernels.project(x_PD, step, store), step))
        return kernels.add_down(x_PD, kernels.gate(x_PD))


def _chain(kernels: DecodeKernels, head: nn.Linear | nn.Sequential, weights: str | None) -> Linear:
    if isinstance(head, nn.Linear):
        return kernels.linear([head], weights)
    steps = [kernels.linear([part], weights) if isinstance(part, nn.Linear) else part for part in head]

    def run(x: torch.Tensor) -> torch.Tensor:
        for step in steps:
            x = step(x)
        return x

    return run


def _check_weights(weights: str, model: UnifiedModel, is_known: bool) -> None:
    first = next(model.parameters())
    if weights not in QUANTIZED:
        raise ValueError(f"There are no weights '{weights}': choose one of {', '.join(QUANTIZED)}.")
    if first.dtype != torch.bfloat16 or not is_known:
        raise ValueError(
            f"Weights of fewer bits are for bfloat16 models with a trunk of {', '.join(LLAMA_SHAPED)}, not for "
            f"{str(first.dtype).removeprefix('torch.')} with {model.trunk.config.model_type}: load it with dtype='bfloat16'."
        )


def _has_room_for_copies(model: UnifiedModel) -> bool:
    parts = (model.trunk, *(port.head for port in model.vocabulary_ports.values()))
    needed = sum(parameter.nbytes for part in parts for parameter in part.parameters())
    return needed < 0.7 * free_memory(torch.device("cpu"))


def weight_versions(model: UnifiedModel) -> list[tuple[int, int]]:
    """Where the weights are and how often they were written to."""
    return [(one.data_ptr(), 0 if one.is_inference() else one._version) for one in model.parameters()]
