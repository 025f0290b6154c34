"""A gang that computes nothing and believes nothing: it checks every step as real ranks would suffer it.

Tokens are a pure function of the tokens before, so that any plan gives the same output; the KV cache
holds the token written at each slot, so that a block given to two sequences is noticed when read.
"""

import zlib
from collections import deque
from dataclasses import dataclass, field

from model.sched.config import SchedulerConfig
from model.sched.scheduler import Scheduler
from model.sched.step import (
    AdmittedSequence,
    BlockCopy,
    RankResult,
    RankStep,
    ScoredPrompt,
    SequenceOutput,
    Step,
    StepResult,
)
from model.types import (
    Delta,
    FinishReason,
    PromptLogprobs,
    Request,
    RequestKey,
    SamplingParams,
    TokenLogprob,
)
from tests.model.sched.made_up import VOCABULARY, continued, extend_signatures, next_token

# Block (of a group) -> who touches it: sequence, and how often it had been taken up.
Touched = dict[tuple[str, int], set[tuple[int, int]]]


def expected_output(request: Request, sample: int = 0) -> tuple[tuple[int, ...], FinishReason]:
    """What a sample of a request gets when nobody ends it early."""
    sampling, output = request.sampling, []
    while len(output) < sampling.max_tokens:
        token = next_token(request.prompt_ids + tuple(output), sample)
        output.append(token)
        if len(output) > sampling.min_tokens and token in sampling.eos_token_ids + sampling.stop_token_ids:
            return tuple(output), FinishReason.STOP
    return tuple(output), FinishReason.LENGTH


def make_request(
    name: str, num_prompt: int, max_tokens: int, topic: str | None = None, **sampling: object
) -> Request:
    """Requests of one topic begin alike; without one it is the name."""
    first = zlib.crc32((topic or name).encode())
    prompt = tuple((first + i) % VOCABULARY for i in range(num_prompt))
    return Request(RequestKey("local", name), prompt, SamplingParams(max_tokens=max_tokens, **sampling))


def make_config(**changes: int) -> SchedulerConfig:
    defaults = {
        "num_spaces": 1,
        "block_size": 4,
        "num_full_blocks": 64,
        "num_sliding_blocks": 64,
        "window": 8,
        "chunk_tokens": 16,
        "max_running": 8,
        "context_len": 1000,
        "max_queued": 100,
        "max_queued_tokens": 100_000,
    }
    return SchedulerConfig(**{**defaults, "debug_checks": True, **changes})


