"""The loop: inline and in its own thread, with a fake gang."""

import threading
import time

import pytest

from model.engine import Engine
from model.errors import AlreadyExists, InvalidRequest, Unavailable
from model.sched.scheduler import Scheduler
from model.types import Delta, FinishReason, RequestKey
from tests.model.sched.fakes import FakeGang, Inbox, expected_output, make_config, make_request


class Harness:
    """An engine on a fake gang, and what it emitted."""

    def __init__(self, gang: FakeGang | None = None, **changes: int) -> None:
        self.config = make_config(**changes)
        self.gang = gang or FakeGang(self.config)
        self.inbox = Inbox()
        self.scheduler = Scheduler(self.config)
        self.engine = Engine(self.scheduler, self.gang, self.take)
        self._changed = threading.Condition()

    def take(self, deltas: list[Delta]) -> None:
        with self._changed:
            self.inbox.take(deltas)
            self._changed.notify_all()

    def run(self) -> None:
        while self.engine.step():
            pass

    def wait_for(self, *names: str) -> None:
        wanted = {key(name) for name in names}
        with self._changed:
            assert self._changed.wait_for(lambda: wanted <= self.inbox.final.keys(), timeout=20)


class DyingGang(FakeGang):
    """Ends after a number of steps, as a gang that lost a rank."""

    def __init__(self, num_steps: int, error: Exception) -> None:
        super().__init__(make_config())
        self.num_steps = num_steps
        self.error = error

    def result(self):
        if self.num_steps == 0:
            raise self.error
        self.num_steps -= 1
        return super().result()


class SlowGang(FakeGang):
    """Waits in `result` until it is let go, or closed."""

    def __init__(self) -> None:
        super().__init__(make_config())
        self.is_waiting = threading.Event()
        self.go = threading.Event()

    def result(self):
        self.is_waiting.set()
        self.go.wait(20)
        if self.is_closed:
            raise Unavailable("the stream was closed")
        return super().result()

    def close(self) -> None:
        super().close()
        self.go.set()


@pytest.fixture
def harness():
    made = []

    def make(**arguments) -> Harness:
        made.append(Harness(**arguments))
        return made[-1]

    yield make
    for each in made:
        each.engine.close()


def key(name: str) -> RequestKey:
    return RequestKey("local", name)


def test_requests_run_inline_to_their_end(harness):
    h = harness()
    requests = [make_request(f"r{i}", 5 * i + 1, 6) for i in range(5)]
    for request in requests:
        h.engine.add(request)
    h.run()
    for request in requests:
        assert tuple(h.inbox.tokens[request.key]) == expected_output(request)[0]
        assert h.inbox.final[request.key].finish_reason is FinishReason.LENGTH
    assert not h.engine.step()


def test_two_steps_are_in_flight_while_the_first_runs(harness):
    class Watching(FakeGang):
        most = 0

        def result(self):
            self.most = max(self.most, len(self.in_flight))
            return super().result()

    gang = Watching(make_config())
    h = harness(gang=gang)
    h.engine.add(make_request("a", 3, 6))
    h.run()
    assert gang.most == 2


