"""The twins against the attention that the CPU path computes; layout and tables by themselves."""

from __future__ import annotations

import random

import pytest
import torch

from model.batching import build_batch
from model.kernels.paged import FP8, PagedKV, PagedSequences, allocate_pool, read, slots_of, write
from model.kernels.paged_decode_plain import paged_decode
from model.kernels.paged_prefill_plain import paged_prefill
from model.kernels.reference import paged_attention
from model.live import LiveSequence, SlotTable
from model.sampler import SampleRow
from model.sched.step import SequenceWork
from model.types import SamplingParams

WINDOW, BLOCK_SIZE, NUM_KV_HEADS, GROUP_SIZE, HEAD_DIM = 12, 4, 2, 3, 16


@pytest.mark.parametrize("group", ["full", "sliding"])
@pytest.mark.parametrize("num_tokens", [1, 3, 9, 25])
def test_twins_are_the_attention_of_the_model(group: str, num_tokens: int) -> None:
    generator = torch.Generator().manual_seed(1)
    starts = (0, 5, 30, 11)
    num_blocks = 64
    blocks = random.Random(0).sample(range(num_blocks), num_blocks)
    seqs = []
    for start in starts:
        tables = [SlotTable(BLOCK_SIZE), SlotTable(BLOCK_SIZE)]
        mine = tuple(blocks.pop() for _ in range(-(-(start + num_tokens) // BLOCK_SIZE)))
        for table in tables:
            table.append(mine)
        row = SampleRow(SamplingParams(max_tokens=1), [], [])
        seqs.append(LiveSequence((), [0] * (start + num_tokens), row, *tables))
    works = [
        (seq, SequenceWork(index, start, num_tokens, samples=True, new_full_blocks=(), new_sliding_blocks=()))
        for index, (seq, start) in enumerate(zip(seqs, starts, strict=True))
    ]
    batch = build_batch(works, WINDOW, {})
    cache = torch.randn(num_blocks * BLOCK_SIZE, 2, NUM_KV_HEADS, HEAD_DIM, generator=generator)
    shape = (batch.num_tokens, NUM_KV_HEADS * GROUP_SIZE, HEAD_DIM)
    q, gate = torch.randn(shape, generator=generator), torch.randn(shape[:2], generator=generator)
    expected = paged_attention(q, cache, batch.full if group == "full" else batch.sliding)
    expected *= gate.sigmoid()[..., None]

    pool = cache.view(num_blocks, BLOCK_SIZE, 2, NUM_KV_HEADS, HEAD_DIM).permute(0, 3, 2, 1, 4).contiguous()
    lengths = [start + num_tokens for start in starts]
    table = torch.zeros(len(seqs), 32, dtype=torch.int32)
    for row, (seq, length) in enumerate(zip(seqs, lengths, strict=True)):
        mine = torch.from_numpy(seq.full.span(0, length)[::BLOCK_SIZE].copy()) // BLOCK_SIZE
        table[row, : len(mine)] = mine.int()
    sequences = PagedSequences(table, torch.tensor(lengths, dtype=torch.int32))
    window = WINDOW if group == "sliding" else None
    row_starts = (torch.arange(len(seqs) + 1) * num_tokens).int()
    out = torch.empty_like(q)
    paged_decode(q, PagedKV(pool), sequences, gate, out, None, window)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)
    out.fill_(torch.nan)
    paged_prefill(q, PagedKV(pool), sequences, row_starts, gate, out, window)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, FP8], ids=str)
def test_what_is_written_is_read(dtype: torch.dtype) -> None:
    scales = (0.01, 0.02) if dtype == FP8 else (1.0, 1.0)
    kv = PagedKV(allocate_pool(3, NUM_KV_HEADS, BLOCK_SIZE, HEAD_DIM, dtype, torch.device("cpu")), *scales)
    slots = torch.tensor([11, -1, 0, 5])
    keys, values = torch.randn(2, 4, NUM_KV_HEADS, HEAD_DIM).unbind(0)
    write(kv, slots, keys, values)
    is_real = slots >= 0
    for found, expected in zip(read(kv, slots[is_real]), (keys, values), strict=True):
        limit = {torch.float32: 0.0, torch.bfloat16: 2**-8, FP8: 2**-4}[dtype]
        torch.testing.assert_close(found, expected[is_real], rtol=limit, atol=2e-5 if dtype == FP8 else 0.0)
    num_written = int((kv.pool_XK2SD.float() != 0).any(-1).sum())
    assert num_written == 3 * NUM_KV_HEADS * 2


def test_columns_are_a_ring() -> None:
    blocks = torch.tensor([40, 50, 60], dtype=torch.int32)
    positions = torch.tensor([0, 4, 11, 12, 17, 23])
    assert slots_of(blocks, positions, BLOCK_SIZE).tolist() == [160, 200, 243, 160, 201, 243]
