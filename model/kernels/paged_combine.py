"""Adds the parts that programs of decode attention left of pieces: every query row by a program of its own.

Shapes: T = B * Q tokens of B sequences, N query heads, K key/value heads, G = N / K, D head size, PARTS
partial results added at a time.
"""
# Kernels are a language of their own: many arguments, no types.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, import-untyped, untyped-decorator"
# ruff: noqa: PLR0913, PLR0917

from __future__ import annotations

import triton
import triton.language as tl

from model.kernels.early_start import let_next_start, wait_for_inputs
from model.kernels.paged_line import add_parts, begin_of, extent, first_tile_of, line_of
from model.kernels.paged_tiles import store_gated


@triton.jit
def combine_kernel(
    context_lens, begins, gate, out, part_sums, part_stats, gate_stride, v_scale,
    B: tl.constexpr, B_POW2: tl.constexpr, Q: tl.constexpr, G: tl.constexpr, K: tl.constexpr, D: tl.constexpr,
    BLOCK: tl.constexpr, WINDOW: tl.constexpr, HAS_BEGINS: tl.constexpr, MAX_ROWS: tl.constexpr,
    TILE: tl.constexpr, MOST_WHOLE: tl.constexpr, NUM_PROGRAMS: tl.constexpr, PARTS: tl.constexpr,
    IS_EARLY: tl.constexpr,
):  # fmt: skip
    """Grid: (T, N). NUM_PROGRAMS: of the launch that left the parts."""
    # Lengths and gates are older than what is waited for.
    token, query_head = tl.program_id(0), tl.program_id(1)
    seq, head = token // Q, query_head // G
    end_B, _, share = line_of(
        context_lens, begins, NUM_PROGRAMS, B, B_POW2, Q, K, BLOCK, WINDOW, TILE, MOST_WHOLE, HAS_BEGINS
    )
    begin = begin_of(begins, seq, True, HAS_BEGINS)
    _, num_tiles = extent(tl.load(context_lens + seq), begin, Q, BLOCK, WINDOW, TILE)
    first_tile = first_tile_of(seq, num_tiles, end_B, K, B_POW2) + head * num_tiles
    first_program, last_program = first_tile // share, (first_tile + num_tiles - 1) // share
    row_1 = tl.arange(0, 1)
    gate_1 = tl.load(gate + token.to(tl.int64) * gate_stride + query_head + row_1)
    wait_for_inputs(IS_EARLY)
    let_next_start(IS_EARLY)
    if first_program < last_program:  # else one had the whole piece, and finished it
        sums_1D, weight_1 = add_parts(
            part_sums, part_stats, token % Q * G + query_head % G, first_program, last_program, first_tile,
            share, 1, PARTS, Q * G, MAX_ROWS, D,
        )  # fmt: skip
        out_at_1 = out + (token.to(tl.int64) * (K * G) + query_head) * D + row_1
        store_gated(out_at_1, gate_1, sums_1D, weight_1, v_scale, row_1 < 1, D)
