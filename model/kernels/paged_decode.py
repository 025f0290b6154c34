"""Attention over the paged cache of sequences that compute one token each, or equally few (drafts to verify).

Shapes: T = B * Q tokens of B sequences, N query heads, K key/value heads, G = N / K, D head size, M columns
of a block table, R = Q * G query rows of one key head, W work programs, C partial results added at a time.

A step's work is one line of tiles (TILE positions of one key head): sequence by sequence, in it head by head,
in it oldest first. Every program takes an equal share of the line, wherever that cuts it: the grid depends on
no data, and one long sequence among short ones keeps all programs busy. A piece (sequence, key head) that one
program has whole is finished at once. Of the others each program leaves its part in the workspace. All parts
are added in the order of the line: by the last program to leave one (they count themselves), or where few
sequences have many parts by a second launch (`paged_combine`).

    line    | s0 h0 ......... | s0 h1 ......... | s1 h0 | s1 h1 | padding h0 | h1 |
    share   |  program 0  |  program 1  |  program 2  |  program 3  | ...

A program has at most one piece that began before its share (its slot 0) and one that goes on after it
(slot 1, unless it is the former).
"""
# Kernels are a language of their own: many arguments, no types.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, import-untyped, untyped-decorator"
# ruff: noqa: PLR0913, PLR0917

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl

from model.kernels.early_start import early_launch, let_next_start, wait_for_inputs
from model.kernels.paged import DecodeWorkspace, PagedKV, PagedSequences
from model.kernels.paged_combine import combine_kernel
from model.kernels.paged_line import add_parts, line_of, part_slot, piece_of, store_part
from model.kernels.paged_tiles import LOG2_E, NOTHING, ask_for_tile, attend_tile, store_gated

MIN_DOT_ROWS = 16
_FEW_SEQUENCES, _SOME_SEQUENCES = 4, 16
_SMALL_TILE = 32
_FEW_PROGRAMS = 132  # one for each multiprocessor
_PARTS_APART, _WARPS_APART = 64, 4
# Rows x parts in registers at a time while the last program adds them: each time is a wait for memory.
_MERGED_ROWS = 32


@dataclass(frozen=True)
class DecodeTuning:
    """How the kernel is compiled; results differ by rounding only."""

    tile: int = 64  # positions; multiple of 16
    num_warps: int = 4
    # Keys are found through the block table, and Triton gives each of the two loads half the stages: 5 keep
    # two tiles of keys and values on their way, 3 and 4 only one.
    num_stages: int = 5
    adds_apart: bool = False  # in a launch of its own, every row by a program: for few rows of many parts
    most_programs: int | None = None  # fewer than the workspace has: fewer parts of a long sequence
    most_whole: int = 12  # tiles: if no piece is longer, none is cut: adding up would cost more than it saves


