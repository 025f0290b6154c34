from __future__ import annotations

import pytest
import torch

from model.kernels import qkv_prepare_plain as plain
from model.kernels.paged import FP8, PagedKV
from tests.model.kernels.paged_cases import POISON, random_tensor, relative_error

pytest.importorskip("triton")
import tests.model.kernels.interpreter  # noqa: F401 - repairs it
from model.kernels.qkv_prepare import qkv_prepare, token_tables

pytestmark = pytest.mark.slow  # interpreted, where there is no GPU

EPS, BLOCK_SIZE = 1e-5, 16


@pytest.mark.parametrize("num_columns", [3, 64])
@pytest.mark.parametrize("num_frequencies", [4, 12, 32])
def test_tables_of_a_step(num_columns: int, num_frequencies: int, generator: torch.Generator) -> None:
    device = generator.device
    positions = torch.tensor([0, 5, 16, 47, 48, 1023, -1, 262143, 131071], device=device)
    seqs = torch.tensor([0, 1, 2, 1, 0, 2, 2, 1, 0], dtype=torch.int32, device=device)
    frequencies = 1.0 / 10_000 ** (torch.arange(num_frequencies, device=device) / num_frequencies)
    blocks = torch.randint(0, 200_000_000, (3, num_columns), generator=generator, device=device).int()
    tables, slots = [], []
    for function in (plain.token_tables, token_tables):
        tables.append(torch.full((len(seqs), 2, num_frequencies), POISON, device=device))
        slots.append(torch.full((len(seqs),), -7, dtype=torch.int64, device=device))
        function(positions, seqs, frequencies, blocks, BLOCK_SIZE, tables[-1], slots[-1])
    assert torch.equal(*slots)
    torch.testing.assert_close(tables[1], tables[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("num_q", [2, 24, 48])
@pytest.mark.parametrize("num_turned", [16, 32])
@pytest.mark.parametrize(
    ("dtype", "cache_dtype"),
    [
        (torch.float32, torch.float32),
        (torch.float32, torch.bfloat16),
        (torch.bfloat16, torch.bfloat16),
        (torch.bfloat16, FP8),
    ],
    ids=str,
)
def test_heads_are_normed_turned_and_stored(
    num_q: int, num_turned: int, dtype: torch.dtype, cache_dtype: torch.dtype, generator: torch.Generator
) -> None:
    check(6, num_q, num_turned, dtype, cache_dtype, generator)


def test_many_tokens_take_larger_programs(
    generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model.kernels.qkv_prepare.MANY_TOKENS", 20)
    check(20, 40, 16, torch.bfloat16, torch.bfloat16, generator, num_kv_heads=1)


def check(
    num_tokens: int,
    num_q: int,
    num_turned: int,
    dtype: torch.dtype,
    cache_dtype: torch.dtype,
    generator: torch.Generator,
    num_kv_heads: int = 2,
    head_dim: int = 32,
) -> None:
    device = generator.device
    num_columns = (num_q + 2 * num_kv_heads) * head_dim + num_q
    qkvg = random_tensor((num_tokens, num_columns + 8), generator, dtype)[:, :num_columns] * 3
    norms = [1 + 0.3 * random_tensor((head_dim,), generator, torch.float32) for _ in range(2)]
    angles = random_tensor((num_tokens, num_turned // 2), generator, torch.float32) * 10
    cos_sin = torch.stack((angles.cos(), angles.sin()), 1)
    num_blocks = num_tokens // BLOCK_SIZE + 3
    slots = torch.randperm(num_blocks * BLOCK_SIZE, generator=generator, device=device)[:num_tokens]
    slots[1] = slots[4] = -1
    q_dtype = torch.float32 if cache_dtype == torch.float32 else torch.bfloat16
    scales = (0.05, 0.02) if cache_dtype == FP8 else (1.0, 1.0)
    results = []
    for function in (plain.qkv_prepare, qkv_prepare):
        pool = torch.full((num_blocks, num_kv_heads, 2, BLOCK_SIZE, head_dim), POISON, device=device)
        kv = PagedKV(pool.to(cache_dtype), *scales)
        q_out = torch.full((num_tokens, num_q, head_dim), POISON, dtype=q_dtype, device=device)
        function(qkvg, *norms, cos_sin, slots, kv, q_out, EPS)
        results.append((q_out.float(), kv.pool_XK2SD.float()))
    for expected, found in zip(*results, strict=True):
        assert torch.equal(expected.isnan(), found.isnan())
        # The same float32 formula: only what lies within rounding of a border may round to the other side.
        limit = {torch.float32: 1e-6, torch.bfloat16: 1e-3, FP8: 4e-3}[cache_dtype]
        assert relative_error(found.nan_to_num(), expected.nan_to_num()) < limit
