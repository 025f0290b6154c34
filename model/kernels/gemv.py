"""Products of a few tokens with many rows of a weight: functions that kernels inline.

Shapes: T tokens, N rows of the weight (outputs), K columns (inputs); of one program C chunks of V columns,
X groups of R rows, P values of a chunk for which x takes one load.

A thread loads chunks of V values, 16 bytes, of R rows and multiplies them by the same piece of x, which
comes from L1; sums stay in the thread until the last column. The order of a tile's dimensions (chunks,
groups, rows, values) is what makes Triton spread chunks over the lanes of a warp and keep rows and values in
registers: in another order, or with fewer values of x than threads, tiles are exchanged through shared memory
in each turn.
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, import-untyped, untyped-decorator, assignment"
# ruff: noqa: PLR0913, PLR0917, RUF005 - a kernel has no stars

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def gemv(
    x, w, scales, row_XR, first_row, split, N, x_stride,
    K: tl.constexpr, K_PER_SPLIT: tl.constexpr, T: tl.constexpr, C: tl.constexpr, X: tl.constexpr,
    R: tl.constexpr, V: tl.constexpr, P: tl.constexpr,
    GROUP: tl.constexpr, IS_FP8: tl.constexpr, IS_ONE_BLOCK: tl.constexpr,
    MASK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """A split's columns of T tokens times the rows `row_XR`, for `sum_of_chunks` to add up.

    A split has K_PER_SPLIT columns, a multiple of C * V, the last one may have fewer. MASK 0: it has as
    many; 1: a multiple of V; 2: any number. GROUP 0: there are no scales. fp8 weights come as uint8: of these
    masked values can be 0.
    """
    chunk_C = tl.arange(0, C) * V
    # Every group of rows has its own copy of x, so that a tile of it is not smaller than the program.
    x_at = chunk_C[:, None, None, None] + (tl.arange(0, X) * 0)[None, :, None, None]
    x_at = x_at + tl.arange(0, P)[None, None, None, :]
    w_at = chunk_C[:, None, None, None] + tl.arange(0, V)[None, None, None, :]
    row_at = ((row_XR - first_row) * K)[None, :, :, None]
    w_first = w + first_row.to(tl.int64) * K
    sums = ()
    for _ in tl.static_range(T):
        sums = sums + (tl.zeros((C, X, R), tl.float32),)
    for turn in tl.range(0, K_PER_SPLIT, C * V, num_stages=STAGES):
        k = split * K_PER_SPLIT + turn
        left = K - k
        if MASK == 0:
            w_CXRV = tl.load(w_first + (row_at + w_at) + k)
        elif MASK == 1:
            w_CXRV = tl.load(
                w_first + (row_at + w_at) + k, mask=(chunk_C < left)[:, None, None, None], other=0
            )
        else:
            w_CXRV = tl.load(w_first + (row_at + w_at) + k, mask=w_at < left, other=0.0)
        if IS_FP8:
            w_CXRV = w_CXRV.to(tl.float8e4nv, bitcast=True)
        scale_CXR = 1.0
        if GROUP > 0:
            column_C = tl.minimum(k + chunk_C, K - 1)
            scale_CXR = _scales_of(scales, row_XR, first_row, column_C, N, K, GROUP, IS_FP8, IS_ONE_BLOCK)
        sums = _add_columns(
            sums, _pieces_of(w_CXRV, C, X, R, V, P), scale_CXR, x + k, x_at, left, x_stride,
            T, V, P, GROUP, MASK,
        )  # fmt: skip
    return sums


@triton.jit
def sum_of_chunks(sums, T: tl.constexpr):
    """What `gemv` leaves in threads, added up: a tuple of T sums [X, R]."""
    added = ()
    for t in tl.static_range(T):
        sum_XR = tl.sum(sums[t], axis=0)
        added = added + (sum_XR,)
    return added


@triton.jit
def _pieces_of(w_CXRV, C: tl.constexpr, X: tl.constexpr, R: tl.constexpr, V: tl.constexpr, P: tl.constexpr):
    """A tile of weights as V / P float32 pieces [C, X, R, P], in order."""
    if V == P:
        pieces = (w_CXRV.to(tl.float32),)
    else:
        low, high = _halves(w_CXRV, C, X, R, V)
        if V == 2 * P:
            pieces = (low.to(tl.float32), high.to(tl.float32))
        else:
            tl.static_assert(V == 4 * P)
            first, second = _halves(low, C, X, R, V // 2)
            third, fourth = _halves(high, C, X, R, V // 2)
            pieces = (first.to(tl.float32), second.to(tl.float32))
            pieces = pieces + (third.to(tl.float32), fourth.to(tl.float32))
    return pieces


@triton.jit
def _halves(w_CXRV, C: tl.constexpr, X: tl.constexpr, R: tl.constexpr, V: tl.constexpr):
    return tl.split(tl.permute(tl.reshape(w_CXRV, (C, X, R, 2, V // 2)), (0, 1, 2, 4, 3)))


@triton.jit
def _scales_of(
    scales, row_XR, first_row, column_C, N,
    K: tl.constexpr, GROUP: tl.constexpr, IS_FP8: tl.constexpr, IS_ONE_BLOCK: tl.constexpr,
):  # fmt: skip
    """What chunks are multiplied by, float32 [C, X, R], or [C, 1, 1] if the rows lie in one block of fp8."""
    group_C11 = (column_C // GROUP)[:, None, None]
    num_groups: tl.constexpr = (K + GROUP - 1) // GROUP
    if IS_ONE_BLOCK:
        at = first_row // GROUP * num_groups + group_C11
    elif IS_FP8:
        at = (row_XR // GROUP * num_groups)[None, :, :] + group_C11
    else:
        at = group_C11 * N + row_XR[None, :, :]
    return tl.load(scales + at).to(tl.float32)


@triton.jit
def _add_columns(
    sums, pieces, scale_CXR, x, x_at, left, x_stride,
    T: tl.constexpr, V: tl.constexpr, P: tl.constexpr, GROUP: tl.constexpr,
    MASK: tl.constexpr,
):  # fmt: skip
    """Every token's product with one tile of weights, at whose first column `x` begins."""
    new_sums = ()
    for t in tl.static_range(T):
        part_CXR = 0.0
        for piece in tl.static_range(V // P):
            at = x_at + piece * P
            if MASK == 0:
                x_CX1P = tl.load(x + t * x_stride + at).to(tl.float32)
            else:
                x_CX1P = tl.load(x + t * x_stride + at, mask=at < left, other=0.0).to(tl.float32)
            product_CXR = tl.sum(pieces[piece] * x_CX1P, axis=3)
            part_CXR = product_CXR if piece == 0 else part_CXR + product_CXR
        if GROUP > 0:
            part_CXR *= scale_CXR
        new_sums = new_sums + (sums[t] + part_CXR,)
    return new_sums
