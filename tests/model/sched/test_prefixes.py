"""What is kept of a prompt, who gets it, and what goes first when blocks run out."""

from model.sched.prefixes import Chain
from model.types import ImageSpan, Request, RequestKey, SamplingParams
from tests.model.sched.fakes import Bench, make_config, make_request

BLOCK = 4


def bench_of(**shape: int) -> Bench:
    return Bench(make_config(keeps_prefixes=True, **shape))


def num_prompt_tokens_computed(bench: Bench) -> int:
    works = [work for step in bench.gang.steps for rank in step.ranks for work in rank.work]
    return sum(work.num_tokens for work in works if work.num_tokens > 1 or not work.samples)


def test_forty_that_begin_alike_pay_for_the_beginning_once():
    bench = bench_of(num_full_blocks=400, num_sliding_blocks=400, max_running=40, chunk_tokens=64)
    for index in range(40):
        bench.scheduler.add(make_request(f"r{index}", 200 + index % 3, 5, topic="shared"))
    bench.drain()
    assert num_prompt_tokens_computed(bench) < 200 + 40 * (2 * BLOCK + 3)


def test_an_answer_is_part_of_what_the_next_turn_has():
    bench = bench_of()
    first = make_request("first", 30, 9)
    bench.scheduler.add(first)
    bench.drain()
    history = (*first.prompt_ids, *bench.inbox.tokens[first.key], 1, 2, 3)
    second = Request(RequestKey("local", "second"), history, SamplingParams(max_tokens=2))
    bench.scheduler.add(second)
    bench.drain()
    usage = bench.inbox.final[second.key].usage
    assert usage.num_cached_tokens == (30 + 9 - 1) // BLOCK * BLOCK


def test_prefixes_go_before_anybody_is_preempted():
    bench = bench_of(num_full_blocks=24, num_sliding_blocks=24)
    for index in range(6):
        bench.scheduler.add(make_request(f"r{index}", 40, 8))
        bench.drain()
    load = bench.scheduler.load()
    assert load.num_prefixes > 0
    assert load.num_preemptions == 0
    assert load.num_free_full_blocks == load.num_full_blocks


def test_the_prefix_that_was_used_last_stays_longest():
    bench = bench_of(num_full_blocks=24, num_sliding_blocks=24)
    for name, topic in (
        ("a", "old"),
        ("b", "used"),
        ("c", "other"),
        ("d", "used"),
        ("e", "new"),
        ("f", "used"),
    ):
        bench.scheduler.add(make_request(name, 32, 2, topic=topic))
        bench.drain()
    cached = {key.request_id: final.usage.num_cached_tokens for key, final in bench.inbox.final.items()}
    assert cached["d"] > 0
    assert cached["f"] > 0


def test_a_sequence_goes_to_the_rank_that_has_its_beginning():
    bench = bench_of(num_spaces=3)
    for index in range(4):
        bench.scheduler.add(make_request(f"r{index}", 40, 3, topic="shared"))
        bench.drain()
    spaces = {
        space
        for step in bench.gang.steps
        for space, rank in enumerate(step.ranks)
        if rank.work
    }  # fmt: skip
    assert len(spaces) == 1


def test_names_tell_tenants_and_pictures_apart():
    def names(tenant: str, content: str) -> list[bytes]:
        images = (ImageSpan(5, 3, "key", content=content),)
        chain = Chain(BLOCK)
        request = Request(RequestKey(tenant, "r"), tuple(range(12)), SamplingParams(max_tokens=1), images)
        chain.extend(request, [], 12)
        return chain.names

    one, tenant, picture = names("a", "x"), names("b", "x"), names("a", "y")
    assert len(one) == 3
    assert not set(one) & set(tenant)
    assert (one[0], one[1] == picture[1]) == (picture[0], False)


def test_a_chain_grows_with_the_answer_as_if_it_had_been_the_prompt():
    chain, whole = Chain(BLOCK), Chain(BLOCK)
    request = Request(RequestKey("t", "r"), tuple(range(6)), SamplingParams(max_tokens=9))
    chain.extend(request, [], 6)
    chain.extend(request, [40, 41, 42, 43, 44], 11)
    longer = Request(RequestKey("t", "r"), (*range(6), 40, 41, 42, 43, 44), SamplingParams(max_tokens=9))
    whole.extend(longer, [], 11)
    assert chain.names == whole.names


def test_books_stay_small_whatever_comes():
    bench = bench_of(num_full_blocks=64, num_sliding_blocks=64)
    for index in range(300):
        bench.scheduler.add(make_request(f"r{index}", 10 + index % 50, 4))
        bench.drain()
    prefixes = bench.scheduler._spaces[0].prefixes
    assert prefixes is not None
    assert 0 < len(prefixes) <= 64
    assert sum(prefixes._num_by_length.values()) == len(prefixes)
    assert sorted(prefixes._num_by_length) == prefixes._lengths
    bench.assert_idle()
