"""Random 64-bit numbers as a function of counters, the same on every device (SplitMix64's finaliser).

Steele, Lea, Flood 2014; `model.sampler` draws its noise so.
"""

from __future__ import annotations

import torch

GAMMA = 0x9E3779B97F4A7C15
MIX_1 = 0xBF58476D1CE4E5B9
MIX_2 = 0x94D049BB133111EB


def signed(x: int) -> int:
    """The int64 with the bits of an unsigned 64-bit number."""
    return x - 2**64 if x >= 2**63 else x


def mix(x: torch.Tensor) -> torch.Tensor:
    """64 bits to 64 bits, elementwise on int64: none is like its neighbour."""
    x = (_shift_right(x, 30) ^ x) * signed(MIX_1)
    x = (_shift_right(x, 27) ^ x) * signed(MIX_2)
    return _shift_right(x, 31) ^ x


def _shift_right(x: torch.Tensor, num_bits: int) -> torch.Tensor:
    """Logical shift of int64, whose own shift keeps the sign."""
    return (x >> num_bits) & ((1 << (64 - num_bits)) - 1)
