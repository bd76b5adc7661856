"""Noise without a state: what is drawn at a place is a hash of the place's numbers and of a key.

A generator's state depends on everything drawn before; a hash does not. So whatever is keyed by (seed, image) is the same
alone, in any batch, and in any order. The hash is SplitMix64's finaliser (Steele, Lea, Flood 2014) in wrapping 64-bit
integers, which are the same on every device.

Shapes: R rows, V places of a row.
"""

import math

import torch

_MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15
FIRST = 0xBF58476D1CE4E5B9
SECOND = 0x94D049BB133111EB


def stream_key(seed: int, index: int) -> int:
    """The key of image `index` of a request with `seed`: a signed 64-bit integer."""
    return _signed(_mix_int(_mix_int(seed & _MASK) ^ ((index + 1) * GOLDEN & _MASK)))


def uniform(keys_R: torch.Tensor, steps_R: torch.Tensor, num_places: int) -> torch.Tensor:
    """(R, V) float32, evenly in (0, 1): of each of V places, for a key and a step of each row, (R,) long."""
    places_V = torch.arange(num_places, device=keys_R.device)
    rows_R = _mix(keys_R + (steps_R + 1) * _signed(GOLDEN))
    bits_RV = _mix(rows_R[:, None] + (places_V + 1)[None] * _signed(GOLDEN))
    # 23 bits and a half: representable in float32, never 0 or 1.
    return ((_shift(bits_RV, 41)).float() + 0.5) * math.ldexp(1.0, -23)


def normal(keys_R: torch.Tensor, num_places: int) -> torch.Tensor:
    """(R, V) float32 from a standard normal distribution (Box and Muller 1958), for a key of each row, (R,) long."""
    zeros_R = torch.zeros_like(keys_R)
    radius_RV = (-2 * uniform(keys_R, zeros_R, num_places).log()).sqrt()
    return radius_RV * (2 * math.pi * uniform(keys_R, zeros_R + 1, num_places)).cos()


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def _shift(values: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical shift to the right; `>>` on signed integers drags the sign along."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)


def _mix(values: torch.Tensor) -> torch.Tensor:
    values = (values ^ _shift(values, 30)) * _signed(FIRST)
    values = (values ^ _shift(values, 27)) * _signed(SECOND)
    return values ^ _shift(values, 31)


def _mix_int(value: int) -> int:
    value = (value ^ (value >> 30)) * FIRST & _MASK
    value = (value ^ (value >> 27)) * SECOND & _MASK
    return value ^ (value >> 31)
