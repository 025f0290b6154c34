from __future__ import annotations

import random

import pytest
import torch

from model.kernels.paged import FP8
from model.kernels.paged_prefill_plain import paged_prefill as plain_prefill
from tests.model.kernels.paged_cases import (
    MAX_ERROR,
    POISON,
    Case,
    poison_unseen,
    q_dtype,
    random_kv,
    random_sequences,
    random_tensor,
    relative_error,
)

pytest.importorskip("triton")
import tests.model.kernels.interpreter  # noqa: F401 - repairs it
from model.kernels.paged_prefill import PrefillTuning, paged_prefill

pytestmark = pytest.mark.slow  # interpreted, where there is no GPU

TUNING = PrefillTuning(rows=32, tile=16, num_warps=4)


def check(
    case: Case, chunks: tuple[int, ...], generator: torch.Generator, tuning: PrefillTuning = TUNING
) -> None:
    """`chunks`: query tokens of each sequence, its last positions. Two rows behind them stay as they are."""
    sequences, num_blocks = random_sequences(case, generator)
    kv = random_kv(case, num_blocks, generator)
    poison_unseen(kv, sequences, case)
    starts = torch.tensor([0, *torch.tensor(chunks).cumsum(0).tolist()], dtype=torch.int32).to(
        generator.device
    )
    num_tokens = sum(chunks)
    shape = (num_tokens + 2, case.num_kv_heads * case.group_size, case.head_dim)
    q = random_tensor(shape, generator, q_dtype(case))
    gate = random_tensor((shape[0], shape[1] + 5), generator, q_dtype(case))[:, 5:]
    expected = torch.full(shape, POISON, device=q.device)
    plain_prefill(q, kv, sequences, starts, gate, expected, case.window)
    out = torch.full_like(q, POISON)
    paged_prefill(q, kv, sequences, starts, gate, out, case.window, tuning)
    assert relative_error(out[:num_tokens], expected[:num_tokens]) < MAX_ERROR[case.dtype]
    assert out[num_tokens:].isnan().all()


@pytest.mark.parametrize("group_size", [8, 12])
@pytest.mark.parametrize("window", [None, 40])
def test_every_token_sees_what_it_may(
    group_size: int, window: int | None, generator: torch.Generator
) -> None:
    case = Case((9, 60, 48, 33, 100), group_size, num_kv_heads=1, window=window, num_queries=33)
    check(case, (9, 1, 32, 33, 17), generator)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, FP8], ids=str)
@pytest.mark.parametrize("window", [None, 33])
def test_any_cache_type(dtype: torch.dtype, window: int | None, generator: torch.Generator) -> None:
    check(Case((70, 31), window=window, dtype=dtype, num_queries=40), (40, 31), generator)


@pytest.mark.parametrize("window", [None, 20])
def test_nothing_before_the_beginning_is_seen(window: int | None, generator: torch.Generator) -> None:
    check(Case((60, 35), window=window, begins=(17, 30), num_queries=20), (20, 5), generator)


def test_sequences_without_tokens_write_nothing(generator: torch.Generator) -> None:
    check(Case((20, 0, 30, 50), num_queries=8), (0, 0, 8, 0), generator)


def test_random_shapes(generator: torch.Generator) -> None:
    draw = random.Random(6)
    for _ in range(8):
        lengths = tuple(draw.randint(1, 100) for _ in range(draw.randint(1, 4)))
        chunks = tuple(draw.randint(0, length) for length in lengths)
        case = Case(
            lengths,
            group_size=draw.choice([1, 3, 8, 12]),
            num_kv_heads=draw.choice([1, 2]),
            head_dim=draw.choice([16, 32]),
            window=draw.choice([None, 1, 16, 17, 50]),
            num_queries=max(1, *chunks),
        )
        tuning = PrefillTuning(rows=draw.choice([16, 32, 64]), tile=draw.choice([16, 32]), num_warps=4)
        if any(chunks):
            check(case, chunks, generator, tuning)
