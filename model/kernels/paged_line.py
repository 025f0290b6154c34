"""The line of tiles that decode attention shares out, and the parts that programs leave of it.

Shapes: B sequences, Q tokens of each, K key/value heads, D head size, R query rows of one key head, C parts
added at a time.

The line goes sequence by sequence, in it head by head, in it oldest first (TILE positions each); every
program takes an equal share. Functions that kernels inline.
"""
# Kernels are a language of their own: many arguments, no types.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, import-untyped, untyped-decorator"
# ruff: noqa: PLR0913, PLR0917

from __future__ import annotations

import triton
import triton.language as tl

from model.kernels.paged_tiles import NOTHING, first_position


@triton.jit
def extent(length, begin, Q: tl.constexpr, BLOCK: tl.constexpr, WINDOW: tl.constexpr, TILE: tl.constexpr):
    """First position, and number of tiles, of a sequence or several. At least 1: padding is written, too."""
    first = first_position(length - Q, begin, WINDOW, BLOCK)
    return first, tl.maximum(tl.cdiv(length - first, TILE), 1)


@triton.jit
def begin_of(begins, seq, is_seq, HAS_BEGINS: tl.constexpr):
    """The first position that a sequence attends to."""
    begin = seq * 0
    if HAS_BEGINS:
        begin = tl.load(begins + seq, mask=is_seq, other=0)
    return begin


@triton.jit
def line_of(
    context_lens, begins, num_programs, B: tl.constexpr, B_POW2: tl.constexpr, Q: tl.constexpr,
    K: tl.constexpr, BLOCK: tl.constexpr, WINDOW: tl.constexpr, TILE: tl.constexpr, MOST_WHOLE: tl.constexpr,
    HAS_BEGINS: tl.constexpr,
):  # fmt: skip
    """Where each sequence's tiles end, [B], how many there are in all, and each program's share of them."""
    seq_B = tl.arange(0, B_POW2)
    length_B = tl.load(context_lens + seq_B, mask=seq_B < B, other=0)
    begin_B = begin_of(begins, seq_B, seq_B < B, HAS_BEGINS)
    _, num_tiles_B = extent(length_B, begin_B, Q, BLOCK, WINDOW, TILE)
    num_tiles_B = tl.where(seq_B < B, num_tiles_B, 0)
    end_B = tl.cumsum(num_tiles_B, 0) * K
    num_line, longest = tl.max(end_B, 0), tl.max(num_tiles_B, 0)
    share = tl.maximum(tl.cdiv(num_line, num_programs), tl.where(longest <= MOST_WHOLE, longest, 1))
    return end_B, num_line, share


@triton.jit
def first_tile_of(seq, num_tiles, end_B, K: tl.constexpr, B_POW2: tl.constexpr):
    """Where a sequence's tiles begin in the line."""
    return tl.sum(tl.where(tl.arange(0, B_POW2) == seq, end_B, 0), 0) - num_tiles * K


@triton.jit
def piece_of(
    tile, context_lens, begins, end_B, B_POW2: tl.constexpr, Q: tl.constexpr, K: tl.constexpr,
    BLOCK: tl.constexpr, WINDOW: tl.constexpr, TILE: tl.constexpr, HAS_BEGINS: tl.constexpr,
):  # fmt: skip
    """The sequence and key head of a tile of the line, the sequence's extent, which of its tiles it is."""
    seq = tl.sum((end_B <= tile).to(tl.int32), 0)
    length = tl.load(context_lens + seq)
    begin = begin_of(begins, seq, True, HAS_BEGINS)
    first, num_tiles = extent(length, begin, Q, BLOCK, WINDOW, TILE)
    in_seq = tile - first_tile_of(seq, num_tiles, end_B, K, B_POW2)
    return seq, in_seq // num_tiles, length, begin, first, num_tiles, in_seq % num_tiles


@triton.jit
def part_slot(program, first_tile, share):
    """Where a program's part of the piece that starts with `first_tile` is in the workspace."""
    return program * 2 + (first_tile >= program * share).to(tl.int32)


@triton.jit
def store_part(
    sums, stats, slot, sums_RD, largest_R, weight_R, NUM_ROWS: tl.constexpr, ROWS: tl.constexpr,
    MAX_ROWS: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Leave a part of a piece."""
    row_R = tl.arange(0, ROWS)
    sums_at_RD = sums + (slot * MAX_ROWS + row_R)[:, None] * D + tl.arange(0, D)[None, :]
    stats_at_R = stats + slot * (2 * MAX_ROWS) + row_R
    tl.store(sums_at_RD, sums_RD, mask=(row_R < NUM_ROWS)[:, None])
    tl.store(stats_at_R, largest_R, mask=row_R < NUM_ROWS)
    tl.store(stats_at_R + MAX_ROWS, weight_R, mask=row_R < NUM_ROWS)


@triton.jit
def add_parts(
    sums, stats, first_row, first_program, last_program, first_tile, share, ROWS: tl.constexpr,
    PARTS: tl.constexpr, NUM_ROWS: tl.constexpr, MAX_ROWS: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """All parts of some rows of a piece, in the order of programs.

    Read past L1, which may hold an earlier layer's.
    """
    row_R = first_row + tl.arange(0, ROWS)
    sums_RD = tl.zeros([ROWS, D], tl.float32)
    largest_R = tl.full([ROWS], NOTHING, tl.float32)
    weight_R = tl.zeros([ROWS], tl.float32)
    for begin in tl.range(first_program, last_program + 1, PARTS):
        program_C = begin + tl.arange(0, PARTS)
        slot_C = part_slot(program_C, first_tile, share)
        is_part_CR = (program_C <= last_program)[:, None] & (row_R < NUM_ROWS)[None, :]
        at_CR = stats + (slot_C * (2 * MAX_ROWS))[:, None] + row_R[None, :]
        largest_CR = tl.load(at_CR, mask=is_part_CR, other=NOTHING, cache_modifier=".cg")
        weight_CR = tl.load(at_CR + MAX_ROWS, mask=is_part_CR, other=0.0, cache_modifier=".cg")
        at_CR = sums + ((slot_C * MAX_ROWS)[:, None] + row_R[None, :]) * D
        at_CRD = at_CR[:, :, None] + tl.arange(0, D)[None, None, :]
        sums_CRD = tl.load(at_CRD, mask=is_part_CR[:, :, None], other=0.0, cache_modifier=".cg")
        new_largest_R = tl.maximum(largest_R, tl.max(largest_CR, 0))
        shrink_CR = tl.exp2(largest_CR - new_largest_R[None, :])
        shrink_R = tl.exp2(largest_R - new_largest_R)
        sums_RD = sums_RD * shrink_R[:, None] + tl.sum(sums_CRD * shrink_CR[:, :, None], 0)
        weight_R = weight_R * shrink_R + tl.sum(weight_CR * shrink_CR, 0)
        largest_R = new_largest_R
    return sums_RD, weight_R
