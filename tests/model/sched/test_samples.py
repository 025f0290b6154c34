"""Samples of one request: the prompt is computed once, blocks are shared, and each ends by itself."""

from collections import Counter

import pytest

from model.errors import InvalidRequest, Unavailable
from model.sched.step import RankResult, SequenceOutput, StepResult
from model.types import FinishReason, ImageSpan, Request, RequestKey
from tests.model.sched.fakes import Bench, expected_output, make_config, make_request

BLOCK = 4


def bench_of(**shape: int) -> Bench:
    return Bench(make_config(num_full_blocks=200, num_sliding_blocks=200, max_running=16, **shape))


def works(bench: Bench):
    return [work for step in bench.gang.steps for rank in step.ranks for work in rank.work]


def copies(bench: Bench):
    return [copy for step in bench.gang.steps for rank in step.ranks for copy in rank.copies]


def assert_every_sample_is_right(bench: Bench, request: Request) -> None:
    for sample in range(request.sampling.num_samples):
        tokens, reason = expected_output(request, sample)
        assert tuple(bench.inbox.samples[request.key, sample]) == tokens
        assert bench.inbox.ends[request.key, sample].finish_reason is reason


@pytest.mark.parametrize("keeps_prefixes", [False, True])
@pytest.mark.parametrize("num_prompt", [1, 2, BLOCK, BLOCK + 1, 16, 17, 50, 51])
def test_each_sample_is_what_it_would_be_alone(num_prompt: int, keeps_prefixes: bool):
    bench = bench_of(keeps_prefixes=keeps_prefixes)
    request = make_request("r", num_prompt, 9, num_samples=5)
    bench.scheduler.add(request)
    bench.drain()
    assert_every_sample_is_right(bench, request)
    assert len({tuple(tokens) for tokens in bench.inbox.samples.values()}) == 5
    bench.assert_idle()


def test_the_prompt_is_computed_once_and_its_last_token_by_each():
    bench = bench_of()
    bench.scheduler.add(make_request("r", 50, 1, num_samples=8))
    bench.drain()
    assert sum(work.num_tokens for work in works(bench)) == 50 + 7


def test_whole_blocks_are_shared_and_the_last_one_is_copied_once_for_each():
    bench = bench_of()
    bench.scheduler.add(make_request("r", 50, 6, num_samples=4))  # 49 tokens: 12 blocks, and 1 in part
    bench.drain()
    tables = [work.new_full_blocks for work in works(bench) if work.begins and work.start]
    assert [table[:12] for table in tables] == [tables[0][:12]] * 3
    assert len({table[12] for table in tables}) == 3
    assert Counter(copy.group for copy in copies(bench)) == {"full": 3, "sliding": 3}
    assert len({copy.source for copy in copies(bench) if copy.group == "full"}) == 1


def test_nothing_is_copied_where_the_prompt_ends_with_a_block():
    bench = bench_of()
    bench.scheduler.add(make_request("r", 49, 6, num_samples=4))
    bench.drain()
    assert copies(bench) == []


def test_the_others_start_one_step_behind_the_first():
    bench = bench_of(chunk_tokens=16)
    bench.scheduler.add(make_request("r", 30, 6, num_samples=3))
    first_steps = {}
    bench.drain()
    for index, step in enumerate(bench.gang.steps):
        for work in step.ranks[0].work:
            if work.samples:
                first_steps.setdefault(work.seq_id, index)
    assert sorted(first_steps.values()) == [1, 2, 2]


def test_what_they_share_is_kept_no_longer_than_the_last_needs_it_to_start():
    bench = bench_of()
    bench.scheduler.add(make_request("r", 50, 6, num_samples=4))
    bench.drain()
    assert bench.scheduler.load().num_prefixes == 0


