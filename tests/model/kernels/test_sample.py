"""Sampling on the device: ties, the noise of `model.sampler`, parts of a vocabulary, the next step's input.

Shapes: T rows, V tokens, R ranks.
"""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

import tests.model.kernels.interpreter  # noqa: F401 - repairs it
from model import sampler
from model.kernels import sample_plain
from model.kernels.sample import advance, allocate_workspace, sample_tokens
from model.kernels.sample_plain import Candidates, DecodeRows, SamplingRows, SlotGroup
from model.types import SamplingParams

pytestmark = pytest.mark.slow  # interpreted, where there is no GPU


def signed(x: int) -> int:
    return x - 2**64 if x >= 2**63 else x


def rows_of(
    temperatures: list[float], seeds: list[int], num_outputs: list[int], device: torch.device
) -> SamplingRows:
    return SamplingRows(
        torch.tensor(temperatures, dtype=torch.float64, device=device),
        torch.tensor([signed(seed) for seed in seeds], device=device),
        torch.tensor(num_outputs, device=device),
    )


def poisoned(num_rows: int, device: torch.device) -> Candidates:
    return Candidates(
        torch.full((num_rows,), -7, dtype=torch.int32, device=device),
        torch.full((num_rows,), torch.nan, dtype=torch.float64, device=device),
    )


def run(
    logits_TV: torch.Tensor, rows: SamplingRows, *, first_token: int = 0, block: int = 64
) -> tuple[Candidates, Candidates]:
    """The kernel's result and the twin's."""
    out, expected = (poisoned(logits_TV.shape[0], logits_TV.device) for _ in range(2))
    space = allocate_workspace(*logits_TV.shape, logits_TV.device, block)
    sample_tokens(logits_TV, rows, out, workspace=space, first_token=first_token, block=block)
    sample_plain.sample_tokens(logits_TV, rows, expected, first_token=first_token)
    assert not space.counters.any()
    return out, expected


@pytest.mark.parametrize("num_tokens", [1, 50, 64, 65, 333])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_of_equal_logits_the_lowest_id(
    num_tokens: int, dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> None:
    """Five values: every row has its largest one in several blocks."""
    logits_TV = torch.randint(-4, 1, (6, num_tokens), generator=generator, device=device).to(dtype)
    logits_TV[5] = -torch.inf
    out, expected = run(logits_TV, rows_of([0.0] * 6, [1] * 6, [0] * 6, device))
    first = (logits_TV == logits_TV.amax(1, keepdim=True)).int().argmax(1)
    assert out.token_ids.tolist() == expected.token_ids.tolist() == first.tolist()
    assert out.scores.tolist() == logits_TV.amax(1).tolist()


@pytest.mark.parametrize("num_tokens", [50, 333])
def test_the_noise_is_that_of_the_sampler(
    num_tokens: int, device: torch.device, generator: torch.Generator
) -> None:
    logits_TV = torch.randn(5, num_tokens, generator=generator, device=device) * 3
    temperatures, seeds, num_outputs = (
        [0.0, 0.7, 1.0, 1e-3, 2.0],
        [3, 2**64 - 1, 7, 2**63, 0],
        [0, 5, 10**6, 1, 2],
    )
    out, expected = run(logits_TV, rows_of(temperatures, seeds, num_outputs, device))
    rows = [
        sampler.SampleRow(
            SamplingParams(max_tokens=1, temperature=temperature, seed=seed), [], [0] * (number % 100)
        )
        for temperature, seed, number in zip(temperatures, seeds, [0, 5, 0, 1, 2], strict=True)
    ]
    tokens = [token for token, _ in sampler.sample(logits_TV, rows)]
    assert out.token_ids.tolist() == expected.token_ids.tolist()
    torch.testing.assert_close(out.scores, expected.scores, rtol=1e-14, atol=1e-13)
    assert [tokens[i] for i in (0, 1, 3, 4)] == [out.token_ids.tolist()[i] for i in (0, 1, 3, 4)]
    keys = [sampler.stream_key(seed, number) for seed, number in zip(seeds, num_outputs, strict=True)]
    ids_1V = torch.arange(num_tokens, device=device).unsqueeze(0)
    noise_TV = sample_plain.gumbel(rows_of(temperatures, seeds, num_outputs, device), ids_1V)
    assert torch.equal(noise_TV, sampler.gumbel(keys, ids_1V))


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_parts_of_a_vocabulary_agree_with_the_whole(
    num_ranks: int, device: torch.device, generator: torch.Generator
) -> None:
    num_tokens = 60
    logits_TV = torch.randint(-3, 1, (4, num_tokens * num_ranks), generator=generator, device=device).float()
    rows = rows_of([0.0, 0.0, 1.0, 0.5], [5, 6, 7, 8], [0, 1, 2, 3], device)
    whole, _ = run(logits_TV, rows)
    parts = [
        run(logits_TV[:, begin : begin + num_tokens], rows, first_token=begin)[0]
        for begin in range(0, num_tokens * num_ranks, num_tokens)
    ]
    sampled = Candidates(
        torch.stack([part.token_ids for part in parts]), torch.stack([part.scores for part in parts])
    )
    state = decode_rows(4, device)
    state.positions_T.clamp_(min=0)
    advance(state, sampled)
    assert state.token_ids_T.tolist() == whole.token_ids.tolist()


def decode_rows(num_rows: int, device: torch.device, dtype: torch.dtype = torch.int32) -> DecodeRows:
    """The first two groups' tables are rings; every third row is padding."""
    choice = torch.Generator().manual_seed(num_rows)
    positions_T = torch.randint(0, 200, (num_rows,), generator=choice)
    positions_T[2::3] = -1
    groups = tuple(
        SlotGroup(
            torch.randint(0, 1000, (num_rows, width), generator=choice).int().to(device),
            torch.full((num_rows,), -9, dtype=dtype, device=device), 16,
        )
        for width in (14, 5)
    )  # fmt: skip
    return DecodeRows(
        torch.randint(0, 50, (num_rows,), generator=choice).to(device, dtype), positions_T.to(device, dtype),
        (positions_T + 1).to(device, dtype), torch.arange(num_rows, device=device),
        torch.tensor([41], device=device), groups,
    )  # fmt: skip


def values(rows: DecodeRows) -> list[list[int]]:
    tensors = [rows.token_ids_T, rows.positions_T, rows.context_lens_T, rows.num_outputs_T, rows.step_1]
    return [tensor.tolist() for tensor in tensors + [group.slots_T for group in rows.groups]]


@pytest.mark.parametrize("num_rows", [1, 7, 64])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_the_next_step_is_made_on_the_device(
    num_rows: int, dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> None:
    ids_T = torch.randint(0, 50, (num_rows,), generator=generator, device=device).int()
    sampled = Candidates(ids_T, torch.zeros(num_rows, dtype=torch.float64, device=device))
    state, expected = decode_rows(num_rows, device, dtype), decode_rows(num_rows, device, dtype)
    advance(state, sampled)
    sample_plain.advance(expected, sampled)
    assert values(state) == values(expected)
    assert state.step_1.tolist() == [42]
    assert state.groups[0].slots_T[0] == (
        state.groups[0].blocks_TM[0, state.positions_T[0] // 16 % 14] * 16 + state.positions_T[0] % 16
    )
