"""x @ W^T on tensor cores for up to 64 tokens, as fast as W is read. Called by `small_linear`.

Shapes: T tokens (TP in a tile), N rows of W (outputs), K columns; a program has BN rows, BK columns a turn.

Tokens are the rows of the product and W its right side: so no value of W is converted twice. (As the left
side, with 16 tokens beside it, two warps would convert the same fp8.) fp8 becomes bf16 by way of float32: the
direct conversion is an instruction that runs at a quarter of the rate of these.
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, import-untyped, untyped-decorator"
# ruff: noqa: PLR0913, PLR0917, SIM108

from __future__ import annotations

import triton
import triton.language as tl

from model.kernels.early_start import prefetch_rows, wait_for_inputs
from model.kernels.linear_gemv import swiglu_clamped
from model.kernels.splits import is_last
from model.kernels.tiles import INTERPRETED


@triton.jit
def _dot(x_TK, w_KN, sum_TN):
    if INTERPRETED:  # which would multiply the bits
        x_TK, w_KN = x_TK.to(tl.float32), w_KN.to(tl.float32)
    return tl.dot(x_TK, w_KN, sum_TN)


@triton.jit
def _product(
    sum_TN, x_TK, w, scales, row_N, first_row, k, left,
    K: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr, IS_FP8: tl.constexpr, IS_ONE_BLOCK: tl.constexpr,
    IS_MASKED: tl.constexpr,
):  # fmt: skip
    """sum_TN + x_TK @ W[row_N, k : k + BK]^T."""
    column_K = tl.arange(0, BK)
    w_at = w + first_row.to(tl.int64) * K + (((row_N - first_row) * K)[None, :] + column_K[:, None]) + k
    if IS_MASKED:
        w_KN = tl.load(w_at, mask=(column_K < left)[:, None], other=0.0)
    else:
        w_KN = tl.load(w_at)
    if GROUP > 0:
        num_groups: tl.constexpr = (K + GROUP - 1) // GROUP
        group = tl.minimum(k // GROUP, num_groups - 1) if IS_MASKED else k // GROUP
        if IS_ONE_BLOCK:
            scale = tl.load(scales + first_row // GROUP * num_groups + group)
        elif IS_FP8:
            scale = tl.load(scales + row_N // GROUP * num_groups + group)[None, :]
        else:
            scale = tl.load(scales + row_N * num_groups + group).to(tl.float32)[None, :]
        if IS_FP8:
            w_KN = w_KN.to(tl.float8e4nv, bitcast=True)
        if IS_FP8 or INTERPRETED:
            w_KN = w_KN.to(tl.float32)
        sum_TN += _dot(x_TK, w_KN.to(tl.bfloat16), None) * scale
    else:
        sum_TN = _dot(x_TK, w_KN, sum_TN)
    return sum_TN


@triton.jit
def _add_up(
    x, w, scales, norm_scale, row_N, first_row, split, N, T, x_stride, eps,
    K: tl.constexpr, K_PER_SPLIT: tl.constexpr, TP: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    GROUP: tl.constexpr, IS_FP8: tl.constexpr, IS_ONE_BLOCK: tl.constexpr, HAS_NORM: tl.constexpr,
    IS_MASKED: tl.constexpr, STAGES: tl.constexpr, IS_SWIGLU: tl.constexpr,
):  # fmt: skip
    """Sums [TP, BN] over a split's columns, and those of the rows half of W further on."""
    column_K = tl.arange(0, BK)
    x_at = tl.minimum(tl.arange(0, TP), T - 1)[:, None] * x_stride + column_K[None, :]
    sum_TN = tl.zeros((TP, BN), tl.float32)
    up_TN = tl.zeros((TP, BN), tl.float32)
    square_T = tl.zeros((TP,), tl.float32)
    for turn in tl.range(0, K_PER_SPLIT, BK, num_stages=STAGES):
        k = split * K_PER_SPLIT + turn
        left = K - k
        if IS_MASKED:
            x_TK = tl.load(x + x_at + k, mask=(column_K < left)[None, :], other=0.0)
        else:
            x_TK = tl.load(x + x_at + k)
        if HAS_NORM:
            wide_TK = x_TK.to(tl.float32)
            square_T += tl.sum(wide_TK * wide_TK, axis=1)
            x_TK = wide_TK * tl.load(norm_scale + k + column_K, mask=column_K < left, other=0.0)[None, :]
        x_TK = x_TK.to(tl.bfloat16)
        sum_TN = _product(
            sum_TN, x_TK, w, scales, row_N, first_row, k, left, K, BK, GROUP, IS_FP8, IS_ONE_BLOCK, IS_MASKED
        )
        if IS_SWIGLU:
            up_TN = _product(
                up_TN, x_TK, w, scales, row_N + N // 2, first_row + N // 2, k, left,
                K, BK, GROUP, IS_FP8, IS_ONE_BLOCK, IS_MASKED,
            )  # fmt: skip
    if HAS_NORM:
        factor_T = tl.rsqrt(square_T / K + eps)
        sum_TN *= factor_T[:, None]
        up_TN *= factor_T[:, None]
    return sum_TN, up_TN


@triton.jit
def _store(
    sum_TN, up_TN, residual, out, column_N, is_there_TN, residual_stride, out_stride, limit,
    TP: tl.constexpr, IS_SWIGLU: tl.constexpr, HAS_LIMIT: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
):  # fmt: skip
    token_T1 = tl.arange(0, TP)[:, None]
    if IS_SWIGLU:
        sum_TN = swiglu_clamped(sum_TN, up_TN, limit, HAS_LIMIT)
    if HAS_RESIDUAL:
        at_TN = residual + token_T1 * residual_stride + column_N[None, :]
        sum_TN += tl.load(at_TN, mask=is_there_TN, other=0.0).to(tl.float32)
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
    x, w, scales, norm_scale, residual, out, partials, counters,
    N, T, x_stride, residual_stride, out_stride, eps, limit,
    K: tl.constexpr, K_PER_SPLIT: tl.constexpr, TP: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    GROUP: tl.constexpr, IS_FP8: tl.constexpr, IS_ONE_BLOCK: tl.constexpr, HAS_NORM: tl.constexpr,
    IS_MASKED: tl.constexpr, STAGES: tl.constexpr, IS_SWIGLU: tl.constexpr, HAS_LIMIT: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr, SPLITS: tl.constexpr, IS_PARTIAL: tl.constexpr, IS_EARLY: tl.constexpr,
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
        x, w, scales, norm_scale, row_N, first, split, N, T, x_stride, eps,
        K, K_PER_SPLIT, TP, BN, BK, GROUP, IS_FP8, IS_ONE_BLOCK, HAS_NORM, IS_MASKED, STAGES, IS_SWIGLU,
    )  # fmt: skip
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
            sum_TN, up_TN, residual, out, column_N, is_there_TN, residual_stride, out_stride, limit,
            TP, IS_SWIGLU, HAS_LIMIT, HAS_RESIDUAL,
        )  # fmt: skip
