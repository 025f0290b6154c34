"""The scheduler's side of a gang: its stream as the engine's Runner, and the engine that drives it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue

from cluster.config import ClusterConfig
from cluster.steps_convert import result_from_proto, step_to_proto
from model.config import ModelConfig
from model.engine import Engine
from model.errors import FluytError, Unavailable
from model.sched.config import SchedulerConfig
from model.sched.scheduler import Scheduler
from model.sched.step import Step, StepResult
from model.types import Delta
from protos.fluyt.v1 import steps_pb2 as steps


class RemoteRunner:
    """A gang at the other end of a stream. `deliver` and `fail` run in the loop, the rest in the engine."""

    def __init__(self, generation: int, send: Callable[[steps.Order], None]) -> None:
        self._generation = generation
        self._send = send  # thread-safe
        self._results: SimpleQueue[StepResult | FluytError] = SimpleQueue()

    def submit(self, step: Step) -> None:
        """Send a step; never blocks."""
        self._send(steps.Order(step=step_to_proto(step)))

    def result(self) -> StepResult:
        """Wait for the next result. Raises Unavailable when the gang is gone."""
        result = self._results.get()
        if isinstance(result, FluytError):
            self._results.put(result)  # whoever asks again hears the same
            raise result
        return result

    def close(self) -> None:
        """Wake whoever waits; the stream is its owner's to end."""
        self.fail(Unavailable("the scheduler let the gang go"))

    def deliver(self, done: steps.StepDone) -> None:
        """A result from the stream; one of another generation is dropped."""
        if done.generation == self._generation:
            self._results.put(result_from_proto(done))

    def fail(self, error: FluytError) -> None:
        """The stream broke: `result` raises from now on."""
        self._results.put(error)


@dataclass(frozen=True)
class Seat:
    """A gang that takes work: one incarnation of it, from Hello to the end of its stream."""

    gang_id: str
    generation: int
    is_tensor: bool
    fingerprint: str
    capacity_tokens: int
    engine: Engine
    runner: RemoteRunner
    orders: asyncio.Queue[steps.Order]
    give_up: Callable[[], object]  # ends the stream; the gang dials again

    async def close(self, error: FluytError) -> None:
        """End the engine: every open request of it ends with `error`."""
        self.runner.fail(error)
        await asyncio.to_thread(self.engine.close)


def scheduler_config(
    config: ClusterConfig, model: ModelConfig, hello: steps.Hello, generation: int
) -> SchedulerConfig:
    """The sizes of a gang, as it said them itself."""
    return SchedulerConfig(
        num_spaces=hello.num_spaces,
        block_size=hello.block_size,
        num_full_blocks=hello.num_full_blocks,
        num_sliding_blocks=hello.num_sliding_blocks,
        window=model.text.window,
        chunk_tokens=config.gang.chunk_tokens,
        max_running=config.gang.max_running,
        context_len=model.text.context_len,
        max_queued=config.queue.max_requests,
        max_queued_tokens=config.queue.max_tokens,
        keeps_prefixes=config.gang.prefix_cache,
        num_drafts=hello.num_drafts,
        generation=generation,
    )


def take_seat(
    sizes: SchedulerConfig,
    hello: steps.Hello,
    emit: Callable[[list[Delta]], None],
    give_up: Callable[[], object],
) -> Seat:
    """Start the engine of a gang; `emit` is called in the running event loop."""
    loop = asyncio.get_running_loop()
    orders: asyncio.Queue[steps.Order] = asyncio.Queue()

    def send(order: steps.Order) -> None:
        loop.call_soon_threadsafe(orders.put_nowait, order)

    def emit_in_loop(deltas: list[Delta]) -> None:
        loop.call_soon_threadsafe(emit, deltas)

    runner = RemoteRunner(sizes.generation, send)
    engine = Engine(Scheduler(sizes), runner, emit_in_loop)
    engine.start()
    return Seat(
        gang_id=hello.gang_id,
        generation=sizes.generation,
        is_tensor=hello.num_spaces != hello.world_size,
        fingerprint=hello.fingerprint,
        capacity_tokens=sizes.capacity_tokens,
        engine=engine,
        runner=runner,
        orders=orders,
        give_up=give_up,
    )