def test_requests_from_many_threads_all_end_once(harness):
    h = harness(max_queued=1000, num_spaces=2, num_full_blocks=20)
    h.engine.start()
    names = [[f"t{thread}-{i}" for i in range(40)] for thread in range(4)]

    def client(mine: list[str]) -> None:
        for i, name in enumerate(mine):
            h.engine.add(make_request(name, 4, 10))
            if i % 5 == 0:
                h.engine.abort(key(name))
            if i % 7 == 0:
                h.engine.stop(key(name), 1)

    threads = [threading.Thread(target=client, args=(mine,)) for mine in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    h.wait_for(*[name for mine in names for name in mine])
    assert len(h.inbox.final) == 160


def test_a_request_reaches_an_engine_that_is_idle(harness):
    h = harness()
    h.engine.start()
    h.engine.add(make_request("a", 3, 2))
    h.wait_for("a")
    time.sleep(0.05)  # the loop now waits for events
    h.engine.add(make_request("b", 3, 2))
    h.wait_for("b")


def test_an_idle_engine_does_not_spin(harness):
    h = harness()
    h.engine.start()
    h.engine.add(make_request("a", 3, 2))
    h.wait_for("a")
    before_s = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before_s < 0.25


def test_a_refusal_is_the_final_delta(harness):
    h = harness()
    h.engine.add(make_request("a", 0, 2))
    h.run()
    assert isinstance(h.inbox.final[key("a")].error, InvalidRequest)


def test_a_duplicate_can_be_told_from_the_request_that_is_open(harness):
    h, refusals = harness(), []
    for _ in range(2):
        h.engine.add(make_request("a", 3, 4), on_refused=refusals.append)
    h.run()
    assert [type(error) for error in refusals] == [AlreadyExists]
    assert h.inbox.final[key("a")].finish_reason is FinishReason.LENGTH


def test_the_space_that_fetches_images_is_told_before_anything_is_planned(harness):
    h, placements = harness(num_spaces=2), []
    h.engine.add(make_request("a", 3, 4), needs_images=True, on_placed=placements.append)
    h.run()
    assert [(p.seq_id, p.space) for p in placements] == [(0, 0)]
    assert not h.gang.steps
    h.engine.images_ready(key("a"))
    h.run()
    assert h.inbox.final[key("a")].finish_reason is FinishReason.LENGTH


def test_a_dead_gang_ends_every_request_with_its_error_and_refuses_the_next(harness):
    error = Unavailable("rank 1 died")
    h = harness(gang=DyingGang(3, error))
    for name in "ab":
        h.engine.add(make_request(name, 3, 50))
    h.run()
    assert h.engine.failed is error
    h.engine.add(make_request("late", 3, 5))
    h.run()
    assert [h.inbox.final[key(name)].error for name in ("a", "b", "late")] == [error, error, error]
    h.scheduler.check_integrity()


def test_an_unexpected_failure_ends_requests_without_telling_its_details(harness, caplog):
    h = harness(gang=DyingGang(1, ValueError("tensor of somebody's prompt")))
    h.engine.add(make_request("a", 3, 50))
    h.run()
    final = h.inbox.final[key("a")]
    assert (final.error.code, final.error.message) == ("INTERNAL", "the engine failed: ValueError")
    assert "the engine failed" in caplog.text


def test_a_result_that_does_not_answer_its_step_fails_the_engine_and_hangs_nobody(harness):
    class Confused(FakeGang):
        def result(self):
            result = super().result()
            return type(result)(result.generation, result.step_id + 1, result.ranks)

    h = harness(gang=Confused(make_config()))
    h.engine.start()
    h.engine.add(make_request("a", 3, 4))
    h.wait_for("a")
    assert h.inbox.final[key("a")].error.code == "INTERNAL"


def test_closing_ends_open_requests_and_the_thread():
    gang = SlowGang()
    h = Harness(gang=gang)
    h.engine.start()
    h.engine.add(make_request("a", 3, 50))
    assert gang.is_waiting.wait(20)
    closing = threading.Thread(target=h.engine.close)
    closing.start()
    gang.go.set()
    closing.join(20)
    assert not closing.is_alive()
    assert gang.is_closed
    assert isinstance(h.inbox.final[key("a")].error, Unavailable)


def test_closing_an_engine_whose_gang_hangs_closes_the_runner_under_it(monkeypatch):
    monkeypatch.setattr("model.engine._JOIN_S", 0.2)
    gang = SlowGang()
    h = Harness(gang=gang)
    h.engine.start()
    h.engine.add(make_request("a", 3, 50))
    assert gang.is_waiting.wait(20)
    h.engine.close()
    assert isinstance(h.inbox.final[key("a")].error, Unavailable)


def test_an_abort_while_a_step_runs_ends_the_request_after_it(harness):
    gang = SlowGang()
    h = harness(gang=gang)
    h.engine.start()
    h.engine.add(make_request("a", 3, 50))
    assert gang.is_waiting.wait(20)
    h.engine.abort(key("a"))
    gang.go.set()
    h.wait_for("a")
    assert h.inbox.final[key("a")].finish_reason is FinishReason.ABORTED
    assert len(h.inbox.tokens[key("a")]) <= 2