def test_samples_stay_on_the_rank_that_has_their_prompt():
    bench = bench_of(num_spaces=3)
    for index in range(3):
        bench.scheduler.add(make_request(f"r{index}", 40, 4, num_samples=4))
    bench.drain()
    for step in bench.gang.steps:
        assert all(len({work.seq_id // 4 for work in rank.work}) <= 1 for rank in step.ranks)


def test_the_bill_has_the_prompt_once_and_every_answer():
    bench = bench_of()
    request = make_request("r", 50, 9, num_samples=3, eos_token_ids=tuple(range(9)))
    bench.scheduler.add(request)
    bench.drain()
    usage = bench.inbox.final[request.key].usage
    assert usage.num_prompt_tokens == 50
    assert usage.num_cached_tokens == 0
    assert usage.num_completion_tokens == sum(len(expected_output(request, s)[0]) for s in range(3))
    total_us = bench.gang.step_us * len(bench.gang.steps)
    assert usage.compute_us + bench.scheduler.load().unbilled_us == total_us


def test_the_last_delta_of_all_says_so_and_the_others_how_many_go_on():
    bench = bench_of()
    request = make_request("r", 10, 30, num_samples=4, eos_token_ids=(1, 2, 3))
    bench.scheduler.add(request)
    bench.drain()
    ends = [bench.inbox.ends[request.key, sample] for sample in range(4)]
    assert sorted(end.num_samples_left for end in ends) == [0, 1, 2, 3]
    assert [end.is_final for end in ends] == [end.usage is not None for end in ends]
    assert sum(end.is_final for end in ends) == 1


def test_a_stop_ends_its_sample_alone():
    bench = bench_of()
    request = make_request("r", 10, 9, num_samples=3)
    bench.scheduler.add(request)
    for _ in range(4):
        bench.turn()
    delta = bench.scheduler.stop(request.key, 2, sample=1)
    assert (delta.sample, delta.finish_reason, delta.num_samples_left) == (1, FinishReason.STOP, 2)
    assert bench.scheduler.stop(request.key, 2, sample=1) is None
    bench.inbox.take([delta])
    bench.drain()
    assert bench.inbox.final[request.key].usage.num_completion_tokens == 9 + 2 + 9


@pytest.mark.parametrize("num_turns", [0, 1, 2, 5])
def test_an_abort_ends_every_sample_whenever_it_comes(num_turns: int):
    bench = bench_of(chunk_tokens=16)
    request = make_request("r", 30, 90, num_samples=3)
    bench.scheduler.add(request)
    for _ in range(num_turns):
        bench.turn()
    deltas = bench.scheduler.abort(request.key)
    assert [(d.sample, d.finish_reason) for d in deltas] == [(s, FinishReason.ABORTED) for s in range(3)]
    assert [delta.is_final for delta in deltas] == [False, False, True]
    bench.inbox.take(deltas)
    bench.drain()
    bench.assert_idle()


def test_an_error_ends_all_samples_with_one_delta():
    bench = bench_of()
    request = make_request("r", 30, 90, num_samples=3)
    bench.scheduler.add(request)
    bench.turn()
    (delta,) = bench.scheduler.abort(request.key, Unavailable("gone"))
    assert delta.is_final
    bench.inbox.take([delta])
    bench.drain()
    bench.assert_idle()


def test_a_sample_that_cannot_go_on_ends_the_request():
    bench = bench_of()
    request = make_request("r", 4, 9, num_samples=3)
    bench.scheduler.add(request)
    for _ in range(3):
        bench.turn()
    bench.plan()
    result = bench.gang.result()
    outputs = [
        SequenceOutput(o.seq_id, o.token_ids, failure="no token" if o.seq_id == 1 else "")
        for o in result.ranks[0].outputs
    ]
    broken = StepResult(result.generation, result.step_id, (RankResult(tuple(outputs)),))
    deltas = bench.scheduler.commit(broken)
    assert isinstance(deltas[-1].error, InvalidRequest)
    assert [delta.sample for delta in deltas] == [0, 1], "the third says nothing any more"
    bench.inbox.take(deltas)
    bench.drain()
    bench.assert_idle()


def test_a_dead_gang_ends_a_request_once():
    bench = bench_of()
    bench.scheduler.add(make_request("r", 30, 90, num_samples=3))
    bench.turn()
    (delta,) = bench.scheduler.fail_all(Unavailable("rank 0 died"))
    assert delta.is_final


def test_preempted_samples_go_on_as_if_nothing_had_been():
    bench = Bench(make_config(num_full_blocks=14, num_sliding_blocks=14, max_running=16))
    request = make_request("r", 17, 30, num_samples=6)
    bench.scheduler.add(request)
    bench.drain()
    assert_every_sample_is_right(bench, request)
    assert bench.scheduler.load().num_preemptions > 0
    bench.assert_idle()


def test_samples_for_which_there_is_hardly_room_run_one_after_another():
    bench = Bench(make_config(num_full_blocks=5, num_sliding_blocks=5))
    request = make_request("r", 18, 3, num_samples=4)  # each needs all blocks: none is left to copy from
    bench.scheduler.add(request)
    bench.drain()
    assert_every_sample_is_right(bench, request)
    bench.assert_idle()


def test_more_samples_than_may_run_wait_for_one_another():
    bench = Bench(make_config(max_running=3))
    request = make_request("r", 18, 5, num_samples=8)
    bench.scheduler.add(request)
    bench.drain()
    assert_every_sample_is_right(bench, request)


def test_images_are_forgotten_with_the_last_sample():
    bench = bench_of()
    made = make_request("r", 30, 40, num_samples=3, eos_token_ids=(1, 2, 3, 4))
    request = Request(made.key, made.prompt_ids, made.sampling, (ImageSpan(0, 8, "sha"),))
    bench.scheduler.add(request, needs_images=True)
    bench.scheduler.images_ready(request.key)
    bench.drain()
    bench.scheduler.add(make_request("later", 3, 1))
    bench.drain()
    dropped = [step.ranks[0].dropped for step in bench.gang.steps if step.ranks[0].dropped]
    assert [sorted(ids) for ids in dropped] == [[0, 1, 2]]


def test_an_answer_of_a_sample_is_a_prefix_of_what_comes_next():
    bench = bench_of(keeps_prefixes=True)
    request = make_request("r", 30, 9, num_samples=3)
    bench.scheduler.add(request)
    bench.drain()
    history = (*request.prompt_ids, *bench.inbox.samples[request.key, 2], 1, 2, 3)
    following = Request(RequestKey("local", "next"), history, request.sampling)
    bench.scheduler.add(following)
    bench.drain()
    assert bench.inbox.final[following.key].usage.num_cached_tokens == (30 + 9 - 1) // BLOCK * BLOCK


def test_a_queue_counts_a_shared_prompt_once():
    bench = Bench(make_config(max_running=1))
    bench.scheduler.add(make_request("r", 30, 20, num_samples=5))
    for _ in range(4):
        bench.turn()
    load = bench.scheduler.load()
    assert (load.num_waiting, load.num_queued_tokens) == (4, 4)


def test_no_samples_are_refused():
    with pytest.raises(InvalidRequest, match=r"sampling\.n: 0 is below 1"):
        bench_of().scheduler.add(make_request("r", 3, 3, num_samples=0))
