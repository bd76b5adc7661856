"""Which optimizer updates which parameter: Muon for the matrices inside towers and trunk, AdamW for everything else.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) replaces the momentum of a weight matrix by the nearest
matrix with orthogonal rows, found by five Newton-Schulz steps. It is meant for hidden matrices, not for embeddings, heads,
norms or biases, which AdamW updates. Weight decay goes to matrices that are not embeddings. Adapters are AdamW's too: B is zero
at first, and an orthogonal step would be a large one. `torch.optim.Muon` takes matrices only, one at a time; here kernels of
one shape go through together, and a convolution's (out, in, kh, kw) is a matrix (out, in kh kw).

How long a run is and how the learning rate moves along it: a run ends after so many steps, after so many minutes, or at
whichever comes first; the schedule is a function of the progress in [0, 1] that follows, so that a run of 15 minutes decays to
the end on a fast machine and on a slow one. With steps alone the progress is a function of the step, and a run can be repeated
to the bit. A step whose gradient is not finite (`unimm.training.finite`) updates nothing: the optimizers see on the device.
"""

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from unimm.models.image_tokenizer.model import ImageTokenizer
from unimm.models.lora import is_adapter
from unimm.runtime.number_checks import check_number, check_whole
from unimm.training.sharding import like, local, whole

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic step; Jordan's, steep at zero
NUM_STEPS = 5


@dataclass(frozen=True)
class OptimizerConfig:
    """Learning rates and AdamW's and Muon's settings.

    lr: AdamW's learning rate, before stage factors and schedule.
    muon_lr: Muon's learning rate for hidden matrices; None: AdamW updates them too.
    """

    lr: float = 1e-3
    muon_lr: float | None = None
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.0
    muon_momentum: float = 0.95
    max_grad_norm: float | None = 1.0

    def __post_init__(self) -> None:
        check_number(self, "weight_decay")
        check_number(self, "lr", "eps", above=0)
        check_number(self, "muon_momentum", below=1)
        check_betas(self.betas)
        given = [name for name in ("muon_lr", "max_grad_norm") if getattr(self, name) is not None]
        check_number(self, *given, above=0)


def check_betas(betas: tuple[float, float] | list[float]) -> None:
    """Raises ValueError unless these are AdamW's two decays, each in [0, 1)."""
    if not isinstance(betas, tuple | list) or len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"betas are two numbers of at least 0 and below 1, such as [0.9, 0.95], not {betas}.")


