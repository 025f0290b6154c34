"""x @ W^T on tensor cores for up to 64 tokens, as fast as W is read. Called by `small_linear`.

Shapes: T tokens (TP in a tile), N rows of W (outputs), K columns; a program has BN rows, BK columns a turn.

With WEIGHTS_FIRST W is the left side of the product: 64 rows for each group of four warps, whose converted
values stay in registers. Without, tokens are its rows and W the right side, for tiles of fewer rows: two sums
(SwiGLU) of converted weights leave no registers for more. fp8 becomes bf16 by way of
float32: the direct conversion is an instruction that runs at a quarter of the rate of these.
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, import-untyped, untyped-decorator"
# ruff: noqa: PLR0913, PLR0917, SIM108

from __future__ import annotations

import triton
import triton.language as tl

from model.kernels.early_start import let_next_start, prefetch_rows, wait_for_inputs
from model.kernels.linear_gemv import swiglu_clamped
from model.kernels.splits import is_last
from model.kernels.tiles import INTERPRETED


@triton.jit
def _dot(x_TK, w_NK, total, WEIGHTS_FIRST: tl.constexpr):
    if INTERPRETED:  # which would multiply the bits
        x_TK, w_NK = x_TK.to(tl.float32), w_NK.to(tl.float32)
    if WEIGHTS_FIRST:
        total = tl.dot(w_NK, tl.trans(x_TK), total)
    else:
        total = tl.dot(x_TK, tl.trans(w_NK), total)
    return total


@triton.jit
def _beside_rows(value_N, WEIGHTS_FIRST: tl.constexpr):
    if WEIGHTS_FIRST:
        value_N = value_N[:, None]
    else:
        value_N = value_N[None, :]
    return value_N


@triton.jit
def _scales_at(
    scales, row_N, first_row, k, N,
    K: tl.constexpr, GROUP: tl.constexpr, IS_FP8: tl.constexpr, IS_ONE_BLOCK: tl.constexpr,
    WEIGHTS_FIRST: tl.constexpr,
):  # fmt: skip
    """Of the rows for the group of column k, or of the last group, as they are stored; without groups 1."""
    scale = 1.0
    if GROUP > 0:
        num_groups: tl.constexpr = (K + GROUP - 1) // GROUP
        group = tl.minimum(k // GROUP, num_groups - 1)
        if IS_ONE_BLOCK:
            scale = tl.load(scales + first_row // GROUP * num_groups + group)
        elif IS_FP8:
            scale = _beside_rows(tl.load(scales + row_N // GROUP * num_groups + group), WEIGHTS_FIRST)
        else:
            scale = _beside_rows(tl.load(scales + group * N + row_N), WEIGHTS_FIRST)
    return scale


@triton.jit
def _product(
    total, x_TK, w, scale, row_N, first_row, k, left,
    K: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr, IS_FP8: tl.constexpr, IS_MASKED: tl.constexpr,
    WEIGHTS_FIRST: tl.constexpr,
):  # fmt: skip
    """The sums + x_TK @ W[row_N, k : k + BK]^T, [TP, BN], or [BN, TP] with WEIGHTS_FIRST."""
    column_K = tl.arange(0, BK)
    w_at = w + first_row.to(tl.int64) * K + (((row_N - first_row) * K)[:, None] + column_K[None, :]) + k
    if IS_MASKED:
        w_NK = tl.load(w_at, mask=(column_K < left)[None, :], other=0.0)
    else:
        w_NK = tl.load(w_at)
    if GROUP > 0:
        if IS_FP8:
            w_NK = w_NK.to(tl.float8e4nv, bitcast=True)
        if IS_FP8 or INTERPRETED:
            w_NK = w_NK.to(tl.float32)
        total += _dot(x_TK, w_NK.to(tl.bfloat16), None, WEIGHTS_FIRST) * scale.to(tl.float32)
    else:
        total = _dot(x_TK, w_NK, total, WEIGHTS_FIRST)
    return total


@triton.jit
def _add_up(
    x, w, scales, row_N, first_row, split, N, T, x_stride,
    K: tl.constexpr, K_PER_SPLIT: tl.constexpr, TP: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    GROUP: tl.constexpr, IS_FP8: tl.constexpr, IS_ONE_BLOCK: tl.constexpr,
    IS_MASKED: tl.constexpr, STAGES: tl.constexpr, IS_SWIGLU: tl.constexpr, WEIGHTS_FIRST: tl.constexpr,
):  # fmt: skip
    """Sums [TP, BN] over a split's columns, and those of the rows half of W further on."""
    column_K = tl.arange(0, BK)
    token_T = tl.arange(0, TP)
    x_at = token_T[:, None] * x_stride + column_K[None, :]
    is_token_T1 = (token_T < T)[:, None]
    rows: tl.constexpr = BN if WEIGHTS_FIRST else TP
    columns: tl.constexpr = TP if WEIGHTS_FIRST else BN
    total = tl.zeros((rows, columns), tl.float32)
    up = tl.zeros((rows, columns), tl.float32)
    first_k, up_row = split * K_PER_SPLIT, N // 2 if IS_SWIGLU else 0
    next_scale = _scales_at(
        scales, row_N, first_row, first_k, N, K, GROUP, IS_FP8, IS_ONE_BLOCK, WEIGHTS_FIRST
    )
    next_up_scale = _scales_at(
        scales, row_N + up_row, first_row + up_row, first_k, N, K, GROUP, IS_FP8, IS_ONE_BLOCK, WEIGHTS_FIRST
    )  # fmt: skip
    for turn in tl.range(0, K_PER_SPLIT, BK, num_stages=STAGES):
        k = first_k + turn
        left = K - k
        # A turn ahead: Triton has weights on their way for several turns, but not these.
        scale, up_scale = next_scale, next_up_scale
        next_scale = _scales_at(
            scales, row_N, first_row, k + BK, N, K, GROUP, IS_FP8, IS_ONE_BLOCK, WEIGHTS_FIRST
        )  # fmt: skip
        if IS_SWIGLU:
            next_up_scale = _scales_at(
                scales, row_N + up_row, first_row + up_row, k + BK, N,
                K, GROUP, IS_FP8, IS_ONE_BLOCK, WEIGHTS_FIRST,
            )  # fmt: skip
        if IS_MASKED:
            x_TK = tl.load(x + x_at + k, mask=is_token_T1 & (column_K < left)[None, :], other=0.0)
        else:
            x_TK = tl.load(x + x_at + k, mask=is_token_T1, other=0.0)
        x_TK = x_TK.to(tl.bfloat16)
        total = _product(
            total, x_TK, w, scale, row_N, first_row, k, left, K, BK, GROUP, IS_FP8, IS_MASKED, WEIGHTS_FIRST
        )  # fmt: skip
        if IS_SWIGLU:
            up = _product(
                up, x_TK, w, up_scale, row_N + up_row, first_row + up_row, k, left,
                K, BK, GROUP, IS_FP8, IS_MASKED, WEIGHTS_FIRST,
            )  # fmt: skip
    if WEIGHTS_FIRST:
        sum_TN, up_TN = tl.trans(total), tl.trans(up)
    else:
        sum_TN, up_TN = total, up
    return sum_TN, up_TN


