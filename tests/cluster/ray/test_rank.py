"""A rank's loop with a worker that begins steps before others are done, as a device does."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from cluster.rank import Identity, RankLoop
from cluster.steps_convert import step_to_proto
from model.sched.step import RankResult, RankStep, Step
from protos.fluyt.v1 import steps_pb2 as steps
from tests.cluster.ray.small_cluster import EchoWorker


@dataclass
class OnItsWay:
    step: Step
    done: threading.Event = field(default_factory=threading.Event)

    @property
    def is_done(self) -> bool:
        return self.done.is_set()


@dataclass
class Device(EchoWorker):
    """Steps are done when somebody says so."""

    launched: list[OnItsWay] = field(default_factory=list)
    num_collected: int = 0

    @property
    def can_launch(self) -> bool:
        return len(self.launched) - self.num_collected < 2

    def launch(self, step: Step) -> OnItsWay:
        self.launched.append(OnItsWay(step))
        return self.launched[-1]

    def collect(self, launched: OnItsWay) -> RankResult:
        assert launched.done.wait(10)
        self.num_collected += 1
        return self.run(launched.step)

    def reset(self) -> None:
        self.launched.clear()
        self.num_collected = 0
        super().reset()


class Rank:
    """The loop of rank 0 of a gang of one, its answers and its device."""

    def __init__(self) -> None:
        self.device, self.answers, self.falls = Device(0), list[tuple[int, int]](), list[str]()
        identity = Identity("gang", 0, 1, 1, "", 4, 64, 32)
        self.loop = RankLoop(self.device, identity, self._answer, self.falls.append)

    def _answer(self, message: steps.FromRank) -> None:
        self.answers.append((message.done.generation, message.done.step_id))

    def order(self, generation: int, step_id: int) -> None:
        self.loop.handle(steps.Order(step=step_to_proto(Step(generation, step_id, (RankStep(),)))))


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not is_so():
            await asyncio.sleep(0.002)


async def test_the_next_step_is_launched_before_one_is_answered() -> None:
    rank = Rank()
    rank.order(0, 0)
    rank.order(0, 1)
    await until(lambda: len(rank.device.launched) == 2)
    assert rank.answers == []
    for launched in rank.device.launched:
        launched.done.set()
    await until(lambda: rank.answers == [(0, 0), (0, 1)])
    await rank.loop.close()
    assert rank.falls == []


async def test_a_reset_forgets_a_step_that_is_on_its_way() -> None:
    rank = Rank()
    rank.order(0, 0)
    await until(lambda: len(rank.device.launched) == 1)
    rank.loop.handle(steps.Order(reset=steps.Reset(generation=1)))
    rank.order(1, 0)
    await until(lambda: rank.device.num_resets == 1 and len(rank.device.launched) == 1)
    rank.device.launched[0].done.set()
    await until(lambda: rank.answers == [(1, 0)])
    await rank.loop.close()
    assert rank.falls == []


async def test_what_was_given_is_answered_before_the_end() -> None:
    rank = Rank()
    rank.order(0, 0)
    await until(lambda: len(rank.device.launched) == 1)
    closing = asyncio.create_task(rank.loop.close())
    await asyncio.sleep(0.02)
    rank.device.launched[0].done.set()
    await closing
    await until(lambda: rank.answers == [(0, 0)])
