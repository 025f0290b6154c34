"""The samples of one request: sequences with the same prompt, which differ in their noise.

The first one computes the prompt. The others follow: they start in the same space when it has, share the
whole blocks and the window of the prompt, and go on in a copy of the block that it fills in part. Each of
them is a sequence like any other from then on; only the key and the bill stay common.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from model.sched.config import SchedulerConfig
from model.sched.drafting import Acceptance
from model.sched.prefixes import Chain, borders
from model.sched.sequence import Phase, Sequence
from model.sched.turns import Place
from model.types import Request, Usage


@dataclass(slots=True)
class Samples:
    """All sequences of a request, in the order of samples."""

    sequences: list[Sequence]
    held_back: list[int] = field(default_factory=list)  # ended; their rank keeps what the others may need

    @classmethod
    def of(
        cls, request: Request, config: SchedulerConfig, first_id: int, place: Place, now_s: float
    ) -> Samples:
        """Sequences of a request, in no queue yet: all but the first are its followers."""
        name = b"samples %d" % first_id if request.sampling.num_samples > 1 else b""
        chain = Chain(config.block_size)
        if config.keeps_prefixes:
            chain.extend(request, [], len(request.prompt_ids))
        sequences = []
        for sample, own in enumerate(_requests(request)):
            seq = Sequence(first_id + sample, own, now_s, place, Phase.FOLLOWING, sample, name)
            if config.num_drafts and request.sampling.mtp:
                seq.acceptance = Acceptance([1.0] * config.num_drafts)
            if config.keeps_prefixes:
                seq.chain = chain.copy()
                seq.borders = borders(request, config.block_size)
            sequences.append(seq)
        sequences[0].followers = sequences[1:]
        return cls(sequences)

    @property
    def first(self) -> Sequence:
        """The one that computes the prompt."""
        return self.sequences[0]

    @property
    def open(self) -> list[Sequence]:
        """Those that have not ended."""
        return [seq for seq in self.sequences if seq.num_completion is None]

    @property
    def to_start(self) -> list[Sequence]:
        """Those whose rank does not know them yet."""
        return [seq for seq in self.open if not seq.is_admitted]

    def find(self, sample: int) -> Sequence | None:
        """An open one by its number."""
        return next((seq for seq in self.open if seq.sample == sample), None)

    def to_forget(self, seq: Sequence) -> list[int]:
        """What a rank may forget now that `seq` has ended: images are there for all samples or none."""
        self.held_back.append(seq.seq_id)
        if seq.request.images and self.open:
            return []
        forgotten, self.held_back = self.held_back, []
        return forgotten

    def usage(self, now_s: float) -> Usage:
        """Bill at `now_s`; wall time: queue until first planned, prefill until the first token, decode."""
        first, sequences = self.first, self.sequences
        started_s = min((seq.started_s for seq in sequences if seq.started_s is not None), default=now_s)
        first_token_s = min(
            (seq.first_token_s for seq in sequences if seq.first_token_s is not None), default=now_s
        )
        return Usage(
            num_prompt_tokens=first.num_prompt,
            num_image_tokens=sum(span.num_tokens for span in first.request.images),
            num_cached_tokens=first.num_cached,
            num_completion_tokens=sum(seq.num_completion or 0 for seq in sequences),
            num_draft_tokens=sum(seq.num_drafted for seq in sequences),
            num_accepted_tokens=sum(seq.num_accepted for seq in sequences),
            queue_us=_microseconds(started_s - first.added_s),
            prefill_us=_microseconds(first_token_s - started_s),
            decode_us=_microseconds(now_s - first_token_s),
            compute_us=sum(seq.compute_us for seq in sequences),
        )


def _requests(request: Request) -> Iterator[Request]:
    """What each sample would be alone. The prompt's log-probabilities are asked for once."""
    sampling = request.sampling
    for index in range(sampling.num_samples):
        asked = sampling.num_prompt_logprobs if index == 0 else None
        own = replace(sampling, num_samples=1, sample=sampling.sample + index, num_prompt_logprobs=asked)
        yield replace(request, sampling=own)


def _microseconds(seconds: float) -> int:
    return round(seconds * 1e6)
