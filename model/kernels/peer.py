"""What ranks of one host tell each other over peer memory, each in one launch and without a barrier.

Shapes: T tokens, H hidden, R ranks, C candidates; a word is an int64.

Every rank has an inbox that the others can write to. Values travel with the number of their turn in one word,
which is written and read whole: who finds the number has the values, so nobody says that they are ready. A
rank pushes what it has into every other inbox and then reads its own until all have come. Turns are counted
on the device, for each row (a graph replays the same launches), and two halves of an inbox take them in turn:
when a rank writes turn n + 2, it has read the others' turn n + 1, who wrote that after they had read turn n.
A word held turn n - 2 before, so a few bits tell turns apart. Zeros are no turn.

    sums          [2 halves, R senders, rows, H / 2] words of two values of a row, half a row apart:
                  30 bits of each float32, rounded, and 4 of the turn
    candidates    [2 halves, R senders, 3, C] words of 32 bits of a candidate, and 31 of the turn
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
from model.kernels.norms import choose_num_warps, sum_of_addends
from model.kernels.norms_plain import RoutedRows
from model.kernels.sample_plain import Candidates

WORDS_OF_CANDIDATE = 3  # id, and the two halves of the score
_CANDIDATE_WARPS = 4


@dataclass(frozen=True, eq=False)  # tensors have no one equality
class Inboxes:
    """One rank's view of all inboxes, for messages of up to `num_rows` rows of `width` words.

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
    deltas_PTH: torch.Tensor,
    inboxes: Inboxes,
    hidden_TH: torch.Tensor,
    norm: InputNorm,
    normed_TH: torch.Tensor,
    routed: RoutedRows | None = None,
) -> None:
    """Add all ranks' (routed + deltas), in the order of ranks, to `hidden_TH`; its norm goes to `normed_TH`.

    A rank's sum is rounded to 30 bits of float32 before it is added: the result has the same bits everywhere.
    `hidden_TH` is read early: it must not come from the launch just before. Waits for the others.
    """
    num_deltas, num_tokens, hidden_size = deltas_PTH.shape
    assert hidden_TH.shape == normed_TH.shape == (num_tokens, hidden_size), (hidden_TH.shape, normed_TH.shape)
    assert num_tokens <= inboxes.num_rows and hidden_size == 2 * inboxes.width, (num_tokens, hidden_size)
    for tensor in (deltas_PTH, hidden_TH, normed_TH):
        assert tensor.stride(-1) == 1, tensor.stride()
    rows, ids, weights = hidden_TH, hidden_TH, hidden_TH  # what is not there is another tensor, not read
    if routed is not None:
        rows, ids, weights = routed.rows_RH, routed.expert_ids_TK, routed.weights_TK
        assert rows.is_contiguous() and ids.is_contiguous() and weights.is_contiguous(), rows.shape
    block = triton.next_power_of_2(inboxes.width)
    _sum_add_norm_kernel[(num_tokens,)](
        deltas_PTH, rows, ids, weights, inboxes.addresses_R, inboxes.own, inboxes.turns_T, hidden_TH,
        norm.scale_K, normed_TH, deltas_PTH.stride(0), deltas_PTH.stride(1), hidden_TH.stride(0),
        normed_TH.stride(0), 0 if routed is None else routed.first_expert,
        0.0 if routed is None else routed.scale, inboxes.rank, norm.eps,
        R=inboxes.num_ranks, ROWS=inboxes.num_rows, H=hidden_size, BLOCK=block, P=num_deltas,
        K=0 if routed is None else ids.shape[1], E=0 if routed is None else routed.num_experts,
        num_warps=choose_num_warps(2 * block), **early_launch(),
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
def _received(at_C, is_word_C, turn, SHIFT: tl.constexpr):
    """The words of this turn's, as soon as they are there. Read past every cache of one multiprocessor."""
    mark = turn.to(tl.int64) << SHIFT
    words_C = tl.load(at_C, mask=is_word_C, other=mark, volatile=True)
    while tl.max(((words_C ^ mark) >> SHIFT != 0).to(tl.int32), axis=0) > 0:
        words_C = tl.load(at_C, mask=is_word_C, other=mark, volatile=True)
    return words_C


@triton.jit
def _rounded(value_C):
    """The upper 30 bits of float32 values."""
    return (value_C.to(tl.int32, bitcast=True) + 2) >> 2


@triton.jit
def _value(bits_C):
    """The float32 of its upper 30 bits, lowest in a word."""
    return ((bits_C & 0x3FFFFFFF) << 2).to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def _next_turn(turns):
    """Of 31 bits, so that a word's upper half compares as it is; never the 0 of an empty inbox."""
    return tl.load(turns) % 0x7FFFFFFE + 1


@triton.jit
def _next_pair_turn(turns):
    """Of 4 bits, even after odd: half an inbox each."""
    return tl.load(turns) % 14 + 1


@triton.jit(do_not_specialize=["first_expert"])
def _sum_add_norm_kernel(
    deltas, rows, expert_ids, weights, addresses, inbox, turns, hidden, scale, normed, part_stride,
    delta_stride, hidden_stride, normed_stride, first_expert, routed_scale, rank, eps, R: tl.constexpr,
    ROWS: tl.constexpr, H: tl.constexpr, BLOCK: tl.constexpr, P: tl.constexpr, K: tl.constexpr,
    E: tl.constexpr, IS_EARLY: tl.constexpr,
):  # fmt: skip
    WORDS: tl.constexpr = H // 2
    row = tl.program_id(0).to(tl.int64)
    word_W = tl.arange(0, BLOCK)
    is_word_W = word_W < WORDS
    # Turns and the residual stream are of the sum before, scales are weights: older than what is waited for.
    turn = _next_pair_turn(turns + row)
    low_at_W = hidden + row * hidden_stride + word_W
    low_W = tl.load(low_at_W, mask=is_word_W, other=0.0)
    high_W = tl.load(low_at_W + WORDS, mask=is_word_W, other=0.0)
    low_scale_W = tl.load(scale + word_W, mask=is_word_W, other=0.0)
    high_scale_W = tl.load(scale + WORDS + word_W, mask=is_word_W, other=0.0)
    wait_for_inputs(IS_EARLY)
    let_next_start(IS_EARLY)
    own_low_W = sum_of_addends(
        deltas, rows, expert_ids, weights, row, word_W, is_word_W, part_stride, delta_stride, first_expert,
        routed_scale, H, BLOCK, P, K, E,
    )  # fmt: skip
    own_high_W = sum_of_addends(
        deltas + WORDS, rows + WORDS, expert_ids, weights, row, word_W, is_word_W, part_stride, delta_stride,
        first_expert, routed_scale, H, BLOCK, P, K, E,
    )  # fmt: skip
    own_W = _rounded(own_low_W).to(tl.int64) & 0x3FFFFFFF
    own_W |= (_rounded(own_high_W).to(tl.int64) & 0x3FFFFFFF) << 30
    own_W |= turn.to(tl.int64) << 60
    half_W = (turn & 1) * (R * ROWS * WORDS) + row * WORDS + word_W
    _push(own_W, is_word_W, half_W + rank * (ROWS * WORDS), addresses, rank, R)
    tl.debug_barrier()  # pushed before anybody waits
    low_sum_W, high_sum_W = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    for sender in tl.static_range(R):
        words_W = own_W
        if sender != rank:
            words_W = _received(inbox + half_W + sender * (ROWS * WORDS), is_word_W, turn, 60)
        low_sum_W += _value(words_W)
        high_sum_W += _value(words_W >> 30)
    low_W, high_W = low_W + low_sum_W, high_W + high_sum_W
    tl.store(turns + row, turn)
    tl.store(low_at_W, low_W, mask=is_word_W)
    tl.store(low_at_W + WORDS, high_W, mask=is_word_W)
    factor = tl.rsqrt(tl.sum(low_W * low_W + high_W * high_W, axis=0) / H + eps)
    normed_at_W = normed + row * normed_stride + word_W
    tl.store(normed_at_W, (low_W * factor * low_scale_W).to(normed.dtype.element_ty), mask=is_word_W)
    high_normed_W = (high_W * factor * high_scale_W).to(normed.dtype.element_ty)
    tl.store(normed_at_W + WORDS, high_normed_W, mask=is_word_W)


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
            sent_id_C = _received(at_C, is_there_C, turn, 32).to(tl.int32)
            low_C = _received(at_C + WIDTH, is_there_C, turn, 32) & 0xFFFFFFFF
            sent_score_C = low_C | (_received(at_C + 2 * WIDTH, is_there_C, turn, 32) << 32)
        tl.store(out_ids + sender * num_candidates + index_C, sent_id_C, mask=is_there_C)
        tl.store(out_scores + sender * num_candidates + index_C, sent_score_C, mask=is_there_C)
    let_next_start(IS_EARLY)
    tl.store(turns, turn)