def choose_tuning(
    num_seqs: int, num_kv_heads: int, window: int | None, cache_dtype: torch.dtype
) -> DecodeTuning:
    """Few sequences: one program for each multiprocessor, and tiles as small as there are programs for.

    Parts of a long sequence are added by a launch of their own: 33 of them in 12 us less than by one program
    (H200). With many sequences there are few parts, and that launch would cost more.
    """
    if num_seqs > _FEW_SEQUENCES:
        is_some = num_seqs <= _SOME_SEQUENCES
        if is_some and window is None:
            return DecodeTuning(adds_apart=True)
        return DecodeTuning(num_warps=8 if is_some and cache_dtype != torch.float32 else 4)
    apart = DecodeTuning(adds_apart=True, most_programs=_FEW_PROGRAMS, most_whole=1)
    small = replace(apart, num_warps=8, num_stages=3)
    if window is None:
        return small if cache_dtype == torch.float32 else replace(apart, tile=128)
    num_tiles = num_seqs * num_kv_heads * (window // _SMALL_TILE + 1)
    return replace(apart, tile=_SMALL_TILE) if num_tiles <= _FEW_PROGRAMS else small


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
    tuning = tuning or choose_tuning(num_seqs, kv.num_kv_heads, window, kv.pool_XK2SD.dtype)
    begins_B = sequences.context_lens_B if sequences.begins_B is None else sequences.begins_B
    num_programs = min(num_programs, tuning.most_programs or num_programs)
    line = {
        "B": num_seqs, "B_POW2": triton.next_power_of_2(num_seqs), "Q": num_queries, "G": group_size,
        "K": kv.num_kv_heads, "D": head_dim, "BLOCK": kv.block_size, "WINDOW": window or 0,
        "HAS_BEGINS": sequences.begins_B is not None, "MAX_ROWS": max_rows, "TILE": tuning.tile,
        "MOST_WHOLE": tuning.most_whole, **early_launch(),
    }  # fmt: skip
    merged_parts = 0 if tuning.adds_apart else max(1, _MERGED_ROWS // merged_rows)
    _decode_kernel[(num_programs,)](
        q_TND, kv.pool_XK2SD, sequences.blocks_BM, sequences.context_lens_B, begins_B, gate_TN, out_TND,
        workspace.partial_sums_W2RD, workspace.partial_stats_W22R, workspace.counters,
        gate_TN.stride(0), head_dim**-0.5 * LOG2_E.value * kv.k_scale, kv.v_scale,
        COLUMNS=num_columns, DOT_ROWS=max(MIN_DOT_ROWS, merged_rows), MERGED_ROWS=merged_rows,
        MERGED_PARTS=merged_parts, IS_FP8=kv.is_fp8, num_warps=tuning.num_warps, num_stages=tuning.num_stages,
        **line,
    )  # fmt: skip
    if tuning.adds_apart:
        combine_kernel[(num_tokens, num_q)](
            sequences.context_lens_B, begins_B, gate_TN, out_TND, workspace.partial_sums_W2RD,
            workspace.partial_stats_W22R, gate_TN.stride(0), kv.v_scale, NUM_PROGRAMS=num_programs,
            PARTS=_PARTS_APART, num_warps=_WARPS_APART, **line,
        )  # fmt: skip


@triton.jit
def _store_piece(
    out, gate, gate_stride, seq, head, sums_RD, weight_R, v_scale, Q: tl.constexpr, G: tl.constexpr,
    K: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row_R = tl.arange(0, ROWS)
    token_R = (seq * Q + row_R // G).to(tl.int64)
    head_R = head * G + row_R % G
    out_at_R = out + (token_R * (K * G) + head_R) * D
    is_row_R = row_R < Q * G
    gate_R = tl.load(gate + token_R * gate_stride + head_R, mask=is_row_R, other=0.0)
    store_gated(out_at_R, gate_R, sums_RD, weight_R, v_scale, is_row_R, D)


@triton.jit
def _finish_if_last(
    part_sums, part_stats, counter, first_program, last_program, first_tile, share, out, gate, gate_stride,
    seq, head, v_scale, Q: tl.constexpr, G: tl.constexpr, K: tl.constexpr, D: tl.constexpr,
    MAX_ROWS: tl.constexpr, MERGED_ROWS: tl.constexpr, MERGED_PARTS: tl.constexpr,
):  # fmt: skip
    """The program that leaves the last part of a piece adds all of them."""
    tl.debug_barrier()  # all threads have stored before one of them says so
    if tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu") == last_program - first_program:
        sums_RD, weight_R = add_parts(
            part_sums, part_stats, 0, first_program, last_program, first_tile, share, MERGED_ROWS,
            MERGED_PARTS, Q * G, MAX_ROWS, D,
        )  # fmt: skip
        _store_piece(out, gate, gate_stride, seq, head, sums_RD, weight_R, v_scale, Q, G, K, D, MERGED_ROWS)
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
        sums_RD, largest_R, weight_R = attend_tile(
            q_RD, sums_RD, largest_R, weight_R, pool, table, first + tile * TILE, length, query_R, begin,
            scale, head, K, D, BLOCK, COLUMNS, WINDOW, TILE, True,
        )  # fmt: skip
    return sums_RD, largest_R, weight_R


@triton.jit
def _decode_kernel(
    q, pool, blocks, context_lens, begins, gate, out, part_sums, part_stats, counters,
    gate_stride, scale, v_scale,
    B: tl.constexpr, B_POW2: tl.constexpr, Q: tl.constexpr, G: tl.constexpr, K: tl.constexpr, D: tl.constexpr,
    BLOCK: tl.constexpr, COLUMNS: tl.constexpr, WINDOW: tl.constexpr, HAS_BEGINS: tl.constexpr,
    MAX_ROWS: tl.constexpr, DOT_ROWS: tl.constexpr, MERGED_ROWS: tl.constexpr, MERGED_PARTS: tl.constexpr,
    TILE: tl.constexpr, MOST_WHOLE: tl.constexpr, IS_FP8: tl.constexpr, IS_EARLY: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    # Lengths, tables and all keys but this step's are older than what is waited for.
    end_B, num_line, share = line_of(
        context_lens, begins, tl.num_programs(0), B, B_POW2, Q, K, BLOCK, WINDOW, TILE, MOST_WHOLE, HAS_BEGINS
    )
    tile = program * share
    stop = tl.minimum(tile + share, num_line)
    if IS_EARLY and TILE % BLOCK == 0:
        seq, head, _, _, first, _, from_tile = piece_of(
            tl.minimum(tile, num_line - 1), context_lens, begins, end_B,
            B_POW2, Q, K, BLOCK, WINDOW, TILE, HAS_BEGINS,
        )  # fmt: skip
        table = blocks + seq.to(tl.int64) * COLUMNS
        ask_for_tile(pool, table, first + from_tile * TILE, head, K, D, BLOCK, COLUMNS, TILE)
    wait_for_inputs(IS_EARLY)
    while tile < stop:
        seq, head, length, begin, first, num_tiles, from_tile = piece_of(
            tile, context_lens, begins, end_B, B_POW2, Q, K, BLOCK, WINDOW, TILE, HAS_BEGINS
        )
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
            slot = part_slot(program, first_tile, share)
            store_part(
                part_sums, part_stats, slot, sums_RD, largest_R, weight_R, Q * G, DOT_ROWS, MAX_ROWS, D
            )
            if MERGED_PARTS > 0:
                _finish_if_last(
                    part_sums, part_stats, counters + seq * K + head, first_program, last_program, first_tile,
                    share, out, gate, gate_stride, seq, head, v_scale,
                    Q, G, K, D, MAX_ROWS, MERGED_ROWS, MERGED_PARTS,
                )  # fmt: skip
        tile += to_tile - from_tile
    let_next_start(IS_EARLY)
