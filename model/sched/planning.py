"""How a step is put together: the running first, by their claim; then whoever waits, by turns.

Prefill and decode are one thing: computed tokens catch up with known tokens. Within a space's
`chunk_tokens` the sequences that decode have their token and their drafts reserved, prefill shares the rest.
"""

from __future__ import annotations

from model.sched.sequence import Phase, Sequence
from model.sched.space import Space
from model.sched.step import AdmittedSequence, BlockCopy, RankStep, SequenceWork
from model.sched.waiting import WaitingQueue


class RankDraft:
    """One space's share of the step that is being planned."""

    def __init__(self, space: Space, step_id: int, now_s: float, *, has_drafts: bool = False) -> None:
        self.space = space
        self.num_preempted = 0
        self.work: list[SequenceWork] = []
        self.admitted: list[AdmittedSequence] = []
        self._copies: list[BlockCopy] = []
        self._step_id = step_id
        self._last_planned = step_id - 1  # it may still touch what is freed now
        self._now_s = now_s
        self._budget = space.config.chunk_tokens  # for prefill, once decodes and drafts are reserved
        self._has_drafts = has_drafts
        self._num_drafts: dict[int, int] = {}
        self._order: list[Sequence] = []  # of what runs, those that are preempted last first
        self._spare_full = self._spare_sliding = self._num_pending = 0  # see `open_for_admission`

    def plan_running(self) -> None:
        """Give each running sequence its tokens; preempts who has the least claim where blocks run out."""
        running = self.space.running
        decoding = [seq for seq in running if seq.num_uncomputed == 1 and not seq.is_complete]
        self._budget -= len(decoding)
        if self._has_drafts:
            self._reserve_drafts(decoding)
        self._order = _by_claim(running)
        index = 0
        while index < len(self._order):  # preemption shortens the list from its end
            self._plan_one(self._order[index])
            index += 1

    def _reserve_drafts(self, decoding: list[Sequence]) -> None:
        """Drafts come out of what single tokens leave, and never go beyond `max_tokens`."""
        for seq in decoding:
            if seq.acceptance is not None:
                num_drafts = min(seq.acceptance.wanted(), seq.num_room - 1, self._budget)
                self._num_drafts[seq.seq_id] = num_drafts
                self._budget -= num_drafts

    def _plan_one(self, seq: Sequence) -> None:
        is_decode = seq.num_uncomputed == 1
        num_drafts = self._num_drafts.get(seq.seq_id, 0)
        want = 1 + num_drafts if is_decode else min(seq.num_uncomputed, self._budget)
        if seq.is_complete or want == 0:
            return
        self.space.trim(seq, self._last_planned)
        num_tokens = self._secure(seq, want)
        if num_tokens > 0:
            self.work.append(self.space.take(seq, num_tokens, num_tokens - 1 if num_drafts else 0))
        if not is_decode:
            self._budget -= num_tokens

    def _secure(self, seq: Sequence, want: int) -> int:
        """How many of `want` tokens have blocks now; preempts those with the least claim if none has.

        What is freed stays in quarantine while steps are in flight, and is for the next plan: again they ask
        in their order. Whoever comes later finds nothing now, for both groups grow at one position.
        """
        while self._order[-1] is not seq and not self.space.fits_soon(seq):
            self._preempt(self._order.pop())
        return self.space.capacity(seq, want)

    def _preempt(self, seq: Sequence) -> None:
        self.space.running.remove(seq)
        self.space.release(seq, self._last_planned)
        seq.phase = Phase.WAITING
        self.space.waiting.push(seq)
        self.num_preempted += 1

    def open_for_admission(self) -> bool:
        """Whether anybody may be admitted; counts what the running will need (the watermark)."""
        if self._budget == 0 or self._is_full:
            return False
        growth = [self.space.growth(seq) for seq in self.space.running]
        self._spare_full = self.space.full.num_free - sum(full for full, _ in growth)
        self._spare_sliding = self.space.sliding.num_free - sum(sliding for _, sliding in growth)
        self._num_pending = self.space.num_pending_tokens
        return True

    @property
    def _is_full(self) -> bool:
        return len(self.space.running) >= self.space.config.num_running_limit

    def load(self, seq: Sequence) -> tuple[int, int, int]:
        """The least of these takes a sequence: tokens pending with it, running sequences, index."""
        return self._num_pending - self.space.num_spared(seq), len(self.space.running), self.space.index

    def next_queue(self, unplaced: WaitingQueue) -> WaitingQueue | None:
        """The queue whose head goes first: that of the space, or the one that any space serves."""
        own, other = self.space.waiting.first, unplaced.first
        if own is None or other is None:
            return self.space.waiting if own else unplaced if other else None
        return self.space.waiting if own.turn < other.turn else unplaced

    def admit(self, queue: WaitingQueue) -> bool:
        """Admit the head of `queue` with its first tokens; False if there is no room for it now.

        True may also say that there will be once more is asked.
        """
        seq = queue.first
        assert seq is not None
        space = self.space
        # One preempted while drafts were in flight: how many tokens it has shows when they return.
        if self._budget == 0 or self._is_full or seq.num_drafting:
            return False
        num_free = space.full.num_free, space.sliding.num_free
        space.attach(seq)
        full, sliding = space.growth(seq)
        # What a prefix holds was free to others when the spare blocks were counted, unless somebody held it.
        full += num_free[0] - space.full.num_free
        sliding += num_free[1] - space.sliding.num_free
        num_tokens = self._room_for(seq, full, sliding)
        if num_tokens == 0:
            needs_less = seq.tail is not None and not space.running
            space.detach(seq)
            if needs_less:  # alone, and no block is left beside the one to copy: it computes its prompt
                space.prefixes.forget(seq.prompt_name)
            return needs_less
        # One preempted while its last token was in flight: no block is free until that step returns.
        assert not seq.is_complete, seq
        queue.remove(seq)
        self._spare_full -= full
        self._spare_sliding -= sliding
        self._num_pending += seq.num_uncomputed
        self._budget -= num_tokens
        self._start(seq, num_tokens)
        return True

    def _room_for(self, seq: Sequence, full: int, sliding: int) -> int:
        """Tokens of a sequence to be admitted that can be computed now; 0: it has to wait."""
        space = self.space
        if space.waits_for_prefix(seq):
            return 0
        if space.running and (full > self._spare_full or sliding > self._spare_sliding):
            return 0
        return space.capacity(seq, min(seq.num_uncomputed, self._budget))

    def _start(self, seq: Sequence, num_tokens: int) -> None:
        self.space.start(seq)
        if not seq.is_admitted:
            request = seq.request
            seq.is_admitted = True
            seq.started_s = self._now_s
            seq.num_cached = seq.num_computed
            self.admitted.append(
                AdmittedSequence(
                    seq.seq_id, request.prompt_ids, request.sampling, request.images, seq.borders
                )
            )
        work = self.space.take(seq, num_tokens)
        self._copies += self.space.copy_tail(seq, work, self._step_id)
        self.work.append(work)

    def finish(self) -> RankStep:
        """The finished share; takes along what the rank has to forget."""
        dropped, self.space.dropped = self.space.dropped, []
        self.space.free_followers()
        return RankStep(tuple(self.admitted), tuple(self.work), tuple(dropped), tuple(self._copies))


def _by_claim(running: list[Sequence]) -> list[Sequence]:
    """Running sequences by age -> who gets blocks first: the oldest, which always ends; then by priority.

    The last one is the first to be preempted: the youngest of the lowest priority. One that was preempted is
    admitted before everybody, so it becomes the oldest in time, whatever comes.
    """
    return [*running[:1], *sorted(running[1:], key=lambda seq: -seq.request.priority)]


def admit_waiting(drafts: list[RankDraft], unplaced: WaitingQueue) -> None:
    """Fill the drafts from the queues, strictly by turns: a head that finds no room is not overtaken."""
    if not unplaced and not any(draft.space.waiting for draft in drafts):
        return
    willing = [draft for draft in drafts if draft.open_for_admission()]
    while willing:
        chosen: tuple[RankDraft, WaitingQueue] | None = None
        least: tuple[int, int, int] | None = None
        for draft in willing:
            queue = draft.next_queue(unplaced)
            if queue is None or queue.first is None:
                continue
            load = draft.load(queue.first)
            if least is None or load < least:
                chosen, least = (draft, queue), load
        if chosen is None:
            return
        draft, queue = chosen
        if not draft.admit(queue):
            willing.remove(draft)
