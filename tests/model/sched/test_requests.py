"""What is refused, how requests end early, and what they are billed."""

import pytest

from model.errors import AlreadyExists, Cancelled, InvalidRequest, Overloaded
from model.types import FinishReason, RequestKey
from tests.model.sched.fakes import Bench, make_config, make_request


def key(name: str) -> RequestKey:
    return RequestKey("local", name)


def test_a_prompt_over_the_context_is_refused_with_limit_and_count():
    bench = Bench(make_config(context_len=100))
    with pytest.raises(InvalidRequest, match="100 tokens; the context of 100") as caught:
        bench.scheduler.add(make_request("a", 100, 1))
    assert caught.value.field == "prompt"


def test_max_tokens_over_the_context_is_refused_with_limit_and_counts():
    bench = Bench(make_config(context_len=100))
    with pytest.raises(InvalidRequest, match="11 after a prompt of 90 is over the context of 100") as caught:
        bench.scheduler.add(make_request("a", 90, 11))
    assert caught.value.field == "sampling.max_tokens"


@pytest.mark.parametrize(
    ("num_prompt", "max_tokens", "field"), [(0, 5, "prompt"), (5, 0, "sampling.max_tokens")]
)
def test_an_empty_prompt_and_no_tokens_are_refused(num_prompt, max_tokens, field):
    with pytest.raises(InvalidRequest) as caught:
        Bench(make_config()).scheduler.add(make_request("a", num_prompt, max_tokens))
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("num_prompt", "max_tokens", "field"), [(37, 5, "sampling.max_tokens"), (41, 1, "prompt")]
)
def test_a_request_that_can_never_fit_is_refused_with_need_and_have(num_prompt, max_tokens, field):
    bench = Bench(make_config(num_full_blocks=10))
    with pytest.raises(
        InvalidRequest, match="need 11 full-attention blocks of 4 tokens; there are 10"
    ) as caught:
        bench.scheduler.add(make_request("a", num_prompt, max_tokens))
    assert caught.value.field == field


def test_a_window_that_can_never_fit_is_refused_with_need_and_have():
    bench = Bench(make_config(window=8, num_sliding_blocks=2))
    bench.scheduler.add(make_request("short", 4, 5))
    with pytest.raises(InvalidRequest, match="need 3 sliding-attention blocks of 4 tokens; there are 2"):
        bench.scheduler.add(make_request("a", 4, 6))


def test_the_largest_request_that_fits_runs_to_its_end():
    config = make_config(num_full_blocks=10, num_sliding_blocks=3)
    bench = Bench(config)
    bench.scheduler.add(make_request("a", 17, config.capacity_tokens - 17))
    bench.drain()
    assert len(bench.inbox.tokens[key("a")]) == config.capacity_tokens - 17


def test_a_key_that_is_open_is_refused_and_may_be_used_again_after_the_end():
    bench = Bench(make_config())
    bench.scheduler.add(make_request("a", 3, 2))
    with pytest.raises(AlreadyExists):
        bench.scheduler.add(make_request("a", 3, 2))
    bench.drain()
    bench.scheduler.add(make_request("a", 3, 2))


def test_two_tenants_may_use_one_request_id():
    bench = Bench(make_config())
    request = make_request("a", 3, 2)
    bench.scheduler.add(request)
    bench.scheduler.add(type(request)(RequestKey("other", "a"), request.prompt_ids, request.sampling))
    bench.drain()
    assert {final.tenant for final in bench.inbox.final} == {"local", "other"}


def test_a_full_queue_refuses_and_says_when_to_come_back():
    bench = Bench(make_config(max_queued=3))
    for i in range(3):
        bench.scheduler.add(make_request(f"r{i}", 10, 2))
    with pytest.raises(Overloaded, match="3 requests wait, the limit is 3") as caught:
        bench.scheduler.add(make_request("late", 10, 2))
    assert caught.value.subject == "queue"
    assert caught.value.retry_after_s >= 1.0
    bench.turn()
    bench.scheduler.add(make_request("late", 10, 2))


