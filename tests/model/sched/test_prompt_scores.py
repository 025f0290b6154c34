"""Log-probabilities of a prompt: each token's once and in order, whatever the plan."""

import pytest

from tests.model.sched.fakes import Bench, make_config, make_request


def scores(bench: Bench, name: str) -> list[float | None]:
    found = {key.request_id: scored for key, scored in bench.inbox.prompts.items()}[name]
    return [None if score is None else -score.logprob for score in found]


@pytest.mark.parametrize("chunk_tokens", [1, 3, 16, 100])
@pytest.mark.parametrize("num_prompt", [1, 2, 16, 37])
def test_they_come_before_the_first_token_in_pieces(num_prompt: int, chunk_tokens: int):
    bench = Bench(make_config(chunk_tokens=chunk_tokens))
    bench.scheduler.add(make_request("r", num_prompt, 3, num_prompt_logprobs=0))
    bench.drain()
    assert scores(bench, "r") == [None, *range(1, num_prompt)]


def test_who_does_not_ask_gets_none():
    bench = Bench(make_config())
    bench.scheduler.add(make_request("r", 20, 3))
    bench.drain()
    assert bench.inbox.prompts == {}


def test_a_cached_beginning_is_computed_again_for_them_and_serves_others():
    bench = Bench(make_config(keeps_prefixes=True))
    for name, asked in (("first", None), ("asks", 0), ("later", None)):
        bench.scheduler.add(make_request(name, 40, 3, topic="shared", num_prompt_logprobs=asked))
        bench.drain()
    cached = {key.request_id: final.usage.num_cached_tokens for key, final in bench.inbox.final.items()}
    assert cached == {"first": 0, "asks": 0, "later": 36}
    assert scores(bench, "asks") == [None, *range(1, 40)]


def test_it_does_not_wait_for_a_beginning_that_it_will_not_take():
    bench = Bench(make_config(keeps_prefixes=True, chunk_tokens=8, num_spaces=2))
    bench.scheduler.add(make_request("first", 60, 3, topic="shared"))
    bench.plan()
    bench.scheduler.add(make_request("asks", 60, 3, topic="shared", num_prompt_logprobs=0))
    step = bench.plan()
    assert all(rank.work for rank in step.ranks)
    bench.drain()
    assert scores(bench, "asks") == [None, *range(1, 60)]


def test_preemption_repeats_nothing_and_leaves_nothing_out():
    bench = Bench(make_config(num_full_blocks=14, num_sliding_blocks=14, chunk_tokens=4, max_running=8))
    for index in range(5):
        bench.scheduler.add(make_request(f"r{index}", 12, 30, num_prompt_logprobs=0))
    bench.drain()
    assert bench.scheduler.load().num_preemptions > 0
    assert all(scores(bench, f"r{index}") == [None, *range(1, 12)] for index in range(5))


def test_of_several_samples_the_first_one_brings_them():
    bench = Bench(make_config())
    bench.scheduler.add(make_request("r", 30, 3, num_samples=3, num_prompt_logprobs=0))
    bench.drain()
    assert scores(bench, "r") == [None, *range(1, 30)]
