"""Muon for matrices and for convolutions: a kernel (out, in, kh, kw) is a matrix (out, in kh kw); the step is orthogonalised.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) replaces the momentum of a matrix by the nearest
matrix with orthogonal rows, found by five Newton-Schulz steps. `torch.optim.Muon` takes matrices only, one at a time;
here kernels of one shape go through together.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from unimm.training.sharding import like, whole

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic step; Jordan's, steep at zero
NUM_STEPS = 5


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum, for parameters of at least two dimensions; the first counts the outputs."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        """lr: the step has a spectral norm of about lr times sqrt(max(1, outputs / inputs)). dtype: of the products."""
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape.setdefault(parameter.shape, []).append(parameter)
            for parameters in by_shape.values():
                self._step_alike(parameters, group)

    def _step_alike(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        """Parameters of one shape, together."""
        lr, momentum = group["lr"], group["momentum"]
        grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
        for parameter in parameters:
            if "momentum" not in self.state[parameter]:
                self.state[parameter]["momentum"] = torch.zeros_like(parameter)
        buffers = [self.state[parameter]["momentum"] for parameter in parameters]
        updates = []
        for buffer, grad in zip(buffers, grads, strict=True):
            buffer.lerp_(grad, 1 - momentum)
            updates.append(whole(grad.lerp(buffer, momentum)).flatten(1))  # only a whole matrix has singular values
        updates_LOI = torch.stack(updates)
        steps_LOI = orthogonalise(updates_LOI.to(self.dtype)).to(parameters[0].dtype)
        stretch = max(1.0, updates_LOI.shape[1] / updates_LOI.shape[2]) ** 0.5
        for parameter, step_OI in zip(parameters, steps_LOI, strict=True):
            parameter.mul_(1 - lr * group["weight_decay"])
            parameter.sub_(like(step_OI.view(parameter.shape), parameter), alpha=lr * stretch)


def orthogonalise(matrices_LOI: Tensor) -> Tensor:
    """Each of L matrices (O, I) with its singular values moved to about 1 (0.7 to 1.2)."""
    tall = matrices_LOI.shape[1] > matrices_LOI.shape[2]
    x = (matrices_LOI.mT if tall else matrices_LOI).contiguous()
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    linear, cubic, quintic = COEFFICIENTS
    for _ in range(NUM_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=cubic, alpha=quintic), x, beta=linear)
    return x.mT if tall else x
