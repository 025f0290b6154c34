"""The sampler against the same rules written one token at a time."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from model import sampler
from model.sampler import SampleRow, _gumbel_of_bits, gumbel, sample, stream_key
from model.types import SamplingParams

PLAIN = SamplingParams(max_tokens=100)


def one(
    logits: Sequence[float] | Tensor,
    params: SamplingParams,
    prompt: Sequence[int] = (),
    output: Sequence[int] = (),
) -> int:
    """The token that a row alone gets."""
    logits_BV = torch.as_tensor(logits, dtype=torch.float64).unsqueeze(0)
    return sample(logits_BV, [SampleRow(params, prompt, output)])[0][0]


def reachable(logits: Sequence[float], params: SamplingParams, num_draws: int = 400) -> set[int]:
    """Every token that comes up under some seed."""
    rows = [SampleRow(replace(params, seed=seed), (), ()) for seed in range(num_draws)]
    return {token_id for token_id, _ in sample(torch.tensor([logits] * num_draws, dtype=torch.float64), rows)}


# ---- the rules in plain Python ----


def reference_hash(seed: int, token_index: int, token_id: int) -> int:
    mask = 2**64 - 1

    def mix(x: int) -> int:
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
        return x ^ (x >> 31)

    key = 0
    for part in (seed, 0, token_index):
        key = mix((key + part + 0x9E3779B97F4A7C15) & mask)
    return mix((key + (token_id + 1) * 0x9E3779B97F4A7C15) & mask)


def reference_noise(seed: int, token_index: int, token_id: int) -> float:
    return -math.log(-math.log(((reference_hash(seed, token_index, token_id) >> 12) + 0.5) / 2**52))


def reference_penalised(logits: Sequence[float], row: SampleRow) -> list[float]:
    params, counts = row.sampling, Counter(row.output_ids)
    seen = set(row.prompt_ids) | set(row.output_ids)
    result = list(logits)
    for token_id in seen:
        value = result[token_id]
        result[token_id] = (
            value / params.repetition_penalty if value > 0 else value * params.repetition_penalty
        )
    for token_id, count in counts.items():
        result[token_id] -= params.frequency_penalty * count + params.presence_penalty
    for token_id, bias in params.logit_bias:
        result[token_id] += bias
    if len(row.output_ids) < params.min_tokens:
        for token_id in params.eos_token_ids + params.stop_token_ids:
            result[token_id] = -math.inf
    return result


def reference_kept(scaled: list[float], params: SamplingParams) -> list[int]:
    """Token ids that survive top-k, then top-p of what is left, then min-p."""
    order = sorted(range(len(scaled)), key=lambda token_id: (-scaled[token_id], token_id))
    order = order[: params.top_k or len(order)]
    weights = {token_id: math.exp(scaled[token_id] - scaled[order[0]]) for token_id in order}
    total, before, kept = sum(weights.values()), 0.0, []
    for token_id in order:
        if params.top_p >= 1 or before < params.top_p * total:
            kept.append(token_id)
        before += weights[token_id]
    return [token_id for token_id in kept if weights[token_id] >= params.min_p]


def reference_sample(logits: Sequence[float], row: SampleRow) -> int:
    params = row.sampling
    penalised = reference_penalised(logits, row)
    if params.temperature == 0:
        return max(range(len(penalised)), key=lambda token_id: (penalised[token_id], -token_id))
    scaled = [value / params.temperature for value in penalised]
    noise = {i: reference_noise(params.seed, len(row.output_ids), i) for i in reference_kept(scaled, params)}
    return max(noise, key=lambda token_id: (scaled[token_id] + noise[token_id], -token_id))


# ---- drawn rows ----

VOCAB = 40
# A fixture that only sets a constant may serve all examples.
NO_FIXTURE_STATE = [HealthCheck.function_scoped_fixture]
ids = st.lists(st.integers(0, VOCAB - 1), max_size=12)
params_drawn = st.builds(
    SamplingParams,
    max_tokens=st.just(100),
    seed=st.integers(0, 2**64 - 1),
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.5]),
    top_p=st.sampled_from([1.0, 0.95, 0.7, 0.2, 1e-6]),
    top_k=st.sampled_from([0, 1, 3, 20, VOCAB, 1000]),
    min_p=st.sampled_from([0.0, 0.02, 0.4, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 1.3, 0.7]),
    presence_penalty=st.sampled_from([0.0, 0.8, -0.5]),
    frequency_penalty=st.sampled_from([0.0, 0.4, -0.3]),
    min_tokens=st.sampled_from([0, 5]),
    logit_bias=st.sampled_from([(), ((3, 2.5),), ((0, -100.0), (11, 1.5), (39, 100.0))]),
    eos_token_ids=st.sampled_from([(), (3,), (3, 7)]),
    stop_token_ids=st.sampled_from([(), (11,)]),
)
rows_drawn = st.lists(st.builds(SampleRow, params_drawn, ids, ids), min_size=1, max_size=6)
# Logits from a coarse grid are often equal, so that ties decide; from a generator they never are.
logits_drawn = st.tuples(st.booleans(), st.integers(0, 2**31))


def make_logits(num_rows: int, drawn: tuple[bool, int]) -> Tensor:
    has_ties, seed = drawn
    logits_BV = 3 * torch.randn(
        num_rows, VOCAB, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    return (logits_BV / 2).round() * 2 if has_ties else logits_BV


@pytest.mark.parametrize("widths", [(), (2,), (4, 16)], ids=str)
@settings(max_examples=120, deadline=None, derandomize=True, suppress_health_check=NO_FIXTURE_STATE)
@given(rows=rows_drawn, drawn=logits_drawn)
def test_every_row_of_any_batch_gets_the_token_of_the_plain_rules(
    monkeypatch: pytest.MonkeyPatch, widths: tuple[int, ...], rows: list[SampleRow], drawn: tuple[bool, int]
) -> None:
    monkeypatch.setattr(sampler, "NUCLEUS_WIDTHS", widths)
    logits_BV = make_logits(len(rows), drawn)
    expected = [reference_sample(logits, row) for logits, row in zip(logits_BV.tolist(), rows, strict=True)]
    assert [token_id for token_id, _ in sample(logits_BV, rows)] == expected


@settings(max_examples=60, deadline=None, derandomize=True)
@given(rows=rows_drawn, drawn=logits_drawn)
def test_a_row_gets_the_same_token_alone_and_in_a_batch(
    rows: list[SampleRow], drawn: tuple[bool, int]
) -> None:
    logits_BV = make_logits(len(rows), drawn)
    together = [token_id for token_id, _ in sample(logits_BV, rows)]
    assert [sample(logits_BV[i : i + 1], [row])[0][0] for i, row in enumerate(rows)] == together


@settings(max_examples=30, deadline=None, derandomize=True)
@given(params=params_drawn, prompt=ids, seed=st.integers(0, 2**31), drop_at=st.integers(0, 11))
def test_a_row_made_anew_at_any_token_goes_on_the_same(
    params: SamplingParams, prompt: list[int], seed: int, drop_at: int
) -> None:
    logits_NV = make_logits(12, (False, seed))

    def generate(rebuild_at: int | None) -> list[int]:
        output: list[int] = []
        row = SampleRow(params, prompt, output)
        for n in range(12):
            if n == rebuild_at:
                output = list(output)
                row = SampleRow(params, prompt, output)
            output.append(sample(logits_NV[n : n + 1], [row])[0][0])
        return output

    assert generate(None) == generate(drop_at)


def test_counts_follow_an_output_that_was_cut_back() -> None:
    output = [1, 1, 1]
    row = SampleRow(replace(PLAIN, frequency_penalty=1.0), (), output)
    logits_BV = torch.tensor([[0.0, 2.5, 0.1]])
    assert sample(logits_BV, [row])[0][0] == 2
    del output[1:]
    assert sample(logits_BV, [row])[0][0] == 1


def test_the_largest_logit_wins_and_the_lowest_id_among_equals() -> None:
    assert one([0.0, 2.0, 2.0, 1.0], PLAIN) == 1


def test_equal_logits_leave_the_lowest_ids_to_top_k() -> None:
    assert reachable([1.0, 2.0, 1.0, 1.0, 1.0], replace(PLAIN, temperature=1.0, top_k=3)) == {0, 1, 2}


def test_equal_logits_leave_the_lowest_ids_to_top_p() -> None:
    assert reachable([0.0] * 8, replace(PLAIN, temperature=1.0, top_p=0.5)) == {0, 1, 2, 3}


def test_the_token_that_crosses_top_p_is_kept() -> None:
    logits = [math.log(p) for p in (0.5, 0.3, 0.15, 0.05)]
    assert reachable(logits, replace(PLAIN, temperature=1.0, top_p=0.7)) == {0, 1}


def test_min_p_is_relative_to_the_most_probable() -> None:
    logits = [math.log(p) for p in (0.5, 0.3, 0.15, 0.05)]
    assert reachable(logits, replace(PLAIN, temperature=1.0, min_p=0.29)) == {0, 1, 2}


def test_top_p_counts_what_top_k_left() -> None:
    logits = [math.log(p) for p in (0.4, 0.3, 0.2, 0.1)]
    # Of two: 0.4 / 0.7 = 57 % reaches 55 %; of four, 40 % would not.
    assert reachable(logits, replace(PLAIN, temperature=1.0, top_k=2, top_p=0.55)) == {0}


def test_temperature_comes_before_top_p() -> None:
    logits = [math.log(p) for p in (0.5, 0.3, 0.15, 0.05)]
    assert reachable(logits, replace(PLAIN, temperature=0.25, top_p=0.8)) == {0}


@pytest.mark.parametrize("penalty", ["presence_penalty", "frequency_penalty"])
def test_a_penalty_on_output_leaves_the_prompt_alone(penalty: str) -> None:
    params = replace(PLAIN, **{penalty: 1.0})
    assert one([1.0, 1.5, 0.0], params, prompt=[1]) == 1
    assert one([1.0, 1.5, 0.0], params, output=[1]) == 0


def test_repetition_lowers_positive_and_negative_logits_of_prompt_and_output() -> None:
    params = replace(PLAIN, repetition_penalty=2.0)
    assert one([1.0, 1.5, 0.0], params, prompt=[1]) == 0
    assert one([-1.0, -1.5, -9.0], params, output=[0]) == 1


def test_end_tokens_come_only_after_min_tokens() -> None:
    params = replace(PLAIN, min_tokens=2, eos_token_ids=(0,), stop_token_ids=(1, 99))
    assert [one([9.0, 8.0, 1.0], params, output=[2] * n) for n in range(4)] == [2, 2, 0, 0]


def test_the_widths_of_the_first_looks_never_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    logits_BV = make_logits(6, (False, 5))
    filters = [(0.999, 0), (0.2, 0), (1.0, 3), (0.5, 30), (0.9, 2), (1.0, 30)]
    rows = [SampleRow(replace(PLAIN, temperature=1.5, top_p=p, top_k=k, seed=9), (), ()) for p, k in filters]
    tokens = []
    for widths in ((), (2,), (4, 8), (39,), (64, 1024)):
        monkeypatch.setattr(sampler, "NUCLEUS_WIDTHS", widths)
        tokens.append(sample(logits_BV, rows))
    assert all(drawn == tokens[0] for drawn in tokens)


def test_many_rows_in_chunks_get_the_tokens_of_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    logits_BV = make_logits(7, (False, 6))
    rows = [
        SampleRow(replace(PLAIN, temperature=0.0 if seed == 3 else 1.0, seed=seed), (), ())
        for seed in range(7)
    ]
    expected = sample(logits_BV, rows)
    monkeypatch.setattr(sampler, "CHUNK_ELEMENTS", 2 * VOCAB)
    assert sample(logits_BV, rows) == expected


def test_noise_has_the_bits_of_the_integer_hash() -> None:
    for seed, token_index in ((0, 0), (2**64 - 1, 3), (12345, 100_000)):
        noise_V = gumbel([stream_key(seed, token_index)], torch.arange(500).unsqueeze(0))[0]
        expected = [reference_noise(seed, token_index, token_id) for token_id in range(500)]
        assert noise_V.tolist() == pytest.approx(expected, rel=1e-12)


def test_samples_of_a_request_have_noise_of_their_own() -> None:
    logits_BV = torch.zeros(64, 500)
    rows = [SampleRow(replace(PLAIN, temperature=1.0, seed=3, sample=s), (), ()) for s in range(64)]
    drawn = [token_id for token_id, _ in sample(logits_BV, rows)]
    assert len(set(drawn)) > 50
    assert (
        drawn[0] == sample(logits_BV[:1], [SampleRow(replace(PLAIN, temperature=1.0, seed=3), (), ())])[0][0]
    )
    assert stream_key(3, 5, 0) == stream_key(3, 5) != stream_key(3, 5, 1)


def test_noise_is_finite_at_both_ends_of_the_hash() -> None:
    assert _gumbel_of_bits(torch.tensor([0, 2**52 - 1])).tolist() == pytest.approx([-3.60, 36.74], abs=0.01)


def test_draws_follow_the_softmax() -> None:
    logits = [2.0, 1.0, 0.5, 0.0, -1.0, -3.0]
    num_draws, temperature = 30_000, 1.3
    rows = [
        SampleRow(replace(PLAIN, temperature=temperature, seed=seed), (), ()) for seed in range(num_draws)
    ]
    counts = Counter(token_id for token_id, _ in sample(torch.tensor([logits] * num_draws), rows))
    shares = (torch.tensor(logits, dtype=torch.float64) / temperature).softmax(0)
    chi_square = sum(
        (counts[i] - num_draws * p) ** 2 / (num_draws * p) for i, p in enumerate(shares.tolist())
    )
    assert chi_square < 20.5  # 5 degrees of freedom: 0.1 % of fair samplers exceed it; the seeds are fixed


def test_draws_of_one_seed_along_a_sequence_follow_the_softmax_and_do_not_repeat_each_other() -> None:
    num_draws = 20_000
    rows = [SampleRow(replace(PLAIN, temperature=1.0, seed=1), (), range(n)) for n in range(num_draws)]
    drawn = [token_id for token_id, _ in sample(torch.zeros(num_draws, 4), rows)]
    pairs = Counter(pairwise(drawn))
    expected = (num_draws - 1) / 16
    assert (
        sum((pairs[a, b] - expected) ** 2 / expected for a in range(4) for b in range(4)) < 37.7
    )  # 15 d.o.f., 0.1 %


def test_logprobs_are_of_the_distribution_before_penalties_temperature_and_filters() -> None:
    params = replace(
        PLAIN, temperature=0.5, top_k=1, repetition_penalty=3.0, presence_penalty=2.0, num_logprobs=3
    )
    logits_BV = torch.tensor([[1.0, 3.0, 2.0, 3.0]])
    token_id, logprob = sample(logits_BV, [SampleRow(params, [1], [3])])[0]
    log_softmax = logits_BV[0].double().log_softmax(0).tolist()
    assert token_id == 2
    assert logprob is not None
    assert logprob.logprob == pytest.approx(log_softmax[2], abs=1e-12)
    assert [top_id for top_id, _ in logprob.top] == [1, 3, 2]
    assert [value for _, value in logprob.top] == pytest.approx(
        [log_softmax[i] for i in (1, 3, 2)], abs=1e-12
    )


def test_logprobs_come_only_where_asked_for_and_alone_for_zero() -> None:
    logits_BV = torch.tensor([[0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    rows = [SampleRow(replace(PLAIN, num_logprobs=count), (), ()) for count in (None, 0, 5)]
    first, second, third = (logprob for _, logprob in sample(logits_BV, rows))
    assert first is None
    assert second is not None
    assert second.top == ()
    assert third is not None
    assert [token_id for token_id, _ in third.top] == [1, 0]


@pytest.mark.parametrize(
    "params", [PLAIN, replace(PLAIN, min_tokens=3, eos_token_ids=(1,), presence_penalty=1.0)]
)
def test_logits_are_left_as_they_came(params: SamplingParams) -> None:
    logits_BV = torch.tensor([[0.0, 1.0, 0.5]])
    sample(logits_BV, [SampleRow(params, [0], [1])])
    assert logits_BV.tolist() == [[0.0, 1.0, 0.5]]


def test_no_rows_give_no_tokens() -> None:
    assert sample(torch.empty(0, 5), []) == []
