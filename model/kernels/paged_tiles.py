"""Steps of attention over a paged cache that decode and prefill kernels share. No kernel of its own.

Shapes: R query rows of one key head (token by token, the heads of a token together), L positions of a tile,
D head size, S positions of a block, M columns of a block table.

`scale` is D ** -0.5 * log2(e) times the scale of the keys: scaled scores are exponents of 2. A row that has
seen nothing has the largest one NOTHING, and the sum of weights 0.
"""
# Kernels are a language of their own: many arguments, no types.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, import-untyped, untyped-decorator"
# ruff: noqa: PLR0913, PLR0917

from __future__ import annotations

import triton
import triton.language as tl

from model.kernels.early_start import LINE_BYTES, ask_for_lines

# Finite, so that the difference of two of them is 0 and not NaN.
NOTHING = tl.constexpr(-1.0e30)
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def first_position(first_query, begin, WINDOW: tl.constexpr, BLOCK: tl.constexpr):
    """Start of the block of the oldest position that a query at `first_query`, or a later one, attends to."""
    first = begin
    if WINDOW > 0:
        first = tl.maximum(first, first_query - WINDOW + 1)
    return first // BLOCK * BLOCK


@triton.jit
def keys_at(
    pool, table, start, head, is_there_L,
    K: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr, COLUMNS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Where the keys of TILE positions from `start` on are, [L]; their values are BLOCK * D behind.

    `start` is a block's first position if tiles are whole blocks; then little is left to be computed for each
    tile: the table's entry, and a multiplication.
    """
    offset_L = tl.arange(0, TILE)
    if TILE % BLOCK != 0:
        offset_L += start % BLOCK
    column_L = start // BLOCK % COLUMNS + offset_L // BLOCK
    if TILE // BLOCK < COLUMNS:
        column_L = tl.where(column_L >= COLUMNS, column_L - COLUMNS, column_L)
    else:
        column_L = column_L % COLUMNS
    block_L = tl.load(table + column_L, mask=is_there_L, other=0).to(tl.int64)
    return pool + head * (2 * BLOCK * D) + block_L * (K * 2 * BLOCK * D) + offset_L % BLOCK * D


@triton.jit
def ask_for_tile(
    pool, table, start, head, K: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr, COLUMNS: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    """Ask for the whole blocks of a tile's keys and values to come into the L2."""
    column_P = (start // BLOCK + tl.arange(0, TILE // BLOCK)) % COLUMNS
    block_P = tl.load(table + column_P).to(tl.int64)
    per_line: tl.constexpr = LINE_BYTES * 8 // pool.dtype.element_ty.primitive_bitwidth
    line_L = tl.arange(0, 2 * BLOCK * D // per_line) * per_line
    ask_for_lines(pool + ((block_P * K + head) * (2 * BLOCK * D))[:, None] + line_L[None, :])


@triton.jit
def attend_tile(
    q_RD, sums_RD, largest_R, weight_R, pool, table, start, length, query_R, begin, scale, head,
    K: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr, COLUMNS: tl.constexpr, WINDOW: tl.constexpr,
    TILE: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Add the keys and values of one tile. MASKED: some position may be past a query, or too old for it.

    `table` points to the sequence's row of the block table, `query_R` are the positions of the queries.
    `start`: see `keys_at`.
    """
    position_L = start + tl.arange(0, TILE)
    is_there_L = position_L < length
    key_at_L = keys_at(pool, table, start, head, is_there_L, K, D, BLOCK, COLUMNS, TILE)
    key_at_LD = key_at_L[:, None] + tl.arange(0, D)[None, :]
    k_LD = tl.load(key_at_LD, mask=is_there_L[:, None], other=0.0).to(q_RD.dtype)
    score_RL = tl.dot(q_RD, tl.trans(k_LD), input_precision="ieee")
    if MASKED:
        distance_RL = query_R[:, None] - position_L[None, :]
        sees_RL = (distance_RL >= 0) & (position_L >= begin)[None, :]
        if WINDOW > 0:
            sees_RL = sees_RL & (distance_RL < WINDOW)
        score_RL = tl.where(sees_RL, score_RL, float("-inf"))
    # Scaled here, and not before the maximum, it is one instruction with the subtraction.
    new_largest_R = tl.maximum(largest_R, tl.max(score_RL, 1) * scale)
    weight_RL = tl.exp2(score_RL * scale - new_largest_R[:, None])
    shrink_R = tl.exp2(largest_R - new_largest_R)
    v_LD = tl.load(key_at_LD + BLOCK * D, mask=is_there_L[:, None], other=0.0).to(q_RD.dtype)
    sums_RD = tl.dot(weight_RL.to(q_RD.dtype), v_LD, sums_RD * shrink_R[:, None], input_precision="ieee")
    return sums_RD, new_largest_R, weight_R * shrink_R + tl.sum(weight_RL, 1)


@triton.jit
def store_gated(out_at_R, gate_R, sums_RD, weight_R, v_scale, is_row_R, D: tl.constexpr):
    """Divide by the sum of weights, multiply with the sigmoid of the head gate."""
    # What saw nothing has sums of 0, and is divided by 1.
    divisor_R = (1.0 + tl.exp2(-LOG2_E * gate_R.to(tl.float32))) * tl.where(weight_R > 0, weight_R, 1.0)
    out_RD = sums_RD * (v_scale / divisor_R)[:, None]
    out_at_RD = out_at_R[:, None] + tl.arange(0, D)[None, :]
    tl.store(out_at_RD, out_RD.to(out_at_R.dtype.element_ty), mask=is_row_R[:, None])
