from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from model.kernels.paged import FP8, DecodeWorkspace, PagedKV, PagedSequences, allocate_workspace
from model.kernels.paged_decode_plain import paged_decode as plain_decode
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
from model.kernels.paged_decode import DecodeTuning, paged_decode
from model.kernels.paged_prefill import PrefillTuning, paged_prefill

pytestmark = pytest.mark.slow  # interpreted, where there is no GPU

TUNING = DecodeTuning(tile=32)


def workspace_of(case: Case, num_programs: int, device: torch.device) -> DecodeWorkspace:
    """Poisoned: a part that nobody wrote shows."""
    num_rows = case.num_queries * case.group_size
    num_segments = len(case.lengths) * case.num_kv_heads
    workspace = allocate_workspace(num_programs, num_segments, num_rows + 3, case.head_dim, device)
    workspace.partial_sums_W2RD.fill_(POISON)
    workspace.partial_stats_W22R.fill_(POISON)
    return workspace


def check(
    case: Case, generator: torch.Generator, num_programs: int = 7, tuning: DecodeTuning = TUNING
) -> torch.Tensor:
    sequences, num_blocks = random_sequences(case, generator)
    kv = random_kv(case, num_blocks, generator)
    poison_unseen(kv, sequences, case)
    shape = (len(case.lengths) * case.num_queries, case.num_kv_heads * case.group_size, case.head_dim)
    q = random_tensor(shape, generator, q_dtype(case))
    gate = random_tensor((shape[0], shape[1] + 5), generator, q_dtype(case))[:, 5:]
    expected = torch.full(shape, POISON, device=q.device)
    plain_decode(q, kv, sequences, gate, expected, None, case.window)
    workspace = workspace_of(case, num_programs, q.device)
    out = torch.full_like(q, POISON)
    for _ in range(2):  # the second launch finds the counters as the first left them
        out.fill_(POISON)
        paged_decode(q, kv, sequences, gate, out, workspace, case.window, tuning)
        assert relative_error(out, expected) < MAX_ERROR[case.dtype]
        assert not workspace.counters.any()
    return out


@pytest.mark.parametrize("num_queries", [1, 2, 3, 4])
@pytest.mark.parametrize("group_size", [8, 12])
@pytest.mark.parametrize("window", [None, 40])
def test_every_token_sees_what_it_may(
    num_queries: int, group_size: int, window: int | None, generator: torch.Generator
) -> None:
    lengths = (1, 15, 16, 17, 0, 40, 41, 150, 2)
    case = Case(lengths, group_size, num_kv_heads=1, window=window, num_queries=num_queries)
    check(case, generator)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, FP8], ids=str)
@pytest.mark.parametrize("window", [None, 33])
def test_any_cache_type(dtype: torch.dtype, window: int | None, generator: torch.Generator) -> None:
    check(Case((70, 0, 31, 129), window=window, dtype=dtype, num_queries=2), generator)


@pytest.mark.parametrize("adds_apart", [False, True])
@pytest.mark.parametrize("num_programs", [1, 2, 3, 11, 64])
def test_any_cut_of_the_work_gives_the_sum(
    num_programs: int, adds_apart: bool, generator: torch.Generator
) -> None:
    tuning = replace(TUNING, most_whole=1, adds_apart=adds_apart)
    check(Case((300, 5, 0, 33), group_size=4, num_queries=2), generator, num_programs, tuning)


def test_more_parts_than_are_added_at_a_time(generator: torch.Generator) -> None:
    tuning = replace(TUNING, tile=16, most_whole=1, adds_apart=True)
    check(Case((700, 3), group_size=2, num_kv_heads=1), generator, 60, tuning)


def test_sixteen_tokens_are_a_few(generator: torch.Generator) -> None:
    check(Case((90, 16, 7), group_size=4, num_queries=16), generator)


@pytest.mark.parametrize("window", [None, 20])
def test_nothing_before_the_beginning_is_seen(window: int | None, generator: torch.Generator) -> None:
    case = Case((60, 35, 50, 0), window=window, begins=(17, 34, 0, 0), num_queries=2)
    check(case, generator)


def test_random_shapes(generator: torch.Generator) -> None:
    draw = random.Random(5)
    for _ in range(10):
        case = Case(
            lengths=tuple(
                draw.choice([0, draw.randint(1, 20), draw.randint(1, 130)]) for _ in range(draw.randint(1, 5))
            ),
            group_size=draw.choice([1, 3, 8, 12]),
            num_kv_heads=draw.choice([1, 2]),
            head_dim=draw.choice([16, 32]),
            window=draw.choice([None, 1, 16, 17, 50]),
            num_queries=draw.randint(1, 4),
        )
        tuning = replace(
            TUNING, tile=draw.choice([16, 32, 64]), most_whole=draw.choice([1, 4, 8]),
            adds_apart=draw.choice([False, True]),
        )  # fmt: skip
        check(case, generator, draw.randint(1, 12), tuning)


def test_two_runs_give_the_same_bits(device: torch.device) -> None:
    case = Case((200, 90, 3), dtype=torch.bfloat16)
    outs = [check(case, torch.Generator(device).manual_seed(3)) for _ in range(2)]
    assert torch.equal(*outs)


def test_padding_is_zeros(generator: torch.Generator) -> None:
    out = check(Case((0, 20, 0), num_queries=2), generator)
    assert not out[:2].any() and not out[4:].any() and out[2:4].any()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the interpreter copies the pool of 2 GB")
def test_offsets_past_two_billion_values(device: torch.device) -> None:
    num_blocks = 2**31 // (2 * 16 * 128) + 8
    pool = torch.zeros(num_blocks, 1, 2, 16, 128, dtype=torch.uint8, device=device).view(FP8)
    blocks = torch.tensor([[num_blocks - 1, 1, num_blocks - 3]], dtype=torch.int32, device=device)
    generator = torch.Generator(device).manual_seed(0)
    for block in blocks[0].tolist():
        pool[block] = (random_tensor((1, 2, 16, 128), generator, torch.float32) * 8).to(FP8)
    sequences = PagedSequences(blocks, torch.tensor([45], dtype=torch.int32, device=device))
    kv = PagedKV(pool, 0.1, 0.1)
    q = random_tensor((1, 8, 128), generator, torch.bfloat16)
    gate = random_tensor((1, 8), generator, torch.bfloat16)
    expected, out = torch.full((2, *q.shape), POISON, device=device).unbind(0)
    plain_decode(q, kv, sequences, gate, expected, None)
    out = out.to(torch.bfloat16)
    paged_decode(q, kv, sequences, gate, out, allocate_workspace(3, 1, 8, 128, device), None, TUNING)
    assert relative_error(out, expected) < MAX_ERROR[FP8]
    prefilled = torch.full_like(out, POISON)
    starts = torch.tensor([0, 1], dtype=torch.int32, device=device)
    paged_prefill(q, kv, sequences, starts, gate, prefilled, None, PrefillTuning(rows=16, tile=16))
    assert relative_error(prefilled, expected) < MAX_ERROR[FP8]