@triton.jit
def _store(
    sum_TN, up_TN, out, column_N, is_there_TN, out_stride, limit,
    TP: tl.constexpr, IS_SWIGLU: tl.constexpr, HAS_LIMIT: tl.constexpr,
):  # fmt: skip
    token_T1 = tl.arange(0, TP)[:, None]
    if IS_SWIGLU:
        sum_TN = swiglu_clamped(sum_TN, up_TN, limit, HAS_LIMIT)
    at_TN = out + token_T1 * out_stride + column_N[None, :]
    tl.store(at_TN, sum_TN.to(out.dtype.element_ty), mask=is_there_TN)


@triton.jit
def _sum_of_splits(at_TN, is_there_TN, step, SPLITS: tl.constexpr):
    sum_TN = tl.load(at_TN, mask=is_there_TN, other=0.0, cache_modifier=".cg")
    for split in tl.static_range(1, SPLITS):
        sum_TN += tl.load(at_TN + split * step, mask=is_there_TN, other=0.0, cache_modifier=".cg")
    return sum_TN


@triton.jit
def dot_kernel(
    x, w, scales, out, partials, counters, N, T, x_stride, out_stride, limit,
    K: tl.constexpr, K_PER_SPLIT: tl.constexpr, TP: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    GROUP: tl.constexpr, IS_FP8: tl.constexpr, IS_ONE_BLOCK: tl.constexpr,
    IS_MASKED: tl.constexpr, STAGES: tl.constexpr, IS_SWIGLU: tl.constexpr, HAS_LIMIT: tl.constexpr,
    SPLITS: tl.constexpr, IS_PARTIAL: tl.constexpr, WEIGHTS_FIRST: tl.constexpr,
    IS_EARLY: tl.constexpr,
):  # fmt: skip
    """Grid: (tiles of BN outputs, splits of K)."""
    program, split = tl.program_id(0), tl.program_id(1)
    num_columns = N // 2 if IS_SWIGLU else N
    first = program * BN
    column_N = first + tl.arange(0, BN)
    token_T = tl.arange(0, TP)
    is_there_TN = (token_T < T)[:, None] & (column_N < num_columns)[None, :]
    row_N = tl.minimum(column_N, num_columns - 1)
    prefetch_rows(w, row_N, split * K_PER_SPLIT, K, BK, IS_EARLY)
    wait_for_inputs(IS_EARLY)
    sum_TN, up_TN = _add_up(
        x, w, scales, row_N, first, split, N, T, x_stride,
        K, K_PER_SPLIT, TP, BN, BK, GROUP, IS_FP8, IS_ONE_BLOCK, IS_MASKED, STAGES, IS_SWIGLU,
        WEIGHTS_FIRST,
    )  # fmt: skip
    let_next_start(IS_EARLY)
    at_TN = partials + token_T.to(tl.int64)[:, None] * N + column_N[None, :]
    if SPLITS > 1 or IS_PARTIAL:
        own_TN = at_TN + split.to(tl.int64) * N * T
        tl.store(own_TN, sum_TN, mask=is_there_TN)
        if IS_SWIGLU:
            tl.store(own_TN + N // 2, up_TN, mask=is_there_TN)
    if IS_PARTIAL:
        is_end = False
    elif SPLITS == 1:
        is_end = True
    else:
        is_end = is_last(counters + program, SPLITS)
    if is_end:
        if SPLITS > 1:
            sum_TN = _sum_of_splits(at_TN, is_there_TN, N * T, SPLITS)
            if IS_SWIGLU:
                up_TN = _sum_of_splits(at_TN + N // 2, is_there_TN, N * T, SPLITS)
        _store(
            sum_TN, up_TN, out, column_N, is_there_TN, out_stride, limit,
            TP, IS_SWIGLU, HAS_LIMIT,
        )  # fmt: skip
