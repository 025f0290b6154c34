"""Log-probabilities of a prompt's own tokens, from the rows that a step computes anyway.

The row at position t says what comes at t + 1. Logits are made for a few rows at a time: those of a chunk of
512 would take 260 MB at 128,000 tokens.

Shapes: T tokens of the step, R rows that are wanted, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from model.live import LiveSequence
from model.net.decoder import Decoder
from model.sampler import CHUNK_ELEMENTS, token_logprob
from model.sched.step import ScoredPrompt, SequenceWork
from model.types import PromptLogprobs, TokenLogprob


def score_prompts(
    decoder: Decoder,
    x_TH: Tensor,
    works: Sequence[tuple[LiveSequence, SequenceWork]],
    starts: Sequence[int],
) -> tuple[ScoredPrompt, ...]:
    """A piece for each sequence that asked, of the tokens that were not scored before.

    x_TH: the decoder's output; `starts` are the first positions of the works.
    """
    scored, first_row = list[ScoredPrompt](), 0
    for (seq, work), start in zip(works, starts, strict=True):
        stop = min(len(seq.row.prompt_ids), start + work.num_tokens + 1)
        if seq.row.sampling.num_prompt_logprobs is not None and seq.num_scored < stop:
            logprobs = _score(decoder, x_TH[first_row : first_row + work.num_tokens], seq, start, stop)
            scored.append(ScoredPrompt(work.seq_id, PromptLogprobs(seq.num_scored, logprobs)))
            seq.num_scored = stop
        first_row += work.num_tokens
    return tuple(scored)


def _score(
    decoder: Decoder, rows_TH: Tensor, seq: LiveSequence, start: int, stop: int
) -> tuple[TokenLogprob | None, ...]:
    """Of prompt tokens [seq.num_scored, stop); the first of `rows_TH` is that of position `start`."""
    first, num_top = seq.num_scored, seq.row.sampling.num_prompt_logprobs or 0
    assert first == 0 or start < first, (start, first)
    slots = {slot for image in seq.images for slot in range(image.start, image.start + image.num_tokens)}
    wanted = [position for position in range(max(first, 1), stop) if position not in slots]
    found: dict[int, TokenLogprob | None] = {}
    num_rows = max(1, CHUNK_ELEMENTS // decoder.text.vocab_size)
    for begin in range(0, len(wanted), num_rows):
        positions = wanted[begin : begin + num_rows]
        logits_RV = decoder.project(rows_TH[[position - 1 - start for position in positions]])
        for logits_V, position in zip(logits_RV, positions, strict=True):
            token_id = seq.row.prompt_ids[position]
            found[position] = token_logprob(logits_V, token_id, num_top)
    return tuple(found.get(position) for position in range(first, stop))
