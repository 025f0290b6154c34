"""The residual stream between two products: add what came, and norm, in one launch.

Shapes: T tokens, H hidden, P partial deltas, K experts per token, R = T * K rows; a program has BLOCK columns
of one token.

With a norm a program has the whole row: 4,096 float32 values of h, one delta and the scale are 64 KiB, about
1 us for one multiprocessor with 512 threads, less than the launch. Several programs a row would have to meet.
Without a norm (what an exchange takes) rows are cut into blocks.
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, import-untyped, untyped-decorator"
# ruff: noqa: PLR0913, PLR0917

from __future__ import annotations

import torch
import triton
import triton.language as tl

from model.kernels.early_start import early_launch, let_next_start, wait_for_inputs
from model.kernels.linear_config import InputNorm
from model.kernels.norms_plain import RoutedRows

VALUES_PER_THREAD, WARP_SIZE, MAX_WARPS = 8, 32, 16
BLOCK_WITHOUT_NORM = 512


def choose_num_warps(block: int) -> int:
    """Warps for a program of `block` columns: 8 values a thread, two loads of 16 bytes in float32."""
    return max(1, min(MAX_WARPS, block // (VALUES_PER_THREAD * WARP_SIZE)))


def add_norm(
    hidden_TH: torch.Tensor | None,
    out_TH: torch.Tensor,
    *,
    deltas_PTH: torch.Tensor | None = None,
    routed: RoutedRows | None = None,
    row_ids_T: torch.Tensor | None = None,
    norm: InputNorm | None = None,
    normed_TH: torch.Tensor | None = None,
    num_warps: int | None = None,
) -> None:
    """Fill `out_TH` with hidden + (routed + deltas in order), `normed_TH` with the norm of what is stored.

    Sums are float32, rounded once to `out_TH` (bf16 or float32; it may be `hidden_TH`). Without `hidden_TH`
    it gets the sum of the deltas. With deltas `hidden_TH` is read early: it must not come from the launch
    just before. `row_ids_T`: rows of `hidden_TH`, an embedding table; below 0: row 0.
    """
    num_tokens, hidden_size = out_TH.shape
    assert (norm is None) == (normed_TH is None), "a norm and where it goes"
    for tensor in (hidden_TH, out_TH, normed_TH, deltas_PTH):
        assert tensor is None or (tensor.shape[-1] == hidden_size and tensor.stride(-1) == 1), tensor.shape
    assert deltas_PTH is None or deltas_PTH.shape[1] == num_tokens, deltas_PTH.shape
    assert hidden_TH is not out_TH or row_ids_T is None, "a table is not written"
    block = BLOCK_WITHOUT_NORM if norm is None else triton.next_power_of_2(hidden_size)
    rows, ids, weights = out_TH, out_TH, out_TH  # what is not there is another tensor, which is not read
    if routed is not None:
        rows, ids, weights = routed.rows_RH, routed.expert_ids_TK, routed.weights_TK
        assert rows.is_contiguous() and rows.shape == (ids.numel(), hidden_size), rows.shape
        assert ids.is_contiguous() and weights.is_contiguous() and ids.shape[0] == num_tokens, ids.shape
    _add_norm_kernel[(num_tokens, triton.cdiv(hidden_size, block))](
        out_TH if hidden_TH is None else hidden_TH, out_TH if row_ids_T is None else row_ids_T,
        out_TH if deltas_PTH is None else deltas_PTH, rows, ids, weights,
        out_TH if norm is None else norm.scale_K, out_TH, out_TH if normed_TH is None else normed_TH,
        0 if hidden_TH is None else hidden_TH.stride(0), out_TH.stride(0),
        0 if normed_TH is None else normed_TH.stride(0),
        0 if deltas_PTH is None else deltas_PTH.stride(0), 0 if deltas_PTH is None else deltas_PTH.stride(1),
        0 if routed is None else routed.first_expert, 0.0 if routed is None else routed.scale,
        0.0 if norm is None else norm.eps,
        H=hidden_size, BLOCK=block, P=0 if deltas_PTH is None else deltas_PTH.shape[0],
        K=0 if routed is None else ids.shape[1], E=0 if routed is None else routed.num_experts,
        HAS_HIDDEN=hidden_TH is not None, HAS_ROW_IDS=row_ids_T is not None, HAS_NORM=norm is not None,
        num_warps=num_warps or choose_num_warps(block), **early_launch(),
    )  # fmt: skip


@triton.jit
def sum_of_addends(
    deltas, rows, expert_ids, weights, token, column_H, is_column_H, part_stride, delta_stride, first_expert,
    routed_scale, H: tl.constexpr, BLOCK: tl.constexpr, P: tl.constexpr, K: tl.constexpr, E: tl.constexpr,
):  # fmt: skip
    """Columns of a token's routed rows (K > 0) and of P deltas, added in this order; to be inlined."""
    total_H = tl.zeros((BLOCK,), tl.float32)
    for k in tl.static_range(K):
        expert = tl.load(expert_ids + token * K + k)
        # A masked load, not a branch: all rows are on their way at once.
        is_here = (expert >= first_expert) & (expert < first_expert + E) & (expert >= 0)
        row_H = tl.load(rows + (token * K + k) * H + column_H, mask=is_column_H & is_here, other=0.0)
        total_H += tl.load(weights + token * K + k, mask=is_here, other=0.0) * row_H.to(tl.float32)
    if K > 0:
        total_H *= routed_scale
    for part in tl.static_range(P):
        at_H = deltas + part * part_stride + token * delta_stride + column_H
        total_H += tl.load(at_H, mask=is_column_H, other=0.0).to(tl.float32)
    return total_H


