"""Sizes of a step's passes, the same on every rank: exchanges in them have fixed shapes.

A rank computes one chunk of prompts and one set of decode rows in a step. Ranks that own sequences of their
own have different ones, and pad to the largest: every rank knows the whole plan.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from model.sched.step import RankStep, SequenceWork


@dataclass(frozen=True)
class Passes:
    """Most tokens of a chunk and most decode rows of any rank (0: nobody has any); whether one has drafts."""

    num_chunk_tokens: int
    num_decode_rows: int
    has_drafts: bool


def is_decode(work: SequenceWork, num_prompt: int) -> bool:
    """Whether it is a row of the decode graph: one token of the answer, and drafts.

    Tokens of the prompt are not, not even a last one alone: what is computed of a prompt may be a prefix of
    others in the same step, and prefill goes first. Image slots are in prompts, too.
    """
    return work.samples and work.num_tokens - work.num_drafts == 1 and work.start >= num_prompt


def passes_of(ranks: Sequence[RankStep], num_prompt: Mapping[int, int]) -> Passes:
    """`num_prompt`: tokens of the prompt of each sequence."""
    num_chunk_tokens = num_decode_rows = 0
    has_drafts = False
    for share in ranks:
        decoding = [work for work in share.work if is_decode(work, num_prompt[work.seq_id])]
        num_chunk = share.num_tokens - sum(work.num_tokens for work in decoding)
        num_chunk_tokens = max(num_chunk_tokens, num_chunk)
        num_decode_rows = max(num_decode_rows, len(decoding))
        has_drafts |= any(work.num_drafts for work in decoding)
    return Passes(num_chunk_tokens, num_decode_rows, has_drafts)
