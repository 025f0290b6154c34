"""Drafts on the device, without a host in between.

Shapes: B sequences, Q rows of each (the last token and Q - 1 drafts), T = B * Q, H hidden, V vocabulary of
this rank.

A verify step has the last token and its drafts as rows; those that sampling confirms hold, and the token
sampled behind them is the next step's first row. Layer i of the chain (model.net.mtp) then runs over the same
rows, joins each one's hidden state with the token 1 + i behind it, and drafts one token more from the last
row that held. Rows behind that one compute noise: its cache slots are written again before they are read.
"""

from __future__ import annotations

import torch

from model.device.decoder import DeviceDecoder, TokenRows
from model.device.state import Scratch
from model.device.weights import DenseWeights, MTPWeights
from model.kernels.draft_rows_plain import DraftRows, Verified
from model.kernels.linear_config import InputNorm
from model.kernels.paged import PagedKV
from model.kernels.sample_plain import Candidates, SamplingRows, best_tokens


def draft(
    decoder: DeviceDecoder, tokens: TokenRows, scratch: Scratch, rows: DraftRows, verified: Verified
) -> None:
    """Fill `rows.tokens_BQ[:, 1:]` with Q - 1 drafts behind the token that follows the rows that held.

    `scratch` has the decoder's hidden states of the rows, `tokens` is what layers read of them.
    """
    num_drafts = rows.num_queries - 1
    assert len(decoder.weights.mtp) >= num_drafts, (len(decoder.weights.mtp), num_drafts)
    following_T = verified.following_BQ.view(-1)
    offset = len(decoder.weights.layers)
    for index, mtp in enumerate(decoder.weights.mtp[:num_drafts]):
        run_layer(decoder, mtp, decoder.pools[offset + index], tokens, scratch, following_T)
        drafts = draft_candidates(decoder, mtp, scratch, verified.last_B, verified.sampling)
        next_T = torch.empty_like(following_T) if index + 1 < num_drafts else None
        decoder.ops.follow_rows(drafts, rows, verified, index, following_T, next_T)
        following_T = following_T if next_T is None else next_T


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


def draft_candidates(
    decoder: DeviceDecoder, mtp: MTPWeights, scratch: Scratch, rows_B: torch.Tensor, sampling: SamplingRows
) -> Candidates:
    """What a layer proposes behind each of some rows, sampled as the real token will be: [R, B]."""
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
    return decoder.exchange.gather(own, out)


def draft_token(
    decoder: DeviceDecoder, mtp: MTPWeights, scratch: Scratch, rows_B: torch.Tensor, sampling: SamplingRows
) -> torch.Tensor:
    """The best of `draft_candidates`: int32 [B]."""
    return best_tokens(draft_candidates(decoder, mtp, scratch, rows_B, sampling), rows_B.shape[0])