class Clock:
    """Seconds that pass only when a test says so."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class FakeSequence:
    admitted: AdmittedSequence
    tokens: list[int]
    full: list[int] = field(default_factory=list)
    sliding: list[int] = field(default_factory=list)
    num_planned: int = 0  # positions of submitted work, if every draft holds
    num_drafting: int = 0  # drafts among them that have not run
    num_computed: int = 0  # positions of work that has run
    num_starts: int = 0
    num_scored: int = 0
    signs: list[int] = field(default_factory=list)

    @property
    def sample(self) -> int:
        return self.admitted.sampling.sample

    def signatures(self, num_drafts: int) -> list[int]:
        """Of the tokens known, and of so many that will come."""
        known = extend_signatures(self.signs, self.tokens)
        if num_drafts == 0:
            return known
        return extend_signatures(list(known), continued(self.tokens, num_drafts, self.sample))


class FakeRank:
    """One sequence space of the gang."""

    def __init__(self, config: SchedulerConfig) -> None:
        self.config = config
        self.sequences: dict[int, FakeSequence] = {}
        self.forgotten: set[int] = set()
        self.cache: dict[tuple[str, int], int] = {}  # slot -> all tokens up to the one written, in short
        # Of steps in flight: both tables of a sequence, and how often it had started from nothing.
        self.tables: deque[dict[int, tuple[list[int], list[int], int]]] = deque()

    def submit(self, step: RankStep) -> tuple[Touched, Touched]:
        """Check a step when it is planned; returns who reads and who writes which block."""
        assert step.num_tokens <= self.config.chunk_tokens, step.num_tokens
        assert len(step.work) == len({work.seq_id for work in step.work}) <= self.config.max_running
        for admitted in step.admitted:
            assert admitted.seq_id not in self.sequences.keys() | self.forgotten, "admitted twice"
            assert admitted.seq_id in {work.seq_id for work in step.work}, "admitted without work"
            self.sequences[admitted.seq_id] = FakeSequence(admitted, list(admitted.prompt_ids))
        read: Touched = {}
        written: Touched = {}
        self.tables.append({})
        self._check_copies(step)
        for work in step.work:
            seq = self.sequences[work.seq_id]
            self._extend_tables(seq, work)
            owner = (work.seq_id, seq.num_starts)
            for block in self._read_blocks(seq, work):
                read.setdefault(block, set()).add(owner)
            for block in self._written_blocks(seq, work):
                assert block not in written, f"{block} is written by {owner} and {written[block]}"
                written[block] = {owner}
            self.tables[-1][work.seq_id] = (list(seq.full), list(seq.sliding), seq.num_starts)
        return read, written

    def _check_copies(self, step: RankStep) -> None:
        """A copy is the block in which a sequence begins its first work."""
        first = {
            (group, blocks[work.start // self.config.block_size])
            for work in step.work
            if work.begins and work.start
            for group, blocks in (("full", work.new_full_blocks), ("sliding", work.new_sliding_blocks))
        }
        targets = [(copy.group, copy.target) for copy in step.copies]
        assert len(targets) == len(set(targets))
        assert set(targets) <= first, (targets, first)

    def _extend_tables(self, seq: FakeSequence, work) -> None:
        assert work.num_tokens >= 1
        assert work.begins or work.start > 0
        if work.begins:
            assert seq.num_drafting == 0, "how many tokens are known is not known yet"
            seq.full, seq.sliding, seq.num_planned = [], [], work.start
            seq.num_starts += 1
        assert work.start == seq.num_planned, f"{work.seq_id}: start {work.start}, not {seq.num_planned}"
        seq.num_planned = end = work.start + work.num_tokens
        seq.full += work.new_full_blocks
        seq.sliding += work.new_sliding_blocks
        needed = -(-end // self.config.block_size)
        most = -(-(end + 2 * self.config.num_drafts) // self.config.block_size)
        assert needed <= len(seq.full) == len(seq.sliding) <= most, (work, len(seq.full), len(seq.sliding))
        seq.num_drafting += work.num_drafts
        assert all(0 <= block < self.config.num_full_blocks for block in seq.full)
        assert all(0 <= block < self.config.num_sliding_blocks for block in seq.sliding)

    def _written_blocks(self, seq: FakeSequence, work) -> list[tuple[str, int]]:
        first = (work.start - (seq.num_drafting - work.num_drafts)) // self.config.block_size
        return [("full", block) for block in seq.full[first:]] + [("sliding", b) for b in seq.sliding[first:]]

    def _read_blocks(self, seq: FakeSequence, work) -> list[tuple[str, int]]:
        config = self.config
        least_start = work.start - (seq.num_drafting - work.num_drafts)
        in_window = seq.sliding[max(0, least_start - config.reach + 1) // config.block_size :]
        assert len(in_window) <= config.sliding_bound
        return [("full", block) for block in seq.full] + [("sliding", block) for block in in_window]

    def run(self, step: RankStep) -> RankResult:
        """Run a step in its turn: write every slot, read every slot that attention would."""
        tables = self.tables.popleft()
        for copy in step.copies:
            self._copy(copy)
        for work in step.work:  # all write before anyone reads: layers interleave the sequences
            self._write(work, *tables[work.seq_id][:2])
        outputs, prompts = [], []
        for work in step.work:
            seq = self.sequences[work.seq_id]
            if seq.admitted.sampling.num_prompt_logprobs is not None:
                prompts += self._score(seq, work)
            self._read(work, *tables[work.seq_id][:2])
            num_known = self._start(seq, work) + work.num_tokens - work.num_drafts
            assert work.samples == (num_known == len(seq.tokens)), "samples from the last token known"
            seq.num_computed = num_known
            if work.samples:
                gained = self._sample(seq, work.num_drafts)
                self._spoil(work.num_drafts + 1 - len(gained), len(seq.tokens) - 1, *tables[work.seq_id][:2])
                seq.num_computed += len(gained) - 1
                seq.num_drafting -= work.num_drafts
                if tables[work.seq_id][2] == seq.num_starts:
                    seq.num_planned -= 1 + work.num_drafts - len(gained)
                outputs.append(SequenceOutput(work.seq_id, gained))
        for seq_id in step.dropped:
            self.sequences.pop(seq_id, None)  # unknown: it ended while its images were fetched
            self.forgotten.add(seq_id)
        return RankResult(tuple(outputs), tuple(prompts))

    def _copy(self, copy: BlockCopy) -> None:
        size = self.config.block_size
        for offset in range(size):
            value = self.cache.get((copy.group, copy.source * size + offset), -1)
            self.cache[copy.group, copy.target * size + offset] = value

    def _score(self, seq: FakeSequence, work) -> list[ScoredPrompt]:
        """A token's log-probability is its position, and comes once."""
        num_prompt = len(seq.admitted.prompt_ids)
        if seq.num_scored == num_prompt:
            return []
        assert work.start <= max(0, seq.num_scored - 1), "positions were left out"
        stop = min(num_prompt, self._start(seq, work) + work.num_tokens + 1)
        positions = range(seq.num_scored, stop)
        if not positions:  # computed again
            return []
        seq.num_scored = stop
        scores = tuple(TokenLogprob(-float(position)) if position else None for position in positions)
        return [ScoredPrompt(work.seq_id, PromptLogprobs(positions[0], scores))]

    def _sample(self, seq: FakeSequence, num_drafts: int) -> tuple[int, ...]:
        """Drafts hold as often as a hash of the tokens before says; then comes one more token."""
        gained = []
        while len(gained) <= num_drafts:
            token = next_token(seq.tokens, seq.sample)
            seq.tokens.append(token)
            gained.append(token)
            if zlib.crc32(repr((seq.tokens, "draft")).encode()) % 3 == 0:
                break  # the next draft was wrong
        num_output = len(seq.tokens) - len(seq.admitted.prompt_ids)
        assert num_output <= seq.admitted.sampling.max_tokens, "planned beyond max_tokens"
        return tuple(gained)

    def _start(self, seq: FakeSequence, work) -> int:
        return len(seq.tokens) - work.num_tokens + work.num_drafts if work.samples else work.start

    def _write(self, work, full: list[int], sliding: list[int]) -> None:
        seq, size = self.sequences[work.seq_id], self.config.block_size
        expected = work.start if work.begins else seq.num_computed
        start = self._start(seq, work)
        assert start == expected, f"{work.seq_id}: position {start} after {expected}"
        assert work.start >= start, "the plan is an upper bound"
        # As if every draft held; `_spoil` comes after those that did not.
        signs = seq.signatures(work.num_drafts)
        num_known = len(seq.tokens) + work.num_drafts
        assert start + work.num_tokens <= num_known, "computes a token that is not known"
        for position in range(start, start + work.num_tokens):
            for group, table in (("full", full), ("sliding", sliding)):
                slot = table[position // size] * size + position % size
                self.cache[group, slot] = signs[position]

    def _spoil(self, num_failed: int, first: int, full: list[int], sliding: list[int]) -> None:
        """Drafts that failed: whoever reads their slots before they are written again is noticed."""
        size = self.config.block_size
        for position in range(first, first + num_failed):
            for group, table in (("full", full), ("sliding", sliding)):
                self.cache[group, table[position // size] * size + position % size] = -1

    def _read(self, work, full: list[int], sliding: list[int]) -> None:
        start = self._start(self.sequences[work.seq_id], work)
        size, end = self.config.block_size, start + work.num_tokens
        first = max(0, start - self.config.reach + 1)
        signs = self.sequences[work.seq_id].signatures(work.num_drafts)
        for group, table, begin in (("full", full, 0), ("sliding", sliding, first)):
            for position in range(begin, end):
                found = self.cache[group, table[position // size] * size + position % size]
                assert found == signs[position], f"{group}: {found} at {position} of {work.seq_id}"


class FakeGang:
    """A runner whose steps run, lazily and in order, when their result is asked for."""

    def __init__(self, config: SchedulerConfig, step_us: int = 1000) -> None:
        self.config = config
        self.ranks = [FakeRank(config) for _ in range(config.num_spaces)]
        self.step_us = step_us
        self.steps: list[Step] = []  # all that were ever submitted
        self.in_flight: deque[tuple[Step, list[tuple[Touched, Touched]]]] = deque()
        self.is_closed = False

    def submit(self, step: Step) -> None:
        assert step.generation == self.config.generation
        assert step.step_id == len(self.steps), (step.step_id, len(self.steps))
        assert len(step.ranks) == self.config.num_spaces
        assert step.num_tokens > 0, "a step without work"
        assert len(self.in_flight) < 2, "more than two steps in flight"
        touched = [rank.submit(share) for rank, share in zip(self.ranks, step.ranks, strict=True)]
        for earlier, earlier_touched in self.in_flight:
            for (_, mine), theirs in zip(touched, earlier_touched, strict=True):
                for block, owner in mine.items():
                    others = theirs[0].get(block, set()) | theirs[1].get(block, set())
                    assert others <= owner, f"step {step.step_id} takes {block} from step {earlier.step_id}"
        self.steps.append(step)
        self.in_flight.append((step, touched))

    def result(self) -> StepResult:
        step, _ = self.in_flight.popleft()
        ranks = tuple(rank.run(share) for rank, share in zip(self.ranks, step.ranks, strict=True))
        return StepResult(step.generation, step.step_id, ranks, self.step_us)

    def close(self) -> None:
        self.is_closed = True


class Inbox:
    """What clients have got: checks that tokens are contiguous and that there is one final delta each."""

    def __init__(self) -> None:
        self.tokens: dict[RequestKey, list[int]] = {}  # of sample 0
        self.samples: dict[tuple[RequestKey, int], list[int]] = {}
        self.ends: dict[tuple[RequestKey, int], Delta] = {}  # the last delta of each sample
        self.final: dict[RequestKey, Delta] = {}
        self.prompts: dict[RequestKey, list[TokenLogprob | None]] = {}

    def take(self, deltas: list[Delta]) -> None:
        for delta in deltas:
            assert delta.key not in self.final, f"{delta.key} after its final delta: {delta}"
            name = delta.key, delta.sample
            assert name not in self.ends, f"{name} after its end: {delta}"
            self._take_tokens(delta)
            if delta.finish_reason is not None:
                self.ends[name] = delta
            assert delta.usage is None or delta.is_final, delta
            if delta.is_final:
                self.final[delta.key] = delta

    def _take_tokens(self, delta: Delta) -> None:
        tokens = self.samples.setdefault((delta.key, delta.sample), [])
        if delta.sample == 0:
            self.tokens[delta.key] = tokens
        else:
            self.tokens.setdefault(delta.key, [])
        assert not delta.token_ids or delta.first_token_index == len(tokens), delta
        tokens.extend(delta.token_ids)
        if delta.prompt is not None:
            assert delta.first_token_index == len(tokens) == 0, delta
            known = self.prompts.setdefault(delta.key, [])
            assert delta.prompt.first_token_index == len(known), delta
            known.extend(delta.prompt.logprobs)


class Bench:
    """A scheduler, its gang and its clients, moved by hand."""

    def __init__(self, config: SchedulerConfig) -> None:
        self.clock = Clock()
        self.scheduler = Scheduler(config, self.clock)
        self.gang = FakeGang(config)
        self.inbox = Inbox()

    def plan(self) -> Step | None:
        step = self.scheduler.plan()
        if step is not None:
            self.gang.submit(step)
        return step

    def commit(self) -> None:
        self.clock.now_s += self.gang.step_us / 1e6
        self.inbox.take(self.scheduler.commit(self.gang.result()))

    def turn(self) -> bool:
        """Plan ahead as far as it goes, then take one result."""
        while self.plan() is not None:
            pass
        if self.gang.in_flight:
            self.commit()
            return True
        return False

    def drain(self, most_turns: int = 10_000) -> None:
        for _ in range(most_turns):
            if not self.turn():
                return
        raise AssertionError(f"not done after {most_turns} turns")

    def assert_idle(self) -> None:
        """Nothing waits, nothing runs, every block is free."""
        self.scheduler.check_integrity()
        load = self.scheduler.load()
        assert (load.num_waiting, load.num_running, load.num_steps_in_flight) == (0, 0, 0)
        assert load.num_free_full_blocks == load.num_full_blocks
        assert load.num_free_sliding_blocks == load.num_sliding_blocks
