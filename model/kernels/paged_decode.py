"""Attention over the paged cache of sequences that compute one token each, or equally few (drafts to verify).

Shapes: T = B * Q tokens of B sequences, N query heads, K key/value heads, G = N / K, D head size, M columns
of a block table, R = Q * G query rows of one key head, W work programs, C partial results added at a time.

A step's work is one line of tiles (TILE positions of one key head): sequence by sequence, in it head by head,
in it oldest first. Every program takes an equal share of the line, wherever that cuts it: the grid depends on
no data, and one long sequence among short ones keeps all programs busy. A piece (sequence, key head) that one
program has whole is finished at once. Of the others each program leaves its part in the workspace and counts
itself; the last one adds up all parts in the order of the line, so the sum does not depend on who was last.

    line    | s0 h0 ......... | s0 h1 ......... | s1 h0 | s1 h1 | padding h0 | h1 |
    share   |  program 0  |  program 1  |  program 2  |  program 3  | ...

A program has at most one piece that began before its share (its slot 0) and one that goes on after it
(slot 1, unless it is the former).
"""
# Kernels are a language of their own: many arguments, no types.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, import-untyped, untyped-decorator"
# ruff: noqa: PLR0913, PLR0917

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from model.kernels.early_start import early_launch, let_next_start, wait_for_inputs
from model.kernels.paged import DecodeWorkspace, PagedKV, PagedSequences
from model.kernels.paged_tiles import LOG2_E, NOTHING, attend_tile, first_position, store_gated

MIN_DOT_ROWS = 16
_FEW_SEQUENCES = 4
_FEW_PROGRAMS = 132  # one for each multiprocessor


@dataclass(frozen=True)
class DecodeTuning:
    """How the kernel is compiled; results differ by rounding only."""

    tile: int = 64  # positions; multiple of 16
    num_warps: int = 4
    # Keys are found through the block table, and Triton gives each of the two loads half the stages: 5 keep
    # two tiles of keys and values on their way, 3 and 4 only one.
    num_stages: int = 5
    # Rows x partial results in registers at a time while they are added up: each time is a wait for memory.
    merged_rows: int = 32
    most_programs: int | None = None  # fewer than the workspace has: fewer parts of a long sequence
    min_share: int = 1  # tiles: fewer for a program would cost more in adding up than they save


def choose_tuning(num_seqs: int, num_rows: int, window: int | None, cache_dtype: torch.dtype) -> DecodeTuning:
    """Few sequences: what one program waits for is the time, so it takes more at once.

    Of a long one the parts, one of each program, take longest to add up: many of them at a time. `num_rows`,
    query rows of a key head: with those of drafts there are no registers left for it, and with a cache of
    float32 no shared memory.
    """
    if num_seqs > _FEW_SEQUENCES:
        return DecodeTuning()
    if window is not None or num_rows > MIN_DOT_ROWS or cache_dtype == torch.float32:
        return DecodeTuning(tile=128, num_warps=8, num_stages=3)
    return DecodeTuning(tile=128, num_warps=4, num_stages=5, merged_rows=128, most_programs=_FEW_PROGRAMS)


