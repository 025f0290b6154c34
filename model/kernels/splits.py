"""Sums over K that several programs share: partial sums to a buffer, the last to come adds them in order.

Which program comes last is chance; what it adds, and in which order, is not: two runs give the same bits.
Shapes: S splits of K, T tokens, N columns of the result.
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, import-untyped, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def is_last(counter, num_programs):
    """Whether this program is the last of `num_programs` to come here; then it can read what all have stored.

    The barrier puts the stores of all threads before the one that counts, which releases them and acquires
    those of the others. Read them past L1 (".cg").
    """
    tl.debug_barrier()
    num_before = tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu")
    is_end = num_before == num_programs - 1
    if is_end:
        tl.store(counter, 0)
    return is_end
