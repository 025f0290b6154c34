# mypy: ignore-errors
# ruff: noqa: PLR0913, PLR0917, SIM102 - kernels take everything as arguments; outer ifs are the compiler's
"""Around the products of experts.py, in Triton: sorting pairs by expert, rows to fp8, adding rows.

Shapes: T tokens, K experts per token, P = T * K pairs, H hidden, E experts of this rank.
"""

from __future__ import annotations

import triton
import triton.language as tl

from model.kernels.early_start import let_next_start, wait_for_inputs
from model.kernels.experts_products import local_expert, num_real_tokens
from model.kernels.quads import permute_row
from model.kernels.tiles import INTERPRETED, gemv_strip, row_groups


@triton.jit
def local_experts(
    ids_ptr, first_token, num_tokens, first_expert,
    K: tl.constexpr, K_PADDED: tl.constexpr, E: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """Experts [T, K] of BLOCK_T tokens, E for those of other ranks and padding."""
    tokens = first_token + tl.arange(0, BLOCK_T)
    k = tl.arange(0, K_PADDED)
    mask = (tokens < num_tokens)[:, None] & (k < K)[None, :]
    expert = tl.load(ids_ptr + tokens[:, None] * K + k[None, :], mask=mask, other=-1) - first_expert
    return tl.where(mask & (expert >= 0) & (expert < E), expert, E)


@triton.jit(do_not_specialize=["num_rows", "first_expert", "num_tokens"])
def sort_pairs(
    ids_ptr, sorted_pairs_ptr, block_experts_ptr, block_starts_ptr, block_ends_ptr, num_blocks_ptr,
    x_ptr, permuted_ptr, num_rows, first_expert, num_tokens, K: tl.constexpr, K_PADDED: tl.constexpr,
    E: tl.constexpr, NUM_BINS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_ROWS: tl.constexpr,
    H: tl.constexpr, GROUP: tl.constexpr, BLOCK_QUADS: tl.constexpr, IS_EARLY: tl.constexpr,
):  # fmt: skip
    """Local pairs by expert, then by token, cut into blocks of one expert. Grid: (E,).

    Every program counts all experts, so that none waits for another. No ids are repeated within a token.
    GROUP > 0: rows of x are permuted on the way, a piece by each program.
    """
    wait_for_inputs(IS_EARLY)
    let_next_start(IS_EARLY)
    own = tl.program_id(0)
    num_tokens = tl.minimum(num_rows, num_real_tokens(num_tokens))
    if GROUP > 0:
        PIECES: tl.constexpr = (H // 4 + BLOCK_QUADS - 1) // BLOCK_QUADS
        piece = own
        while piece < num_tokens * PIECES:
            row = (piece // PIECES).to(tl.int64) * H
            first_quad = piece % PIECES * BLOCK_QUADS
            permute_row(x_ptr + row, permuted_ptr + row, first_quad, H, GROUP, BLOCK_QUADS)
            piece += E
    bins = tl.arange(0, NUM_BINS)
    counts = tl.zeros([NUM_BINS], tl.int32)
    token = own * 0
    while token < num_tokens:
        experts = local_experts(ids_ptr, token, num_tokens, first_expert, K, K_PADDED, E, BLOCK_T)
        counts += tl.histogram(tl.reshape(experts, [BLOCK_T * K_PADDED]), NUM_BINS)
        token += BLOCK_T
    counts = tl.where(bins < E, counts, 0)
    blocks = (counts + BLOCK_ROWS - 1) // BLOCK_ROWS
    start = tl.sum(tl.where(bins < own, counts, 0))
    end = start + tl.sum(tl.where(bins == own, counts, 0))
    block = tl.sum(tl.where(bins < own, blocks, 0))
    block_start = start
    while block_start < end:
        tl.store(block_experts_ptr + block, own)
        tl.store(block_starts_ptr + block, block_start)
        tl.store(block_ends_ptr + block, tl.minimum(block_start + BLOCK_ROWS, end))
        block += 1
        block_start += BLOCK_ROWS
    if own == 0:
        tl.store(num_blocks_ptr, tl.sum(blocks))
    place = start
    token = own * 0
    while token < num_tokens:
        experts = local_experts(ids_ptr, token, num_tokens, first_expert, K, K_PADDED, E, BLOCK_T)
        is_own = (experts == own).to(tl.int32)
        has = tl.sum(is_own, axis=1)
        k = tl.sum(is_own * tl.arange(0, K_PADDED)[None, :], axis=1)
        rank = tl.cumsum(has, axis=0) - has
        pair = (token + tl.arange(0, BLOCK_T)) * K + k
        tl.store(sorted_pairs_ptr + place + rank, pair, mask=has > 0)
        place += tl.sum(has)
        token += BLOCK_T


@triton.jit
def nearest_fp8(x):
    """The e4m3 value next to x, ties to even. The chip rounds as it converts; the interpreter cuts off."""
    if INTERPRETED:
        exponent = x.to(tl.int32, bitcast=True) & 0x7F800000
        power = tl.maximum(exponent, 0x3C800000).to(tl.float32, bitcast=True)  # of two; the least is 2 ** -6
        shifter = power * (1.5 * 2**20)  # leaves three bits behind the point
        x = (x + shifter) - shifter
    return x


@triton.jit(do_not_specialize=["first_expert", "num_tokens"])
def quantize_rows(
    x_ptr, codes_ptr, scales_ptr, ids_ptr, first_expert, num_tokens, K: tl.constexpr, E: tl.constexpr,
    WIDTH: tl.constexpr, STRIDE: tl.constexpr, NUM_GROUPS: tl.constexpr, BLOCK_GROUPS: tl.constexpr,
    IS_EARLY: tl.constexpr,
):  # fmt: skip
    """Rows to e4m3, one scale for each 128 columns. Grid: (rows, groups / BLOCK_GROUPS).

    E > 0: rows are pairs, and those of other ranks are left out.
    """
    wait_for_inputs(IS_EARLY)
    row = tl.program_id(0)
    is_needed = row < num_real_tokens(num_tokens)
    if E > 0:
        _, is_needed = local_expert(ids_ptr, row, first_expert, num_tokens, K, E)
    if is_needed:
        group = tl.program_id(1) * BLOCK_GROUPS + tl.arange(0, BLOCK_GROUPS)
        columns = group[:, None] * 128 + tl.arange(0, 128)[None, :]
        x_ptr += row.to(tl.int64) * STRIDE
        x = tl.load(x_ptr + columns, mask=columns < WIDTH, other=0).to(tl.float32)
        largest = tl.max(tl.abs(x), axis=1)
        scale = tl.where(largest == 0, 1.0, largest / 448.0)
        codes = nearest_fp8(tl.minimum(tl.maximum(x / scale[:, None], -448.0), 448.0))
        codes = codes.to(codes_ptr.dtype.element_ty)
        tl.store(codes_ptr + row.to(tl.int64) * WIDTH + columns, codes, mask=columns < WIDTH)
        tl.store(scales_ptr + row * NUM_GROUPS + group, scale, mask=group < NUM_GROUPS)


@triton.jit(do_not_specialize=["num_pairs", "first_expert", "num_tokens"])
def combine_rows(
    rows_ptr, ids_ptr, weights_ptr, out_ptr, num_pairs, first_expert, num_tokens, routed_scale,
    K: tl.constexpr, E: tl.constexpr, H: tl.constexpr, HAS_SHARED: tl.constexpr, BLOCK: tl.constexpr,
    IS_EARLY: tl.constexpr,
):  # fmt: skip
    """routed_scale * sum of weight * row over a token's local pairs, in order, + its shared row."""
    wait_for_inputs(IS_EARLY)
    let_next_start(IS_EARLY)
    token = tl.program_id(0)
    h = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = h < H
    acc = tl.zeros([BLOCK], tl.float32)
    for k in range(K):
        pair = token * K + k
        _, is_local = local_expert(ids_ptr, pair, first_expert, num_tokens, K, E)
        if is_local:
            row = tl.load(rows_ptr + pair.to(tl.int64) * H + h, mask=inside, other=0).to(tl.float32)
            acc += tl.load(weights_ptr + pair) * row
    acc *= routed_scale
    if HAS_SHARED:
        if (token < num_real_tokens(num_tokens)) & (tl.load(ids_ptr + token * K) >= 0):
            row = num_pairs + token
            acc += tl.load(rows_ptr + row.to(tl.int64) * H + h, mask=inside, other=0).to(tl.float32)
    tl.store(out_ptr + token.to(tl.int64) * H + h, acc.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["num_pairs", "first_expert", "num_tokens"])
def down_and_combine(
    x_ptr, ids_ptr, weights_ptr, weight, shared_weight, out_ptr, num_pairs, first_expert, num_tokens,
    routed_scale, K: tl.constexpr, E: tl.constexpr, STRIDE_IN: tl.constexpr, H: tl.constexpr,
    WIDTH: tl.constexpr, FORMAT: tl.constexpr, GROUP: tl.constexpr, SHARED_WIDTH: tl.constexpr,
    SHARED_FORMAT: tl.constexpr, SHARED_GROUP: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr,
    THREADS: tl.constexpr, UNROLL: tl.constexpr, IS_EARLY: tl.constexpr,
):  # fmt: skip
    """Down product and `combine_rows` in one: a program adds a strip of one token. Grid: (T, strips)."""
    wait_for_inputs(IS_EARLY)
    token = tl.program_id(0)
    strip = tl.program_id(1)
    # The experts' sums stay in the threads, so that only one reduction waits for all of them.
    CHUNKS: tl.constexpr = BLOCK_K // (8 if FORMAT == "bf16" else (32 if FORMAT == "int4" else 16))
    X: tl.constexpr = row_groups(CHUNKS, THREADS)
    sums = tl.zeros([CHUNKS, X, BLOCK // X], tl.float32)
    for k in range(K):
        pair = token * K + k
        expert, is_local = local_expert(ids_ptr, pair, first_expert, num_tokens, K, E)
        if is_local:
            row_ptr = x_ptr + pair.to(tl.int64) * STRIDE_IN
            acc = gemv_strip(
                row_ptr,
                weight,
                expert,
                strip,
                H,
                WIDTH,
                FORMAT,
                GROUP,
                BLOCK,
                False,
                BLOCK_K,
                THREADS,
                UNROLL,
            )
            sums += tl.load(weights_ptr + pair) * acc
    result = tl.reshape(tl.sum(sums, axis=0), [BLOCK]) * routed_scale
    if SHARED_WIDTH > 0:
        if (token < num_real_tokens(num_tokens)) & (tl.load(ids_ptr + token * K) >= 0):
            row_ptr = x_ptr + (num_pairs + token).to(tl.int64) * STRIDE_IN
            acc = gemv_strip(
                row_ptr, shared_weight, token * 0, strip, H, SHARED_WIDTH, SHARED_FORMAT, SHARED_GROUP, BLOCK,
                False, BLOCK_K, THREADS, UNROLL,
            )  # fmt: skip
            result += tl.reshape(tl.sum(acc, axis=0), [BLOCK])
    let_next_start(IS_EARLY)
    h = strip * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + token.to(tl.int64) * H + h, result.to(out_ptr.dtype.element_ty), mask=h < H)
