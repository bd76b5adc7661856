"""Cross-entropy of a linear head (text and codes alike), in chunks: the logits of a whole batch never exist at once.

Logits of n positions over V ids take n * V floats, several times over: with 100,000 ids more than the rest of a model. Here
the logits of a chunk are made, turned into losses, hits and gradients, and forgotten, so that memory is bounded by the chunk
and work stays what it was: three matrix products. The gradients are ready before the backward pass, which only scales them;
the idea is Liger's (arXiv 2410.10989). PyTorch's own `linear_cross_entropy` does not tell which targets were ranked first.

Shapes: n positions, D width, V ids, m positions of a chunk.
"""

from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

CHUNK_LOGITS = {"cpu": 2**25, "cuda": 2**27}
"""Logits of a chunk, at most: 128 MiB in float32. 512 on a GPU: every chunk reads and writes the whole gradient, which there,
by count of bytes and operations, would take as long as its products."""


class Sums(NamedTuple):
    """Weighted sums over positions, float scalars: negative log-likelihoods in nats, and targets ranked first."""

    loss: torch.Tensor
    correct: torch.Tensor


def linear_cross_entropy(
    hidden_nD: torch.Tensor,
    weight_VD: torch.Tensor,
    bias_V: torch.Tensor | None,
    targets_n: torch.Tensor,
    weights_n: torch.Tensor,
    chunk_logits: int | None = None,
) -> Sums:
    """Cross-entropy of the logits hidden @ weight.T + bias; products in autocast's dtype, the rest in float32.

    The loss can be differentiated once, with respect to hidden, weight and bias. No positions give zeros, and zero gradients.

    chunk_logits: of a chunk at most; None: `CHUNK_LOGITS` of the device.
    """
    chunk_logits = chunk_logits or CHUNK_LOGITS.get(hidden_nD.device.type, CHUNK_LOGITS["cpu"])
    is_cast = torch.is_autocast_enabled(hidden_nD.device.type)
    dtype = torch.get_autocast_dtype(hidden_nD.device.type) if is_cast else hidden_nD.dtype
    with torch.autocast(hidden_nD.device.type, enabled=False):
        loss, correct = _LinearCrossEntropy.apply(hidden_nD, weight_VD, bias_V, targets_n, weights_n, dtype, chunk_logits)
    return Sums(loss, correct)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_nD: torch.Tensor,
        weight_VD: torch.Tensor,
        bias_V: torch.Tensor | None,
        targets_n: torch.Tensor,
        weights_n: torch.Tensor,
        dtype: torch.dtype,
        chunk_logits: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        needed = ctx.needs_input_grad[:3]
        grads = _Gradients(hidden_nD, weight_VD, bias_V, needed)
        head_VD = weight_VD.to(dtype)
        loss = torch.zeros((), device=hidden_nD.device)
        correct = torch.zeros((), device=hidden_nD.device)
        size = max(1, chunk_logits // len(weight_VD))
        for start in range(0, len(hidden_nD), size):
            chunk = slice(start, start + size)
            hidden_mD, targets_m1, weights_m = hidden_nD[chunk].to(dtype), targets_n[chunk, None], weights_n[chunk].float()
            logits_mV = (hidden_mD @ head_VD.T).float()
            if bias_V is not None:
                logits_mV += bias_V
            correct += ((logits_mV.argmax(-1) == targets_m1[:, 0]) * weights_m).sum()
            total_m1 = logits_mV.logsumexp(-1, keepdim=True)
            loss += ((total_m1 - logits_mV.gather(1, targets_m1))[:, 0] * weights_m).sum()
            if any(needed):
                slope_mV = logits_mV.sub_(total_m1).exp_()  # the probabilities, in place of the logits
                slope_mV.scatter_add_(1, targets_m1, slope_mV.new_full(targets_m1.shape, -1.0))
                grads.add(chunk, slope_mV.mul_(weights_m[:, None]), hidden_mD, head_VD)
        ctx.grads = grads
        ctx.mark_non_differentiable(correct)
        return loss, correct

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        grads, ctx.grads = ctx.grads, None
        if grads is None:
            raise RuntimeError("This loss was differentiated once already, and its gradients are gone: compute it again.")
        return (*grads.scaled(grad_outputs[0]), None, None, None, None)


class _Gradients:
    """Sums of the gradients of a head's input, weight and bias, for those that are needed."""

    def __init__(
        self, hidden_nD: torch.Tensor, weight_VD: torch.Tensor, bias_V: torch.Tensor | None, needed: tuple[bool, ...]
    ) -> None:
        self.hidden_nD = torch.zeros_like(hidden_nD) if needed[0] else None
        # In float32 whatever the weights are: thousands of chunks are added up.
        self.weight_VD = torch.zeros_like(weight_VD, dtype=torch.float32) if needed[1] else None
        self.bias_V = torch.zeros_like(bias_V, dtype=torch.float32) if needed[2] and bias_V is not None else None
        self.dtypes = (hidden_nD.dtype, weight_VD.dtype, weight_VD.dtype if bias_V is None else bias_V.dtype)

    def add(self, chunk: slice, slope_mV: torch.Tensor, hidden_mD: torch.Tensor, head_VD: torch.Tensor) -> None:
        """What one chunk adds, given the slope of its logits."""
        if self.bias_V is not None:
            self.bias_V += slope_mV.sum(0)
        slope_mV = slope_mV.to(head_VD.dtype)
        if self.hidden_nD is not None:
            self.hidden_nD[chunk] = slope_mV @ head_VD
        if self.weight_VD is None:
            return
        if slope_mV.dtype == torch.float32:
            self.weight_VD.addmm_(slope_mV.T, hidden_mD)
            return
        # A product of another dtype is a matrix of its own before it is added: by parts of the vocabulary, it stays small.
        for sums_vD, slope_mv in zip(self.weight_VD.split(2**14), slope_mV.split(2**14, dim=1), strict=True):
            sums_vD += slope_mv.T @ hidden_mD

    def scaled(self, factor: torch.Tensor) -> list[torch.Tensor | None]:
        """The gradients of a loss that is multiplied by a factor; they can be asked for once."""
        own = (self.hidden_nD, self.weight_VD, self.bias_V)
        return [None if grad is None else grad.mul_(factor).to(dtype) for grad, dtype in zip(own, self.dtypes, strict=True)]
