"""Whose turn it is: tenants share by tokens, priorities move requests, nobody is passed for ever."""

from dataclasses import replace

from model.types import RequestKey
from tests.model.sched.fakes import Bench, make_config, make_request


def bench_of() -> Bench:
    """One request at a time, so that the order shows."""
    return Bench(make_config(max_running=1))


def add(bench: Bench, name: str, *, tenant: str = "a", num_prompt: int = 10, priority: int = 0) -> None:
    request = make_request(name, num_prompt, 1)
    bench.scheduler.add(replace(request, key=RequestKey(tenant, name), priority=priority))


def order(bench: Bench) -> list[str]:
    bench.drain()
    return [key.request_id for key in bench.inbox.final]


def test_one_tenant_is_served_first_come_first_served():
    bench = bench_of()
    for index in range(6):
        add(bench, str(index), num_prompt=1 + 7 * (index % 3))
    assert order(bench) == [str(index) for index in range(6)]


def test_a_tenant_with_many_requests_does_not_hold_up_another():
    bench = bench_of()
    for index in range(20):
        add(bench, f"flood {index}", tenant="flood")
    for index in range(3):
        add(bench, f"other {index}", tenant="other")
    first_eight = order(bench)[:8]
    assert [name for name in first_eight if name.startswith("other")] == ["other 0", "other 1", "other 2"]


def test_tenants_share_by_tokens_not_by_requests():
    bench = bench_of()
    for index in range(12):
        add(bench, f"long {index}", tenant="long", num_prompt=40)
        add(bench, f"short {index}", tenant="short", num_prompt=10)
    first = order(bench)[:10]
    assert (
        sum(name.startswith("short") for name in first)
        >= 3 * sum(name.startswith("long") for name in first) - 4
    )


def test_who_comes_back_does_not_get_what_it_did_not_use():
    bench = bench_of()
    for index in range(5):
        add(bench, f"early {index}", tenant="busy")
    bench.drain()
    for index in range(4):
        add(bench, f"busy {index}", tenant="busy")
        add(bench, f"new {index}", tenant="new")
    late = order(bench)[5:]
    assert sum(name.startswith("busy") for name in late[:4]) >= 1


def test_a_higher_priority_goes_first():
    bench = bench_of()
    add(bench, "running")
    bench.plan()
    for name, priority in (("batch", -10), ("usual", 0), ("urgent", 10)):
        add(bench, name, priority=priority)
    assert order(bench) == ["running", "urgent", "usual", "batch"]


def test_a_lower_priority_is_passed_by_so_many_tokens_and_no_more():
    bench = Bench(make_config(max_running=1, num_full_blocks=400, num_sliding_blocks=400, chunk_tokens=1000))
    add(bench, "batch", priority=-1)
    for index in range(8):
        add(bench, f"usual {index}", num_prompt=900)
    found = order(bench)
    assert found.index("batch") in {4, 5}, found  # 4,000 tokens are four prompts and a bit


def test_who_was_preempted_goes_before_everybody():
    bench = Bench(make_config(num_full_blocks=12, num_sliding_blocks=12))
    for name in ("first", "second"):
        request = make_request(name, 8, 30)
        bench.scheduler.add(request)
    while not bench.scheduler.load().num_preemptions:
        bench.turn()
    num_steps = len(bench.gang.steps)
    add(bench, "urgent", priority=100)
    bench.drain()
    begun = [
        work.seq_id
        for step in bench.gang.steps[num_steps:]
        for work in step.ranks[0].work
        if work.begins
    ]  # fmt: skip
    assert begun == [1, 2]
