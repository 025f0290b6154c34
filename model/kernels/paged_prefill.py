"""Attention of chunks of several sequences over the paged cache, which holds their keys and values already.

Shapes: T tokens of B sequences, N query heads, K key/value heads, G = N / K, D head size, M columns of a
block table, R = tokens x HEADS query rows of a program, L positions of a tile.

A program has R rows of one key head: HEADS of its G query heads (the power of two in G: 8 of 8, 4 of 12), and
R / HEADS tokens. So keys of a window are read for 16 or 32 tokens at a time, not for 128: a window of 512
costs 3 to 6 % more than its positions, not 25. Tiles of tokens are numbered through: sequence b's start at
starts[b] // TOKENS + b, which leaves each enough of them whatever the lengths; a program without tokens ends
at once. The last tiles, which have the most to see, run first.
"""
# Kernels are a language of their own: many arguments, no types.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, import-untyped, untyped-decorator"
# ruff: noqa: PLR0913, PLR0917

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from model.kernels.paged import PagedKV, PagedSequences
from model.kernels.paged_tiles import LOG2_E, NOTHING, attend_tile, first_position, store_gated


@dataclass(frozen=True)
class PrefillTuning:
    """How the kernel is compiled; results differ by rounding only."""

    rows: int = 128  # of queries: tokens x heads
    tile: int = 64  # positions; multiple of 16
    num_warps: int = 8
    num_stages: int = 5  # as in decode: two tiles of keys and values on their way


