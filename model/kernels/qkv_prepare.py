"""From a fused projection to attention's inputs, in one launch: q/k norm, RoPE, k and v into the cache.

Shapes: T tokens, B sequences, M columns of a block table, N query heads, K key/value heads, D head size,
P = rotary_dim / 2, X = (N + 2K) * D + N columns of q | k | v | head gate; G heads of one program, E = D - 2P
columns that do not turn.

Angles come from a table made once a step and group by `token_tables`, which finds the cache slots in the same
launch. Sine and cosine of large float32 angles take a slow path through local memory; a table of 512 bytes a
token costs one cached load instead, in each of 45 layers.
"""
# Kernels are a language of their own: many arguments, no types.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, import-untyped, untyped-decorator"
# ruff: noqa: PLR0913, PLR0917

from __future__ import annotations

import torch
import triton
import triton.language as tl

from model.kernels.early_start import early_launch, let_next_start, wait_for_inputs
from model.kernels.paged import MAX_FP8, PagedKV

# Programs of few heads while a step has few tokens; larger ones once there are enough of them.
HEADS_OF_FEW_TOKENS, HEADS_OF_MANY_TOKENS, MANY_TOKENS = 16, 32, 512
TOKENS_OF_TABLE_PROGRAM = 4


def token_tables(
    positions_T: torch.Tensor,
    seqs_T: torch.Tensor,
    frequencies_P: torch.Tensor,
    blocks_BM: torch.Tensor,
    block_size: int,
    cos_sin_T2P: torch.Tensor,
    slots_T: torch.Tensor,
) -> None:
    """Fill cos and sin of every token's angles, and its cache slot; position -1: slot -1, angle 0.

    `positions_T`, `seqs_T` (rows of `blocks_BM`), `slots_T`: int32 or int64. Tables and frequencies: float32.
    """
    num_tokens, _, num_frequencies = cos_sin_T2P.shape
    assert cos_sin_T2P.is_contiguous() and cos_sin_T2P.dtype == frequencies_P.dtype == torch.float32
    assert blocks_BM.is_contiguous(), blocks_BM.stride()
    if not num_tokens:
        return
    _token_tables_kernel[(triton.cdiv(num_tokens, TOKENS_OF_TABLE_PROGRAM),)](
        positions_T, seqs_T, frequencies_P, blocks_BM, cos_sin_T2P, slots_T, num_tokens,
        COLUMNS=blocks_BM.shape[1], BLOCK=block_size, P=num_frequencies,
        P_POW2=triton.next_power_of_2(num_frequencies), TOKENS=TOKENS_OF_TABLE_PROGRAM,
        num_warps=4, **early_launch(),
    )  # fmt: skip


def qkv_prepare(
    qkvg_TX: torch.Tensor,
    q_norm_D: torch.Tensor,
    k_norm_D: torch.Tensor,
    cos_sin_T2P: torch.Tensor,
    slots_T: torch.Tensor,
    kv: PagedKV,
    q_out_TND: torch.Tensor,
    eps: float,
) -> None:
    """Norm and turn q and k; q goes to `q_out_TND`, k and v into the cache. Slot -1: nothing is written.

    `qkvg_TX`: bf16 or float32, rows may be apart. Norm scales are 1 + w, float32. `q_out_TND`: bf16 (float32
    with a float32 cache). 2P is a power of two, and D - 2P is one or 0.
    """
    num_tokens, num_q, head_dim = q_out_TND.shape
    num_heads, num_turned = num_q + 2 * kv.num_kv_heads, 2 * cos_sin_T2P.shape[-1]
    num_rest = head_dim - num_turned
    assert qkvg_TX.shape == (num_tokens, num_heads * head_dim + num_q), qkvg_TX.shape
    assert qkvg_TX.stride(1) == 1 and q_out_TND.is_contiguous() and cos_sin_T2P.is_contiguous()
    assert head_dim == kv.head_dim and num_rest >= 0, (head_dim, kv.head_dim, num_turned)
    assert num_turned & (num_turned - 1) == 0 and num_rest & (num_rest - 1) == 0, (num_turned, num_rest)
    if not num_tokens:
        return
    heads = HEADS_OF_FEW_TOKENS if num_tokens < MANY_TOKENS else HEADS_OF_MANY_TOKENS
    _qkv_prepare_kernel[(num_tokens, triton.cdiv(num_heads, heads))](
        qkvg_TX, q_norm_D, k_norm_D, cos_sin_T2P, slots_T, kv.pool_XK2SD, q_out_TND,
        1.0 / kv.k_scale, 1.0 / kv.v_scale, eps,
        # A constant: of an argument Triton knows only whether 16 divides it, but 8 make a load of 16 bytes.
        ROW_STRIDE=qkvg_TX.stride(0), N=num_q, K=kv.num_kv_heads, D=head_dim, P=num_turned // 2, E=num_rest,
        BLOCK=kv.block_size, HEADS=heads, MAX=MAX_FP8 if kv.is_fp8 else 0.0, num_warps=4, **early_launch(),
    )  # fmt: skip


