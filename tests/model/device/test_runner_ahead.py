"""When steps are launched and collected in one process, and what a step's time is."""

from __future__ import annotations

from functools import cache

import pytest

from model.device.runner import DeviceRunner, Launched
from model.net.decoder import Decoder
from model.runner import LocalRunner
from model.sched.scheduler import Scheduler
from model.sched.step import RankResult, Step
from model.types import SamplingParams
from tests.model.device.runners import device_rank, request_of, sizes_of
from tests.model.device.small_models import random_decoder, text_of

GREEDY = SamplingParams(max_tokens=4)


@cache
def model() -> Decoder:
    return random_decoder(text_of(num_layers=1))


class Diary(DeviceRunner):
    """The device engine, and in which order its halves were called."""

    events: list[str]

    def launch(self, step: Step) -> Launched:
        self.events.append(f"launch {step.step_id}")
        return super().launch(step)

    def collect(self, launched: Launched) -> RankResult:
        self.events.append(f"collect {launched.step_id}")
        return super().collect(launched)


def diary(sampling: SamplingParams) -> list[str]:
    sizes = sizes_of(model().text)
    rank = device_rank(model(), sizes)
    rank.__class__, rank.events = Diary, []
    runner, scheduler = LocalRunner(rank), Scheduler(sizes)
    scheduler.add(request_of("", [5, 6, 7], sampling))
    in_flight = 0
    while True:
        while (step := scheduler.plan()) is not None:
            runner.submit(step)
            in_flight += 1
        if not in_flight:
            return rank.events
        scheduler.commit(runner.result())
        in_flight -= 1


def test_the_next_step_is_on_its_way_before_a_result_is_looked_at() -> None:
    assert diary(GREEDY) == [
        "launch 0", "launch 1", "collect 0", "launch 2", "collect 1", "launch 3", "collect 2", "collect 3",
    ]  # fmt: skip


@pytest.mark.parametrize("filters", [{"top_p": 0.5}, {"top_k": 5}, {"min_p": 0.1}], ids=str)
def test_filters_do_not_wait_for_the_host(filters: dict[str, float]) -> None:
    filtered = SamplingParams(max_tokens=4, temperature=1.0, **filters)
    assert diary(filtered) == diary(GREEDY)


def test_a_step_with_rows_for_the_host_is_collected_before_the_next_is_launched() -> None:
    penalised = SamplingParams(max_tokens=3, presence_penalty=0.5)
    assert diary(penalised) == ["launch 0", "collect 0", "launch 1", "collect 1", "launch 2", "collect 2"]


def test_times_of_steps_add_up_to_no_more_than_has_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, now_s = sizes_of(model().text), [0.0]
    monkeypatch.setattr("model.ahead.time.perf_counter", lambda: now_s[0])

    class Slow(Diary):
        def launch(self, step: Step) -> Launched:
            now_s[0] += 0.001
            return super().launch(step)

        def collect(self, launched: Launched) -> RankResult:
            now_s[0] += 0.010
            return super().collect(launched)

    rank = device_rank(model(), sizes)
    rank.__class__, rank.events = Slow, []
    runner, scheduler = LocalRunner(rank), Scheduler(sizes)
    scheduler.add(request_of("", [5, 6, 7], GREEDY))
    steps = [scheduler.plan(), scheduler.plan()]
    for step in steps:
        assert step is not None
        runner.submit(step)
    assert [runner.result().step_us for _ in steps] == [12_000, 10_000]
