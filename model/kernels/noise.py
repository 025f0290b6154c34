"""Random 64-bit numbers as a function of counters; twin: `noise_plain`. Functions that kernels inline."""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, import-untyped, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

from model.kernels import noise_plain

# As unsigned numbers: shifts bring in zeros.
GAMMA = tl.constexpr(noise_plain.GAMMA)
MIX_1 = tl.constexpr(noise_plain.MIX_1)
MIX_2 = tl.constexpr(noise_plain.MIX_2)


@triton.jit
def mix(x):
    """SplitMix64's finaliser of uint64 values."""
    x = (x ^ (x >> 30)) * MIX_1
    x = (x ^ (x >> 27)) * MIX_2
    return x ^ (x >> 31)
