"""x @ W^T for a few tokens, one row of W to a few threads. Called by `small_linear`.

Shapes: T tokens, N rows of W (outputs), K columns; of one program C chunks of V columns, X groups of R rows.
With SwiGLU rows are pairs: row n of the upper half (gate) beside row n of the lower half (up).
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, import-untyped, untyped-decorator, assignment"
# ruff: noqa: PLR0913, PLR0917, RUF005 - a kernel has no stars

from __future__ import annotations

import triton
import triton.language as tl

from model.kernels.early_start import let_next_start, prefetch_rows, wait_for_inputs
from model.kernels.gemv import gemv, sum_of_chunks
from model.kernels.splits import is_last


@triton.jit
def swiglu_clamped(gate, up, limit, HAS_LIMIT: tl.constexpr):
    """SiLU(gate) * up, clamped behind the SiLU; see `model.net.layers.silu_gate`."""
    gate = gate / (1.0 + tl.exp(-gate))
    if HAS_LIMIT:
        gate = tl.minimum(gate, limit)
        up = tl.minimum(tl.maximum(up, -limit), limit)
    return gate * up


@triton.jit
def _rows(program, N, X: tl.constexpr, R: tl.constexpr, IS_SWIGLU: tl.constexpr):
    """Rows of W [X, R], which of them exist, and the first; those that do not are others again."""
    group_X1 = tl.arange(0, X)[:, None]
    of_group_1R = tl.arange(0, R)[None, :]
    if IS_SWIGLU:
        first = program * (X * R // 2)
        pair_XR = first + group_X1 * (R // 2) + of_group_1R // 2
        row_XR = tl.minimum(pair_XR, N // 2 - 1) + of_group_1R % 2 * (N // 2)
        is_row_XR = pair_XR < N // 2
    else:
        first = program * (X * R)
        row_XR = first + group_X1 * R + of_group_1R
        is_row_XR = row_XR < N
        row_XR = tl.minimum(row_XR, N - 1)
    return row_XR, is_row_XR, first


@triton.jit
def _store(
    sums, out, first, num_columns, out_stride, limit,
    T: tl.constexpr, X: tl.constexpr, R: tl.constexpr, IS_SWIGLU: tl.constexpr, HAS_LIMIT: tl.constexpr,
):  # fmt: skip
    columns: tl.constexpr = R // 2 if IS_SWIGLU else R
    column = first + tl.arange(0, X)[:, None] * columns + tl.arange(0, columns)[None, :]
    is_column = column < num_columns
    for t in tl.static_range(T):
        y = sums[t]
        if IS_SWIGLU:
            gate, up = tl.split(tl.reshape(y, (X, R // 2, 2)))
            y = swiglu_clamped(gate, up, limit, HAS_LIMIT)
        tl.store(out + t * out_stride + column, y.to(out.dtype.element_ty), mask=is_column)


@triton.jit
def _sum_of_splits(
    partials, row_XR, is_row_XR, N, T: tl.constexpr, X: tl.constexpr, R: tl.constexpr, SPLITS: tl.constexpr
):
    added = ()
    for t in tl.static_range(T):
        sum_XR = tl.zeros((X, R), tl.float32)
        for split in tl.static_range(SPLITS):
            at = partials + (split * T + t) * N + row_XR
            sum_XR += tl.load(at, mask=is_row_XR, other=0.0, cache_modifier=".cg")
        added = added + (sum_XR,)
    return added


@triton.jit
def gemv_kernel(
    x, w, scales, out, partials, counters, N, x_stride, out_stride, limit,
    K: tl.constexpr, K_PER_SPLIT: tl.constexpr, T: tl.constexpr, C: tl.constexpr, X: tl.constexpr,
    R: tl.constexpr, V: tl.constexpr, P: tl.constexpr, GROUP: tl.constexpr, IS_FP8: tl.constexpr,
    IS_ONE_BLOCK: tl.constexpr,  MASK: tl.constexpr, STAGES: tl.constexpr,
    IS_SWIGLU: tl.constexpr, HAS_LIMIT: tl.constexpr,
    SPLITS: tl.constexpr, IS_PARTIAL: tl.constexpr, IS_EARLY: tl.constexpr,
):  # fmt: skip
    """Grid: (blocks of X * R rows, splits of K)."""
    program, split = tl.program_id(0), tl.program_id(1)
    row_XR, is_row_XR, first = _rows(program, N, X, R, IS_SWIGLU)
    prefetch_rows(w, tl.reshape(row_XR, (X * R,)), split * K_PER_SPLIT, K, C * V, IS_EARLY)
    wait_for_inputs(IS_EARLY)
    sums = gemv(
        x, w, scales, row_XR, first, split, N, x_stride,
        K, K_PER_SPLIT, T, C, X, R, V, P, GROUP, IS_FP8, IS_ONE_BLOCK, MASK, STAGES,
    )  # fmt: skip
    let_next_start(IS_EARLY)
    sums = sum_of_chunks(sums, T)
    if SPLITS > 1 or IS_PARTIAL:
        for t in tl.static_range(T):
            tl.store(partials + (split * T + t).to(tl.int64) * N + row_XR, sums[t], mask=is_row_XR)
    if IS_PARTIAL:
        is_end = False
    elif SPLITS == 1:
        is_end = True
    else:
        is_end = is_last(counters + program, SPLITS)
    if is_end:
        if SPLITS > 1:
            sums = _sum_of_splits(partials, row_XR, is_row_XR, N, T, X, R, SPLITS)
        _store(
            sums, out, first, N // 2 if IS_SWIGLU else N, out_stride, limit,
            T, X, R, IS_SWIGLU, HAS_LIMIT,
        )  # fmt: skip