@triton.jit
def _token_tables_kernel(
    positions, seqs, frequencies, blocks, cos_sin, slots, num_tokens,
    COLUMNS: tl.constexpr, BLOCK: tl.constexpr, P: tl.constexpr, P_POW2: tl.constexpr, TOKENS: tl.constexpr,
    IS_EARLY: tl.constexpr,
):  # fmt: skip
    wait_for_inputs(IS_EARLY)
    token_T = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    is_token_T = token_T < num_tokens
    position_T = tl.load(positions + token_T, mask=is_token_T, other=-1).to(tl.int32)
    is_real_T = position_T >= 0
    seq_T = tl.load(seqs + token_T, mask=is_real_T, other=0).to(tl.int64)
    column_T = position_T // BLOCK % COLUMNS
    block_T = tl.load(blocks + seq_T * COLUMNS + column_T, mask=is_real_T, other=0).to(tl.int64)
    slot_T = tl.where(is_real_T, block_T * BLOCK + position_T % BLOCK, -1)
    tl.store(slots + token_T, slot_T.to(slots.dtype.element_ty), mask=is_token_T)
    p_P = tl.arange(0, P_POW2)
    frequency_P = tl.load(frequencies + p_P, mask=p_P < P, other=0.0)
    angle_TP = tl.maximum(position_T, 0).to(tl.float32)[:, None] * frequency_P[None, :]
    at_TP = cos_sin + token_T.to(tl.int64)[:, None] * (2 * P) + p_P[None, :]
    is_there_TP = is_token_T[:, None] & (p_P < P)[None, :]
    tl.store(at_TP, tl.cos(angle_TP), mask=is_there_TP)
    tl.store(at_TP + P, tl.sin(angle_TP), mask=is_there_TP)


@triton.jit
def _norm_scale(q_norm, k_norm, column_C, is_q_G, is_k_G):
    """Scales [G, C] of some columns: q's, k's, and 1 for v."""
    q_1C = tl.load(q_norm + column_C)[None, :]
    k_1C = tl.load(k_norm + column_C)[None, :]
    return tl.where(is_q_G[:, None], q_1C, tl.where(is_k_G[:, None], k_1C, 1.0))


@triton.jit
def _store_heads(x_GC, column_C, q_at_G, pool_at_G, stores_q_G, stores_kv_G, factor_G, MAX: tl.constexpr):
    """Some columns of q to its output, of k and v to the cache."""
    tl.store(q_at_G[:, None] + column_C[None, :], x_GC.to(q_at_G.dtype.element_ty), mask=stores_q_G[:, None])
    stored_GC = x_GC * factor_G[:, None]
    if MAX > 0:
        stored_GC = tl.minimum(tl.maximum(stored_GC, -MAX), MAX)
    stored_GC = stored_GC.to(pool_at_G.dtype.element_ty)
    tl.store(pool_at_G[:, None] + column_C[None, :], stored_GC, mask=stores_kv_G[:, None])