@triton.jit(do_not_specialize=["first_expert"])
def _add_norm_kernel(
    hidden, row_ids, deltas, rows, expert_ids, weights, scale, out, normed,
    hidden_stride, out_stride, normed_stride, part_stride, delta_stride, first_expert, routed_scale, eps,
    H: tl.constexpr, BLOCK: tl.constexpr, P: tl.constexpr, K: tl.constexpr, E: tl.constexpr,
    HAS_HIDDEN: tl.constexpr, HAS_ROW_IDS: tl.constexpr, HAS_NORM: tl.constexpr, IS_EARLY: tl.constexpr,
):  # fmt: skip
    """Grid: (tokens, blocks of columns)."""
    token = tl.program_id(0).to(tl.int64)
    column_H = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_column_H = column_H < H
    at_hidden_H = hidden + token * hidden_stride + column_H
    if HAS_HIDDEN and P > 0:  # the residual stream: older than what is waited for
        hidden_H = tl.load(at_hidden_H, mask=is_column_H, other=0.0)
    if HAS_NORM:
        scale_H = tl.load(scale + column_H, mask=is_column_H, other=0.0)
    wait_for_inputs(IS_EARLY)
    let_next_start(IS_EARLY)
    total_H = sum_of_addends(
        deltas, rows, expert_ids, weights, token, column_H, is_column_H, part_stride, delta_stride,
        first_expert, routed_scale, H, BLOCK, P, K, E,
    )  # fmt: skip
    if HAS_HIDDEN:
        if P == 0:
            if HAS_ROW_IDS:
                row = tl.maximum(tl.load(row_ids + token), 0).to(tl.int64)
                at_hidden_H = hidden + row * hidden_stride + column_H
            hidden_H = tl.load(at_hidden_H, mask=is_column_H, other=0.0)
        total_H = hidden_H.to(tl.float32) + total_H
    stored_H = total_H.to(out.dtype.element_ty)
    tl.store(out + token * out_stride + column_H, stored_H, mask=is_column_H)
    if HAS_NORM:
        wide_H = stored_H.to(tl.float32)
        factor = tl.rsqrt(tl.sum(wide_H * wide_H, axis=0) / H + eps)
        normed_H = wide_H * factor * scale_H
        tl.store(
            normed + token * normed_stride + column_H, normed_H.to(normed.dtype.element_ty), mask=is_column_H
        )
