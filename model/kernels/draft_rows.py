"""What happens to rows between the products of a verify step: a launch each, instead of dozens of small ones.

Shapes: B sequences, Q rows of each (its token, then drafts), T = B * Q rows, R ranks that hold parts of the
vocabulary. One program has all rows: a few KB.
"""
# Kernels are a language of their own: many arguments, no types.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, import-untyped, untyped-decorator"
# ruff: noqa: PLR0913, PLR0917

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from model.kernels.draft_rows_plain import DraftRows, Verified
from model.kernels.early_start import early_launch, wait_for_inputs
from model.kernels.sample_plain import Candidates

_NUM_WARPS = 4


def spread_rows(rows: DraftRows) -> None:
    """See `draft_rows_plain.spread_rows`."""
    _check(rows)
    _spread_kernel[(1,)](
        rows.base_B, rows.limits_B, rows.prompts_B, rows.positions_T, rows.context_lens_B,
        rows.sampling.num_outputs_T, **_sizes(rows),
    )  # fmt: skip


def accept_rows(sampled: Candidates, rows: DraftRows, out: Verified) -> None:
    """See `draft_rows_plain.accept_rows`."""
    _check(rows)
    num_rows, how, of_drafts = rows.positions_T.shape[0], rows.sampling, out.sampling
    assert sampled.token_ids.is_contiguous() and sampled.token_ids.numel() % num_rows == 0, num_rows
    assert out.following_BQ.is_contiguous() and out.following_BQ.shape == rows.tokens_BQ.shape
    _accept_kernel[(1,)](
        sampled.token_ids, sampled.scores, rows.tokens_BQ, rows.limits_B, rows.base_B, rows.step_1,
        how.temperatures_T, how.seeds_T, how.num_outputs_T, out.following_BQ, out.counts_B, out.last_B,
        of_drafts.temperatures_T, of_drafts.seeds_T, of_drafts.num_outputs_T,
        R=sampled.token_ids.numel() // num_rows, **_sizes(rows),
    )  # fmt: skip


def follow_rows(
    drafts: Candidates,
    rows: DraftRows,
    verified: Verified,
    index: int,
    following_T: torch.Tensor,
    next_T: torch.Tensor | None,
) -> None:
    """See `draft_rows_plain.follow_rows`."""
    num_seqs = rows.tokens_BQ.shape[0]
    assert drafts.token_ids.is_contiguous() and drafts.token_ids.numel() % num_seqs == 0, num_seqs
    assert next_T is not following_T and following_T.is_contiguous(), "read by all, then written"
    _follow_kernel[(1,)](
        drafts.token_ids, drafts.scores, rows.tokens_BQ, verified.last_B, verified.sampling.num_outputs_T,
        following_T, following_T if next_T is None else next_T,
        INDEX=index, HAS_NEXT=next_T is not None, R=drafts.token_ids.numel() // num_seqs, **_sizes(rows),
    )  # fmt: skip


def _check(rows: DraftRows) -> None:
    assert rows.tokens_BQ.is_contiguous(), rows.tokens_BQ.stride()
    for tensor in (rows.tokens_BQ, rows.base_B, rows.prompts_B, rows.limits_B, rows.context_lens_B):
        assert tensor.dtype == torch.int32, tensor.dtype


def _sizes(rows: DraftRows) -> dict[str, Any]:
    num_seqs, num_queries = rows.tokens_BQ.shape
    powers = {"BP": triton.next_power_of_2(num_seqs), "QP": triton.next_power_of_2(num_queries)}
    return {"B": num_seqs, "Q": num_queries, **powers, "num_warps": _NUM_WARPS, **early_launch()}


@triton.jit
def _best_of_ranks(ids, scores, at, is_there, NUM_ROWS: tl.constexpr, R: tl.constexpr):
    """The best of candidates [R, NUM_ROWS], of equals the lowest id."""
    best_id = tl.load(ids + at, mask=is_there, other=0)
    best = tl.load(scores + at, mask=is_there, other=0.0)
    for rank in tl.static_range(1, R):
        other_id = tl.load(ids + rank * NUM_ROWS + at, mask=is_there, other=0)
        other = tl.load(scores + rank * NUM_ROWS + at, mask=is_there, other=0.0)
        best_id = tl.where((other > best) | ((other == best) & (other_id < best_id)), other_id, best_id)
        best = tl.maximum(best, other)
    return best_id


