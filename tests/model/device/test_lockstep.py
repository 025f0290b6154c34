"""Sizes of passes: the largest of any rank, whoever asks."""

from __future__ import annotations

from model.device.lockstep import Passes, is_decode, passes_of
from model.sched.step import RankStep, SequenceWork

PROMPTS = {1: 10, 2: 10, 3: 10, 4: 10}


def work(seq_id: int, start: int, num_tokens: int, num_drafts: int = 0) -> SequenceWork:
    return SequenceWork(seq_id, start, num_tokens, samples=True, num_drafts=num_drafts)


def test_one_token_of_an_answer_is_a_decode_row_with_its_drafts() -> None:
    assert is_decode(work(1, 10, 1), 10)
    assert is_decode(work(1, 12, 4, num_drafts=3), 10)
    assert not is_decode(work(1, 9, 1), 10), "the last token of the prompt"
    assert not is_decode(work(1, 10, 2), 10), "an answer that is computed again"
    assert not is_decode(SequenceWork(1, 10, 1, samples=False), 10)


def test_each_size_is_the_largest_of_its_kind() -> None:
    ranks = (
        RankStep(work=(work(1, 0, 8), work(2, 11, 1))),
        RankStep(work=(work(3, 12, 4, num_drafts=3), work(4, 15, 1))),
    )
    assert passes_of(ranks, PROMPTS) == Passes(num_chunk_tokens=8, num_decode_rows=2, has_drafts=True)


def test_nobody_has_what_nobody_has() -> None:
    assert passes_of((RankStep(), RankStep()), PROMPTS) == Passes(0, 0, has_drafts=False)
    assert passes_of((RankStep(work=(work(1, 11, 1),)),), PROMPTS) == Passes(0, 1, has_drafts=False)
