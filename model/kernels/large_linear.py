"""Products of many tokens (prefill): bound by arithmetic, so cuBLAS or an fp8 product on tensor cores.

Shapes: T tokens, N rows of the weight, K columns, B = ceil(K / 128) blocks of columns, M = N / 2.

bf16 goes to cuBLAS. fp8 and int8 either become bf16 first (reads N * K bytes and writes twice as many: 45 us
beside 600 us of product for 4,096 tokens and the widest projection), or, fp8 alone, x becomes fp8, too.
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, import-untyped, untyped-decorator"
# ruff: noqa: PLR0913, PLR0917

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody knows
import triton
import triton.language as tl

from model.kernels.large_linear_plain import MAX_FP8, Method
from model.kernels.linear_gemv import swiglu_clamped
from model.kernels.packed import FP8_BLOCK, PackedWeight

_MAX_FP8 = tl.constexpr(MAX_FP8)
_ROW_BLOCK, _ELEMENTS_PER_PROGRAM = 1024, 4096


@dataclass(frozen=True)
class Fp8Config:
    """Tiles of the fp8 product; K goes in blocks of 128, for which scales are."""

    block_t: int = 128
    block_n: int = 128
    group_t: int = 8  # tiles of tokens that take turns on the same rows of the weight, for the L2
    num_warps: int = 8
    num_stages: int = 4


def choose_config(num_tokens: int) -> Fp8Config:
    """Smaller tiles while there are few tokens."""
    return Fp8Config() if num_tokens > 64 else Fp8Config(block_t=64, num_warps=4)


def large_linear(
    x_TK: torch.Tensor,
    weight: PackedWeight,
    *,
    method: Method = "dequantize",
    scratch_NK: torch.Tensor | None = None,
    config: Fp8Config | None = None,
) -> torch.Tensor:
    """x @ W.T, [T, N] in x's dtype (bf16). "fp8": x is rounded as `quantize_rows` does, for fp8 weights.

    `scratch_NK`: bf16, at least N * K values, for a weight that becomes bf16; otherwise it is allocated.
    """
    if weight.format == "bf16":
        return F.linear(x_TK, weight.data.to(x_TK.dtype))
    if method == "dequantize":
        num_values = weight.shape[0] * weight.shape[1]
        if scratch_NK is None:
            scratch_NK = torch.empty(num_values, dtype=torch.bfloat16, device=x_TK.device)
        weight_NK = scratch_NK.flatten()[:num_values].view(weight.shape)
        dequantize_bf16(weight, weight_NK)
        return F.linear(x_TK, weight_NK.to(x_TK.dtype))
    assert weight.format == "fp8" and weight.scales is not None, weight.format
    codes_TK, scales_TB = quantize_rows(x_TK)
    (num_tokens, num_columns), num_rows = x_TK.shape, weight.shape[0]
    out_TN = torch.empty(num_tokens, num_rows, dtype=x_TK.dtype, device=x_TK.device)
    config = config or choose_config(num_tokens)
    num_tiles = triton.cdiv(num_tokens, config.block_t) * triton.cdiv(num_rows, config.block_n)
    _fp8_kernel[(num_tiles,)](
        codes_TK, scales_TB, weight.data, weight.scales, out_TN, num_tokens, num_rows, K=num_columns,
        BT=config.block_t, BN=config.block_n, BK=FP8_BLOCK, GROUP_T=config.group_t, STAGES=config.num_stages,
        num_warps=config.num_warps,
    )  # fmt: skip
    return out_TN


def quantize_rows(x_TK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """float8_e4m3fn codes [T, K], float32 scales [T, B]: the largest magnitude of 128 columns becomes 448."""
    num_tokens, num_columns = x_TK.shape
    codes_TK = torch.empty(num_tokens, num_columns, dtype=torch.float8_e4m3fn, device=x_TK.device)
    num_blocks = triton.cdiv(num_columns, FP8_BLOCK)
    scales_TB = torch.empty(num_tokens, num_blocks, dtype=torch.float32, device=x_TK.device)
    per_program = _ELEMENTS_PER_PROGRAM // FP8_BLOCK
    _quantize_kernel[(num_tokens, triton.cdiv(num_blocks, per_program))](
        x_TK, codes_TK, scales_TB, x_TK.stride(0), K=num_columns, B=num_blocks, BLOCKS=per_program,
        SIZE=FP8_BLOCK, num_warps=8,
    )  # fmt: skip
    return codes_TK, scales_TB


def dequantize_bf16(weight: PackedWeight, out_NK: torch.Tensor) -> None:
    """The whole weight, rounded to bf16."""
    num_rows, num_columns = weight.shape
    assert weight.format in ("fp8", "int8") and weight.scales is not None, weight.format
    assert out_NK.is_contiguous() and out_NK.dtype == torch.bfloat16, out_NK.dtype
    block_n = _ELEMENTS_PER_PROGRAM // _ROW_BLOCK
    _dequantize_kernel[(triton.cdiv(num_columns, _ROW_BLOCK), triton.cdiv(num_rows, block_n))](
        weight.data, weight.scales, out_NK, num_rows, K=num_columns, GROUP=weight.group_size,
        IS_FP8=weight.format == "fp8", BN=block_n, BK=_ROW_BLOCK, num_warps=4,
    )  # fmt: skip


def swiglu_rows(gate_up_TN: torch.Tensor, limit: float | None) -> torch.Tensor:
    """SiLU(gate) * up, clamped behind the SiLU: [T, N] -> [T, M] in the same dtype."""
    num_tokens, num_rows = gate_up_TN.shape
    assert gate_up_TN.is_contiguous() and num_rows % 2 == 0, gate_up_TN.shape
    out_TM = torch.empty(num_tokens, num_rows // 2, dtype=gate_up_TN.dtype, device=gate_up_TN.device)
    _swiglu_kernel[(num_tokens, triton.cdiv(num_rows // 2, _ROW_BLOCK))](
        gate_up_TN, out_TM, 0.0 if limit is None else limit, M=num_rows // 2, BLOCK=_ROW_BLOCK,
        HAS_LIMIT=limit is not None, num_warps=4,
    )  # fmt: skip
    return out_TM


@triton.jit
def _quantize_kernel(
    x, codes, scales, x_stride, K: tl.constexpr, B: tl.constexpr, BLOCKS: tl.constexpr, SIZE: tl.constexpr
):
    token = tl.program_id(0).to(tl.int64)
    block_B = tl.program_id(1) * BLOCKS + tl.arange(0, BLOCKS)
    column_BC = block_B[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    x_BC = tl.load(x + token * x_stride + column_BC, mask=column_BC < K, other=0.0).to(tl.float32)
    largest_B = tl.max(tl.abs(x_BC), axis=1)
    scale_B = tl.where(largest_B == 0, 1.0, largest_B / _MAX_FP8)
    scaled_BC = tl.minimum(tl.maximum(x_BC / scale_B[:, None], -_MAX_FP8), _MAX_FP8)
    tl.store(codes + token * K + column_BC, scaled_BC.to(codes.dtype.element_ty), mask=column_BC < K)
    tl.store(scales + token * B + block_B, scale_B, mask=block_B < B)


@triton.jit
def _dequantize_kernel(
    w, scales, out, N, K: tl.constexpr, GROUP: tl.constexpr, IS_FP8: tl.constexpr, BN: tl.constexpr,
    BK: tl.constexpr,
):  # fmt: skip
    row_N = (tl.program_id(1) * BN + tl.arange(0, BN)).to(tl.int64)
    column_K = tl.program_id(0) * BK + tl.arange(0, BK)
    is_there_NK = (row_N < N)[:, None] & (column_K < K)[None, :]
    at_NK = row_N[:, None] * K + column_K[None, :]
    num_groups: tl.constexpr = (K + GROUP - 1) // GROUP
    group_K = column_K // GROUP
    if IS_FP8:
        scale_at_NK = scales + (row_N // GROUP * num_groups)[:, None] + group_K[None, :]
    else:
        scale_at_NK = scales + group_K[None, :] * N + row_N[:, None]
    scale_NK = tl.load(scale_at_NK, mask=is_there_NK, other=0.0).to(tl.float32)
    value_NK = tl.load(w + at_NK, mask=is_there_NK).to(tl.float32) * scale_NK
    tl.store(out + at_NK, value_NK.to(tl.bfloat16), mask=is_there_NK)


@triton.jit
def _swiglu_kernel(gate_up, out, limit, M: tl.constexpr, BLOCK: tl.constexpr, HAS_LIMIT: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    column_M = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    at_M = gate_up + token * 2 * M + column_M
    gate_M = tl.load(at_M, mask=column_M < M, other=0.0).to(tl.float32)
    up_M = tl.load(at_M + M, mask=column_M < M, other=0.0).to(tl.float32)
    y_M = swiglu_clamped(gate_M, up_M, limit, HAS_LIMIT)
    tl.store(out + token * M + column_M, y_M.to(out.dtype.element_ty), mask=column_M < M)


@triton.jit
def _load_fp8(at, mask):
    """0 where masked: as bytes, for which 0 can be asked for."""
    return tl.load(at.to(tl.pointer_type(tl.uint8), bitcast=True), mask=mask, other=0).to(
        tl.float8e4nv, bitcast=True
    )


@triton.jit
def _fp8_kernel(
    x, x_scales, w, w_scales, out, T, N,
    K: tl.constexpr, BT: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP_T: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """One tile of the result. Scaled sums of 128 columns are added in float32: tensor cores add with less."""
    num_t, num_n = tl.cdiv(T, BT), tl.cdiv(N, BN)
    program = tl.program_id(0)
    first_t = program // (GROUP_T * num_n) * GROUP_T
    size_t = tl.minimum(num_t - first_t, GROUP_T)
    of_group = program % (GROUP_T * num_n)
    token = (first_t + of_group % size_t) * BT
    row = of_group // size_t * BN
    token_T = token + tl.arange(0, BT)
    row_N = row + tl.arange(0, BN)
    from_T = tl.minimum(token_T, T - 1)
    from_N = tl.minimum(row_N, N - 1)
    column_K = tl.arange(0, BK)
    num_blocks: tl.constexpr = (K + BK - 1) // BK
    # 64 bits for the tile's first value, 32 from there: pointers of 64 would not fit into registers.
    x += token.to(tl.int64) * K
    w += row.to(tl.int64) * K
    x_at_TK = ((from_T - token) * K)[:, None] + column_K[None, :]
    w_at_KN = ((from_N - row) * K)[None, :] + column_K[:, None]
    sum_TN = tl.zeros((BT, BN), tl.float32)
    for block in tl.range(0, num_blocks, num_stages=STAGES):
        if K % BK == 0:
            x_TK = tl.load(x + block * BK + x_at_TK)
            w_KN = tl.load(w + block * BK + w_at_KN)
        else:
            x_TK = _load_fp8(x + block * BK + x_at_TK, (column_K < K - block * BK)[None, :])
            w_KN = _load_fp8(w + block * BK + w_at_KN, (column_K < K - block * BK)[:, None])
        scale_T1 = tl.load(x_scales + from_T * num_blocks + block)[:, None]
        if BK % BN == 0:  # the tile's rows lie in one block
            scale_TN = scale_T1 * tl.load(w_scales + row // BK * num_blocks + block)
        else:
            scale_TN = scale_T1 * tl.load(w_scales + from_N // BK * num_blocks + block)[None, :]
        sum_TN += tl.dot(x_TK, w_KN) * scale_TN
    at_TN = out + token_T.to(tl.int64)[:, None] * N + row_N[None, :]
    tl.store(at_TN, sum_TN.to(out.dtype.element_ty), mask=(token_T < T)[:, None] & (row_N < N)[None, :])
