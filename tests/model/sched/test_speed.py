"""Planning must hide behind the step that runs: 2 ms at 64 running and 10,000 waiting."""

import statistics
import time

from model.sched.scheduler import Scheduler
from model.sched.step import RankResult, SequenceOutput, StepResult
from tests.model.sched.fakes import make_config, make_request


def test_plan_and_commit_take_2_ms_with_64_running_and_10k_waiting():
    config = make_config(
        block_size=16,
        num_full_blocks=4000,
        num_sliding_blocks=2600,
        window=512,
        chunk_tokens=512,
        max_running=64,
        max_queued=20_000,
        max_queued_tokens=10**8,
        debug_checks=False,
    )
    scheduler = Scheduler(config)
    for i in range(10_064):
        scheduler.add(make_request(f"r{i}", 100, 50 + i % 90))
    in_flight, took_s = [], []
    for _ in range(300):
        started_s = time.perf_counter()
        while (step := scheduler.plan()) is not None:
            in_flight.append(step)
        planned_s = time.perf_counter()
        step = in_flight.pop(0)
        works = step.ranks[0].work
        outputs = tuple(SequenceOutput(work.seq_id, (7,)) for work in works if work.samples)
        result = StepResult(0, step.step_id, (RankResult(outputs),), 1000)
        answered_s = time.perf_counter()
        scheduler.commit(result)
        took_s.append(planned_s - started_s + time.perf_counter() - answered_s)
    assert scheduler.load().num_running >= 60
    # The median: the machine that runs the tests has other work too.
    assert statistics.median(took_s) < 2e-3, sorted(took_s)[-10:]