@triton.jit
def _qkv_prepare_kernel(
    qkvg, q_norm, k_norm, cos_sin, slots, pool, q_out, k_factor, v_factor, eps,
    ROW_STRIDE: tl.constexpr, N: tl.constexpr, K: tl.constexpr, D: tl.constexpr, P: tl.constexpr,
    E: tl.constexpr, BLOCK: tl.constexpr, HEADS: tl.constexpr, MAX: tl.constexpr, IS_EARLY: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    p_P = tl.arange(0, P)
    # Slots and angles are the step's, norms are weights: older than what is waited for.
    # Padding is masked where something is stored: to return here would make every load wait for this one.
    slot = tl.load(slots + token).to(tl.int64)
    angles = cos_sin + token * (2 * P) + p_P
    cos_P, sin_P = tl.load(angles), tl.load(angles + P)
    head_G = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    is_head_G = head_G < N + 2 * K
    is_q_G = head_G < N
    is_k_G = (head_G >= N) & (head_G < N + K)
    is_v_G = head_G >= N + K
    first_scale_GP = _norm_scale(q_norm, k_norm, p_P, is_q_G, is_k_G)
    second_scale_GP = _norm_scale(q_norm, k_norm, P + p_P, is_q_G, is_k_G)
    wait_for_inputs(IS_EARLY)
    let_next_start(IS_EARLY)
    from_G = qkvg + token * ROW_STRIDE + head_G * D
    first_GP = tl.load(from_G[:, None] + p_P[None, :], mask=is_head_G[:, None], other=0.0).to(tl.float32)
    second_GP = tl.load(from_G[:, None] + (P + p_P)[None, :], mask=is_head_G[:, None], other=0.0).to(
        tl.float32
    )
    squares_G = tl.sum(first_GP * first_GP + second_GP * second_GP, 1)
    if E > 0:
        e_E = 2 * P + tl.arange(0, E)
        rest_GE = tl.load(from_G[:, None] + e_E[None, :], mask=is_head_G[:, None], other=0.0).to(tl.float32)
        squares_G += tl.sum(rest_GE * rest_GE, 1)
    inverse_G = tl.where(is_v_G, 1.0, tl.rsqrt(squares_G / D + eps))[:, None]
    first_GP = first_GP * inverse_G * first_scale_GP
    second_GP = second_GP * inverse_G * second_scale_GP
    cos_GP = tl.where(is_v_G[:, None], 1.0, cos_P[None, :])
    sin_GP = tl.where(is_v_G[:, None], 0.0, sin_P[None, :])
    # The cache: [block, head, key or value, offset, D].
    kv_head_G = tl.where(is_v_G, head_G - N - K, head_G - N).to(tl.int64)
    pool_row_G = ((slot // BLOCK * K + kv_head_G) * 2 + is_v_G.to(tl.int64)) * BLOCK + slot % BLOCK
    q_at_G, pool_at_G = q_out + (token * N + head_G) * D, pool + pool_row_G * D
    stores_q_G = is_q_G & (slot >= 0)
    stores_kv_G = is_head_G & (head_G >= N) & (slot >= 0)
    factor_G = tl.where(is_v_G, v_factor, k_factor)
    turned_GP = first_GP * cos_GP - second_GP * sin_GP
    _store_heads(turned_GP, p_P, q_at_G, pool_at_G, stores_q_G, stores_kv_G, factor_G, MAX)
    turned_GP = second_GP * cos_GP + first_GP * sin_GP
    _store_heads(turned_GP, P + p_P, q_at_G, pool_at_G, stores_q_G, stores_kv_G, factor_G, MAX)
    if E > 0:
        rest_GE = rest_GE * inverse_G * _norm_scale(q_norm, k_norm, e_E, is_q_G, is_k_G)
        _store_heads(rest_GE, e_E, q_at_G, pool_at_G, stores_q_G, stores_kv_G, factor_G, MAX)
