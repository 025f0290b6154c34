"""Thousands of random events, each also between plan and result; every block accounted for after each."""

import random
from collections import Counter
from dataclasses import replace

import pytest

from model.errors import DeadlineExceeded, InvalidRequest, Overloaded, Unavailable
from model.types import FinishReason, ImageSpan, Request, RequestKey
from tests.model.sched.fakes import Bench, FakeGang, expected_output, make_config, make_request
from tests.model.sched.made_up import VOCABULARY

EVENTS = ("add", "abort", "stop", "images_ready", "plan", "commit")
WEIGHTS = (4, 0.8, 0.8, 2, 6, 6)

SHAPES = {
    "roomy": {},
    "few full blocks": {"num_full_blocks": 14},
    "few sliding blocks": {"num_sliding_blocks": 7},
    "blocks of one": {"block_size": 1, "num_full_blocks": 45, "num_sliding_blocks": 20, "window": 5},
    "chunk of one": {"chunk_tokens": 1, "num_full_blocks": 16},
    "window of one": {"window": 1, "num_sliding_blocks": 3, "num_full_blocks": 16},
    "three spaces": {"num_spaces": 3, "num_full_blocks": 14, "num_sliding_blocks": 9, "max_running": 4},
    "window over context": {"window": 500, "num_full_blocks": 20, "num_sliding_blocks": 20},
    "prefixes": {"keeps_prefixes": True},
    "prefixes, few full blocks": {"keeps_prefixes": True, "num_full_blocks": 14},
    "prefixes, few sliding blocks": {"keeps_prefixes": True, "num_sliding_blocks": 9},
    "prefixes, drafts": {"keeps_prefixes": True, "num_drafts": 3, "num_full_blocks": 20},
    "prefixes, blocks of one": {
        "keeps_prefixes": True,
        "block_size": 1,
        "num_full_blocks": 45,
        "num_sliding_blocks": 20,
        "window": 5,
    },
    "prefixes, three spaces": {
        "keeps_prefixes": True,
        "num_spaces": 3,
        "num_full_blocks": 20,
        "num_sliding_blocks": 12,
        "max_running": 4,
        "num_drafts": 2,
    },
    "samples": {"most_samples": 4},
    "samples, prefixes, few full blocks": {"most_samples": 4, "keeps_prefixes": True, "num_full_blocks": 14},
    "samples, drafts, few sliding blocks": {"most_samples": 4, "num_drafts": 3, "num_sliding_blocks": 8},
    "samples, everything, three spaces": {
        "most_samples": 5,
        "keeps_prefixes": True,
        "num_spaces": 3,
        "num_full_blocks": 20,
        "num_sliding_blocks": 12,
        "max_running": 4,
        "num_drafts": 2,
    },
    "tenants and priorities": {"is_mixed": 1},
    "tenants and priorities, few full blocks": {"is_mixed": 1, "num_full_blocks": 14},
    "tenants and priorities, everything": {
        "is_mixed": 1,
        "most_samples": 4,
        "keeps_prefixes": True,
        "num_spaces": 3,
        "num_full_blocks": 20,
        "num_sliding_blocks": 12,
        "max_running": 4,
        "num_drafts": 2,
    },
    "drafts": {"num_drafts": 3},
    "drafts, few full blocks": {"num_drafts": 3, "num_full_blocks": 14},
    "drafts, few sliding blocks": {"num_drafts": 3, "num_sliding_blocks": 8},
    "drafts, blocks of one": {
        "num_drafts": 2,
        "block_size": 1,
        "num_full_blocks": 45,
        "num_sliding_blocks": 24,
        "window": 5,
    },
    "drafts, chunk of five": {"num_drafts": 3, "chunk_tokens": 5, "num_full_blocks": 16},
    "drafts, three spaces": {
        "num_drafts": 3,
        "num_spaces": 3,
        "num_full_blocks": 14,
        "num_sliding_blocks": 9,
        "max_running": 4,
    },
}

# With the fast tests: the others are of the same kind.
OFTEN = (
    "few full blocks",
    "few sliding blocks",
    "window of one",
    "prefixes, drafts",
    "drafts, three spaces",
    "samples, everything, three spaces",
    "tenants and priorities, few full blocks",
)


