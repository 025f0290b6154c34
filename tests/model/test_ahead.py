"""Steps of a rank: launched as they come, taken when they are done, in order."""

from __future__ import annotations

from dataclasses import dataclass, field
from queue import SimpleQueue

from model.ahead import StepsAhead, next_message
from model.sched.step import RankResult, RankStep, Step


def step(step_id: int) -> Step:
    return Step(0, step_id, (RankStep(),))


@dataclass
class OneByOne:
    """A rank that computes a step when it is asked for it."""

    events: list[str] = field(default_factory=list)

    def run(self, given: Step) -> RankResult:
        self.events.append(f"run {given.step_id}")
        return RankResult()


@dataclass
class OnItsWay:
    """What a device computes until somebody says that it is done."""

    step_id: int
    is_done: bool = False


@dataclass
class Launching(OneByOne):
    """A rank with a device."""

    in_flight: list[OnItsWay] = field(default_factory=list)
    needs_host: bool = False

    @property
    def can_launch(self) -> bool:
        return len(self.in_flight) < (1 if self.needs_host else 2)

    def launch(self, given: Step) -> OnItsWay:
        self.events.append(f"launch {given.step_id}")
        self.in_flight.append(OnItsWay(given.step_id))
        return self.in_flight[-1]

    def collect(self, launched: OnItsWay) -> RankResult:
        assert self.in_flight.pop(0) is launched
        self.events.append(f"collect {launched.step_id}")
        return RankResult()


def inbox_of(*step_ids: int) -> SimpleQueue[Step]:
    inbox: SimpleQueue[Step] = SimpleQueue()
    for step_id in step_ids:
        inbox.put(step(step_id))
    return inbox


def serve(rank: OneByOne, inbox: SimpleQueue[Step], count: int) -> list[int]:
    """What a rank's loop does, until so many steps are taken."""
    steps, taken = StepsAhead(rank), list[int]()
    while len(taken) < count:
        message = next_message(inbox, steps)
        if message is None:
            taken.append(steps.take().step.step_id)
        else:
            steps.submit(message)
    return taken


def test_a_rank_that_runs_answers_each_step_before_it_looks_for_the_next() -> None:
    rank = OneByOne()
    assert serve(rank, inbox_of(0, 1, 2), 3) == [0, 1, 2]
    assert rank.events == ["run 0", "run 1", "run 2"]


def test_the_next_step_is_launched_while_one_is_on_its_way() -> None:
    rank = Launching()
    assert serve(rank, inbox_of(0, 1, 2, 3), 2) == [0, 1]
    assert rank.events == ["launch 0", "launch 1", "collect 0", "launch 2", "collect 1"]


def test_a_step_that_is_done_is_taken_without_waiting_for_another() -> None:
    rank, inbox = Launching(), inbox_of(0)
    steps = StepsAhead(rank)
    message = next_message(inbox, steps)
    assert message is not None
    steps.submit(message)
    assert not steps.is_done
    rank.in_flight[0].is_done = True
    assert next_message(inbox, steps) is None
    assert steps.take().step.step_id == 0


def test_a_step_behind_one_that_needs_the_host_begins_when_that_is_taken() -> None:
    rank = Launching(needs_host=True)
    assert serve(rank, inbox_of(0, 1, 2), 2) == [0, 1]
    assert rank.events == ["launch 0", "collect 0", "launch 1", "collect 1", "launch 2"]


def test_what_is_cleared_is_not_waited_for() -> None:
    steps = StepsAhead(Launching())
    steps.submit(step(0))
    steps.clear()
    assert (steps.num_pending, steps.is_done) == (0, False)
