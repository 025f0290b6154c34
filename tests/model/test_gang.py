"""A gang in processes: results in order, and a gang falls together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest
import torch

from model.errors import CheckpointError, Unavailable
from model.gang import spawn_gang
from tests.model import gangs
from tests.model.gangs import Gang


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def await_gone(pids: tuple[int, ...], limit_s: float) -> bool:
    deadline = time.monotonic() + limit_s
    while any(is_running(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not any(is_running(pid) for pid in pids)


@pytest.fixture
def gang(gang_of_two: Gang) -> Gang:
    return gang_of_two


@pytest.fixture
def mortal_gang() -> Iterator[Gang]:
    runner = spawn_gang(2, gangs.TaskWorker)
    yield Gang(runner)
    runner.close()


@pytest.fixture
def mortal_single() -> Iterator[Gang]:
    """A gang of one starts in half the time."""
    runner = spawn_gang(1, gangs.TaskWorker)
    yield Gang(runner)
    runner.close()


def test_results_come_in_the_order_of_steps_that_were_in_flight_together(gang: Gang) -> None:
    first = gang.next_step_id
    gang.submit(gangs.nap, 0.05)
    gang.submit(gangs.facts)
    results = [gang.runner.result(), gang.runner.result()]
    assert [(result.generation, result.step_id) for result in results] == [(7, first), (7, first + 1)]
    assert [result.ranks for result in results] == [(0, 1), ((0, 2, 1), (1, 2, 1))]


def test_step_time_is_that_of_the_rank_alone_not_of_the_wait(gang: Gang) -> None:
    gang.submit(gangs.nap, 0.05)
    time.sleep(0.5)
    assert 50_000 <= gang.runner.result().step_us < 400_000


@pytest.mark.slow
def test_submitting_more_than_a_pipe_holds_does_not_wait_for_the_step_that_runs(gang: Gang) -> None:
    gang.submit(gangs.nap, 1.0)
    begin = time.monotonic()
    gang.submit(gangs.size_of, bytes(8_000_000))
    assert time.monotonic() - begin < 0.8
    assert [gang.runner.result().ranks for _ in range(2)] == [(0, 1), (8_000_000, 8_000_000)]


def test_a_step_of_one_space_is_answered_by_rank_0_for_all(gang: Gang) -> None:
    gang.submit(gangs.nap, 0.0, num_spaces=1)
    assert gang.runner.result().ranks == (0,)


def test_an_embedding_reaches_the_rank_that_it_is_for(gang: Gang) -> None:
    gang.runner.put_embedding("everywhere", torch.tensor([[1.0]]))
    gang.runner.put_embedding("here", torch.tensor([[2.0]]), rank=1)
    on_0, on_1 = gang.run(gangs.embeddings_of)
    assert on_0 == {"everywhere": [[1.0]]}
    assert on_1 == {"everywhere": [[1.0]], "here": [[2.0]]}


def test_a_gang_of_one_needs_no_group() -> None:
    runner = spawn_gang(1, gangs.TaskWorker, num_threads=2)
    try:
        assert Gang(runner).run(gangs.facts) == ((0, None, 2),)
    finally:
        runner.close()


def fall_of(gang: Gang) -> tuple[str, float]:
    """Message of the error that `result` raises, and seconds until it did."""
    begin = time.monotonic()
    with pytest.raises(Unavailable) as fall:
        gang.runner.result()
    return fall.value.message, time.monotonic() - begin


def test_a_rank_that_dies_in_an_exchange_ends_the_gang_within_a_second(mortal_gang: Gang) -> None:
    mortal_gang.submit(gangs.die_on_rank, 1)
    message, seconds = fall_of(mortal_gang)
    assert f"rank 1: process {mortal_gang.runner.pids[1]} was ended by SIGKILL" in message
    assert seconds < 2
    assert await_gone(mortal_gang.runner.pids, 0.5)


@pytest.mark.slow
def test_a_rank_that_raises_is_named_with_its_error_not_the_witness(mortal_gang: Gang) -> None:
    mortal_gang.submit(gangs.raise_on_rank, 0)
    message, seconds = fall_of(mortal_gang)
    assert "rank 0: ValueError: a wrong value" in message
    assert seconds < 2
    assert await_gone(mortal_gang.runner.pids, 0.5)


@pytest.mark.slow
def test_a_rank_killed_while_the_others_compute_is_seen_within_a_second(mortal_gang: Gang) -> None:
    mortal_gang.submit(gangs.nap, 3600)
    os.kill(mortal_gang.runner.pids[0], signal.SIGKILL)
    message, seconds = fall_of(mortal_gang)
    assert "rank 0" in message
    assert seconds < 2


@pytest.mark.slow
def test_an_idle_gang_that_lost_a_rank_says_so_at_the_next_step_and_ever_after(mortal_single: Gang) -> None:
    os.kill(mortal_single.runner.pids[0], signal.SIGKILL)
    time.sleep(0.1)
    mortal_single.submit(gangs.facts)
    message, _ = fall_of(mortal_single)
    assert "rank 0" in message
    mortal_single.submit(gangs.facts)
    assert fall_of(mortal_single)[0] == message


@pytest.mark.slow
def test_a_step_that_a_rank_cannot_read_ends_the_gang(mortal_single: Gang) -> None:
    mortal_single.submit(gangs.size_of, gangs.Unreadable())
    assert "rank 0: ValueError: invalid literal for int" in fall_of(mortal_single)[0]


@pytest.mark.slow
def test_closing_in_the_middle_of_a_step_ends_it_and_whoever_waits(mortal_single: Gang) -> None:
    mortal_single.submit(gangs.nap, 3600)
    closing = threading.Timer(0.3, mortal_single.runner.close)
    closing.start()
    message, seconds = fall_of(mortal_single)
    closing.join()
    assert message == "the gang is closed"
    assert seconds < 2
    assert await_gone(mortal_single.runner.pids, 0.1)


@pytest.mark.slow
def test_closing_twice_leaves_nothing(mortal_single: Gang) -> None:
    mortal_single.runner.close()
    mortal_single.runner.close()
    assert not is_running(mortal_single.runner.pids[0])


def test_what_a_worker_raises_when_it_is_made_reaches_the_caller_as_it_is() -> None:
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight: missing"):
        spawn_gang(1, gangs.make_broken_worker)


@pytest.mark.slow
def test_ranks_end_when_their_parent_is_killed_in_the_middle_of_a_step() -> None:
    script = (
        "from tests.model import gangs; from model.gang import spawn_gang; import time\n"
        "if __name__ == '__main__':\n"
        "    gang = gangs.Gang(spawn_gang(2, gangs.TaskWorker))\n"
        "    gang.submit(gangs.hang_on_rank, 1)\n"
        "    print(*gang.runner.pids, flush=True)\n"
        "    time.sleep(3600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pids = tuple(int(pid) for pid in parent.stdout.readline().split())
        assert len(pids) == 2
        parent.kill()
    assert await_gone(pids, 3)
