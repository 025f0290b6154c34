"""The scheduler's books do not grow with the number of requests that have passed."""

import gc
import tracemalloc
from collections import deque

import pytest

from model.sched.scheduler import Scheduler
from model.sched.step import RankResult, SequenceOutput, Step, StepResult
from tests.model.sched.fakes import make_config, make_request

NUM_REQUESTS = 20_000
MOST_GROWTH_BYTES = 200_000


def answer(step: Step) -> StepResult:
    """Every other draft holds."""
    outputs = tuple(
        SequenceOutput(work.seq_id, (work.seq_id % 40,) * (1 + work.num_drafts // 2))
        for work in step.ranks[0].work
        if work.samples
    )
    return StepResult(0, step.step_id, (RankResult(outputs),), 1000)


@pytest.mark.slow
def test_memory_is_flat_over_20_000_requests() -> None:
    config = make_config(
        block_size=16, num_full_blocks=600, num_sliding_blocks=400, window=64, chunk_tokens=256,
        max_running=32, max_queued=100, keeps_prefixes=True, num_drafts=3, debug_checks=False,
    )  # fmt: skip
    scheduler, in_flight, num_added, used_bytes = Scheduler(config), deque[Step](), 0, list[int]()
    tracemalloc.start()
    while num_added < NUM_REQUESTS or in_flight:
        while scheduler.load().num_waiting < 50 and num_added < NUM_REQUESTS:
            scheduler.add(make_request(f"r{num_added}", 40 + num_added % 30, 4, topic=f"t{num_added % 7}"))
            num_added += 1
            if num_added % (NUM_REQUESTS // 4) == 0:
                gc.collect()
                used_bytes.append(tracemalloc.get_traced_memory()[0])
        while (step := scheduler.plan()) is not None:
            in_flight.append(step)
        scheduler.commit(answer(in_flight.popleft()))
    tracemalloc.stop()
    assert used_bytes[-1] - used_bytes[0] < MOST_GROWTH_BYTES, used_bytes
