"""What ranks of one host tell each other over peer memory, each in one launch and without a barrier.

Shapes: T tokens, H hidden, R ranks, C candidates; a word is an int64.

Every rank has an inbox that the others can write to. A value travels with the number of its turn in one word,
which is written and read whole: who finds the number has the value, so nobody says that it is ready. A rank
pushes what it has into every other inbox and then reads its own until all have come. Turns are counted on the
device, for each row (a graph replays the same launches), and two halves of an inbox take them in turn: when a
rank writes turn n + 2, it has read the others' turn n + 1, who wrote that after they had read turn n.

    inbox    [2 halves, R senders, rows, H] words of a float32 and the low bits of the turn
"""
# Kernels are a language of their own: many arguments, no types.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, import-untyped, untyped-decorator"
# ruff: noqa: PLR0913, PLR0917

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from model.kernels.early_start import early_launch, let_next_start, wait_for_inputs
from model.kernels.linear_config import InputNorm
from model.kernels.norms import choose_num_warps
from model.kernels.sample_plain import Candidates

WORDS_OF_CANDIDATE = 3  # id, and the two halves of the score
_CANDIDATE_WARPS = 4


@dataclass(frozen=True, eq=False)  # tensors have no one equality
class Inboxes:
    """One rank's view of all inboxes, for messages of `num_rows` rows of `width` words at most.

    `addresses_R`: where this rank finds the inbox of each rank, int64; an inbox begins as zeros. `own`: the
    words of this rank's. `turns_T`: int64, zeros at the start, as often advanced on every rank.
    """

    rank: int
    addresses_R: torch.Tensor
    own: torch.Tensor
    turns_T: torch.Tensor
    num_rows: int
    width: int

    @staticmethod
    def num_words(num_ranks: int, num_rows: int, width: int) -> int:
        """Of one inbox."""
        return 2 * num_ranks * num_rows * width

    @property
    def num_ranks(self) -> int:
        """R."""
        return self.addresses_R.shape[0]


def sum_add_norm(
    part_TH: torch.Tensor,
    inboxes: Inboxes,
    hidden_TH: torch.Tensor,
    norm: InputNorm,
    normed_TH: torch.Tensor,
) -> None:
    """Add all ranks' parts, in the order of ranks, to `hidden_TH`; its norm goes to `normed_TH`.

    Parts are float32; the result has the same bits on every rank. Waits for the others.
    """
    num_tokens, hidden_size = part_TH.shape
    assert part_TH.is_contiguous() and part_TH.dtype == torch.float32, part_TH.dtype
    assert num_tokens <= inboxes.num_rows and hidden_size == inboxes.width, (part_TH.shape, inboxes.num_rows)
    assert hidden_TH.shape == normed_TH.shape == part_TH.shape, (hidden_TH.shape, normed_TH.shape)
    block = triton.next_power_of_2(hidden_size)
    _sum_add_norm_kernel[(num_tokens,)](
        part_TH, inboxes.addresses_R, inboxes.own, inboxes.turns_T, hidden_TH, norm.scale_K, normed_TH,
        hidden_TH.stride(0), normed_TH.stride(0), inboxes.rank, norm.eps,
        R=inboxes.num_ranks, ROWS=inboxes.num_rows, H=hidden_size, BLOCK=block,
        num_warps=choose_num_warps(block), **early_launch(),
    )  # fmt: skip


def gather_candidates(own: Candidates, inboxes: Inboxes, out: Candidates) -> None:
    """Candidates [C] of every rank into `out` [R, C]. Waits for the others."""
    num_candidates = own.token_ids.shape[0]
    assert num_candidates <= inboxes.width and inboxes.num_rows == WORDS_OF_CANDIDATE, own.token_ids.shape
    _gather_candidates_kernel[(1,)](
        own.token_ids, own.scores.view(torch.int64), inboxes.addresses_R, inboxes.own, inboxes.turns_T,
        out.token_ids, out.scores.view(torch.int64), inboxes.rank, num_candidates,
        R=inboxes.num_ranks, WIDTH=inboxes.width, BLOCK=triton.next_power_of_2(num_candidates),
        num_warps=_CANDIDATE_WARPS, **early_launch(),
    )  # fmt: skip


@triton.jit
def _with_turn(value_C, turn):
    """A word: 32 bits of a value below the turn."""
    return (value_C.to(tl.int64) & 0xFFFFFFFF) | (turn << 32)


@triton.jit
def _push(words_C, is_word_C, offset_C, addresses, rank, R: tl.constexpr):
    """Into the inboxes of all others."""
    for other in tl.static_range(R):
        if other != rank:
            inbox = tl.load(addresses + other).to(tl.pointer_type(tl.int64))
            tl.store(inbox + offset_C, words_C, mask=is_word_C)