class Storm:
    """Random events from one seed, with the books checked after each (`debug_checks`, and here)."""

    def __init__(self, seed: int, shape: dict[str, int], lengths: tuple[int, int] = (30, 12)) -> None:
        self.random = random.Random(seed)
        self.longest_prompt, self.longest_output = lengths
        self.most_samples = shape.get("most_samples", 1)
        self.is_mixed = shape.get("is_mixed", 0) > 0  # in tenants and priorities
        sizes = {name: value for name, value in shape.items() if name not in ("most_samples", "is_mixed")}
        self.bench = Bench(make_config(max_queued=12, **sizes))
        self.open: dict[RequestKey, Request] = {}
        self.fetching: set[RequestKey] = set()
        self.cut: set[RequestKey] = set()  # ended by abort
        self.cut_samples: set[tuple[RequestKey, int]] = set()  # ended by stop
        self.done: dict[RequestKey, Request] = {}
        self.seen: Counter[str] = Counter()

    def run(self, num_events: int) -> None:
        for _ in range(num_events):
            event = self.random.choices(EVENTS, WEIGHTS)[0]
            preempted_before = self.bench.scheduler.load().num_preemptions
            num_in_flight = len(self.bench.gang.in_flight)
            getattr(self, event)()
            self.bench.scheduler.check_integrity()
            self._count_blocks()
            self.seen[event, num_in_flight > 0] += 1
            num_preempted = self.bench.scheduler.load().num_preemptions - preempted_before
            self.seen["preempt", num_in_flight > 0] += num_preempted
            self._collect()

    def _count_blocks(self) -> None:
        """The same books, from the gang's side: no block of a running sequence is free."""
        for space, rank in zip(self.bench.scheduler._spaces, self.bench.gang.ranks, strict=True):
            for seq in space.running:
                fake = rank.sequences[seq.seq_id]
                assert fake.full == seq.full_blocks
                assert fake.sliding[seq.num_sliding_freed :] == seq.sliding_blocks

    def _collect(self) -> None:
        for key in self.open.keys() & self.bench.inbox.final.keys():
            self.done[key] = self.open.pop(key)
            self.fetching.discard(key)

    def add(self) -> None:
        number = len(self.open) + len(self.done)
        num_prompt = self.random.randint(1, self.longest_prompt)
        max_tokens = self.random.randint(1, self.longest_output)
        sampling = {
            "eos_token_ids": tuple(self.random.sample(range(VOCABULARY), self.random.choice([0, 3, 9]))),
            "min_tokens": self.random.choice([0, 0, 2]),
        }
        if self.most_samples > 1:
            sampling["num_samples"] = self.random.randint(1, self.most_samples)
            sampling["num_prompt_logprobs"] = self.random.choice([None, None, None, 0])
        prompt = f"topic {self.random.randrange(4)}" if self.bench.scheduler.config.keeps_prefixes else None
        request = make_request(f"r{number}", num_prompt, max_tokens, prompt, **sampling)
        if self.is_mixed:
            key = RequestKey(f"tenant {self.random.randrange(3)}", f"r{number}")
            request = replace(request, key=key, priority=self.random.choice([-1, 0, 0, 1]))
        needs_images = self.random.random() < 0.3
        if needs_images:
            request = replace(request, images=(ImageSpan(0, 1, "sha"),))
        try:
            self.bench.scheduler.add(request, needs_images=needs_images)
        except (Overloaded, InvalidRequest) as error:
            self.seen[error.code] += 1
            return
        self.open[request.key] = request
        if needs_images:
            self.fetching.add(request.key)

    def _choose(self) -> RequestKey:
        keys = [*self.open, *list(self.done)[-3:]]  # events also come too late
        return self.random.choice(keys) if keys else RequestKey("local", "unknown")

    def abort(self) -> None:
        key, error = self._choose(), self.random.choice([None, DeadlineExceeded("late")])
        deltas = self.bench.scheduler.abort(key, error)
        assert (not deltas) == (key not in self.open)
        if deltas:
            self.cut.add(key)
            self.bench.inbox.take(deltas)

    def stop(self) -> None:
        key, sample = self._choose(), 0
        if self.most_samples > 1:
            sample = self.random.randrange(self.most_samples)
        num_tokens = self.random.randint(0, len(self.bench.inbox.samples.get((key, sample), ())))
        if self.most_samples > 1 and num_tokens == 0:
            return  # no text stage finds a string before there is a token
        delta = self.bench.scheduler.stop(key, num_tokens, sample)
        ended = key not in self.open or (key, sample) in self.bench.inbox.ends
        assert (delta is None) == ended
        if delta is not None:
            assert not delta.is_final or delta.usage.num_completion_tokens >= num_tokens
            self.cut_samples.add((key, sample))
            self.bench.inbox.take([delta])

    def images_ready(self) -> None:
        if self.fetching:
            key = self.random.choice(sorted(self.fetching, key=str))
            self.fetching.discard(key)
            self.bench.scheduler.images_ready(key)

    def plan(self) -> None:
        self.bench.plan()

    def commit(self) -> None:
        if self.bench.gang.in_flight:
            self.bench.commit()

    def finish(self) -> None:
        for key in self.fetching:
            self.bench.scheduler.images_ready(key)
        self.fetching.clear()
        self.bench.drain()
        self._collect()
        assert not self.open
        self.bench.assert_idle()


def assert_right_answers(storm: Storm) -> None:
    """Whoever was not cut short has exactly the tokens that any other plan would give."""
    inbox = storm.bench.inbox
    for key, request in storm.done.items():
        num_tokens = 0
        for sample in range(request.sampling.num_samples):
            tokens, reason = expected_output(request, sample)
            got = tuple(inbox.samples.get((key, sample), ()))
            num_tokens += len(got)
            if key in storm.cut or (key, sample) in storm.cut_samples:
                assert got == tokens[: len(got)]
            else:
                assert (got, inbox.ends[key, sample].finish_reason) == (tokens, reason)
        if key not in storm.cut and all(name[0] != key for name in storm.cut_samples):
            assert inbox.final[key].usage.num_completion_tokens == num_tokens
            assert_whole_prompt(storm, request)