@triton.jit
def _spread_kernel(
    base, limits, prompts, positions, context_lens, num_outputs,
    B: tl.constexpr, Q: tl.constexpr, BP: tl.constexpr, QP: tl.constexpr, IS_EARLY: tl.constexpr,
):  # fmt: skip
    wait_for_inputs(IS_EARLY)
    seq_B, query_1Q = tl.arange(0, BP), tl.arange(0, QP)[None, :]
    is_seq_B = seq_B < B
    base_B = tl.load(base + seq_B, mask=is_seq_B, other=-1)
    limit_B = tl.load(limits + seq_B, mask=is_seq_B, other=0)
    prompt_B = tl.load(prompts + seq_B, mask=is_seq_B, other=0)
    row_BQ = base_B[:, None] + query_1Q
    at_BQ = seq_B[:, None] * Q + query_1Q
    is_row_BQ = is_seq_B[:, None] & (query_1Q < Q)
    tl.store(context_lens + seq_B, tl.where(base_B >= 0, base_B + Q, 0), mask=is_seq_B)
    num_before_BQ = tl.maximum(row_BQ + 1 - prompt_B[:, None], 0).to(tl.int64)
    tl.store(num_outputs + at_BQ, num_before_BQ, mask=is_row_BQ)
    if Q > 1:
        is_real_BQ = (base_B >= 0)[:, None] & (query_1Q <= limit_B[:, None])
        tl.store(positions + at_BQ, tl.where(is_real_BQ, row_BQ, -1), mask=is_row_BQ)


@triton.jit
def _accept_kernel(
    ids, scores, tokens, limits, base, step_1, temperatures, seeds, num_outputs, following, counts, last,
    draft_temperatures, draft_seeds, draft_num_outputs, R: tl.constexpr,
    B: tl.constexpr, Q: tl.constexpr, BP: tl.constexpr, QP: tl.constexpr, IS_EARLY: tl.constexpr,
):  # fmt: skip
    wait_for_inputs(IS_EARLY)
    seq_B, query_1Q = tl.arange(0, BP), tl.arange(0, QP)[None, :]
    is_seq_B = seq_B < B
    is_row_BQ = is_seq_B[:, None] & (query_1Q < Q)
    at_BQ = seq_B[:, None] * Q + query_1Q
    best_BQ = _best_of_ranks(ids, scores, at_BQ, is_row_BQ, B * Q, R)
    is_draft_BQ = is_row_BQ & (query_1Q < Q - 1)
    draft_BQ = tl.load(tokens + at_BQ + 1, mask=is_draft_BQ, other=-1)
    limit_B = tl.load(limits + seq_B, mask=is_seq_B, other=0)
    # The first row whose next one is no draft, or another token.
    count_B = tl.min(tl.where(is_draft_BQ & (draft_BQ == best_BQ), Q - 1, query_1Q), axis=1)
    count_B = tl.minimum(count_B, limit_B)
    last_B = seq_B * Q + count_B
    token_B = tl.sum(tl.where(query_1Q == count_B[:, None], best_BQ, 0), axis=1)
    base_B = tl.load(base + seq_B, mask=is_seq_B, other=-1)
    num_before_B = tl.load(num_outputs + last_B, mask=is_seq_B, other=0)
    temperature_B = tl.load(temperatures + seq_B * Q, mask=is_seq_B, other=0.0)
    seed_B = tl.load(seeds + seq_B * Q, mask=is_seq_B, other=0)
    tl.store(following + at_BQ, best_BQ, mask=is_row_BQ)
    tl.store(counts + seq_B, count_B, mask=is_seq_B)
    tl.store(last + seq_B, last_B.to(tl.int64), mask=is_seq_B)
    tl.store(draft_temperatures + seq_B, temperature_B, mask=is_seq_B)
    tl.store(draft_seeds + seq_B, seed_B, mask=is_seq_B)
    tl.store(draft_num_outputs + seq_B, num_before_B + 1, mask=is_seq_B)
    tl.store(tokens + seq_B * Q, token_B, mask=is_seq_B)
    tl.store(base + seq_B, tl.where(base_B >= 0, base_B + count_B + 1, -1), mask=is_seq_B)
    tl.store(step_1, tl.load(step_1) + 1)


@triton.jit
def _follow_kernel(
    ids, scores, tokens, last, num_outputs, following, next_following, INDEX: tl.constexpr,
    HAS_NEXT: tl.constexpr, R: tl.constexpr,
    B: tl.constexpr, Q: tl.constexpr, BP: tl.constexpr, QP: tl.constexpr, IS_EARLY: tl.constexpr,
):  # fmt: skip
    wait_for_inputs(IS_EARLY)
    seq_B, query_1Q = tl.arange(0, BP), tl.arange(0, QP)[None, :]
    is_seq_B = seq_B < B
    draft_B = _best_of_ranks(ids, scores, seq_B, is_seq_B, B, R)
    num_before_B = tl.load(num_outputs + seq_B, mask=is_seq_B, other=0)
    tl.store(num_outputs + seq_B, num_before_B + 1, mask=is_seq_B)
    tl.store(tokens + seq_B * Q + 1 + INDEX, draft_B, mask=is_seq_B)
    if HAS_NEXT:
        is_row_BQ = is_seq_B[:, None] & (query_1Q < Q)
        at_BQ = seq_B[:, None] * Q + query_1Q
        next_BQ = tl.load(following + (at_BQ + 1) % (B * Q), mask=is_row_BQ, other=0)
        last_B = tl.load(last + seq_B, mask=is_seq_B, other=-1)
        next_BQ = tl.where(at_BQ == last_B[:, None], draft_B[:, None], next_BQ)
        tl.store(next_following + at_BQ, next_BQ, mask=is_row_BQ)
