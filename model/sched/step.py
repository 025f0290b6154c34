"""The only thing that crosses from scheduler to ranks, and what comes back. Plain ints, frozen.

A `Step` says, for every rank, which sequences compute how many tokens into which blocks. It is
planned before the previous result is known, so it never names token values: a rank appends the
token it sampled itself. Ranks keep per sequence: token ids, block tables, sampling parameters.

attention=data:   one `RankStep` per rank; a sequence lives on one rank.
attention=tensor: one `RankStep` for the whole gang; every rank runs it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from model.types import ImageSpan, PromptLogprobs, SamplingParams, TokenLogprob


@dataclass(frozen=True)
class AdmittedSequence:
    """Everything a rank must know about a sequence once, before its first work.

    At `borders` of its prompt, ascending, it will be a prefix of others.
    """

    seq_id: int
    prompt_ids: tuple[int, ...]
    sampling: SamplingParams
    images: tuple[ImageSpan, ...] = ()
    borders: tuple[int, ...] = ()


@dataclass(frozen=True)
class SequenceWork:
    """Compute positions [start, start + num_tokens) of a sequence.

    With `samples` the logits of the last position give the next token. With `num_drafts` the rank drafts
    so many tokens first, computes them behind the last known one, and gains as many as hold and one more.
    How many held in the step before is not known to the plan: `start` is then the largest that can be, and
    blocks are there for it; work that samples ends with the tokens known to the rank, and its drafts.

    With `begins` both tables are emptied first: a new sequence, or one taken up again after preemption.
    Its first blocks may then hold a prefix that another sequence has computed; `start` is behind it.
    `new_full_blocks` and `new_sliding_blocks` are appended to the rank's block tables (logical
    block i holds positions [i * block_size, (i + 1) * block_size) in both groups).
    """

    seq_id: int
    start: int
    num_tokens: int
    samples: bool
    num_drafts: int = 0
    begins: bool = False
    new_full_blocks: tuple[int, ...] = ()
    new_sliding_blocks: tuple[int, ...] = ()


@dataclass(frozen=True)
class BlockCopy:
    """Copy a block of the named group before anything is written (samples sharing a prompt)."""

    group: str  # "full" or "sliding"
    source: int
    target: int


@dataclass(frozen=True)
class RankStep:
    """One sequence space's share of a step. Order: copies, admitted, work; `dropped` last."""

    admitted: tuple[AdmittedSequence, ...] = ()
    work: tuple[SequenceWork, ...] = ()
    dropped: tuple[int, ...] = ()  # finished or aborted for good: forget ids, tables, embeddings
    copies: tuple[BlockCopy, ...] = ()

    @property
    def num_tokens(self) -> int:
        """Tokens this sequence space computes in the step."""
        return sum(work.num_tokens for work in self.work)


@dataclass(frozen=True)
class Step:
    """What a gang does next. `step_id` counts from 0 within a gang generation."""

    generation: int
    step_id: int
    ranks: tuple[RankStep, ...]

    @property
    def num_tokens(self) -> int:
        """Tokens of the whole gang."""
        return sum(rank.num_tokens for rank in self.ranks)

    def digest(self) -> str:
        """Hash of the content: ranks that disagree about a step must fall together."""
        text = repr((self.generation, self.step_id, self.ranks))
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


@dataclass(frozen=True)
class SequenceOutput:
    """Tokens a sequence gained in a step, in order: the drafts that held, and one more.

    With `failure` the tokens mean nothing: the request ends with that text.
    """

    seq_id: int
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] = ()
    failure: str = ""


@dataclass(frozen=True)
class ScoredPrompt:
    """What was asked about the prompt of a sequence: a piece for every step, each token once."""

    seq_id: int
    logprobs: PromptLogprobs


@dataclass(frozen=True)
class RankResult:
    """What one sequence space produced: an output for every work item with `samples`."""

    outputs: tuple[SequenceOutput, ...] = ()
    prompts: tuple[ScoredPrompt, ...] = ()


@dataclass(frozen=True)
class StepResult:
    """Answer to the `Step` of the same generation and id; `step_us` is the gang's time for it."""

    generation: int
    step_id: int
    ranks: tuple[RankResult, ...]
    step_us: int = 0