@triton.jit
def _received(at_C, is_word_C, turn):
    """The words of this turn's, as soon as they are there. Read past every cache of one multiprocessor."""
    words_C = tl.load(at_C, mask=is_word_C, other=turn << 32, volatile=True)
    while tl.max(((words_C >> 32) != turn).to(tl.int32), axis=0) > 0:
        words_C = tl.load(at_C, mask=is_word_C, other=turn << 32, volatile=True)
    return words_C


@triton.jit
def _next_turn(turns):
    """Of 31 bits, so that a word's upper half compares as it is; never the 0 of an empty inbox."""
    return tl.load(turns) % 0x7FFFFFFE + 1


@triton.jit
def _sum_add_norm_kernel(
    part, addresses, inbox, turns, hidden, scale, normed, hidden_stride, normed_stride, rank, eps,
    R: tl.constexpr, ROWS: tl.constexpr, H: tl.constexpr, BLOCK: tl.constexpr, IS_EARLY: tl.constexpr,
):  # fmt: skip
    wait_for_inputs(IS_EARLY)
    row = tl.program_id(0).to(tl.int64)
    column_H = tl.arange(0, BLOCK)
    is_column_H = column_H < H
    turn = _next_turn(turns + row)
    half_H = (turn & 1) * (R * ROWS * H) + row * H + column_H
    own_H = tl.load(part + row * H + column_H, mask=is_column_H, other=0.0)
    words_H = _with_turn(own_H.to(tl.int32, bitcast=True), turn)
    _push(words_H, is_column_H, half_H + rank * (ROWS * H), addresses, rank, R)
    tl.debug_barrier()  # pushed before anybody waits
    hidden_H = tl.load(hidden + row * hidden_stride + column_H, mask=is_column_H, other=0.0)
    scale_H = tl.load(scale + column_H, mask=is_column_H, other=0.0)
    total_H = tl.zeros((BLOCK,), tl.float32)
    for sender in tl.static_range(R):
        part_H = own_H
        if sender != rank:
            words_H = _received(inbox + half_H + sender * (ROWS * H), is_column_H, turn)
            part_H = words_H.to(tl.int32).to(tl.float32, bitcast=True)
        total_H += part_H
    total_H = hidden_H + total_H
    let_next_start(IS_EARLY)
    tl.store(turns + row, turn)
    tl.store(hidden + row * hidden_stride + column_H, total_H, mask=is_column_H)
    factor = tl.rsqrt(tl.sum(total_H * total_H, axis=0) / H + eps)
    normed_H = (total_H * factor * scale_H).to(normed.dtype.element_ty)
    tl.store(normed + row * normed_stride + column_H, normed_H, mask=is_column_H)


@triton.jit(do_not_specialize=["num_candidates"])
def _gather_candidates_kernel(
    ids, scores, addresses, inbox, turns, out_ids, out_scores, rank, num_candidates,
    R: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, IS_EARLY: tl.constexpr,
):  # fmt: skip
    wait_for_inputs(IS_EARLY)
    index_C = tl.arange(0, BLOCK)
    is_there_C = index_C < num_candidates
    turn = _next_turn(turns)
    half_C = (turn & 1) * (R * 3 * WIDTH) + index_C
    id_C = tl.load(ids + index_C, mask=is_there_C, other=0)
    score_C = tl.load(scores + index_C, mask=is_there_C, other=0)
    own_C = half_C + rank * (3 * WIDTH)
    _push(_with_turn(id_C, turn), is_there_C, own_C, addresses, rank, R)
    _push(_with_turn(score_C, turn), is_there_C, own_C + WIDTH, addresses, rank, R)
    _push(_with_turn(score_C >> 32, turn), is_there_C, own_C + 2 * WIDTH, addresses, rank, R)
    tl.debug_barrier()  # pushed before anybody waits
    for sender in tl.static_range(R):
        sent_id_C, sent_score_C = id_C, score_C
        if sender != rank:
            at_C = inbox + half_C + sender * (3 * WIDTH)
            sent_id_C = _received(at_C, is_there_C, turn).to(tl.int32)
            low_C = _received(at_C + WIDTH, is_there_C, turn) & 0xFFFFFFFF
            sent_score_C = low_C | (_received(at_C + 2 * WIDTH, is_there_C, turn) << 32)
        tl.store(out_ids + sender * num_candidates + index_C, sent_id_C, mask=is_there_C)
        tl.store(out_scores + sender * num_candidates + index_C, sent_score_C, mask=is_there_C)
    let_next_start(IS_EARLY)
    tl.store(turns, turn)
