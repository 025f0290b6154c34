# mypy: ignore-errors
# ruff: noqa: PLR0913, PLR0917 - kernels take everything as arguments
"""The two products of a gated expert for few or many rows, in Triton (experts.py launches them).

Shapes: T tokens, K experts per token, P = T * K pairs, H hidden, W expert width, E experts of this rank.

Rows of activations and results: pair t * K + k at that row, and the shared expert's token t at row P + t.
Programs: blocks (of pairs, then of the shared expert) x strips of outputs. Blocks come first, so that those
of one expert read the same strip at about the same time and memory is read once. Of many blocks a group takes
turns on all strips before the next one, or their rows would come from memory for every strip.
"""

from __future__ import annotations

import triton
import triton.language as tl

from model.kernels.early_start import let_next_start, wait_for_inputs
from model.kernels.quads import gate_and_up, quad_position, quad_strip
from model.kernels.tiles import dot_strip, gemv_strip, swiglu


@triton.jit
def num_real_tokens(num_tokens):
    """`num_tokens` is a number, or a pointer to it where a graph must not know it."""
    if num_tokens.dtype.is_ptr():
        return tl.load(num_tokens)
    else:  # noqa: RET505 - the compiler reads on behind a return
        return num_tokens


@triton.jit
def local_expert(ids_ptr, pair, first_expert, num_tokens, K: tl.constexpr, E: tl.constexpr):
    """Index of the pair's expert on this rank, and whether it is there at all."""
    expert = tl.load(ids_ptr + pair) - first_expert
    return expert, (expert >= 0) & (expert < E) & (pair // K < num_real_tokens(num_tokens))


@triton.jit
def gemv_tile(
    x_ptr, weight, matrix, strip, out_ptr, limit, N: tl.constexpr, K: tl.constexpr, FORMAT: tl.constexpr,
    GROUP: tl.constexpr, BLOCK: tl.constexpr, GATED: tl.constexpr, BLOCK_K: tl.constexpr,
    THREADS: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """One row times one strip, stored."""
    acc = gemv_strip(
        x_ptr, weight, matrix, strip, N, K, FORMAT, GROUP, BLOCK, GATED, BLOCK_K, THREADS, UNROLL
    )
    result = tl.sum(acc, axis=0)
    NUM_OUTPUTS: tl.constexpr = N // 2 if GATED else N
    if GATED:
        gate, up = tl.split(tl.reshape(result, [BLOCK, 2]))
        result = swiglu(gate, up, limit)
    else:
        result = tl.reshape(result, [BLOCK])
    n = strip * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + n, result.to(out_ptr.dtype.element_ty), mask=n < NUM_OUTPUTS)


@triton.jit(do_not_specialize=["num_pairs", "first_expert", "num_tokens"])
def product_gemv(
    x_ptr, ids_ptr, weight, shared_weight, out_ptr, num_pairs, first_expert, num_tokens, limit, shared_limit,
    K: tl.constexpr, E: tl.constexpr, GATED: tl.constexpr, STRIDE_IN: tl.constexpr, STRIDE_OUT: tl.constexpr,
    N: tl.constexpr, WIDTH: tl.constexpr, FORMAT: tl.constexpr, GROUP: tl.constexpr, SHARED_N: tl.constexpr,
    SHARED_WIDTH: tl.constexpr, SHARED_FORMAT: tl.constexpr, SHARED_GROUP: tl.constexpr, BLOCK: tl.constexpr,
    BLOCK_K: tl.constexpr, THREADS: tl.constexpr, UNROLL: tl.constexpr, IS_EARLY: tl.constexpr,
):  # fmt: skip
    """Every pair for itself: grid (P [+ T], strips). Inputs are tokens for GATED, else pairs."""
    wait_for_inputs(IS_EARLY)
    pair = tl.program_id(0)
    strip = tl.program_id(1)
    if pair < num_pairs:
        expert, is_local = local_expert(ids_ptr, pair, first_expert, num_tokens, K, E)
        if is_local & (strip * BLOCK < (N // 2 if GATED else N)):
            in_row = pair // K if GATED else pair
            gemv_tile(
                x_ptr + in_row.to(tl.int64) * STRIDE_IN, weight, expert, strip,
                out_ptr + pair.to(tl.int64) * STRIDE_OUT, limit,
                N, WIDTH, FORMAT, GROUP, BLOCK, GATED, BLOCK_K, THREADS, UNROLL,
            )  # fmt: skip
    if (SHARED_N > 0) and (pair >= num_pairs):
        token = pair - num_pairs
        is_real = (token < num_real_tokens(num_tokens)) & (tl.load(ids_ptr + token * K) >= 0)
        if is_real & (strip * BLOCK < (SHARED_N // 2 if GATED else SHARED_N)):
            in_row = token if GATED else pair
            gemv_tile(
                x_ptr + in_row.to(tl.int64) * STRIDE_IN, shared_weight, token * 0, strip,
                out_ptr + pair.to(tl.int64) * STRIDE_OUT, shared_limit,
                SHARED_N, SHARED_WIDTH, SHARED_FORMAT, SHARED_GROUP, BLOCK, GATED, BLOCK_K, THREADS, UNROLL,
            )  # fmt: skip
    let_next_start(IS_EARLY)


@triton.jit
def dot_tile(
    x, in_rows, valid, weight, matrix, strip, out_ptr, out_rows, limit, STRIDE_IN: tl.constexpr,
    STRIDE_OUT: tl.constexpr, N: tl.constexpr, K: tl.constexpr, FORMAT: tl.constexpr, GROUP: tl.constexpr,
    BLOCK: tl.constexpr, GATED: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr,
    WEIGHTS_FIRST: tl.constexpr, HAS_QUADS: tl.constexpr, OUT_GROUP: tl.constexpr,
):  # fmt: skip
    """A block of rows times one strip, stored.

    HAS_QUADS: columns of the input lie as quads.py wants them; OUT_GROUP > 0: those of the result shall.
    """
    if HAS_QUADS:
        result = quad_strip(
            x[0], in_rows, valid, weight, matrix, strip, STRIDE_IN, N, K, GROUP, BLOCK, GATED,
            BLOCK_T, BLOCK_K // GROUP,
        )  # fmt: skip
    else:
        result = dot_strip(
            x, in_rows, valid, weight, matrix, strip, STRIDE_IN, N, K, FORMAT, GROUP, BLOCK, GATED,
            BLOCK_T, BLOCK_K, WEIGHTS_FIRST,
        )  # fmt: skip
    NUM_OUTPUTS: tl.constexpr = N // 2 if GATED else N
    if GATED:
        if HAS_QUADS:
            gate, up = gate_and_up(result, BLOCK, BLOCK_T)
        elif WEIGHTS_FIRST:
            gate, up = tl.split(tl.permute(tl.reshape(result, [BLOCK, 2, BLOCK_T]), [0, 2, 1]))
        else:
            gate, up = tl.split(tl.reshape(result, [BLOCK_T, BLOCK, 2]))
        result = swiglu(gate, up, limit)
    if WEIGHTS_FIRST:
        result = tl.trans(result)
    n = strip * BLOCK + tl.arange(0, BLOCK)
    column = quad_position(n, OUT_GROUP) if OUT_GROUP > 0 else n
    tl.store(
        out_ptr + out_rows.to(tl.int64)[:, None] * STRIDE_OUT + column[None, :],
        result.to(out_ptr.dtype.element_ty),
        mask=valid[:, None] & (n < NUM_OUTPUTS)[None, :],
    )


@triton.jit
def routed_block(
    ids_ptr, blocks, block, first_expert, num_tokens, K: tl.constexpr, E: tl.constexpr, BLOCK_T: tl.constexpr
):
    """Expert of a block, its pairs [T], which of them are valid, and whether the block exists.

    blocks = (sorted pairs, experts, starts, ends, number), or Nones: then block b is the pair b alone.
    """
    t = tl.arange(0, BLOCK_T)
    if blocks[0] is None:
        expert, exists = local_expert(ids_ptr, block, first_expert, num_tokens, K, E)
        pairs = block + 0 * t
        valid = t == 0
    else:
        exists = block < tl.load(blocks[4])
        expert = tl.load(blocks[1] + block, mask=exists, other=0)
        start = tl.load(blocks[2] + block, mask=exists, other=0)
        end = tl.load(blocks[3] + block, mask=exists, other=0)
        valid = start + t < end
        pairs = tl.load(blocks[0] + start + t, mask=valid, other=0)
    return expert, pairs, valid, exists


@triton.jit
def block_and_strip(GROUP_BLOCKS: tl.constexpr):
    """Of this program; blocks first, in groups if there are any."""
    block, strip = tl.program_id(0), tl.program_id(1)
    if GROUP_BLOCKS > 0:
        num_blocks, num_strips = tl.num_programs(0), tl.num_programs(1)
        program = strip * num_blocks + block
        first = program // (GROUP_BLOCKS * num_strips) * GROUP_BLOCKS
        within = program - first * num_strips
        size = tl.minimum(num_blocks - first, GROUP_BLOCKS)
        block, strip = first + within % size, within // size
    return block, strip


@triton.jit(do_not_specialize=["num_blocks", "num_pairs", "first_expert", "num_tokens"])
def product_dot(
    x, shared_x_ptr, ids_ptr, blocks, weight, shared_weight, out_ptr, num_blocks, num_pairs, first_expert,
    num_tokens, limit, shared_limit, K: tl.constexpr, E: tl.constexpr, GATED: tl.constexpr,
    STRIDE_X: tl.constexpr, STRIDE_IN: tl.constexpr, STRIDE_OUT: tl.constexpr, N: tl.constexpr,
    WIDTH: tl.constexpr, FORMAT: tl.constexpr, GROUP: tl.constexpr, SHARED_N: tl.constexpr,
    SHARED_WIDTH: tl.constexpr, SHARED_FORMAT: tl.constexpr, SHARED_GROUP: tl.constexpr, BLOCK: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr, SHARED_BLOCK_K: tl.constexpr, WEIGHTS_FIRST: tl.constexpr,
    HAS_QUADS: tl.constexpr, GROUP_BLOCKS: tl.constexpr, OUT_GROUP: tl.constexpr, IS_EARLY: tl.constexpr,
):  # fmt: skip
    """Blocks of rows of one expert: grid (num_blocks [+ shared blocks], strips); as `product_gemv`."""
    wait_for_inputs(IS_EARLY)
    block, strip = block_and_strip(GROUP_BLOCKS)
    if block < num_blocks:
        expert, pairs, valid, exists = routed_block(
            ids_ptr, blocks, block, first_expert, num_tokens, K, E, BLOCK_T
        )
        if exists & (strip * BLOCK < (N // 2 if GATED else N)):
            in_rows = pairs // K if GATED else pairs
            dot_tile(
                x, in_rows, valid, weight, expert, strip, out_ptr, pairs, limit, STRIDE_X, STRIDE_OUT,
                N, WIDTH, FORMAT, GROUP, BLOCK, GATED, BLOCK_T, BLOCK_K, WEIGHTS_FIRST, HAS_QUADS,
                OUT_GROUP,
            )  # fmt: skip
    if (SHARED_N > 0) and (block >= num_blocks):
        tokens = (block - num_blocks) * BLOCK_T + tl.arange(0, BLOCK_T)
        valid = tokens < num_real_tokens(num_tokens)
        valid = valid & (tl.load(ids_ptr + tokens * K, mask=valid, other=-1) >= 0)
        if (tl.max(valid.to(tl.int32)) > 0) & (strip * BLOCK < (SHARED_N // 2 if GATED else SHARED_N)):
            in_rows = tokens if GATED else num_pairs + tokens
            dot_tile(
                (shared_x_ptr, None), in_rows, valid, shared_weight, block * 0, strip, out_ptr,
                num_pairs + tokens, shared_limit, STRIDE_IN, STRIDE_OUT,
                SHARED_N, SHARED_WIDTH, SHARED_FORMAT, SHARED_GROUP, BLOCK, GATED, BLOCK_T, SHARED_BLOCK_K,
                WEIGHTS_FIRST, False, 0,
            )  # fmt: skip
    let_next_start(IS_EARLY)
