"""Drafts and their verification on the device, without a host in between.

Shapes: B sequences, Q rows of each (the last token and Q - 1 drafts), T = B * Q, H hidden, V vocabulary of
this rank.

A verify step has the last token and its drafts as rows; those that sampling confirms are accepted, and the
token sampled behind them is the next step's first row. Layer i of the chain (model.net.mtp) then runs over
the same rows, joins each one's hidden state with the token 1 + i behind it, and drafts one token more from
the last accepted row. Rows behind that one compute noise: its cache slots are written again before they
are read.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from model.device.decoder import DeviceDecoder, TokenRows
from model.device.prefill import best_tokens
from model.device.state import Scratch, StepRows
from model.device.weights import DenseWeights, MTPWeights
from model.kernels.linear_config import InputNorm
from model.kernels.paged import PagedKV
from model.kernels.sample_plain import Candidates, SamplingRows


@dataclass(frozen=True, eq=False)  # tensors have no one equality
class Accepted:
    """Of each sequence: how many drafts held, and the tokens [B, Q] that follow each of its rows."""

    counts_B: torch.Tensor
    following_BQ: torch.Tensor


def accept(rows: StepRows, sampled: Candidates, fixed_count: int | None = None) -> Accepted:
    """Compare what was sampled with the drafts. `fixed_count`: so many hold, whatever was sampled."""
    num_seqs, num_queries = rows.num_seqs, rows.num_queries
    tokens_BQ = rows.token_ids_T.view(num_seqs, num_queries)
    sampled_BQ = best_tokens(sampled, rows.token_ids_T.shape[0]).view(num_seqs, num_queries)
    if fixed_count is None:
        counts_B = (sampled_BQ[:, :-1] == tokens_BQ[:, 1:]).int().cumprod(1).sum(1)
    else:
        counts_B = torch.full((num_seqs,), fixed_count, device=tokens_BQ.device, dtype=torch.int64)
    return Accepted(counts_B, sampled_BQ)


def draft_and_advance(decoder: DeviceDecoder, rows: StepRows, scratch: Scratch, accepted: Accepted) -> None:
    """Draft Q - 1 tokens behind the accepted ones, greedily, and make them the rows of the next step."""
    num_seqs, device = rows.num_seqs, rows.token_ids_T.device
    greedy = SamplingRows(
        torch.zeros(num_seqs, dtype=torch.float64, device=device), rows.seeds_T[:num_seqs],
        rows.num_outputs_T[:num_seqs],
    )  # fmt: skip
    last_B = accepted.counts_B + torch.arange(num_seqs, device=device) * rows.num_queries
    following_T = accepted.following_BQ.reshape(-1).contiguous()
    tokens = TokenRows.of_step(rows)
    new_BQ = draft(decoder, tokens, scratch, following_T, last_B, greedy, rows.num_queries - 1)
    _advance(rows, accepted.counts_B, new_BQ)


def draft(
    decoder: DeviceDecoder,
    tokens: TokenRows,
    scratch: Scratch,
    following_T: torch.Tensor,
    last_B: torch.Tensor,
    sampling: SamplingRows,
    num_drafts: int,
) -> torch.Tensor:
    """The tokens behind rows `last_B`, and drafts behind these: int32 [B, 1 + num_drafts].

    `scratch` has the decoder's hidden states of the rows, `following_T` is the token behind each. `sampling`
    is of the first draft. What is behind a last row and its follower is the draft, in the next layer's join.
    """
    assert len(decoder.weights.mtp) >= num_drafts, (len(decoder.weights.mtp), num_drafts)
    new_BQ = [following_T[last_B]]
    offset = len(decoder.weights.layers)
    for index, mtp in enumerate(decoder.weights.mtp[:num_drafts]):
        run_layer(decoder, mtp, decoder.pools[offset + index], tokens, scratch, following_T)
        how = SamplingRows(sampling.temperatures_T, sampling.seeds_T, sampling.num_outputs_T + index)
        draft_B = draft_token(decoder, mtp, scratch, last_B, how)
        new_BQ.append(draft_B)
        # Row j's next join is with what follows row j + 1; behind the last accepted row comes the draft.
        following_T = following_T.roll(-1).index_copy(0, last_B, draft_B)
    return torch.stack(new_BQ, dim=1)


def run_layer(
    decoder: DeviceDecoder,
    mtp: MTPWeights,
    pool: PagedKV,
    tokens: TokenRows,
    scratch: Scratch,
    following_T: torch.Tensor,
) -> None:
    """Join with what follows, block; the hidden state stays in `hidden_TH`, its head norm in `normed_TH`."""
    text, weights = decoder.weights.text, decoder.weights
    num_rows, eps = following_T.shape[0], text.rms_eps
    joined_TH = torch.empty(
        num_rows, 2, text.hidden_size, dtype=scratch.normed_TH.dtype, device=weights.device
    )
    unused_TH = torch.empty(num_rows, text.hidden_size, device=weights.device)
    decoder.ops.add_norm(
        weights.embedding_VH, unused_TH, row_ids_T=following_T, norm=InputNorm(mtp.embedding_norm_H, eps),
        normed_TH=joined_TH[:, 0],
    )  # fmt: skip
    decoder.ops.add_norm(
        scratch.hidden_TH, unused_TH, norm=InputNorm(mtp.hidden_norm_H, eps), normed_TH=joined_TH[:, 1]
    )
    decoder.ops.linear(joined_TH.flatten(1), mtp.join, scratch.hidden_TH, workspace=scratch.linear)
    decoder.ops.add_norm(
        scratch.hidden_TH, unused_TH, norm=InputNorm(mtp.block.attention_norm_H, eps),
        normed_TH=scratch.normed_TH,
    )  # fmt: skip
    assert isinstance(mtp.block.mlp, DenseWeights), mtp.block.config
    addends = decoder.attention(mtp.block, pool, tokens, scratch)
    decoder.add_norm(addends, mtp.block.mlp_norm_H, scratch)
    decoder.add_norm(decoder.dense(mtp.block.mlp, num_rows, scratch), mtp.norm_H, scratch)
    decoder.exchange.complete(scratch.hidden_TH)


def draft_token(
    decoder: DeviceDecoder, mtp: MTPWeights, scratch: Scratch, rows_B: torch.Tensor, sampling: SamplingRows
) -> torch.Tensor:
    """What a layer proposes behind each of some rows, sampled as the real token will be: int32 [B]."""
    num_seqs, device = rows_B.shape[0], rows_B.device
    logits_BV = decoder.logits(scratch.normed_TH[rows_B], mtp.head, scratch)
    own = Candidates(scratch.own.token_ids[:num_seqs], scratch.own.scores[:num_seqs])
    decoder.ops.sample_tokens(
        logits_BV, sampling, own, workspace=scratch.sampling, first_token=decoder.weights.first_token
    )
    num_ranks = decoder.exchange.num_ranks
    out = Candidates(
        torch.empty(num_ranks, num_seqs, dtype=torch.int32, device=device),
        torch.empty(num_ranks, num_seqs, dtype=torch.float64, device=device),
    )
    return best_tokens(decoder.exchange.gather(own, out), num_seqs)


def _advance(rows: StepRows, counts_B: torch.Tensor, new_BQ: torch.Tensor) -> None:
    """Padding rows stay as they are."""
    moved_B = counts_B.int() + 1
    is_real_B = rows.context_lens_B > 0
    moved_B = torch.where(is_real_B, moved_B, 0).int()
    moved_T = moved_B.repeat_interleave(rows.num_queries, output_size=rows.token_ids_T.shape[0])
    rows.token_ids_T.copy_(new_BQ.reshape(-1))
    rows.positions_T.add_(moved_T)
    rows.context_lens_B.add_(moved_B)
    rows.num_outputs_T.add_(moved_T)
    rows.step_1.add_(1)
