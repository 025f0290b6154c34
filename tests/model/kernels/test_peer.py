"""Sums, norms and candidates over peer memory: two ranks, the same bits on both, turn after turn.

Under the interpreter ranks are processes that share an inbox each; on GPUs see `tests.gpu`.
Shapes: T tokens, H hidden, C candidates.
"""

from __future__ import annotations

import pytest
import torch
import torch.multiprocessing as mp

pytest.importorskip("triton")

import tests.model.kernels.interpreter  # noqa: F401 - repairs it
from model.kernels.linear_config import InputNorm
from model.kernels.norms_plain import add_norm as plain
from model.kernels.peer import WORDS_OF_CANDIDATE, Inboxes, gather_candidates, sum_add_norm
from model.kernels.sample_plain import Candidates

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="processes share no CPU memory with kernels"
)

RANKS, HIDDEN, MOST_ROWS = 2, 96, 4
TURNS = (1, 4, 2, 1, 3, 1)  # rows of each turn: some rows have had more turns than others


def inboxes_of(rank: int, shared: list[torch.Tensor], num_rows: int, width: int) -> Inboxes:
    addresses_R = torch.tensor([inbox.data_ptr() for inbox in shared])
    turns_T = torch.zeros(num_rows, dtype=torch.int64)
    return Inboxes(rank, addresses_R, shared[rank], turns_T, num_rows, width)


def part_of(rank: int, turn: int, num_rows: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(100 * turn + rank)
    return torch.randn(num_rows, HIDDEN, generator=generator)


def sums(rank: int, shared: list[torch.Tensor], results: torch.Tensor) -> None:
    inboxes = inboxes_of(rank, shared, MOST_ROWS, HIDDEN)
    norm = InputNorm(torch.linspace(0.5, 1.5, HIDDEN), 1e-5)
    for turn, num_rows in enumerate(TURNS):
        hidden_TH = torch.full((num_rows, HIDDEN), float(turn))
        normed_TH = torch.empty(num_rows, HIDDEN)
        sum_add_norm(part_of(rank, turn, num_rows), inboxes, hidden_TH, norm, normed_TH)
        results[rank, turn, 0, :num_rows], results[rank, turn, 1, :num_rows] = hidden_TH, normed_TH


def candidates(rank: int, shared: list[torch.Tensor], results: torch.Tensor) -> None:
    inboxes = inboxes_of(rank, shared, WORDS_OF_CANDIDATE, 8)
    for turn, count in enumerate(TURNS):
        out = Candidates(torch.zeros(RANKS, count, dtype=torch.int32), torch.zeros(RANKS, count).double())
        gather_candidates(candidates_of(rank, turn, count), inboxes, out)
        results[rank, turn, 0, : RANKS * count] = out.token_ids.flatten().double()
        results[rank, turn, 1, : RANKS * count] = out.scores.flatten()


def candidates_of(rank: int, turn: int, count: int) -> Candidates:
    generator = torch.Generator().manual_seed(100 * turn + rank)
    ids = torch.randint(0, 2**31 - 1, (count,), generator=generator, dtype=torch.int32)
    return Candidates(ids, torch.randn(count, generator=generator, dtype=torch.float64) * 1e6)


def in_two_processes(run: object, num_words: int, results: torch.Tensor) -> torch.Tensor:
    shared = [torch.zeros(num_words, dtype=torch.int64).share_memory_() for _ in range(RANKS)]
    results.share_memory_()
    mp.spawn(run, args=(shared, results), nprocs=RANKS)
    return results


def test_every_rank_has_the_sum_of_all_parts_and_its_norm() -> None:
    num_words = Inboxes.num_words(RANKS, MOST_ROWS, HIDDEN)
    results = in_two_processes(sums, num_words, torch.zeros(RANKS, len(TURNS), 2, MOST_ROWS, HIDDEN))
    assert torch.equal(results[0], results[1])
    norm = InputNorm(torch.linspace(0.5, 1.5, HIDDEN), 1e-5)
    for turn, num_rows in enumerate(TURNS):
        hidden_TH = torch.full((num_rows, HIDDEN), float(turn))
        normed_TH = torch.empty(num_rows, HIDDEN)
        parts = torch.stack([part_of(rank, turn, num_rows) for rank in range(RANKS)])
        plain(hidden_TH, hidden_TH, deltas_PTH=parts, norm=norm, normed_TH=normed_TH)
        assert torch.equal(results[0, turn, 0, :num_rows], hidden_TH)
        torch.testing.assert_close(results[0, turn, 1, :num_rows], normed_TH, rtol=1e-5, atol=1e-6)


def test_every_rank_has_the_candidates_of_all() -> None:
    num_words = Inboxes.num_words(RANKS, WORDS_OF_CANDIDATE, 8)
    shape = (RANKS, len(TURNS), 2, RANKS * 8)
    results = in_two_processes(candidates, num_words, torch.zeros(shape, dtype=torch.float64))
    assert torch.equal(results[0], results[1])
    for turn, count in enumerate(TURNS):
        sent = [candidates_of(rank, turn, count) for rank in range(RANKS)]
        ids = torch.cat([one.token_ids for one in sent]).double()
        assert torch.equal(results[0, turn, 0, : RANKS * count], ids)
        assert torch.equal(results[0, turn, 1, : RANKS * count], torch.cat([one.scores for one in sent]))