def paged_prefill(
    q_TND: torch.Tensor,
    kv: PagedKV,
    sequences: PagedSequences,
    query_starts_B1: torch.Tensor,
    gate_TN: torch.Tensor,
    out_TND: torch.Tensor,
    window: int | None = None,
    tuning: PrefillTuning = PrefillTuning(),
) -> None:
    """Causal attention times sigmoid(gate) of chunks: tokens [starts[b], starts[b + 1]) are b's last.

    `query_starts_B1`: int32 on the device. Rows from `starts[B]` on are not written. A token sees positions
    up to its own, the last `window` of them if given. Scale is D ** -0.5. q and out: bf16 (float32 with a
    float32 cache); rows of the gate may be apart.
    """
    num_tokens, num_q, head_dim = q_TND.shape
    num_seqs, num_columns = sequences.blocks_BM.shape
    group_size = num_q // kv.num_kv_heads
    heads = min(group_size & -group_size, tuning.rows)
    assert group_size * kv.num_kv_heads == num_q, (num_q, kv.num_kv_heads)
    assert q_TND.is_contiguous() and out_TND.is_contiguous() and gate_TN.stride(1) == 1
    assert out_TND.shape == q_TND.shape and gate_TN.shape == (num_tokens, num_q), (
        out_TND.shape,
        gate_TN.shape,
    )
    assert query_starts_B1.dtype == torch.int32 and query_starts_B1.shape == (num_seqs + 1,), query_starts_B1
    assert head_dim == kv.head_dim and (kv.is_fp8 or kv.pool_XK2SD.dtype == q_TND.dtype), kv.pool_XK2SD.dtype
    begins_B = sequences.begins_B
    num_tiles = num_tokens // (tuning.rows // heads) + num_seqs
    _prefill_kernel[(num_tiles, num_q // heads)](
        q_TND, kv.pool_XK2SD, sequences.blocks_BM, sequences.context_lens_B,
        sequences.context_lens_B if begins_B is None else begins_B, query_starts_B1, gate_TN, out_TND,
        gate_TN.stride(0), head_dim**-0.5 * LOG2_E.value * kv.k_scale, kv.v_scale, num_seqs,
        B_POW2=triton.next_power_of_2(num_seqs), HEADS=heads, G=group_size, K=kv.num_kv_heads, D=head_dim,
        BLOCK=kv.block_size, COLUMNS=num_columns, WINDOW=window or 0, HAS_BEGINS=begins_B is not None,
        ROWS=tuning.rows, TILE=tuning.tile, IS_FP8=kv.is_fp8,
        num_warps=tuning.num_warps, num_stages=tuning.num_stages,
    )  # fmt: skip


@triton.jit
def _find_tile(query_starts, tile, num_seqs, B_POW2: tl.constexpr, TOKENS: tl.constexpr):
    """Sequence that a tile of tokens belongs to, the tile's first token in it, and the sequence's rows."""
    seq_B = tl.arange(0, B_POW2)
    start_B = tl.load(query_starts + seq_B, mask=seq_B < num_seqs, other=0)
    first_tile_B = start_B // TOKENS + seq_B
    seq = tl.sum(((seq_B < num_seqs) & (first_tile_B <= tile)).to(tl.int32), 0) - 1
    start = tl.load(query_starts + seq)
    num_queries = tl.load(query_starts + seq + 1) - start
    return seq, (tile - start // TOKENS - seq) * TOKENS, start, num_queries


@triton.jit
def _attend_tiles(
    q_RD, sums_RD, largest_R, weight_R, pool, table, first, from_tile, to_tile, length, query_R, begin, scale,
    head, K: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr, COLUMNS: tl.constexpr, WINDOW: tl.constexpr,
    TILE: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    for tile in tl.range(from_tile, to_tile):
        sums_RD, largest_R, weight_R = attend_tile(
            q_RD, sums_RD, largest_R, weight_R, pool, table, first + tile * TILE, length, query_R, begin,
            scale, head, K, D, BLOCK, COLUMNS, WINDOW, TILE, MASKED,
        )  # fmt: skip
    return sums_RD, largest_R, weight_R


@triton.jit
def _prefill_kernel(
    q, pool, blocks, context_lens, begins, query_starts, gate, out, gate_stride, scale, v_scale, num_seqs,
    B_POW2: tl.constexpr, HEADS: tl.constexpr, G: tl.constexpr, K: tl.constexpr, D: tl.constexpr,
    BLOCK: tl.constexpr, COLUMNS: tl.constexpr, WINDOW: tl.constexpr, HAS_BEGINS: tl.constexpr,
    ROWS: tl.constexpr, TILE: tl.constexpr, IS_FP8: tl.constexpr,
):  # fmt: skip
    TOKENS: tl.constexpr = ROWS // HEADS
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    seq, first_token, start, num_queries = _find_tile(query_starts, tile, num_seqs, B_POW2, TOKENS)
    if first_token >= num_queries:
        return
    length = tl.load(context_lens + seq)
    begin = seq * 0
    if HAS_BEGINS:
        begin = tl.load(begins + seq)
    first_head = tl.program_id(1) * HEADS
    row_R = tl.arange(0, ROWS)
    token_R = first_token + row_R // HEADS
    is_row_R = token_R < num_queries
    head_R = first_head + row_R % HEADS
    query_R = length - num_queries + token_R
    at_R = (start + token_R).to(tl.int64) * (K * G) + head_R
    q_RD = tl.load(q + (at_R * D)[:, None] + tl.arange(0, D)[None, :], mask=is_row_R[:, None], other=0.0)
    if IS_FP8:
        q_RD = q_RD.to(tl.float16)  # as in decode
    sums_RD = tl.zeros([ROWS, D], tl.float32)
    largest_R = tl.full([ROWS], NOTHING, tl.float32)
    weight_R = tl.zeros([ROWS], tl.float32)
    first_query = length - num_queries + first_token
    first = first_position(first_query, begin, WINDOW, BLOCK)
    stop = tl.minimum(first_query + TOKENS, length)
    num_tiles = tl.cdiv(stop - first, TILE)
    table = blocks + seq.to(tl.int64) * COLUMNS
    num_open = num_tiles * 0  # tiles that every query sees whole
    if WINDOW == 0 and not HAS_BEGINS:
        num_open = (first_query + 1) // TILE
        sums_RD, largest_R, weight_R = _attend_tiles(
            q_RD, sums_RD, largest_R, weight_R, pool, table, first, 0, num_open, length, query_R, begin,
            scale, first_head // G, K, D, BLOCK, COLUMNS, WINDOW, TILE, False,
        )  # fmt: skip
    sums_RD, largest_R, weight_R = _attend_tiles(
        q_RD, sums_RD, largest_R, weight_R, pool, table, first, num_open, num_tiles, length, query_R, begin,
        scale, first_head // G, K, D, BLOCK, COLUMNS, WINDOW, TILE, True,
    )  # fmt: skip
    gate_at_R = gate + (start + token_R).to(tl.int64) * gate_stride + head_R
    gate_R = tl.load(gate_at_R, mask=is_row_R, other=0.0)
    store_gated(out + at_R * D, gate_R, sums_RD, weight_R, v_scale, is_row_R, D)
