"""Faster ways of computing the same: each against the plain formula, over random shapes.

Shapes: T tokens, N query heads, K key heads, D head size, S cache slots, E experts, R rows, H hidden.
"""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody knows

from model.batch import Batch
from model.batching import build_batch
from model.config import TextConfig, read_config
from model.kernels.reference import paged_attention
from model.live import LiveSequence, SlotTable
from model.nano.shape import Shape
from model.nano.write import write_model
from model.net.layers import rms_norm
from model.net.moe import Experts
from model.sampler import SampleRow
from model.sched.step import SequenceWork
from model.types import SamplingParams

WINDOW, BLOCK_SIZE, NUM_KV_HEADS, HEAD_DIM = 12, 4, 2, 16


def _sequence(num_tokens: int, blocks: list[int]) -> LiveSequence:
    """A sequence whose positions lie in the next of the shuffled `blocks`, in both groups."""
    mine = tuple(blocks.pop() for _ in range(-(-num_tokens // BLOCK_SIZE)))
    tables = [SlotTable(BLOCK_SIZE), SlotTable(BLOCK_SIZE)]
    for table in tables:
        table.append(mine)
    return LiveSequence((), [0] * num_tokens, SampleRow(SamplingParams(max_tokens=1), [], []), *tables)


def _batch(shapes: list[tuple[int, int]], num_blocks: int) -> tuple[Batch, list[LiveSequence]]:
    """A step of sequences that compute `num_tokens` from `start`, in scattered blocks."""
    blocks = random.Random(0).sample(range(num_blocks), num_blocks)
    seqs = [_sequence(start + num_tokens, blocks) for start, num_tokens in shapes]
    works = [
        (seq, SequenceWork(index, start, num_tokens, samples=True, new_full_blocks=(), new_sliding_blocks=()))
        for index, (seq, (start, num_tokens)) in enumerate(zip(seqs, shapes, strict=True))
    ]
    return build_batch(works, WINDOW, {}), seqs


def _one_query(q_ND: torch.Tensor, kv_L2KD: torch.Tensor) -> torch.Tensor:
    """Softmax attention of one token over the keys it may see, head by head."""
    group_size = q_ND.shape[0] // kv_L2KD.shape[2]
    heads = []
    for head, q_D in enumerate(q_ND):
        k_LD, v_LD = kv_L2KD[:, :, head // group_size].unbind(1)
        heads.append(torch.softmax(k_LD @ q_D * HEAD_DIM**-0.5, 0) @ v_LD)
    return torch.stack(heads)


@pytest.mark.parametrize("group", ["full", "sliding"])
@pytest.mark.parametrize(
    "shapes",  # (start, num_tokens) of each sequence
    [
        [(0, 3)],
        [(0, 12), (0, 13)],
        [(20, 4), (3, 4), (11, 4), (40, 2), (6, 1)],
        [(0, 40)],
        [(5, 20), (0, 17), (3, 1)],
        [(30, 16), (7, 2), (50, 1), (8, 25)],
    ],
    ids=str,
)
def test_attention_of_any_mix_sees_what_each_token_may_see(group: str, shapes: list[tuple[int, int]]) -> None:
    generator = torch.Generator().manual_seed(1)
    num_blocks, num_heads = 64, 6
    batch, seqs = _batch(shapes, num_blocks)
    cache = torch.randn(
        num_blocks * BLOCK_SIZE, 2, NUM_KV_HEADS, HEAD_DIM, generator=generator, dtype=torch.float64
    )
    q = torch.randn(batch.num_tokens, num_heads, HEAD_DIM, generator=generator, dtype=torch.float64)
    out = paged_attention(q, cache, batch.full if group == "full" else batch.sliding)
    row = 0
    for seq, (start, num_tokens) in zip(seqs, shapes, strict=True):
        for position in range(start, start + num_tokens):
            first = 0 if group == "full" else max(0, position - WINDOW + 1)
            slots = torch.from_numpy(seq.full.span(first, position + 1).copy())
            torch.testing.assert_close(out[row], _one_query(q[row], cache[slots]), rtol=0, atol=1e-12)
            row += 1


def test_only_chunks_longer_than_the_window_are_tiled() -> None:
    batch, _ = _batch([(0, WINDOW), (4, WINDOW + 1), (9, 1)], 64)
    assert [prefill.num_tokens for prefill in batch.sliding.prefills] == [WINDOW]
    assert batch.sliding.tiles is not None
    assert batch.sliding.tiles.token_rows_NQ.unique().tolist() == list(range(WINDOW, 2 * WINDOW + 1))
    assert batch.full.tiles is None


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> TextConfig:
    directory = tmp_path_factory.mktemp("kernels")
    write_model(directory, Shape())
    return read_config(directory).text


@pytest.mark.parametrize(
    "counts",
    [[1] * 16, [0, 5] * 8, [40] + [0] * 15, [0] * 15 + [3], [16, 15, 14, 13] * 4, list(range(16))],
    ids=str,
)
@pytest.mark.parametrize("limit", [None, 0.5])
def test_padded_experts_equal_experts_one_by_one(
    text: TextConfig, counts: list[int], limit: float | None
) -> None:
    torch.manual_seed(2)
    experts = Experts(len(counts), text, limit, torch.float64)
    for weight in experts.parameters():
        torch.nn.init.normal_(weight)
    rows_RH = torch.randn(sum(counts), text.hidden_size, dtype=torch.float64)
    padded = experts._padded(rows_RH, counts, max(counts))
    torch.testing.assert_close(padded, experts._one_by_one(rows_RH, counts), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("size", [32, 256, 4096])
def test_norm_is_the_formula_and_the_same_bits_in_any_batch(size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    x = torch.randn(37, size, generator=generator) * 3
    scale = torch.randn(size, generator=generator)
    normed = rms_norm(x, scale, 1e-5)
    torch.testing.assert_close(normed, F.rms_norm(x, (size,), scale, 1e-5), rtol=1e-5, atol=1e-6)
    for first, last in ((0, 1), (5, 7), (3, 36)):
        assert torch.equal(rms_norm(x[first:last], scale, 1e-5), normed[first:last])
