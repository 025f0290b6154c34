"""Sums, norms and candidates over peer memory: two ranks, the same bits on both, turn after turn.

Under the interpreter ranks are processes that share an inbox each; on GPUs see `tests.gpu`.
Shapes: T tokens, H hidden, C candidates.
"""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

import tests.model.kernels.interpreter  # noqa: F401 - repairs it
from model.kernels.linear_config import InputNorm
from model.kernels.norms_plain import RoutedRows
from model.kernels.norms_plain import add_norm as plain
from model.kernels.peer import WORDS_OF_CANDIDATE, Inboxes, gather_candidates, sum_add_norm
from model.kernels.sample_plain import Candidates
from tests.model.ranks import run_ranks

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="processes share no CPU memory with kernels"
)

RANKS, HIDDEN, MOST_ROWS = 2, 96, 4
TURNS = (1, 4, 2, 1, 3, 1, *(1, 2) * 9)  # rows of each turn: some rows have had more turns than others


def inboxes_of(rank: int, shared: list[torch.Tensor], num_rows: int, width: int) -> Inboxes:
    addresses_R = torch.tensor([inbox.data_ptr() for inbox in shared])
    turns_T = torch.zeros(num_rows, dtype=torch.int64)
    return Inboxes(rank, addresses_R, shared[rank], turns_T, num_rows, width)


def parts_of(rank: int, turn: int, num_rows: int) -> tuple[torch.Tensor, RoutedRows | None]:
    """One delta or two, with rows of a rank's experts in every other turn."""
    generator = torch.Generator().manual_seed(100 * turn + rank)
    deltas_PTH = torch.randn(1 + turn % 3 // 2, num_rows, HIDDEN, generator=generator)
    if turn % 2 == 0:
        return deltas_PTH, None
    ids_TK = torch.rand(num_rows, 6, generator=generator).argsort(-1)[:, :3].sort(-1).values.int()
    rows_RH = torch.randn(num_rows * 3, HIDDEN, generator=generator)
    weights_TK = torch.rand(num_rows, 3, generator=generator)
    return deltas_PTH, RoutedRows(rows_RH, ids_TK, weights_TK, rank * 3, 3, 2.5)


def rounded(sum_TH: torch.Tensor) -> torch.Tensor:
    """30 bits of float32."""
    return ((sum_TH.contiguous().view(torch.int32) + 2) & ~3).view(torch.float32)


def sums(rank: int, shared: list[torch.Tensor], results: torch.Tensor) -> None:
    inboxes = inboxes_of(rank, shared, MOST_ROWS, HIDDEN // 2)
    norm = InputNorm(torch.linspace(0.5, 1.5, HIDDEN), 1e-5)
    for turn, num_rows in enumerate(TURNS):
        hidden_TH = torch.full((num_rows, HIDDEN), float(turn))
        normed_TH = torch.empty(num_rows, HIDDEN)
        deltas_PTH, routed = parts_of(rank, turn, num_rows)
        sum_add_norm(deltas_PTH, inboxes, hidden_TH, norm, normed_TH, routed)
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
    run_ranks(run, shared, results, num_ranks=RANKS)
    return results


def test_every_rank_has_the_sum_of_all_parts_and_its_norm() -> None:
    num_words = Inboxes.num_words(RANKS, MOST_ROWS, HIDDEN // 2)
    results = in_two_processes(sums, num_words, torch.zeros(RANKS, len(TURNS), 2, MOST_ROWS, HIDDEN))
    assert torch.equal(results[0], results[1])
    norm = InputNorm(torch.linspace(0.5, 1.5, HIDDEN), 1e-5)
    for turn, num_rows in enumerate(TURNS):
        hidden_TH = torch.full((num_rows, HIDDEN), float(turn))
        normed_TH = torch.empty(num_rows, HIDDEN)
        parts = torch.zeros(RANKS, num_rows, HIDDEN)
        for rank in range(RANKS):
            deltas_PTH, routed = parts_of(rank, turn, num_rows)
            plain(None, parts[rank], deltas_PTH=deltas_PTH, routed=routed)
        plain(hidden_TH, hidden_TH, deltas_PTH=rounded(parts), norm=norm, normed_TH=normed_TH)
        torch.testing.assert_close(results[0, turn, 0, :num_rows], hidden_TH, rtol=1e-6, atol=2e-6)
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
