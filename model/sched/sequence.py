"""One sequence, a sample of a request: all the scheduler knows about it. Only the scheduler writes it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum

from model.sched.drafting import Acceptance
from model.sched.loops import LoopDetector
from model.sched.prefixes import Chain
from model.sched.turns import Place, turn_of
from model.types import FinishReason, Request


class Phase(Enum):
    """Where an open sequence is. One that has ended is in no book any more."""

    FOLLOWING = "following"  # another sample of its request is computing their prompt
    FETCHING = "fetching"  # its rank is pulling image embeddings
    WAITING = "waiting"  # holds no blocks: new, or preempted
    RUNNING = "running"


@dataclass(eq=False, slots=True)
class Sequence:
    """Counts about one sample. Positions count as computed when planned: steps return in order.

    Known tokens are the prompt, the tokens committed, and those that steps in flight will sample: an
    upper bound, which the next step finds true unless drafts fail or the sequence ends before.
    """

    seq_id: int  # also the order of arrival
    request: Request = field(repr=False)  # prompts are never printed, in an assertion neither
    added_s: float
    place: Place = field(repr=False)  # in its tenant's line
    phase: Phase
    sample: int = 0  # which of its request's
    prompt_name: bytes = (
        b""  # under which the request's samples keep their prompt; empty: there is one sample
    )
    followers: list[Sequence] = field(default_factory=list, repr=False)  # they start when it has the prompt
    space: int | None = None
    is_admitted: bool = False  # its rank has prompt and sampling parameters
    num_output: int = 0  # tokens committed
    num_sampling: int = 0  # tokens that steps in flight will sample, if every draft holds
    num_drafting: int = 0  # of these, drafts: so many may not hold
    num_computed: int = 0  # positions planned since the start, or since the last preemption
    full_blocks: list[int] = field(default_factory=list)
    sliding_blocks: list[int] = field(default_factory=list)  # those not behind the window
    num_sliding_freed: int = 0  # logical index of sliding_blocks[0]
    tail: tuple[int, int] | None = None  # full and sliding block that it will copy, and go on in the copy
    has_begun: bool = False  # its rank has had work of it since it was taken up
    output_ids: list[int] = field(default_factory=list, repr=False)  # committed, for the names of prefixes
    chain: Chain | None = field(default=None, repr=False)
    borders: tuple[int, ...] = ()  # of the prompt: where it will be a prefix of others, ascending
    num_cached: int = 0  # tokens that were computed already when it was first admitted
    num_scored: int = 0  # positions of the prompt whose log-probabilities are planned, if asked for
    num_completion: int | None = None  # tokens billed; None while it is open
    compute_us: int = 0
    started_s: float | None = None  # first planned
    first_token_s: float | None = None
    acceptance: Acceptance | None = None  # None: never drafts
    loops: LoopDetector = field(default_factory=LoopDetector, repr=False)  # has seen what was committed
    num_drafted: int = 0  # of steps that have returned
    num_accepted: int = 0

    @property
    def turn(self) -> tuple[float, int]:
        """Among those that wait the lowest goes first: who was preempted, then by tenant and priority."""
        if self.is_admitted:
            return -math.inf, self.seq_id
        return turn_of(self.place, self.request.priority, self.seq_id)

    @property
    def num_prompt(self) -> int:
        """Tokens of the prompt, image slots included."""
        return len(self.request.prompt_ids)

    @property
    def num_queued(self) -> int:
        """What its place in a queue counts: the prompt, or that of a sample that will find it computed.

        Not the tokens of the answer, whose number changes while a preempted sequence waits.
        """
        return 1 if self.sample and not self.is_admitted else self.num_prompt

    @property
    def has_to_score(self) -> bool:
        """Whether its prompt has to be computed here, whoever computed it before."""
        asked = self.request.sampling.num_prompt_logprobs is not None
        return asked and self.num_scored < self.num_prompt - 1

    @property
    def num_positions(self) -> int:
        """Most positions ever computed: the last token of all is sampled, never computed."""
        return len(self.request.prompt_ids) + self.request.sampling.max_tokens - 1

    @property
    def num_known(self) -> int:
        """Tokens that exist when the next step runs."""
        return len(self.request.prompt_ids) + self.num_output + self.num_sampling

    @property
    def num_uncomputed(self) -> int:
        """Tokens that still have to be computed before the next one can be sampled."""
        return self.num_known - self.num_computed

    @property
    def num_room(self) -> int:
        """Tokens that may still be planned, should every draft hold."""
        return self.request.sampling.max_tokens - self.num_output - self.num_sampling

    @property
    def is_complete(self) -> bool:
        """True once its last token is planned: it is waited for, or drafts fail."""
        return self.num_room <= 0

    def reset(self) -> None:
        """Forget what was computed; known tokens stay, so it is computed again from position 0."""
        self.num_computed = 0
        self.num_sliding_freed = 0
        self.has_begun = False
        self.full_blocks = []
        self.sliding_blocks = []
        self.tail = None

    def cut(self, token_ids: tuple[int, ...]) -> tuple[int, FinishReason | None]:
        """How many of the tokens just gained count, and why the sequence ends with the last. Asked once."""
        for index, token_id in enumerate(token_ids):
            reason = self.ending(token_id, self.num_output + index)
            if reason is not None:
                return index + 1, reason
        return len(token_ids), None

    def returned(self, num_gained: int, num_drafts: int) -> None:
        """A step that sampled has returned: drafts that failed were computed in vain."""
        num_failed = 1 + num_drafts - num_gained
        self.num_output += num_gained
        self.num_sampling -= 1 + num_drafts
        self.num_drafting -= num_drafts
        if self.phase is Phase.RUNNING:  # one preempted since has nothing computed
            self.num_computed -= num_failed

    def ending(self, token_id: int, num_before: int) -> FinishReason | None:
        """Why the sequence ends with this token, which follows `num_before`; None if it goes on."""
        sampling = self.request.sampling
        # Where a grammar allows nothing but an end, the end comes before `min_tokens`.
        may_end = num_before >= sampling.min_tokens or sampling.grammar is not None
        if may_end and (token_id in sampling.eos_token_ids or token_id in sampling.stop_token_ids):
            return FinishReason.STOP
        # Who ignores ends wants every token.
        is_loop = bool(sampling.eos_token_ids) and self.loops.push(token_id)
        if num_before + 1 >= sampling.max_tokens:
            return FinishReason.LENGTH
        return FinishReason.LOOP if is_loop and num_before + 1 >= sampling.min_tokens else None
