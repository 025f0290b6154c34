"""What a step contains: bounds, order, preemption, one step ahead."""

import pytest

from model.errors import Unavailable
from model.sched.blocks import size_sliding_group
from model.types import FinishReason, ImageSpan, Request, RequestKey
from tests.model.sched.fakes import Bench, expected_output, make_config, make_request


def key(name: str) -> RequestKey:
    return RequestKey("local", name)


def work_of(step, seq_id: int):
    return next((work for rank in step.ranks for work in rank.work if work.seq_id == seq_id), None)


@pytest.mark.slow
def test_a_prompt_of_100k_tokens_does_not_stall_running_streams():
    config = make_config(
        block_size=16,
        num_full_blocks=8000,
        num_sliding_blocks=size_sliding_group(8000, 8, 512, 256, 16),
        window=512,
        chunk_tokens=256,
        context_len=131072,
        max_queued_tokens=200_000,
        debug_checks=False,
    )
    bench = Bench(config)
    streams = [bench.scheduler.add(make_request(f"s{i}", 10, 600)).seq_id for i in range(6)]
    bench.turn()
    long_id = bench.scheduler.add(make_request("long", 100_000, 2)).seq_id
    num_long = 0
    while num_long < 100_000:
        step = bench.plan()
        assert step.num_tokens <= 256
        assert all(work_of(step, seq_id).num_tokens == 1 for seq_id in streams), "a stream missed a step"
        num_long += work_of(step, long_id).num_tokens
        # Only the books are looked at: the fake reading 100k slots in every step takes minutes.
        bench.scheduler.check_integrity()
        held = bench.scheduler._by_id[long_id].sliding_blocks
        assert len(held) <= -(-(512 + 256) // 16) + 1
        bench.inbox.take(bench.scheduler.commit(answer(bench)))
    assert step.step_id < 100_000 // (256 - 6) + 5


def answer(bench: Bench):
    """The result of a step without reading the cache."""
    for rank in bench.gang.ranks:
        rank._read = lambda *_: None
    return bench.gang.result()


def test_a_decode_has_its_token_in_every_step_while_prompts_are_computed():
    bench = Bench(make_config(chunk_tokens=8))
    stream = bench.scheduler.add(make_request("stream", 3, 30)).seq_id
    bench.turn()
    for i in range(5):
        bench.scheduler.add(make_request(f"p{i}", 20, 2))
    for _ in range(12):
        step = bench.plan()
        assert work_of(step, stream).num_tokens == 1
        assert step.num_tokens <= 8
        bench.commit()


def test_two_steps_are_planned_before_the_first_result():
    bench = Bench(make_config())
    seq_id = bench.scheduler.add(make_request("a", 3, 8)).seq_id
    first, second, third = bench.plan(), bench.plan(), bench.plan()
    assert (work_of(first, seq_id).start, work_of(first, seq_id).num_tokens) == (0, 3)
    assert (work_of(second, seq_id).start, work_of(second, seq_id).num_tokens) == (3, 1)
    assert third is None


def test_output_of_a_step_planned_before_the_end_is_dropped():
    bench = Bench(make_config())
    eos = expected_output(make_request("a", 3, 8))[0][0]
    bench.scheduler.add(make_request("a", 3, 8, eos_token_ids=(eos,)))
    bench.plan()
    bench.plan()
    bench.commit()
    assert bench.inbox.final[key("a")].finish_reason is FinishReason.STOP
    assert bench.inbox.final[key("a")].stop_token_id == eos
    bench.commit()
    assert bench.inbox.tokens[key("a")] == [eos]
    bench.assert_idle()


def test_nothing_is_planned_beyond_max_tokens():
    bench = Bench(make_config())
    bench.scheduler.add(make_request("a", 3, 2))
    assert bench.plan() is not None
    bench.commit()
    assert bench.plan() is not None
    assert bench.plan() is None
    bench.commit()
    assert bench.inbox.final[key("a")].finish_reason is FinishReason.LENGTH
    assert len(bench.gang.steps) == 2


def test_an_end_token_before_min_tokens_does_not_end_the_sequence():
    bench = Bench(make_config())
    tokens, _ = expected_output(make_request("a", 3, 8))
    bench.scheduler.add(make_request("a", 3, 8, stop_token_ids=tokens[:4], min_tokens=3))
    bench.drain()
    assert tuple(bench.inbox.tokens[key("a")]) == tokens[:4]


def test_the_oldest_always_ends_under_few_blocks():
    bench = Bench(make_config(num_full_blocks=12, num_sliding_blocks=12))
    names = [f"r{i}" for i in range(8)]
    for name in names:
        bench.scheduler.add(make_request(name, 4, 40))
    while len(bench.inbox.final) < len(names):
        assert bench.turn(), "stalled"
    assert bench.scheduler.load().num_preemptions > 0
    assert [key(name) for name in names] == list(bench.inbox.final), "not in order of arrival"


def test_a_preempted_sequence_is_computed_again_and_goes_on_with_the_same_tokens():
    bench = Bench(make_config(num_full_blocks=10, num_sliding_blocks=10))
    requests = [make_request(name, 5, 30) for name in "ab"]
    ids = [bench.scheduler.add(request).seq_id for request in requests]
    bench.drain()
    assert bench.scheduler.load().num_preemptions > 0
    starts = [work_of(step, ids[1]) for step in bench.gang.steps if work_of(step, ids[1])]
    assert sum(work.start == 0 for work in starts) > 1
    admitted = [seq.seq_id for step in bench.gang.steps for rank in step.ranks for seq in rank.admitted]
    assert admitted == ids, "known tokens stay with the rank: nothing is sent twice"
    for request in requests:
        assert tuple(bench.inbox.tokens[request.key]) == expected_output(request)[0]


def test_the_oldest_is_never_preempted():
    bench = Bench(make_config(num_full_blocks=12, num_sliding_blocks=12))
    ids = [bench.scheduler.add(make_request(f"r{i}", 4, 40)).seq_id for i in range(4)]
    bench.drain()
    starts = [work_of(step, ids[0]).start for step in bench.gang.steps if work_of(step, ids[0])]
    assert starts == sorted(starts)


@pytest.mark.parametrize("scarce", ["num_full_blocks", "num_sliding_blocks"])
def test_admission_leaves_one_steps_growth_to_the_running(scarce):
    bench = Bench(make_config(**{scarce: 4}))
    bench.scheduler.add(make_request("a", 8, 8))  # two blocks, and a third for its next token
    bench.scheduler.add(make_request("b", 5, 2))  # two blocks: one more than is to spare
    for _ in range(2):  # not in the plan that admits the first, nor beside what runs
        assert [work.seq_id for work in bench.plan().ranks[0].work] == [0]
    bench.drain()
    assert bench.scheduler.load().num_preemptions == 0


@pytest.mark.parametrize("scarce", ["num_full_blocks", "num_sliding_blocks"])
def test_admission_counts_the_block_that_a_running_sequence_takes_next(scarce):
    bench = Bench(make_config(**{scarce: 4}))
    bench.scheduler.add(
        make_request("a", 7, 8)
    )  # two blocks hold its first two steps, the next needs a third
    bench.plan()
    bench.scheduler.add(make_request("b", 7, 2))  # two blocks: as many as are free
    assert [work.seq_id for work in bench.plan().ranks[0].work] == [0]


def test_nobody_is_preempted_for_a_block_that_is_on_its_way():
    bench = Bench(make_config(num_full_blocks=5))
    for name, num_prompt in (("a", 4), ("needs one more", 3), ("gone", 3), ("youngest", 1)):
        bench.scheduler.add(make_request(name, num_prompt, 8))
    bench.plan()
    bench.plan()
    bench.commit()
    bench.inbox.take(bench.scheduler.abort(key("gone")))
    step = bench.plan()
    assert [work.seq_id for work in step.ranks[0].work] == [0, 3], "one waits for the block"
    assert bench.scheduler.load().num_preemptions == 0
    bench.commit()
    assert 1 in {work.seq_id for work in bench.plan().ranks[0].work}


def test_the_older_of_two_queues_goes_first():
    bench = Bench(make_config(max_running=1))
    bench.scheduler.add(make_request("image", 3, 2), needs_images=True)
    bench.scheduler.add(make_request("text", 3, 2))
    bench.scheduler.images_ready(key("image"))
    bench.drain()
    assert list(bench.inbox.final) == [key("image"), key("text")]


def test_nobody_overtakes_the_head_of_the_queue():
    bench = Bench(make_config(num_full_blocks=8, num_sliding_blocks=8))
    bench.scheduler.add(make_request("first", 10, 4))
    bench.scheduler.add(make_request("large", 25, 4))
    bench.scheduler.add(make_request("small", 1, 1))
    bench.drain()
    admitted = [seq.seq_id for step in bench.gang.steps for rank in step.ranks for seq in rank.admitted]
    assert admitted == [0, 1, 2]
    assert bench.gang.steps[0].num_tokens < 16, "the small one would have fitted beside the first"


@pytest.mark.parametrize("chunk_tokens", [1, 3, 7, 64, 10_000])
@pytest.mark.parametrize("num_spaces", [1, 3])
@pytest.mark.parametrize("num_drafts", [0, 3])
def test_the_plan_does_not_change_the_tokens(chunk_tokens, num_spaces, num_drafts):
    bench = Bench(make_config(chunk_tokens=chunk_tokens, num_spaces=num_spaces, num_drafts=num_drafts))
    requests = [make_request(f"r{i}", 3 + 9 * i, 5 + i) for i in range(10)]
    for request in requests:
        bench.scheduler.add(request)
    bench.drain()
    for request in requests:
        assert tuple(bench.inbox.tokens[request.key]) == expected_output(request)[0]
    bench.assert_idle()


def test_requests_spread_over_the_spaces():
    bench = Bench(make_config(num_spaces=4, chunk_tokens=64))
    for i in range(8):
        bench.scheduler.add(make_request(f"r{i}", 10, 5))
    step = bench.plan()
    assert [len(rank.work) for rank in step.ranks] == [2, 2, 2, 2]


def test_a_long_prompt_counts_as_more_than_a_short_one():
    bench = Bench(make_config(num_spaces=2, chunk_tokens=64))
    for i, num_prompt in enumerate((30, 5, 5, 5)):
        bench.scheduler.add(make_request(f"r{i}", num_prompt, 5))
    assert [len(rank.work) for rank in bench.plan().ranks] == [1, 3]


def test_a_request_with_images_waits_in_its_space_while_others_go_on():
    bench = Bench(make_config(num_spaces=2))
    request = make_request("image", 6, 3)
    request = Request(request.key, request.prompt_ids, request.sampling, (ImageSpan(1, 4, "sha"),))
    placement = bench.scheduler.add(request, needs_images=True)
    assert placement.space == 0
    other = bench.scheduler.add(make_request("text", 6, 3))
    assert other.space is None
    bench.drain()
    assert set(bench.inbox.final) == {key("text")}
    bench.scheduler.images_ready(request.key)
    bench.drain()
    assert bench.inbox.final[request.key].usage.num_image_tokens == 4
    assert placement.seq_id in bench.gang.ranks[0].sequences


def test_images_go_to_the_space_with_the_least_tokens_to_compute():
    bench = Bench(make_config(num_spaces=3))
    requests = [make_request(f"r{i}", num_prompt, 2) for i, num_prompt in enumerate((30, 5, 6, 5))]
    spaces = [bench.scheduler.add(request, needs_images=True).space for request in requests]
    assert spaces == [0, 1, 2, 1]


def test_ranks_are_told_once_what_to_forget():
    bench = Bench(make_config())
    for name in "ab":
        bench.scheduler.add(make_request(name, 3, 2))
    bench.drain()
    image = bench.scheduler.add(make_request("fetching", 3, 2), needs_images=True)
    bench.scheduler.abort(key("fetching"))
    bench.scheduler.add(make_request("never admitted", 3, 2))
    bench.scheduler.abort(key("never admitted"))
    bench.scheduler.add(make_request("d", 3, 3))
    bench.drain()
    dropped = [seq_id for step in bench.gang.steps for rank in step.ranks for seq_id in rank.dropped]
    assert dropped == [0, 1, image.seq_id]


def test_blocks_of_an_aborted_request_are_free_within_two_steps():
    bench = Bench(make_config())
    bench.scheduler.add(make_request("gone", 16, 30))
    bench.scheduler.add(make_request("stays", 1, 30))
    bench.plan()
    bench.plan()
    before = bench.scheduler.load().num_free_full_blocks
    bench.inbox.take(bench.scheduler.abort(key("gone")))
    assert bench.scheduler.load().num_free_full_blocks == before
    bench.commit()
    bench.commit()
    assert bench.scheduler.load().num_free_full_blocks >= before + 4


def test_results_of_another_generation_are_dropped():
    bench = Bench(make_config(generation=4))
    bench.scheduler.add(make_request("a", 3, 2))
    bench.plan()
    result = bench.gang.result()
    old = type(result)(3, result.step_id, result.ranks, result.step_us)
    assert bench.scheduler.commit(old) == []
    assert bench.scheduler.load().num_steps_in_flight == 1


def test_after_a_gang_died_nothing_is_planned_until_the_next_generation():
    bench = Bench(make_config())
    bench.scheduler.add(make_request("a", 3, 2))
    bench.plan()
    bench.inbox.take(bench.scheduler.fail_all(Unavailable("rank 0 died")))
    bench.scheduler.add(make_request("b", 3, 2))
    assert bench.scheduler.plan() is None
    bench.scheduler.reset(1)
    step = bench.scheduler.plan()
    assert (step.generation, step.step_id, step.num_tokens) == (1, 0, 3)


def test_a_result_that_misses_an_output_is_noticed():
    bench = Bench(make_config())
    bench.scheduler.add(make_request("a", 3, 2))
    bench.plan()
    result = bench.gang.result()
    with pytest.raises(AssertionError, match=r"\[\], \[0\]"):
        bench.scheduler.commit(type(result)(0, 0, (type(result.ranks[0])(),)))