def paged_decode(
    q_TND: torch.Tensor,
    kv: PagedKV,
    sequences: PagedSequences,
    gate_TN: torch.Tensor,
    out_TND: torch.Tensor,
    workspace: DecodeWorkspace,
    window: int | None = None,
    tuning: DecodeTuning | None = None,
) -> None:
    """Causal attention times sigmoid(gate); this step's keys and values are in the cache already.

    Tokens lie sequence by sequence, Q = T / B each; token i of a sequence is at position context_len - Q + i
    and sees positions up to its own, the last `window` of them if given. One at a negative position sees
    nothing: zeros. Scale is D ** -0.5. q and out: bf16 (float32 with a float32 cache); rows of the gate may
    be apart.
    """
    num_tokens, num_q, head_dim = q_TND.shape
    num_seqs, num_columns = sequences.blocks_BM.shape
    num_queries, group_size = num_tokens // num_seqs, num_q // kv.num_kv_heads
    num_rows = num_queries * group_size
    assert num_queries * num_seqs == num_tokens and group_size * kv.num_kv_heads == num_q, q_TND.shape
    assert q_TND.is_contiguous() and out_TND.is_contiguous() and gate_TN.stride(1) == 1
    assert out_TND.shape == q_TND.shape and gate_TN.shape == (num_tokens, num_q), (
        out_TND.shape,
        gate_TN.shape,
    )
    assert head_dim == kv.head_dim and (kv.is_fp8 or kv.pool_XK2SD.dtype == q_TND.dtype), kv.pool_XK2SD.dtype
    num_programs, _, max_rows, _ = workspace.partial_sums_W2RD.shape
    assert num_rows <= max_rows and num_seqs * kv.num_kv_heads <= workspace.counters.numel(), num_rows
    merged_rows = triton.next_power_of_2(num_rows)
    tuning = tuning or choose_tuning(num_seqs, num_rows, window, kv.pool_XK2SD.dtype)
    begins_B = sequences.begins_B
    _decode_kernel[(min(num_programs, tuning.most_programs or num_programs),)](
        q_TND, kv.pool_XK2SD, sequences.blocks_BM, sequences.context_lens_B,
        sequences.context_lens_B if begins_B is None else begins_B, gate_TN, out_TND,
        workspace.partial_sums_W2RD, workspace.partial_stats_W22R, workspace.counters,
        gate_TN.stride(0), head_dim**-0.5 * LOG2_E.value * kv.k_scale, kv.v_scale,
        B=num_seqs, B_POW2=triton.next_power_of_2(num_seqs), Q=num_queries, G=group_size, K=kv.num_kv_heads,
        D=head_dim, BLOCK=kv.block_size, COLUMNS=num_columns, WINDOW=window or 0,
        HAS_BEGINS=begins_B is not None, MAX_ROWS=max_rows, DOT_ROWS=max(MIN_DOT_ROWS, merged_rows),
        MERGED_ROWS=merged_rows, MERGED_PARTS=max(1, tuning.merged_rows // merged_rows), TILE=tuning.tile,
        MIN_SHARE=tuning.min_share, IS_FP8=kv.is_fp8,
        num_warps=tuning.num_warps, num_stages=tuning.num_stages, **early_launch(),
    )  # fmt: skip


@triton.jit
def _extent(length, begin, Q: tl.constexpr, BLOCK: tl.constexpr, WINDOW: tl.constexpr, TILE: tl.constexpr):
    """First position, and number of tiles, of a sequence or several. At least 1: padding is written, too."""
    first = first_position(length - Q, begin, WINDOW, BLOCK)
    return first, tl.maximum(tl.cdiv(length - first, TILE), 1)


@triton.jit
def _begin_of(begins, seq, is_seq, HAS_BEGINS: tl.constexpr):
    begin = seq * 0
    if HAS_BEGINS:
        begin = tl.load(begins + seq, mask=is_seq, other=0)
    return begin


@triton.jit
def _part_slot(program, first_tile, share):
    """Where a program's part of the piece that starts with `first_tile` is in the workspace."""
    return program * 2 + (first_tile >= program * share).to(tl.int32)


@triton.jit
def _add_parts(
    sums, stats, first_program, last_program, first_tile, share, ROWS: tl.constexpr, PARTS: tl.constexpr,
    NUM_ROWS: tl.constexpr, MAX_ROWS: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """All parts of a piece, in the order of programs. Read past L1, which may hold an earlier layer's."""
    row_R = tl.arange(0, ROWS)
    sums_RD = tl.zeros([ROWS, D], tl.float32)
    largest_R = tl.full([ROWS], NOTHING, tl.float32)
    weight_R = tl.zeros([ROWS], tl.float32)
    for begin in tl.range(first_program, last_program + 1, PARTS):
        program_C = begin + tl.arange(0, PARTS)
        slot_C = _part_slot(program_C, first_tile, share)
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


@triton.jit
def _store_piece(
    out, gate, gate_stride, seq, head, sums_RD, weight_R, v_scale, Q: tl.constexpr, G: tl.constexpr,
    K: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row_R = tl.arange(0, ROWS)
    token_R = (seq * Q + row_R // G).to(tl.int64)
    head_R = head * G + row_R % G
    out_at_R = out + (token_R * (K * G) + head_R) * D
    store_gated(out_at_R, gate + token_R * gate_stride + head_R, sums_RD, weight_R, v_scale, row_R < Q * G, D)


@triton.jit
def _hand_over(
    part_sums, part_stats, counter, program, first_program, last_program, first_tile, share,
    sums_RD, largest_R, weight_R, out, gate, gate_stride, seq, head, v_scale,
    Q: tl.constexpr, G: tl.constexpr, K: tl.constexpr, D: tl.constexpr, MAX_ROWS: tl.constexpr,
    DOT_ROWS: tl.constexpr, MERGED_ROWS: tl.constexpr, MERGED_PARTS: tl.constexpr,
):  # fmt: skip
    """Leave a part of a piece in the workspace; the program that leaves the last one finishes the piece."""
    row_R = tl.arange(0, DOT_ROWS)
    is_row_R = row_R < Q * G
    slot = _part_slot(program, first_tile, share)
    sums_at_RD = part_sums + (slot * MAX_ROWS + row_R)[:, None] * D + tl.arange(0, D)[None, :]
    stats_at_R = part_stats + slot * (2 * MAX_ROWS) + row_R
    tl.store(sums_at_RD, sums_RD, mask=is_row_R[:, None])
    tl.store(stats_at_R, largest_R, mask=is_row_R)
    tl.store(stats_at_R + MAX_ROWS, weight_R, mask=is_row_R)
    tl.debug_barrier()  # all threads have stored before one of them says so
    if tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu") == last_program - first_program:
        all_sums_RD, all_weight_R = _add_parts(
            part_sums, part_stats, first_program, last_program, first_tile, share, MERGED_ROWS, MERGED_PARTS,
            Q * G, MAX_ROWS, D,
        )  # fmt: skip
        _store_piece(
            out, gate, gate_stride, seq, head, all_sums_RD, all_weight_R, v_scale, Q, G, K, D, MERGED_ROWS
        )
        tl.store(counter, 0)


@triton.jit
def _attend_piece(
    q, pool, table, seq, head, length, begin, first, from_tile, to_tile, scale,
    Q: tl.constexpr, G: tl.constexpr, K: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr,
    COLUMNS: tl.constexpr, WINDOW: tl.constexpr, DOT_ROWS: tl.constexpr, TILE: tl.constexpr,
    IS_FP8: tl.constexpr,
):  # fmt: skip
    """Tiles [from_tile, to_tile) of a sequence and key head."""
    row_R = tl.arange(0, DOT_ROWS)
    token_R = (seq * Q + row_R // G).to(tl.int64)
    q_at_RD = q + ((token_R * (K * G) + head * G + row_R % G) * D)[:, None] + tl.arange(0, D)[None, :]
    q_RD = tl.load(q_at_RD, mask=(row_R < Q * G)[:, None], other=0.0)
    if IS_FP8:
        # e4m3 values are float16 values, and one instruction away; bf16 is two.
        q_RD = q_RD.to(tl.float16)
    query_R = length - Q + row_R // G
    sums_RD = tl.zeros([DOT_ROWS, D], tl.float32)
    largest_R = tl.full([DOT_ROWS], NOTHING, tl.float32)
    weight_R = tl.zeros([DOT_ROWS], tl.float32)
    for tile in tl.range(from_tile, to_tile):
        position_L = first + tile * TILE + tl.arange(0, TILE)
        sums_RD, largest_R, weight_R = attend_tile(
            q_RD, sums_RD, largest_R, weight_R, pool, table, position_L, length, query_R, begin, scale, head,
            K, D, BLOCK, COLUMNS, WINDOW, True,
        )  # fmt: skip
    return sums_RD, largest_R, weight_R


@triton.jit
def _decode_kernel(
    q, pool, blocks, context_lens, begins, gate, out, part_sums, part_stats, counters,
    gate_stride, scale, v_scale,
    B: tl.constexpr, B_POW2: tl.constexpr, Q: tl.constexpr, G: tl.constexpr, K: tl.constexpr, D: tl.constexpr,
    BLOCK: tl.constexpr, COLUMNS: tl.constexpr, WINDOW: tl.constexpr, HAS_BEGINS: tl.constexpr,
    MAX_ROWS: tl.constexpr, DOT_ROWS: tl.constexpr, MERGED_ROWS: tl.constexpr, MERGED_PARTS: tl.constexpr,
    TILE: tl.constexpr, MIN_SHARE: tl.constexpr, IS_FP8: tl.constexpr, IS_EARLY: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    wait_for_inputs(IS_EARLY)
    seq_B = tl.arange(0, B_POW2)
    length_B = tl.load(context_lens + seq_B, mask=seq_B < B, other=0)
    begin_B = _begin_of(begins, seq_B, seq_B < B, HAS_BEGINS)
    _, num_tiles_B = _extent(length_B, begin_B, Q, BLOCK, WINDOW, TILE)
    end_B = tl.cumsum(tl.where(seq_B < B, num_tiles_B, 0), 0) * K
    num_line = tl.max(end_B, 0)
    share = tl.maximum(tl.cdiv(num_line, tl.num_programs(0)), MIN_SHARE)
    tile = program * share
    stop = tl.minimum(tile + share, num_line)
    while tile < stop:
        seq = tl.sum((end_B <= tile).to(tl.int32), 0)
        length = tl.load(context_lens + seq)
        begin = _begin_of(begins, seq, True, HAS_BEGINS)
        first, num_tiles = _extent(length, begin, Q, BLOCK, WINDOW, TILE)
        in_seq = tile - (tl.sum(tl.where(seq_B == seq, end_B, 0), 0) - num_tiles * K)
        head = in_seq // num_tiles
        from_tile = in_seq % num_tiles
        to_tile = tl.minimum(num_tiles, from_tile + stop - tile)
        sums_RD, largest_R, weight_R = _attend_piece(
            q, pool, blocks + seq.to(tl.int64) * COLUMNS, seq, head, length, begin, first, from_tile,
            tl.minimum(to_tile, tl.cdiv(length - first, TILE)), scale, Q, G, K, D, BLOCK, COLUMNS, WINDOW,
            DOT_ROWS, TILE, IS_FP8,
        )  # fmt: skip
        first_tile = tile - from_tile
        first_program = first_tile // share
        last_program = (first_tile + num_tiles - 1) // share
        if first_program == last_program:
            _store_piece(out, gate, gate_stride, seq, head, sums_RD, weight_R, v_scale, Q, G, K, D, DOT_ROWS)
        else:
            _hand_over(
                part_sums, part_stats, counters + seq * K + head, program, first_program, last_program,
                first_tile, share, sums_RD, largest_R, weight_R, out, gate, gate_stride, seq, head, v_scale,
                Q, G, K, D, MAX_ROWS, DOT_ROWS, MERGED_ROWS, MERGED_PARTS,
            )  # fmt: skip
        tile += to_tile - from_tile
    let_next_start(IS_EARLY)