def assert_whole_prompt(storm: Storm, request: Request) -> None:
    """Every token of a prompt that was asked about has its log-probability, once."""
    num_scored = len(storm.bench.inbox.prompts.get(request.key, ()))
    asked = request.sampling.num_prompt_logprobs is not None
    assert num_scored == (len(request.prompt_ids) if asked else 0)


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param(shape, id=name, marks=() if name in OFTEN else pytest.mark.slow)
        for name, shape in SHAPES.items()
    ],
)
def test_every_block_is_accounted_for_after_every_event(shape):
    storm = Storm(seed=20, shape=shape)
    storm.run(4000)
    storm.finish()
    assert_right_answers(storm)
    assert len(storm.done) > 100
    if shape.get("keeps_prefixes"):
        finals = storm.bench.inbox.final.values()
        assert sum(final.usage.num_cached_tokens > 0 for final in finals) > 20
    for event in EVENTS:
        assert storm.seen[event, True] > 50, f"{event} hardly came between plan and result"


@pytest.mark.parametrize(
    "also",
    [{}, {"num_drafts": 3, "keeps_prefixes": True}, {"is_mixed": 1}],
    ids=["plain", "all", "tenants and priorities"],
)
@pytest.mark.parametrize(
    "seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 6))]
)
def test_books_hold_when_preemption_never_rests(seed, also):
    shape = {"num_full_blocks": 13, "num_sliding_blocks": 13, "max_running": 16, **also}
    storm = Storm(seed, shape, lengths=(6, 44))  # grow far beyond what admission can foresee
    storm.run(1500)
    storm.finish()
    assert_right_answers(storm)
    assert storm.seen["preempt", True] > 10
    assert storm.seen["RESOURCE_EXHAUSTED"] > 0


def test_time_of_all_steps_is_billed_or_named_as_unbilled():
    storm = Storm(seed=7, shape={"num_spaces": 2, "num_full_blocks": 14})
    storm.bench.gang.step_us = 997
    storm.run(2000)
    storm.finish()
    billed_us = sum(final.usage.compute_us for final in storm.bench.inbox.final.values())
    total_us = 997 * len(storm.bench.gang.steps)
    assert billed_us + storm.bench.scheduler.load().unbilled_us == total_us


def test_a_dead_gang_ends_everybody_at_any_moment_and_leaves_clean_books():
    storm = Storm(seed=3, shape={"num_full_blocks": 14, "num_spaces": 2})
    bench = storm.bench
    for generation in range(1, 40):
        storm.run(60)
        bench.inbox.take(bench.scheduler.fail_all(Unavailable("rank 1 died")))
        storm.cut |= storm.open.keys()
        storm._collect()
        assert not storm.open
        bench.assert_idle()
        stale = bench.gang.result() if bench.gang.in_flight else None
        bench.scheduler.reset(generation)
        bench.gang = FakeGang(make_config(generation=generation, num_full_blocks=14, num_spaces=2))
        if stale is not None:
            assert bench.scheduler.commit(stale) == []
    storm.finish()
    assert_right_answers(storm)


def test_a_leaked_block_is_noticed():
    bench = Bench(make_config(debug_checks=False))
    bench.scheduler._spaces[0].full.allocate(1)
    with pytest.raises(AssertionError, match="not owned exactly once"):
        bench.scheduler.check_integrity()


def test_a_block_with_two_owners_is_noticed():
    bench = Bench(make_config(debug_checks=False))
    for name in "ab":
        bench.scheduler.add(make_request(name, 4, 4))
    bench.plan()
    first, second = bench.scheduler._spaces[0].running
    second.sliding_blocks[0] = first.sliding_blocks[0]
    with pytest.raises(AssertionError, match="not owned exactly once"):
        bench.scheduler.check_integrity()


def test_the_fake_gang_notices_a_block_reused_while_a_step_is_in_flight():
    bench = Bench(make_config(debug_checks=False))
    bench.scheduler.add(make_request("a", 4, 4))
    bench.plan()
    bench.scheduler.abort(RequestKey("local", "a"))
    for pool in (bench.scheduler._spaces[0].full, bench.scheduler._spaces[0].sliding):
        pool.step_returned(0)  # a lie: the step is still in flight
    bench.scheduler.add(make_request("b", 4, 4))
    with pytest.raises(AssertionError, match="step 1 takes"):
        bench.plan()


def test_finish_reasons_of_a_storm_cover_every_way_to_end():
    storm = Storm(seed=5, shape={})
    storm.run(1500)
    storm.finish()
    reasons = {final.finish_reason for final in storm.bench.inbox.final.values()}
    assert reasons == {FinishReason.STOP, FinishReason.LENGTH, FinishReason.ABORTED, None}
