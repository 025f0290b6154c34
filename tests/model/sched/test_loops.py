"""Loops are found where the rule says, by a detector that sees one token at a time."""

from __future__ import annotations

import random
import time
from dataclasses import replace

import pytest

from model.sched.loops import MAX_PERIOD, MIN_REPEATS, MIN_TOKENS, LoopDetector
from model.sched.sequence import Phase, Sequence
from model.types import FinishReason, Request, RequestKey, SamplingParams

EOS = 1


def loops_at(ids: list[int]) -> int | None:
    """How many tokens there are when the detector calls."""
    detector = LoopDetector()
    return next((count for count, token_id in enumerate(ids, 1) if detector.push(token_id)), None)


def plainly(ids: list[int]) -> int | None:
    """The rule, word by word."""
    for count in range(MIN_TOKENS, len(ids) + 1):
        for period in range(1, MAX_PERIOD + 1):
            tail = ids[max(0, count - max(MIN_TOKENS, MIN_REPEATS * period)) : count]
            is_long = len(tail) >= max(MIN_TOKENS, MIN_REPEATS * period)
            if is_long and tail[period:] == tail[:-period]:
                return count
    return None


@pytest.mark.parametrize("period", [1, 2, 3, 7, 16, 17, 40, 64])
def test_a_stretch_over_and_over_is_a_loop_as_soon_as_it_is_long_enough(period: int) -> None:
    ids = [5, 6, *(100 + i % period for i in range(1200))]
    assert loops_at(ids) == 2 + max(MIN_TOKENS, MIN_REPEATS * period) == plainly(ids)


def test_a_longer_stretch_is_none() -> None:
    assert loops_at([i % (MAX_PERIOD + 1) for i in range(4000)]) is None


def test_one_other_token_begins_the_count_anew() -> None:
    ids = [7] * (MIN_TOKENS - 1) + [8] + [7] * (MIN_TOKENS - 1)
    assert loops_at(ids) is None


def test_the_detector_is_the_rule_on_random_ids() -> None:
    rng, num_found = random.Random(5), 0
    for _ in range(15):
        ids: list[int] = []
        while len(ids) < 700:
            stretch = [rng.randrange(4) for _ in range(rng.choice([1, 2, 3, 5, 12]))]
            ids += stretch * rng.randint(1, 300 // len(stretch))
        num_found += plainly(ids) is not None
        assert loops_at(ids) == plainly(ids)
    assert 2 < num_found < 15


def sequence(**fields: object) -> Sequence:
    sampling = SamplingParams(max_tokens=2000, eos_token_ids=(EOS,))
    request = Request(RequestKey("local", "a"), (1, 2), replace(sampling, **fields))
    return Sequence(0, request, 0.0, 0.0, Phase.RUNNING)


def test_a_sequence_ends_with_the_token_that_makes_the_loop() -> None:
    seq = sequence()
    assert seq.cut((7,) * (MIN_TOKENS - 2)) == (MIN_TOKENS - 2, None)
    seq.num_output = MIN_TOKENS - 2
    assert seq.cut((7, 7, 7, 7)) == (2, FinishReason.LOOP)


def test_who_ignores_ends_wants_every_token() -> None:
    assert sequence(eos_token_ids=()).cut((7,) * 1000) == (1000, None)


def test_min_tokens_come_first() -> None:
    assert sequence(min_tokens=900).cut((7,) * 1000) == (900, FinishReason.LOOP)


def test_an_end_token_and_max_tokens_are_named_before_a_loop() -> None:
    assert sequence(max_tokens=MIN_TOKENS).cut((7,) * MIN_TOKENS) == (MIN_TOKENS, FinishReason.LENGTH)


def test_64_sequences_of_one_step_take_less_than_2_ms() -> None:
    detectors = [LoopDetector() for _ in range(64)]
    rng = random.Random(1)
    tokens = [[rng.randrange(2000) for _ in range(64)] for _ in range(200)]
    tokens += [[7] * 64] * 100
    times_s = []
    for ids in tokens:
        began_s = time.perf_counter()
        for detector, token_id in zip(detectors, ids, strict=True):
            detector.push(token_id)
        times_s.append(time.perf_counter() - began_s)
    assert sorted(times_s)[len(times_s) // 2] < 0.002
