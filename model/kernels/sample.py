"""Sampling inside a graph: argmax, Gumbel-max, and the step from one token to the next.

Shapes: T rows, V tokens of the vocabulary on this rank, R ranks that hold parts of it, M columns of a block
table; BLOCK tokens of one program, NB such blocks.

One launch each. A row's programs find their best, the last to come the best of all: a maximum does not
depend on the order. The noise has the integers of `model.sampler.gumbel`, and its float64 but for the last
bit of two logarithms: the same tokens, unless two scores are that close.
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, import-untyped, untyped-decorator"
# ruff: noqa: PLR0913, PLR0917

from __future__ import annotations

import torch
import triton
import triton.language as tl

from model.kernels import sample_plain
from model.kernels.early_start import early_launch, wait_for_inputs
from model.kernels.noise import GAMMA, mix
from model.kernels.sample_plain import Candidates, DecodeRows, SampleWorkspace, SamplingRows
from model.kernels.splits import is_last

# The noise of a token is two float64 logarithms: many programs, so that one row takes 2 us and not 10.
BLOCK_TOKENS = 1024
NUM_WARPS = 4
_MAX_GROUPS = 2
_SAMPLE_INDEX = tl.constexpr(sample_plain.SAMPLE_INDEX)
_NO_TOKEN = tl.constexpr(2**31 - 1)
_ONE_BITS = tl.constexpr(0x3FF0000000000000)  # of float64 1
_BELOW_ONE = tl.constexpr(1 - 2**-53)  # float64's largest below 1


def allocate_workspace(
    num_rows: int, num_tokens: int, device: torch.device | str, block: int = BLOCK_TOKENS
) -> SampleWorkspace:
    """For up to `num_rows` rows of `num_tokens` logits; before graphs, for counters are set to 0 once."""
    num_partials = num_rows * triton.cdiv(num_tokens, block)
    return SampleWorkspace(
        torch.empty(num_partials, dtype=torch.float64, device=device),
        torch.empty(num_partials, dtype=torch.int32, device=device),
        torch.zeros(num_rows, dtype=torch.int32, device=device),
    )


def sample_tokens(
    logits_TV: torch.Tensor,
    rows: SamplingRows,
    out: Candidates,
    *,
    workspace: SampleWorkspace | None = None,
    first_token: int = 0,
    block: int = BLOCK_TOKENS,
) -> None:
    """Fill `out` [T]: argmax of logits, or of logits / temperature + Gumbel noise, in float64.

    Logits float32 or bf16. Of equals the lowest id; `first_token` is the id of column 0. Filters (top-k,
    top-p, min-p), penalties and masks are not for this kernel: see `model.sampler`.
    """
    num_rows, num_tokens = logits_TV.shape
    num_blocks = triton.cdiv(num_tokens, block)
    assert workspace is not None and workspace.scores.numel() >= num_rows * num_blocks, (
        "programs of a row meet"
    )
    assert logits_TV.stride(1) == 1 and out.token_ids.shape == out.scores.shape == (num_rows,), (
        out.scores.shape
    )
    assert rows.temperatures_T.dtype == out.scores.dtype == torch.float64, rows.temperatures_T.dtype
    assert rows.seeds_T.dtype == torch.int64, rows.seeds_T.dtype
    _sample_kernel[(num_rows, num_blocks)](
        logits_TV, rows.temperatures_T, rows.seeds_T, rows.num_outputs_T, workspace.scores,
        workspace.token_ids, workspace.counters, out.token_ids, out.scores, first_token, logits_TV.stride(0),
        V=num_tokens, BLOCK=block, NB=num_blocks, NBP=triton.next_power_of_2(num_blocks),
        num_warps=NUM_WARPS, **early_launch(),
    )  # fmt: skip


def advance(rows: DecodeRows, sampled: Candidates) -> None:
    """Make the sampled tokens the next step's input: token, position, lengths, cache slots.

    Of candidates [R, T] the best of each row is taken, of equals the lowest id. Padding: slot -1.
    """
    num_rows, groups = rows.token_ids_T.shape[0], rows.groups
    assert sampled.token_ids.numel() % num_rows == 0 and len(groups) <= _MAX_GROUPS, (num_rows, len(groups))
    assert sampled.token_ids.is_contiguous() and sampled.scores.is_contiguous()
    assert all(group.blocks_TM.is_contiguous() for group in groups)
    # What is not there is another tensor, which is not used.
    tables = [group.blocks_TM for group in groups] + [rows.token_ids_T] * (_MAX_GROUPS - len(groups))
    slots = [group.slots_T for group in groups] + [rows.token_ids_T] * (_MAX_GROUPS - len(groups))
    sizes = [(group.blocks_TM.shape[1], group.block_size) for group in groups] + [(0, 1)] * _MAX_GROUPS
    _advance_kernel[(1,)](
        sampled.token_ids, sampled.scores, rows.token_ids_T, rows.positions_T, rows.context_lens_T,
        rows.num_outputs_T, rows.step_1, *tables, *slots, T=num_rows, TP=triton.next_power_of_2(num_rows),
        R=sampled.token_ids.numel() // num_rows, M_0=sizes[0][0], M_1=sizes[1][0], BLOCK_0=sizes[0][1],
        BLOCK_1=sizes[1][1], num_warps=1 if num_rows <= 64 else 4, **early_launch(),
    )  # fmt: skip


@triton.jit
def _noise(seed, num_outputs, id_V):
    """Gumbel noise in float64; see `model.sampler.gumbel`."""
    key = mix(seed.to(tl.uint64, bitcast=True) + GAMMA)
    key = mix(key + _SAMPLE_INDEX + GAMMA)
    key = mix(key + num_outputs.to(tl.uint64) + GAMMA)
    bits_V = mix(key + (id_V.to(tl.uint64) + 1) * GAMMA)
    # (bits + 1/2) / 2^52 for the upper 52 bits, exactly, without a conversion of integers.
    uniform_V = ((bits_V >> 12) | _ONE_BITS).to(tl.float64, bitcast=True) - _BELOW_ONE
    return -tl.log(-tl.log(uniform_V))


@triton.jit
def _best(score_V, id_V):
    """The largest score, and the lowest id that has it."""
    best = tl.max(score_V, axis=0)
    return best, tl.min(tl.where(score_V == best, id_V, _NO_TOKEN), axis=0)


@triton.jit
def _sample_kernel(
    logits, temperatures, seeds, num_outputs, partial_scores, partial_ids, counters, out_ids, out_scores,
    first_token, logits_stride, V: tl.constexpr, BLOCK: tl.constexpr, NB: tl.constexpr, NBP: tl.constexpr,
    IS_EARLY: tl.constexpr,
):  # fmt: skip
    wait_for_inputs(IS_EARLY)
    row, block = tl.program_id(0), tl.program_id(1)
    column_V = block * BLOCK + tl.arange(0, BLOCK)
    is_token_V = column_V < V
    at_V = logits + row.to(tl.int64) * logits_stride + column_V
    score_V = tl.load(at_V, mask=is_token_V, other=float("-inf")).to(tl.float64)
    id_V = column_V + first_token
    temperature = tl.load(temperatures + row)
    if temperature > 0:
        noise_V = _noise(tl.load(seeds + row), tl.load(num_outputs + row), id_V)
        score_V = score_V / temperature + noise_V
    best, best_id = _best(score_V, tl.where(is_token_V, id_V, _NO_TOKEN))
    if NB == 1:
        tl.store(out_scores + row, best)
        tl.store(out_ids + row, best_id)
    else:
        tl.store(partial_scores + row * NB + block, best)
        tl.store(partial_ids + row * NB + block, best_id)
        if is_last(counters + row, NB):
            block_B = tl.arange(0, NBP)
            is_block_B = block_B < NB
            at_B = row * NB + block_B
            score_B = tl.load(
                partial_scores + at_B, mask=is_block_B, other=float("-inf"), cache_modifier=".cg"
            )
            id_B = tl.load(partial_ids + at_B, mask=is_block_B, other=_NO_TOKEN, cache_modifier=".cg")
            best, best_id = _best(score_B, id_B)
            tl.store(out_scores + row, best)
            tl.store(out_ids + row, best_id)


@triton.jit
def _next_slots(blocks, slots, row_T, position_T, is_row_T, M: tl.constexpr, BLOCK: tl.constexpr):
    is_real_T = is_row_T & (position_T >= 0)
    column_T = position_T // BLOCK % M
    block_T = tl.load(blocks + row_T * M + column_T, mask=is_real_T, other=0).to(tl.int64)
    slot_T = tl.where(is_real_T, block_T * BLOCK + position_T % BLOCK, -1)
    tl.store(slots + row_T, slot_T.to(slots.dtype.element_ty), mask=is_row_T)


@triton.jit
def _advance_kernel(
    sampled_ids, scores, token_ids, positions, context_lens, num_outputs, step_1, blocks_0, blocks_1, slots_0,
    slots_1, T: tl.constexpr, TP: tl.constexpr, R: tl.constexpr, M_0: tl.constexpr, M_1: tl.constexpr,
    BLOCK_0: tl.constexpr, BLOCK_1: tl.constexpr, IS_EARLY: tl.constexpr,
):  # fmt: skip
    wait_for_inputs(IS_EARLY)
    row_T = tl.arange(0, TP)
    is_row_T = row_T < T
    id_T = tl.load(sampled_ids + row_T, mask=is_row_T, other=0)
    best_T = tl.load(scores + row_T, mask=is_row_T, other=0.0)
    for rank in tl.static_range(1, R):
        other_T = tl.load(scores + rank * T + row_T, mask=is_row_T, other=0.0)
        other_id_T = tl.load(sampled_ids + rank * T + row_T, mask=is_row_T, other=0)
        is_better_T = (other_T > best_T) | ((other_T == best_T) & (other_id_T < id_T))
        id_T = tl.where(is_better_T, other_id_T, id_T)
        best_T = tl.maximum(best_T, other_T)
    position_T = tl.load(positions + row_T, mask=is_row_T, other=-1)
    is_real_T = position_T >= 0
    tl.store(token_ids + row_T, id_T.to(token_ids.dtype.element_ty), mask=is_real_T)
    next_T = tl.where(is_real_T, position_T + 1, position_T)
    tl.store(positions + row_T, next_T, mask=is_real_T)
    length_T = tl.load(context_lens + row_T, mask=is_real_T, other=0)
    tl.store(context_lens + row_T, length_T + 1, mask=is_real_T)
    number_T = tl.load(num_outputs + row_T, mask=is_real_T, other=0)
    tl.store(num_outputs + row_T, number_T + 1, mask=is_real_T)
    tl.store(step_1, tl.load(step_1) + 1)
    if M_0 > 0:
        _next_slots(blocks_0, slots_0, row_T, next_T, is_row_T, M_0, BLOCK_0)
    if M_1 > 0:
        _next_slots(blocks_1, slots_1, row_T, next_T, is_row_T, M_1, BLOCK_1)
