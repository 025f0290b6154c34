"""Rows between the products of a verify step: the kernels against their twin, over random rows.

Shapes: B sequences, Q rows of each, T = B * Q, R ranks.
"""

from __future__ import annotations

import random
from dataclasses import fields, replace

import pytest
import torch

pytest.importorskip("triton")

import tests.model.kernels.interpreter  # noqa: F401 - repairs it
from model.kernels import draft_rows, draft_rows_plain
from model.kernels.draft_rows_plain import DraftRows, Verified
from model.kernels.sample_plain import Candidates, SamplingRows

pytestmark = pytest.mark.slow  # interpreted, where there is no GPU
SHAPES = [(1, 4, 1), (3, 4, 2), (5, 2, 3), (8, 3, 1), (2, 1, 1)]


def rows_of(draw: random.Random, num_seqs: int, num_queries: int, device: torch.device) -> DraftRows:
    """Some padding, few different tokens: drafts hold often."""

    def int32(*shape: int, low: int, high: int) -> torch.Tensor:
        size = torch.Size(shape).numel()
        values = [draw.randint(low, high) for _ in range(size)]
        return torch.tensor(values, dtype=torch.int32, device=device).view(shape)

    num_rows = num_seqs * num_queries
    base_B = int32(num_seqs, low=-3, high=50).clamp(min=-1)
    sampling = SamplingRows(
        torch.tensor([draw.random() for _ in range(num_rows)], dtype=torch.float64, device=device),
        int32(num_rows, low=-9, high=9).long(), int32(num_rows, low=0, high=9).long(),
    )  # fmt: skip
    return DraftRows(
        int32(num_seqs, num_queries, low=0, high=2), base_B, int32(num_seqs, low=1, high=40),
        int32(num_seqs, low=0, high=num_queries - 1),
        base_B if num_queries == 1 else int32(num_rows, low=-9, high=-2),
        int32(num_seqs, low=0, high=9), sampling, int32(1, low=0, high=9).long(),
    )  # fmt: skip


def copy_of(rows: DraftRows) -> DraftRows:
    """With memory of its own; what is one tensor stays one."""
    copies = {id(value): value.clone() for value in vars(rows).values() if isinstance(value, torch.Tensor)}
    tensors = {name: copies[id(value)] for name, value in vars(rows).items() if id(value) in copies}
    how = SamplingRows(*(getattr(rows.sampling, each.name).clone() for each in fields(SamplingRows)))
    return replace(rows, **tensors, sampling=how)


def verified_of(rows: DraftRows) -> Verified:
    return Verified.around(torch.full_like(rows.tokens_BQ, -7))


def candidates_of(draw: random.Random, num_ranks: int, num_rows: int, device: torch.device) -> Candidates:
    """Scores of equal candidates are equal; many are."""
    ids = [[draw.randint(0, 2) for _ in range(num_rows)] for _ in range(num_ranks)]
    scores = [[float(draw.randint(0, 1)) for _ in range(num_rows)] for _ in range(num_ranks)]
    return Candidates(
        torch.tensor(ids, dtype=torch.int32, device=device),
        torch.tensor(scores, dtype=torch.float64, device=device),
    )


def same(ours: object, theirs: object) -> None:
    for name, value in vars(ours).items():
        other = vars(theirs)[name]
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, other), (name, value, other)
        else:
            same(value, other)


@pytest.mark.parametrize(("num_seqs", "num_queries", "num_ranks"), SHAPES)
def test_positions_of_rows(num_seqs: int, num_queries: int, num_ranks: int, device: torch.device) -> None:
    del num_ranks
    rows = rows_of(random.Random(num_seqs), num_seqs, num_queries, device)
    expected = copy_of(rows)
    draft_rows.spread_rows(rows)
    draft_rows_plain.spread_rows(expected)
    same(rows, expected)


@pytest.mark.parametrize(
    ("num_seqs", "num_queries", "num_ranks"), [shape for shape in SHAPES if shape[1] > 1]
)
def test_what_holds_and_the_drafts_behind_it(
    num_seqs: int, num_queries: int, num_ranks: int, device: torch.device
) -> None:
    draw, counts = random.Random(num_queries), set[int]()
    for _ in range(4):
        rows = rows_of(draw, num_seqs, num_queries, device)
        expected = copy_of(rows)
        sampled = candidates_of(draw, num_ranks, num_seqs * num_queries, device)
        ours, theirs = verified_of(rows), verified_of(expected)
        draft_rows.accept_rows(sampled, rows, ours)
        draft_rows_plain.accept_rows(sampled, expected, theirs)
        same(ours, theirs)
        same(rows, expected)
        counts |= set(ours.counts_B.tolist())
        following_T = ours.following_BQ.view(-1)
        for index in range(num_queries - 1):
            drafts = candidates_of(draw, num_ranks, num_seqs, device)
            is_end = index == num_queries - 2
            next_T, expected_T = (None if is_end else torch.full_like(following_T, -7) for _ in range(2))
            draft_rows.follow_rows(drafts, rows, ours, index, following_T, next_T)
            draft_rows_plain.follow_rows(drafts, expected, theirs, index, following_T, expected_T)
            same(rows, expected)
            same(ours, theirs)
            if next_T is not None and expected_T is not None:
                assert torch.equal(next_T, expected_T)
                following_T = next_T
    assert len(counts) > 1
