"""Chunked prefill of several sequences on one rank, and the first token of each.

Shapes: B sequences, T tokens of a chunk (padded to what was allocated), V vocabulary of this rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from model.device.decoder import DeviceDecoder, TokenRows
from model.device.layout import KINDS
from model.device.state import Scratch, StepRows
from model.kernels.paged import PagedSequences
from model.kernels.sample_plain import Candidates, SamplingRows, best_tokens


@dataclass(frozen=True)
class Piece:
    """Tokens [first, end) of sequence `seq`'s prompt."""

    seq: int
    first: int
    end: int


def plan_chunks(lengths: list[int], chunk_tokens: int, piece_tokens: int) -> Iterator[list[Piece]]:
    """Prompts cut into chunks of up to `chunk_tokens` tokens, up to `piece_tokens` of a sequence in each.

    First come, first served: sequences start in order, and a chunk is filled up by the next ones.
    """
    done = [0] * len(lengths)
    while any(first < length for first, length in zip(done, lengths, strict=True)):
        pieces, room = [], chunk_tokens
        for seq, length in enumerate(lengths):
            size = min(piece_tokens, length - done[seq], room)
            if size > 0:
                pieces.append(Piece(seq, done[seq], done[seq] + size))
                done[seq] += size
                room -= size
        yield pieces


def prefill(
    decoder: DeviceDecoder,
    rows: StepRows,
    scratch: Scratch,
    prompts: list[list[int]],
    chunk_tokens: int,
    piece_tokens: int,
) -> None:
    """Fill the cache with all prompts and put each one's first token into `rows`, ready to decode.

    Sequence b is row b of `rows`, which has block tables that hold the prompt and the window's ring a piece
    more (`KVLayout.for_lengths`). `scratch`: allocated for prefill of `chunk_tokens`.
    """
    assert rows.num_queries == 1, rows.num_queries
    for seq, prompt in enumerate(prompts):
        rows.set_sequence(seq, prompt[:1], len(prompt) - 1)  # what `advance` moves on from
    for pieces in plan_chunks([len(prompt) for prompt in prompts], chunk_tokens, piece_tokens):
        chunk = _chunk(rows, prompts, pieces, chunk_tokens)
        decoder.run_layers(chunk, scratch, rows.step_1)
        sampled = _sample_last(decoder, rows, scratch, pieces, [len(prompt) for prompt in prompts])
        ends = [piece.seq for piece in pieces if piece.end == len(prompts[piece.seq])]
        if ends:
            _take_first_tokens(rows, sampled, ends)


def _chunk(rows: StepRows, prompts: list[list[int]], pieces: list[Piece], num_rows: int) -> TokenRows:
    """The pieces' tokens, one sequence after the other, and padding behind them."""
    device = rows.token_ids_T.device
    starts = [0]
    ids: list[int] = []
    positions: list[int] = []
    seqs: list[int] = []
    for index, piece in enumerate(pieces):
        ids += prompts[piece.seq][piece.first : piece.end]
        positions += range(piece.first, piece.end)
        seqs += [index] * (piece.end - piece.first)
        starts.append(len(ids))
    padding = num_rows - len(ids)

    def int32(values: list[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int32).to(device, non_blocking=True)

    lengths_B = int32([piece.end for piece in pieces])
    order_B = int32([piece.seq for piece in pieces])
    return TokenRows(
        int32(ids + [0] * padding), int32(positions + [-1] * padding), int32(seqs + [0] * padding),
        {
            kind: PagedSequences(rows.sequences[kind].blocks_BM[order_B].contiguous(), lengths_B)
            for kind in KINDS
        },
        int32(starts),
    )  # fmt: skip


def _sample_last(
    decoder: DeviceDecoder, rows: StepRows, scratch: Scratch, pieces: list[Piece], lengths: list[int]
) -> Candidates:
    """Candidates of all sequences of `rows`; those that end in this chunk have theirs."""
    num_seqs, last, start = rows.num_seqs, [0] * rows.num_seqs, 0
    for piece in pieces:
        start += piece.end - piece.first
        if piece.end == lengths[piece.seq]:
            last[piece.seq] = start - 1
    index_B = torch.tensor(last).to(rows.token_ids_T.device, non_blocking=True)
    normed_BH = scratch.normed_TH[index_B]
    logits_BV = decoder.logits(normed_BH, decoder.weights.head, scratch)
    own = Candidates(scratch.own.token_ids[:num_seqs], scratch.own.scores[:num_seqs])
    sampling = SamplingRows(rows.temperatures_T, rows.seeds_T, rows.num_outputs_T)
    decoder.ops.sample_tokens(
        logits_BV, sampling, own, workspace=scratch.sampling, first_token=decoder.weights.first_token
    )
    num_ranks = scratch.gathered.token_ids.shape[0]
    size = num_ranks * num_seqs
    out = Candidates(
        scratch.gathered.token_ids.view(-1)[:size].view(num_ranks, num_seqs),
        scratch.gathered.scores.view(-1)[:size].view(num_ranks, num_seqs),
    )
    return decoder.exchange.gather(own, out)


def _take_first_tokens(rows: StepRows, sampled: Candidates, ends: list[int]) -> None:
    """What `advance` does, for the sequences that end in this chunk."""
    index = torch.tensor(ends).to(rows.token_ids_T.device, non_blocking=True)
    rows.token_ids_T[index] = best_tokens(sampled, rows.num_seqs)[index]
    rows.positions_T[index] += 1
    rows.context_lens_B[index] += 1
    rows.num_outputs_T[index] += 1
