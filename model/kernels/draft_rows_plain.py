"""Plain-torch twin of `draft_rows`: the rows of a verify step, those that hold, and the drafts behind them.

Shapes: B sequences, Q rows of each (its token, then drafts), T = B * Q rows, R ranks that hold parts of the
vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from model.kernels.sample_plain import Candidates, SamplingRows, best_tokens


@dataclass(frozen=True, eq=False)  # tensors have no one equality
class DraftRows:
    """What a verify step reads and moves; int32, but for sampling and `step_1`. Base -1: padding."""

    tokens_BQ: torch.Tensor
    base_B: torch.Tensor  # position of a sequence's token
    prompts_B: torch.Tensor  # tokens of its prompt
    limits_B: torch.Tensor  # drafts that are real: rows behind them are padding
    positions_T: torch.Tensor  # with Q = 1 the same as `base_B`
    context_lens_B: torch.Tensor
    sampling: SamplingRows  # of T rows
    step_1: torch.Tensor  # int64

    @property
    def num_queries(self) -> int:
        """Q."""
        return self.tokens_BQ.shape[1]


@dataclass(frozen=True, eq=False)
class Verified:
    """What became of a step's rows."""

    following_BQ: torch.Tensor  # int32: the token that was sampled behind each row
    counts_B: torch.Tensor  # int32: drafts that held
    last_B: torch.Tensor  # int64: the last row that held, of T
    sampling: SamplingRows  # of the B next drafts

    @classmethod
    def around(cls, following_BQ: torch.Tensor) -> Verified:
        """Zeros beside it: rows that there are, for who reads them before anything was verified."""
        num_seqs, device = following_BQ.shape[0], following_BQ.device

        def zeros(dtype: torch.dtype) -> torch.Tensor:
            return torch.zeros(num_seqs, dtype=dtype, device=device)

        sampling = SamplingRows(zeros(torch.float64), zeros(torch.int64), zeros(torch.int64))
        return cls(following_BQ, zeros(torch.int32), zeros(torch.int64), sampling)

    def first(self, num_seqs: int) -> Verified:
        """Of the first sequences, in the same memory."""
        how = self.sampling
        sampling = SamplingRows(
            how.temperatures_T[:num_seqs], how.seeds_T[:num_seqs], how.num_outputs_T[:num_seqs]
        )
        following_BQ, counts_B = self.following_BQ[:num_seqs], self.counts_B[:num_seqs]
        return Verified(following_BQ, counts_B, self.last_B[:num_seqs], sampling)


def spread_rows(rows: DraftRows) -> None:
    """From each sequence's position to those of its rows, its context, and the tokens sampled before."""
    num_queries = rows.num_queries
    offset_Q = torch.arange(num_queries, dtype=torch.int32, device=rows.base_B.device)
    is_real_B = rows.base_B >= 0
    rows_BQ = rows.base_B[:, None] + offset_Q
    rows.context_lens_B.copy_((rows.base_B + num_queries).where(is_real_B, 0))
    rows.sampling.num_outputs_T.copy_((rows_BQ + 1 - rows.prompts_B[:, None]).clamp(min=0).view(-1))
    if num_queries > 1:
        is_row_BQ = is_real_B[:, None] & (offset_Q <= rows.limits_B[:, None])
        rows.positions_T.copy_(rows_BQ.where(is_row_BQ, -1).view(-1))


def accept_rows(sampled: Candidates, rows: DraftRows, out: Verified) -> None:
    """Compare what was sampled [R, T] with the drafts, up to the limits, and move on behind those that hold.

    The token behind the last of them is the sequence's next: `tokens_BQ[:, 0]`, at `base_B`.
    """
    num_seqs, num_queries = rows.tokens_BQ.shape
    following_BQ = best_tokens(sampled, num_seqs * num_queries).view(num_seqs, num_queries)
    held_BQ = following_BQ[:, :-1] == rows.tokens_BQ[:, 1:]
    counts_B = torch.minimum(held_BQ.int().cumprod(1).sum(1).int(), rows.limits_B)
    first_B = torch.arange(num_seqs, device=counts_B.device) * num_queries
    out.following_BQ.copy_(following_BQ)
    out.counts_B.copy_(counts_B)
    out.last_B.copy_(first_B + counts_B)
    out.sampling.temperatures_T.copy_(rows.sampling.temperatures_T[first_B])
    out.sampling.seeds_T.copy_(rows.sampling.seeds_T[first_B])
    out.sampling.num_outputs_T.copy_(rows.sampling.num_outputs_T[out.last_B] + 1)
    rows.tokens_BQ[:, 0] = following_BQ.reshape(-1)[out.last_B]
    rows.base_B.copy_((rows.base_B + counts_B + 1).where(rows.base_B >= 0, -1))
    rows.step_1.add_(1)


def follow_rows(
    drafts: Candidates,
    rows: DraftRows,
    verified: Verified,
    index: int,
    following_T: torch.Tensor,
    next_T: torch.Tensor | None,
) -> None:
    """Draft `index` of each sequence, from candidates [R, B]: into the next step's rows, and behind the last.

    `next_T` gets what the next layer joins with: what follows row j + 1 of `following_T`, and behind the last
    row that held the draft. What stands behind rows that did not hold is of no use.
    """
    draft_B = best_tokens(drafts, rows.tokens_BQ.shape[0])
    rows.tokens_BQ[:, 1 + index] = draft_B
    verified.sampling.num_outputs_T.add_(1)
    if next_T is not None:
        next_T.copy_(following_T.roll(-1).index_copy(0, verified.last_B, draft_B))