class Optimizers:
    """AdamW and, where configured, Muon, stepped together. Groups keep their own base rate in `base_lr`."""

    def __init__(
        self,
        parts: dict[str, nn.Module],
        factors: dict[str, float],
        config: OptimizerConfig,
        hidden_parts: Collection[str],
        muon_dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        """
        Args:
            parts: the model's parts by name.
            factors: learning-rate factor a part; parts that are not named are not trained, nor what is frozen in others.
            config: rates and settings.
            hidden_parts: the parts whose matrices Muon moves, where it does.
            muon_dtype: of Muon's products.

        Raises:
            ValueError: nothing is trainable.
        """
        groups = parameter_groups(parts, factors, config, hidden_parts)
        self.all: dict[str, torch.optim.Optimizer] = {}
        if groups["adamw"]:
            self.all["adamw"] = AdamW(groups["adamw"], lr=config.lr, betas=config.betas, eps=config.eps)
        if groups["muon"]:
            assert config.muon_lr is not None
            self.all["muon"] = Muon(groups["muon"], lr=config.muon_lr, momentum=config.muon_momentum, dtype=muon_dtype)

    def scale(self, factor: float) -> None:
        """Set every group's rate to its base rate times `factor`."""
        for optimizer in self.all.values():
            for group in optimizer.param_groups:
                group["lr"] = group["base_lr"] * factor

    def step(self, norm: Tensor) -> None:
        """One update of all trainable parameters, unless the gradient's norm is not finite; then clear the gradients."""
        for optimizer in self.all.values():
            step_if_finite(optimizer, norm)
        self.clear()

    def clear(self) -> None:
        """Drop the gradients."""
        for optimizer in self.all.values():
            optimizer.zero_grad(set_to_none=True)


def parameter_groups(
    parts: dict[str, nn.Module], factors: dict[str, float], config: OptimizerConfig, hidden_parts: Collection[str]
) -> dict[str, list[dict[str, Any]]]:
    """What each optimizer, "adamw" and "muon", updates; arguments as `Optimizers` has them.

    Raises:
        ValueError: nothing is trainable.
    """
    groups: dict[str, list[dict[str, Any]]] = {"adamw": [], "muon": []}
    seen: set[int] = set()
    for name, factor in factors.items():
        for group in _groups_of(name, parts[name], config, seen, name in hidden_parts):
            rate = config.muon_lr if group["optimizer"] == "muon" else config.lr
            group["lr"] = group["base_lr"] = (rate or config.lr) * factor
            groups[group.pop("optimizer")].append(group)
    if not any(groups.values()):
        raise ValueError("Nothing learns in this stage: choose another, or add lora=default.")
    return groups


def _groups_of(name: str, part: nn.Module, config: OptimizerConfig, seen: set[int], is_hidden: bool) -> list[dict]:
    """One part's parameters as groups: Muon's matrices, decayed, not decayed. Tied parameters go to the first part."""
    embeddings = {id(p) for m in part.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    chosen: dict[tuple[str, float], list[nn.Parameter]] = {}
    for parameter_name, parameter in part.named_parameters():
        if id(parameter) in seen or not parameter.requires_grad:
            continue
        seen.add(id(parameter))
        is_matrix = parameter.dim() == 2 and id(parameter) not in embeddings
        hidden = is_matrix and is_hidden and not is_adapter(parameter_name)
        optimizer = "muon" if hidden and config.muon_lr is not None else "adamw"
        decayed = is_matrix or (parameter.dim() > 2 and "pos_embed" not in parameter_name)
        key = (optimizer, config.weight_decay if decayed else 0.0)
        chosen.setdefault(key, []).append(parameter)
    return [
        {"params": parameters, "weight_decay": decay, "optimizer": optimizer, "part": name}
        for (optimizer, decay), parameters in chosen.items()
    ]


def tokenizer_optimizers(
    model: ImageTokenizer,
    lr: float,
    muon_lr: float | None,
    betas: tuple[float, float],
    dtype: torch.dtype,
) -> dict[str, torch.optim.Optimizer]:
    """AdamW, and with `muon_lr` Muon for the kernels between channels: not those that touch pixels or the quantizer.

    Groups keep their own rate in `base_lr`.
    """
    kernels: list[nn.Parameter] = []
    if muon_lr is not None:
        for part in (model.encoder, model.decoder):
            kernels += [p for p in part.parameters() if p.dim() == 4 and min(p.shape[:2]) > 3]
    chosen = {id(p) for p in kernels}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    optimizers: dict[str, torch.optim.Optimizer] = {"adamw": AdamW(rest, lr=lr, betas=betas, weight_decay=0.0)}
    if muon_lr is not None:
        optimizers["muon"] = Muon(kernels, lr=muon_lr, dtype=dtype)
    for optimizer in optimizers.values():
        for group in optimizer.param_groups:
            group["base_lr"] = group["lr"]
    return optimizers


def step_if_finite(optimizer: Any, norm: Tensor) -> None:
    """One update of an `AdamW` or a `Muon`; where the norm is not finite, nothing changes, as the device alone decides."""
    optimizer.found_inf = (~torch.isfinite(norm)).float()
    try:
        optimizer.step()
    finally:
        del optimizer.found_inf


class AdamW(torch.optim.AdamW):
    """PyTorch's fused AdamW; after a step the parameters' versions say that they have changed. Its kernel does not count them,
    and an engine knows by them that its copies of the weights are old."""

    def __init__(self, params: Any, **settings: Any) -> None:
        super().__init__(params, fused=True, **settings)

    def step(self, closure: Any = None) -> Any:
        """One update of all parameters that have a gradient."""
        loss = super().step(closure)
        changed = [one for group in self.param_groups for one in group["params"] if one.grad is not None]
        torch.autograd.graph.increment_version(changed)
        return loss


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum, for parameters of at least two dimensions; the first counts the outputs.

    found_inf: as PyTorch's AdamW has it: where it is there and 1, a step changes nothing.
    """

    found_inf: Tensor

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
            self._replace(buffer, buffer.lerp(grad, 1 - momentum))
            updates.append(whole(grad.lerp(buffer, momentum)).flatten(1))  # only a whole matrix has singular values
        updates_LOI = torch.stack(updates)
        steps_LOI = orthogonalise(updates_LOI.to(self.dtype)).to(parameters[0].dtype)
        stretch = max(1.0, updates_LOI.shape[1] / updates_LOI.shape[2]) ** 0.5
        for parameter, step_OI in zip(parameters, steps_LOI, strict=True):
            decayed = parameter * (1 - lr * group["weight_decay"])
            step = like(step_OI.view(parameter.shape), parameter)
            self._replace(parameter, decayed.sub_(step, alpha=lr * stretch))

    def _replace(self, old: Tensor, new: Tensor) -> None:
        """Copies new values in place, where this step counts."""
        found_inf, old, new = getattr(self, "found_inf", None), local(old), local(new)
        old.copy_(new if found_inf is None else torch.where(found_inf.bool(), old, new))


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


@dataclass(frozen=True)
class Budget:
    """The length of a run. At least one of the two limits is needed."""

    max_steps: int | None = None
    max_minutes: float | None = None

    def __post_init__(self) -> None:
        if self.max_steps is None and self.max_minutes is None:
            raise ValueError("A run needs a length: give max_steps, max_minutes, or both.")
        if self.max_steps is not None:
            check_whole(self, 1, "max_steps")
        if self.max_minutes is not None:
            check_number(self, "max_minutes", above=0)

    def progress(self, step: int, seconds: float) -> float:
        """How much of the run is done after `step` steps and `seconds` seconds of training: 0 to 1."""
        shares = []
        if self.max_steps is not None:
            shares.append(step / self.max_steps)
        if self.max_minutes is not None:
            shares.append(seconds / (60 * self.max_minutes))
        return min(1.0, max(shares))


@dataclass(frozen=True)
class Schedule:
    """Warm-up, then constant or decaying; a factor on every learning rate.

    kind: "constant", "cosine" or "linear", over the progress from `decay_from` to the end.
    warmup_steps: the factor rises linearly over so many steps.
    final: the factor at the end of a decay.
    """

    kind: str = "cosine"
    warmup_steps: int = 0
    decay_from: float = 0.0
    final: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in ("constant", "cosine", "linear"):
            raise ValueError(f"Unknown schedule '{self.kind}': use constant, cosine or linear.")
        check_number(self, "decay_from", below=1)
        check_whole(self, 0, "warmup_steps")
        check_number(self, "final")

    def factor(self, step: int, progress: float) -> float:
        """The factor for the update that follows `step` finished ones."""
        warm = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        if self.kind == "constant":
            return warm
        decayed = max(0.0, (progress - self.decay_from) / (1.0 - self.decay_from))
        shape = 0.5 * (1 + math.cos(math.pi * decayed)) if self.kind == "cosine" else 1.0 - decayed
        return warm * (self.final + (1.0 - self.final) * shape)
