"""How a decoder computes: weights, sizes and bounds, as its batches read them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ComputeConfig:
    """How a model is computed, as `Decoder` has it; a deterministic step always computes `max_rows` over `max_positions`.

    max_cache_bytes: of keys and values; None: as much as the device has.
    kernels: one of `KERNELS` of `decode_kernels`; None: PyTorch's.
    window: codes of a drawing that are computed at once; None: as `WindowChoice` says, or one where ids would depend on it.
    """

    weights: str | None
    is_deterministic: bool
    max_rows: int
    max_positions: int
    prefill_positions: int
    max_cache_bytes: int | None = None
    window: int | None = None
    kernels: str | None = None
