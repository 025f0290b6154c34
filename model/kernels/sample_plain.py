"""Plain-torch twin of `sample`: greedy and Gumbel-max sampling, and the step from one token to the next.

Shapes: T rows, V tokens of the vocabulary on this rank, R ranks that hold parts of it, M columns of a block
table.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from model.kernels.noise_plain import GAMMA, mix, signed

# One sample per request so far; its place in the noise is fixed (model/sampler.py).
SAMPLE_INDEX = 0


@dataclass(frozen=True, eq=False)  # tensors have no one equality
class SamplingRows:
    """How each row is sampled; on the device, so that a graph reads what is there when it runs."""

    temperatures_T: torch.Tensor  # float64; 0: greedy
    seeds_T: torch.Tensor  # int64 with the bits of the unsigned seed
    num_outputs_T: torch.Tensor  # int64: tokens before the one that is sampled


@dataclass(frozen=True, eq=False)
class Candidates:
    """The best token of each row in one part of the vocabulary, or in several: [R, T]."""

    token_ids: torch.Tensor  # int32
    scores: torch.Tensor  # float64: logit, or logit / temperature + noise


@dataclass(frozen=True, eq=False)
class SampleWorkspace:
    """Where the programs of a row meet; `counters` are zero between launches."""

    scores: torch.Tensor  # float64 [T * blocks]
    token_ids: torch.Tensor  # int32 [T * blocks]
    counters: torch.Tensor  # int32 [T]


@dataclass(frozen=True, eq=False)
class SlotGroup:
    """Cache slots of the rows' next positions in a block group; tables are rings (`model.kernels.paged`)."""

    blocks_TM: torch.Tensor  # int32
    slots_T: torch.Tensor  # int32 or int64
    block_size: int


@dataclass(frozen=True, eq=False)
class DecodeRows:
    """What a decode step reads about its rows. Those with a negative position are padding: they stay so."""

    token_ids_T: torch.Tensor  # int32 or int64, as the next three
    positions_T: torch.Tensor  # of these tokens
    context_lens_T: torch.Tensor  # positions in the cache, these included
    num_outputs_T: torch.Tensor
    step_1: torch.Tensor  # int64 [1]: steps that were computed
    groups: tuple[SlotGroup, ...] = ()  # at most two


def sample_tokens(
    logits_TV: torch.Tensor,
    rows: SamplingRows,
    out: Candidates,
    *,
    workspace: SampleWorkspace | None = None,  # noqa: ARG001 - the kernel's
    first_token: int = 0,
) -> None:
    """Fill `out` [T]: argmax of logits, or of logits / temperature + Gumbel noise, in float64.

    Of equals the lowest id. The noise is that of `model.sampler.gumbel`; `first_token` is the id of column 0.
    """
    ids_1V = torch.arange(first_token, first_token + logits_TV.shape[1], device=logits_TV.device).unsqueeze(0)
    temperatures_T1 = rows.temperatures_T.unsqueeze(1)
    is_greedy_T1 = temperatures_T1 <= 0
    scores_TV = logits_TV.double()
    noisy_TV = scores_TV / temperatures_T1.masked_fill(is_greedy_T1, 1.0) + gumbel(rows, ids_1V)
    scores_TV = torch.where(is_greedy_T1, scores_TV, noisy_TV)
    out.scores.copy_(scores_TV.amax(1))
    out.token_ids.copy_(scores_TV.argmax(1) + first_token)


def gumbel(rows: SamplingRows, ids_1V: torch.Tensor) -> torch.Tensor:
    """[T, V] float64 noise from seeds and counters on the device: that of `model.sampler.gumbel`."""
    key_T = torch.zeros_like(rows.seeds_T)
    for part in (rows.seeds_T, SAMPLE_INDEX, rows.num_outputs_T):
        key_T = mix(key_T + part + signed(GAMMA))
    bits_TV = mix(key_T.unsqueeze(1) + (ids_1V + 1) * signed(GAMMA))
    bits_TV = (bits_TV >> 12) & (2**52 - 1)
    uniform_TV = bits_TV.double().add_(0.5).mul_(2.0**-52)
    return uniform_TV.log_().neg_().log_().neg_()


def best_tokens(sampled: Candidates, num_rows: int) -> torch.Tensor:
    """The best token of each row over ranks, of equals the lowest id: int32 [T]."""
    ids_RT, scores_RT = sampled.token_ids.view(-1, num_rows), sampled.scores.view(-1, num_rows)
    is_best_RT = scores_RT == scores_RT.amax(0)
    return ids_RT.masked_fill(~is_best_RT, torch.iinfo(torch.int32).max).amin(0)


def advance(rows: DecodeRows, sampled: Candidates) -> None:
    """Make the sampled tokens the next step's input: token, position, lengths, cache slots.

    Of candidates [R, T] the best of each row is taken, of equals the lowest id.
    """
    ids_T = best_tokens(sampled, len(rows.token_ids_T))
    is_real_T = rows.positions_T >= 0
    rows.token_ids_T.copy_(torch.where(is_real_T, ids_T.to(rows.token_ids_T), rows.token_ids_T))
    for counts_T in (rows.positions_T, rows.context_lens_T, rows.num_outputs_T):
        counts_T.add_(is_real_T.to(counts_T.dtype))
    rows.step_1.add_(1)
    for group in rows.groups:
        positions_T = rows.positions_T.clamp(min=0).long()
        columns_T = positions_T // group.block_size % group.blocks_TM.shape[1]
        blocks_T = group.blocks_TM.gather(1, columns_T.unsqueeze(1)).squeeze(1).long()
        slots_T = blocks_T * group.block_size + positions_T % group.block_size
        group.slots_T.copy_(slots_T.masked_fill(~is_real_T, -1))
