"""Noise without state: what is drawn for (seed, image, step, code) is a hash of just these four numbers.

A generator's state depends on everything drawn before; a hash does not. So a seed gives the same image alone, in any batch
and under any admission. The hash is SplitMix64's finaliser (Steele, Lea, Flood 2014) in wrapping 64-bit integers, which
are the same on every device.
"""

import math

import torch

GOLDEN = 0x9E3779B97F4A7C15
FIRST = 0xBF58476D1CE4E5B9
SECOND = 0x94D049BB133111EB


def stream_key(seed: int, index: int) -> int:
    """The key of image `index` of a request with `seed`: a signed 64-bit integer."""
    return _signed(_mix_int(_mix_int(seed & _MASK) ^ ((index + 1) * GOLDEN & _MASK)))


def gumbel(keys_R: torch.Tensor, steps_R: torch.Tensor, vocabulary_size: int) -> torch.Tensor:
    """Standard Gumbel noise for one step of many rows.

    Args:
        keys_R: (R,) long, `stream_key` of each row.
        steps_R: (R,) long, how many elements each row has filled before.
        vocabulary_size: V.

    Returns:
        (R, V) float32; the argmax of logits plus this noise is a draw from softmax(logits).
    """
    codes_V = torch.arange(vocabulary_size, device=keys_R.device)
    rows_R = _mix(keys_R + (steps_R + 1) * _signed(GOLDEN))
    bits_RV = _mix(rows_R[:, None] + (codes_V + 1)[None] * _signed(GOLDEN))
    # 23 bits and a half: representable in float32, never 0 or 1, so both logarithms are finite.
    uniform_RV = ((_shift(bits_RV, 41)).float() + 0.5) * math.ldexp(1.0, -23)
    return -torch.log(-torch.log(uniform_RV))


_MASK = (1 << 64) - 1


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