def test_a_queue_full_of_tokens_refuses():
    bench = Bench(make_config(max_queued_tokens=50))
    bench.scheduler.add(make_request("a", 40, 2))
    with pytest.raises(Overloaded, match="60 prompt tokens would wait, the limit is 50") as caught:
        bench.scheduler.add(make_request("b", 20, 2))
    assert caught.value.subject == "queued_tokens"


def test_an_empty_queue_takes_a_prompt_over_its_token_limit():
    bench = Bench(make_config(max_queued_tokens=50))
    bench.scheduler.add(make_request("a", 60, 2))
    bench.drain()
    assert key("a") in bench.inbox.final


def test_retry_after_grows_with_the_queue_and_the_measured_speed():
    bench = Bench(make_config(max_queued=2))
    bench.gang.step_us = 4_000_000  # a slow gang: 4 tokens a second
    bench.scheduler.add(make_request("a", 16, 9))
    bench.turn()
    for name in "bc":
        bench.scheduler.add(make_request(name, 60, 2))
    with pytest.raises(Overloaded) as caught:
        bench.scheduler.add(make_request("d", 10, 2))
    assert caught.value.retry_after_s == pytest.approx(120 / 4)


def test_an_abort_ends_with_usage_and_a_second_one_finds_nothing():
    bench = Bench(make_config())
    bench.scheduler.add(make_request("a", 3, 20))
    for _ in range(4):
        bench.turn()
    (delta,) = bench.scheduler.abort(key("a"))
    assert (delta.finish_reason, delta.error) == (FinishReason.ABORTED, None)
    assert delta.usage.num_completion_tokens == 4
    assert bench.scheduler.abort(key("a")) == []


def test_an_abort_with_an_error_ends_with_that_error():
    bench = Bench(make_config())
    bench.scheduler.add(make_request("a", 3, 20))
    error = Cancelled("the client went away")
    (delta,) = bench.scheduler.abort(key("a"), error)
    assert (delta.finish_reason, delta.error) == (None, error)


def test_a_stop_string_cuts_the_bill_whatever_arrived_later():
    bench = Bench(make_config())
    bench.scheduler.add(make_request("a", 3, 20))
    for _ in range(5):
        bench.turn()
    delta = bench.scheduler.stop(key("a"), 2)
    assert delta.finish_reason is FinishReason.STOP
    assert delta.usage.num_completion_tokens == 2
    assert bench.scheduler.stop(key("a"), 2) is None
    bench.drain()
    bench.assert_idle()


def test_a_stop_beyond_what_was_committed_bills_what_was_committed():
    bench = Bench(make_config())
    bench.scheduler.add(make_request("a", 3, 20))
    bench.turn()
    assert bench.scheduler.stop(key("a"), 9).usage.num_completion_tokens == 1


def test_compute_us_of_requests_sums_to_the_step_time():
    bench = Bench(make_config(num_spaces=2, chunk_tokens=7))
    bench.gang.step_us = 1009  # prime: no share is a whole number
    for i in range(9):
        bench.scheduler.add(make_request(f"r{i}", 2 + 3 * i, 1 + i))
    bench.drain()
    billed_us = sum(final.usage.compute_us for final in bench.inbox.final.values())
    assert billed_us == 1009 * len(bench.gang.steps)


def test_compute_us_is_shared_by_tokens():
    bench = Bench(make_config())
    bench.scheduler.add(make_request("three", 3, 1))
    bench.scheduler.add(make_request("one", 1, 1))
    bench.drain()
    shares = [bench.inbox.final[key(name)].usage.compute_us for name in ("three", "one")]
    assert shares == [750, 250]


def test_queue_prefill_and_decode_times_are_told_apart():
    bench = Bench(make_config(chunk_tokens=4))
    bench.scheduler.add(make_request("a", 8, 3))
    bench.clock.now_s += 0.5
    bench.drain()
    usage = bench.inbox.final[key("a")].usage
    assert (usage.queue_us, usage.prefill_us, usage.decode_us) == (500_000, 2000, 2000)
    assert (usage.num_prompt_tokens, usage.num_completion_tokens) == (8, 3)


def test_a_sequence_in_an_assertion_does_not_show_its_prompt():
    bench = Bench(make_config())
    placement = bench.scheduler.add(make_request("secret", 3, 2))
    assert "prompt_ids" not in repr(bench.scheduler._by_id[placement.seq_id])
