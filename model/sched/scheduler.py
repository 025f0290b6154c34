"""The decoding scheduler: what waits and runs, whose blocks are whose, and what a gang does next.

add -> plan -> (the gang runs the step) -> commit -> deltas. At most two steps are in flight, so the
next one is planned before the last result is known. Not thread-safe: the engine's loop owns it.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from model.errors import AlreadyExists, FluytError, InvalidRequest
from model.sched.config import Load, Placement, SchedulerConfig
from model.sched.drafting import DraftPolicy
from model.sched.planning import RankDraft, admit_waiting
from model.sched.refusals import check_queue, check_request
from model.sched.samples import Samples
from model.sched.sequence import Phase, Sequence
from model.sched.space import Space
from model.sched.step import RankResult, RankStep, SequenceOutput, SequenceWork, Step, StepResult
from model.sched.turns import Turns
from model.sched.waiting import WaitingQueue
from model.types import Delta, FinishReason, Request, RequestKey

__all__ = ["MAX_STEPS_IN_FLIGHT", "Load", "Placement", "Scheduler", "SchedulerConfig"]

MAX_STEPS_IN_FLIGHT = 2  # the one that runs, and the next


class Scheduler:
    """Plans the steps of one gang and keeps its books."""

    def __init__(self, config: SchedulerConfig, clock_s: Callable[[], float] = time.monotonic) -> None:
        self.config = config
        self._clock_s = clock_s
        self._generation = config.generation
        self._num_added = 0
        self._num_preemptions = 0
        self._unbilled_us = 0
        self._tokens_per_s = 0.0  # of the gang, averaged over the last steps
        self._policy = DraftPolicy()
        self._turns = Turns()
        self._num_verified = [0] * config.num_drafts
        self._num_held = [0] * config.num_drafts
        self._clear()

    def _clear(self) -> None:
        self._spaces = [Space(self.config, index) for index in range(self.config.num_spaces)]
        self._unplaced = WaitingQueue()
        self._by_key: dict[RequestKey, Samples] = {}
        self._by_id: dict[int, Sequence] = {}
        self._in_flight: deque[Step] = deque()
        self._next_step_id = 0
        self._is_failed = False

    # ---- requests in and out

    def add(self, request: Request, *, needs_images: bool = False) -> Placement:
        """Queue a request. With `needs_images` its space is chosen now and it waits for `images_ready`.

        Raises InvalidRequest (over the context, or can never fit), AlreadyExists, Overloaded.
        """
        check_request(self.config, request)
        if request.key in self._by_key:
            raise AlreadyExists(f"request {request.key.request_id!r} is open")
        check_queue(self.config, request, self.load(), self._tokens_per_s)
        place, now_s = self._turns.place(request), self._clock_s()
        samples = Samples.of(request, self.config, self._num_added, place, now_s)
        self._num_added += len(samples.sequences)
        seq = samples.first
        if needs_images:
            space = min(self._spaces, key=lambda space: (space.num_pending_tokens, space.index))
            seq.space, seq.phase = space.index, Phase.FETCHING
            space.fetching.push(seq)
        else:
            seq.phase = Phase.WAITING
            self._unplaced.push(seq)
        self._by_key[request.key] = samples
        self._by_id |= {seq.seq_id: seq for seq in samples.sequences}
        self._debug_check()
        return Placement(seq.seq_id, seq.space)

    def images_ready(self, key: RequestKey) -> None:
        """The embeddings of a request have reached its rank; unknown keys (aborted since) are ignored."""
        samples = self._by_key.get(key)
        if samples is None or samples.first.phase is not Phase.FETCHING:
            return
        seq = samples.first
        space = self._space_of(seq)
        space.fetching.remove(seq)
        seq.phase = Phase.WAITING
        space.waiting.push(seq)
        self._debug_check()

    def abort(self, key: RequestKey, error: FluytError | None = None) -> list[Delta]:
        """End a request at once: every sample as ABORTED, or all with one `error`. Empty: it is not open."""
        samples = self._by_key.get(key)
        if samples is None:
            return []
        if error is not None:
            deltas = [self._end_all(samples, samples.open[0], error)]
        else:
            deltas = [
                self._end(seq, self._delta(seq, finish_reason=FinishReason.ABORTED)) for seq in samples.open
            ]
        self._debug_check()
        return deltas

    def stop(self, key: RequestKey, num_tokens: int, sample: int = 0) -> Delta | None:
        """The text stage found a stop string in the first `num_tokens`; later tokens are not billed.

        None if the sample is not open, or has no token yet that others wait for.
        """
        samples = self._by_key.get(key)
        seq = None if samples is None else samples.find(sample)
        if seq is None or seq.followers:
            return None
        num_tokens = min(num_tokens, seq.num_output)
        delta = Delta(key, num_tokens, finish_reason=FinishReason.STOP, sample=sample)
        delta = self._end(seq, delta)
        self._debug_check()
        return delta

    def fail_all(self, error: FluytError) -> list[Delta]:
        """The gang is gone: every open request ends with `error`. Nothing is planned until `reset`."""
        deltas = [self._end_all(samples, samples.open[0], error) for samples in list(self._by_key.values())]
        self._clear()
        self._is_failed = True
        return deltas

    def reset(self, generation: int) -> None:
        """A new gang takes over: step ids count from 0 again, results of older generations are dropped."""
        assert generation > self._generation, (generation, self._generation)
        assert self._is_failed, "reset comes after fail_all: a gang that is replaced has lost its sequences"
        self._generation = generation
        self._is_failed = False

    # ---- one step

    def plan(self) -> Step | None:
        """The next step; None if two are in flight, or nothing can be computed now."""
        if self._is_failed or len(self._in_flight) >= MAX_STEPS_IN_FLIGHT or not self._by_id:
            return None
        now_s = self._clock_s()
        has_drafts = self.config.num_drafts > 0 and self._policy.chooses_drafts(self._num_decoding)
        drafts = [
            RankDraft(space, self._next_step_id, now_s, has_drafts=has_drafts) for space in self._spaces
        ]
        for draft in drafts:
            draft.plan_running()
            self._num_preemptions += draft.num_preempted
        admit_waiting(drafts, self._unplaced)
        for draft in drafts:
            for admitted in draft.admitted:
                seq = self._by_id[admitted.seq_id]
                self._turns.took(seq.place)
                self._let_go_of_prompt(seq)
        step = self._finish(drafts) if any(draft.work for draft in drafts) else None
        self._debug_check()
        return step

    def _finish(self, drafts: list[RankDraft]) -> Step:
        step = Step(self._generation, self._next_step_id, tuple(draft.finish() for draft in drafts))
        self._next_step_id += 1
        self._in_flight.append(step)
        return step

    def commit(self, result: StepResult) -> list[Delta]:
        """Take the result of the oldest step in flight; one delta for every request that gained a token."""
        if result.generation != self._generation or self._is_failed:
            return []
        assert self._in_flight, f"result of step {result.step_id}, but none is in flight"
        step = self._in_flight.popleft()
        assert result.step_id == step.step_id, (result.step_id, step.step_id)
        assert len(result.ranks) == len(step.ranks), (len(result.ranks), len(step.ranks))
        for space in self._spaces:
            space.step_returned(step.step_id)
        self._bill(step, result.step_us)
        deltas: list[Delta] = []
        for rank_step, rank_result in zip(step.ranks, result.ranks, strict=True):
            deltas += self._commit_rank(rank_step, rank_result)
        self._observe(step, result)
        self._debug_check()
        return deltas

    def _commit_rank(self, step: RankStep, result: RankResult) -> list[Delta]:
        outputs = {output.seq_id: output for output in result.outputs}
        expected = {work.seq_id: work for work in step.work if work.samples}
        assert outputs.keys() == expected.keys(), (sorted(outputs), sorted(expected))
        now_s = self._clock_s()
        # Sequences that ended while the step was in flight are no longer open: their output is dropped.
        deltas = [
            self._delta(self._by_id[scored.seq_id], prompt=scored.logprobs)
            for scored in result.prompts
            if scored.seq_id in self._by_id
        ]
        for seq_id, work in expected.items():
            if seq_id in self._by_id:  # asked again for each: one that fails ends its siblings
                deltas.append(self._commit_output(self._by_id[seq_id], work, outputs[seq_id], now_s))
        return deltas

    def _commit_output(
        self, seq: Sequence, work: SequenceWork, output: SequenceOutput, now_s: float
    ) -> Delta:
        num_gained = len(output.token_ids)
        assert 1 <= num_gained <= 1 + work.num_drafts, (output.seq_id, num_gained, work.num_drafts)
        if output.failure:
            error = InvalidRequest(_form_field(seq.request), output.failure)
            return self._end_all(self._by_key[seq.request.key], seq, error)
        self._count_drafts(seq, work.num_drafts, num_gained - 1)
        num_kept, reason = seq.cut(output.token_ids)
        delta = self._delta(
            seq,
            token_ids=output.token_ids[:num_kept],
            logprobs=output.logprobs[:num_kept],
            finish_reason=reason,
            stop_token_id=output.token_ids[num_kept - 1] if reason is FinishReason.STOP else None,
        )
        seq.returned(num_gained, work.num_drafts)
        seq.place.line.charge(num_kept)
        if seq.chain is not None:
            seq.output_ids += delta.token_ids
        if seq.first_token_s is None:
            seq.first_token_s = now_s
        return delta if reason is None else self._end(seq, delta)

    def _count_drafts(self, seq: Sequence, num_drafts: int, num_accepted: int) -> None:
        if seq.acceptance is not None:
            seq.acceptance.observe(num_drafts, num_accepted)
        seq.num_drafted += num_drafts
        seq.num_accepted += num_accepted
        for index in range(num_drafts):
            self._num_verified[index] += 1
            self._num_held[index] += num_accepted > index

    def _observe(self, step: Step, result: StepResult) -> None:
        """Tell the policy about steps in which everybody decoded."""
        works = [work for rank in step.ranks for work in rank.work]
        if self.config.num_drafts and all(work.num_tokens == 1 + work.num_drafts for work in works):
            self._policy.observe(
                len(works),
                is_drafting=any(work.num_drafts for work in works),
                num_gained=sum(len(output.token_ids) for rank in result.ranks for output in rank.outputs),
                step_us=result.step_us,
            )

    def _bill(self, step: Step, step_us: int) -> None:
        """Share the time of a step by tokens, to the microsecond: the shares add up to `step_us`."""
        num_tokens = step.num_tokens
        num_before = billed_us = 0
        for rank in step.ranks:
            for work in rank.work:
                num_before += work.num_tokens
                share_us = step_us * num_before // num_tokens - billed_us
                billed_us += share_us
                seq = self._by_id.get(work.seq_id)
                if seq is None:
                    self._unbilled_us += share_us
                else:
                    seq.compute_us += share_us
        if step_us > 0:
            rate = num_tokens * 1e6 / step_us
            self._tokens_per_s = rate if not self._tokens_per_s else 0.9 * self._tokens_per_s + 0.1 * rate

    # ---- books

    @property
    def _last_planned(self) -> int:
        """The last step that may still touch a block that is freed now; -1 if nothing is in flight."""
        return self._in_flight[-1].step_id if self._in_flight else -1

    @property
    def _num_decoding(self) -> int:
        return sum(seq.num_uncomputed == 1 for space in self._spaces for seq in space.running)

    def _space_of(self, seq: Sequence) -> Space:
        assert seq.space is not None, seq
        return self._spaces[seq.space]

    def _queue_of(self, seq: Sequence) -> WaitingQueue:
        if seq.space is None:
            return self._unplaced
        space = self._spaces[seq.space]
        return space.fetching if seq.phase is Phase.FETCHING else space.waiting

    @staticmethod
    def _delta(seq: Sequence, **content: Any) -> Delta:
        return Delta(seq.request.key, seq.num_output, sample=seq.sample, **content)

    def _end(self, seq: Sequence, delta: Delta) -> Delta:
        """Take a sequence out of every book; returns its last delta, the last of all with the bill."""
        samples = self._by_key[seq.request.key]
        self._take_out(samples, seq, delta.first_token_index + len(delta.token_ids))
        num_left = len(samples.open)
        usage = None if num_left else samples.usage(self._clock_s())
        return replace(delta, num_samples_left=num_left, usage=usage)

    def _end_all(self, samples: Samples, seq: Sequence, error: FluytError) -> Delta:
        """End every sample that is open for what happened to `seq`."""
        for each in samples.open:
            self._take_out(samples, each, each.num_output)
        return self._delta(seq, error=error, usage=samples.usage(self._clock_s()))

    def _take_out(self, samples: Samples, seq: Sequence, num_completion: int) -> None:
        if seq.phase is Phase.RUNNING:
            space = self._space_of(seq)
            space.keep_answer(seq)
            space.running.remove(seq)
            space.release(seq, self._last_planned)
        elif seq.phase is Phase.FOLLOWING:
            samples.first.followers.remove(seq)
        else:
            self._queue_of(seq).remove(seq)
        del self._by_id[seq.seq_id]
        seq.num_completion = num_completion
        forgotten = samples.to_forget(seq)
        if samples.first.space is not None:  # its rank knows it, or has begun to fetch its images
            self._space_of(samples.first).dropped += forgotten
        self._let_go_of_prompt(seq)
        if not samples.open:
            del self._by_key[seq.request.key]

    def _let_go_of_prompt(self, seq: Sequence) -> None:
        """What samples share of their prompt is kept until the last of them has started."""
        if seq.prompt_name and seq.space is not None and not self._by_key[seq.request.key].to_start:
            self._space_of(seq).prefixes.forget(seq.prompt_name)

    def load(self) -> Load:
        """Counts for status and metrics."""
        spaces, config = self._spaces, self.config
        queues = [self._unplaced, *(q for space in spaces for q in (space.waiting, space.fetching))]
        return Load(
            num_waiting=sum(map(len, queues)),
            num_queued_tokens=sum(queue.num_tokens for queue in queues),
            num_running=sum(len(space.running) for space in spaces),
            num_steps_in_flight=len(self._in_flight),
            num_full_blocks=config.num_full_blocks * config.num_spaces,
            num_free_full_blocks=sum(space.full.num_free for space in spaces),
            num_sliding_blocks=config.num_sliding_blocks * config.num_spaces,
            num_free_sliding_blocks=sum(space.sliding.num_free for space in spaces),
            num_preemptions=self._num_preemptions,
            num_prefixes=sum(len(space.prefixes) for space in spaces),
            num_held=tuple(self._num_held),
            num_verified=tuple(self._num_verified),
            unbilled_us=self._unbilled_us,
        )

    def check_integrity(self) -> None:
        """Assert that every block of every space and every sequence is accounted for."""
        assert len(self._in_flight) <= MAX_STEPS_IN_FLIGHT, len(self._in_flight)
        num_in_queues = len(self._unplaced)
        for space in self._spaces:
            space.check(is_idle=not self._in_flight)
            num_in_queues += len(space.waiting) + len(space.fetching) + len(space.running)
        self._unplaced.check()
        num_following = sum(len(seq.followers) for seq in self._by_id.values())
        num_open = sum(len(samples.open) for samples in self._by_key.values())
        found = (num_in_queues + num_following, num_open)
        assert found == (len(self._by_id), len(self._by_id)), (found, len(self._by_id))
        works = [work for step in self._in_flight for rank in step.ranks for work in rank.work]
        num_sampling, num_drafting = Counter[int](), Counter[int]()
        for work in works:
            num_sampling[work.seq_id] += work.samples + work.num_drafts
            num_drafting[work.seq_id] += work.num_drafts
        for seq in self._by_id.values():
            assert seq.num_sampling == num_sampling[seq.seq_id], (seq, num_sampling[seq.seq_id])
            assert seq.num_drafting == num_drafting[seq.seq_id], (seq, num_drafting[seq.seq_id])
            assert seq.phase is Phase.RUNNING or not (seq.full_blocks or seq.sliding_blocks), seq
            assert seq.num_output + seq.num_sampling <= seq.request.sampling.max_tokens, seq

    def _debug_check(self) -> None:
        if self.config.debug_checks:
            self.check_integrity()


def _form_field(request: Request) -> str:
    """Where a caller says what the answer has to be."""
    grammar = request.sampling.grammar
    return "response_format" if grammar is None or not grammar.is_of_tools else "tools"
