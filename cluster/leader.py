"""Rank 0 of a gang: passes orders on to the other ranks and their answers back to the scheduler."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

from cluster.discovery import (
    PROTO_VERSION,
    Endpoint,
    EndpointSource,
    check_secret,
    conversation,
    mismatch,
    redial,
    refuse,
)
from cluster.pump import Pump
from cluster.rank import Identity, answers_step
from protos.fluyt.v1 import steps_pb2 as steps
from protos.fluyt.v1 import steps_pb2_grpc

log = logging.getLogger("fluyt.gang")


class Answers:
    """Puts the ranks' answers to one step, or one fetch, together."""

    def __init__(self, world_size: int, num_spaces: int) -> None:
        self._world_size = world_size
        self._num_spaces = num_spaces
        self._expected: dict[tuple[int, int], set[int]] = {}  # ranks that answer, by (generation, step)
        self._done: dict[tuple[int, int], dict[int, steps.RankDone]] = {}
        self._fetched: dict[int, list[steps.Fetched]] = {}

    def clear(self) -> None:
        """A new generation: what is missing will never be used."""
        self._expected.clear()
        self._done.clear()
        self._fetched.clear()

    def expect(self, step: steps.PlannedStep) -> None:
        """A step was passed on: those ranks answer that have work in it, and rank 0."""
        self._expected[step.generation, step.step_id] = {
            rank for rank in range(self._world_size) if answers_step(rank, step)
        }

    def done(self, rank: int, message: steps.RankDone) -> list[steps.FromGang]:
        """Results of the gang that are complete now, in the order of the steps.

        A step that only some ranks answer may be complete while an answer to the one before is on its way.
        """
        self._done.setdefault((message.generation, message.step_id), {})[rank] = message
        complete = []
        while self._expected:
            oldest = next(iter(self._expected))
            if self._done.get(oldest, {}).keys() != self._expected[oldest]:
                break
            complete.append(self._complete(oldest))
        return complete

    def _complete(self, step: tuple[int, int]) -> steps.FromGang:
        """One step's result. The slowest rank's time is the gang's."""
        by_rank = self._done.pop(step)
        del self._expected[step]
        # With tensor attention one space is run by every rank: rank 0 answers for all (see model.gang).
        outputs = [
            by_rank[space].outputs if space in by_rank else steps.RankOutputs()
            for space in range(self._num_spaces)
        ]
        step_us = max(answer.step_us for answer in by_rank.values())
        done = steps.StepDone(generation=step[0], step_id=step[1], ranks=outputs, step_us=step_us)
        return steps.FromGang(done=done)

    def fetched(self, message: steps.Fetched) -> list[steps.FromGang]:
        """The gang's answer once every rank that was asked has answered; an error wins."""
        answers = self._fetched.setdefault(message.fetch_id, [])
        answers.append(message)
        if len(answers) < self._world_size // self._num_spaces:
            return []
        del self._fetched[message.fetch_id]
        return [steps.FromGang(fetched=next((a for a in answers if a.HasField("error")), message))]


class Leader(steps_pb2_grpc.StepsServicer):
    """The event loop's side of rank 0. Its own rank is fed by `handle`, the others by their streams."""

    def __init__(self, identity: Identity, secret: str, fall: Callable[[str], None]) -> None:
        self._identity = identity
        self._secret = secret
        self._fall = fall
        self._num_full, self._num_sliding = identity.num_full_blocks, identity.num_sliding_blocks
        self._answers = Answers(identity.world_size, identity.num_spaces)
        self._queues: dict[int, asyncio.Queue[steps.Order]] = {}
        self._everyone_is_here = asyncio.Event()
        self._generation = 0
        self._outbox: asyncio.Queue[steps.FromGang] = asyncio.Queue()
        self.handle_own: Callable[[steps.Order], None] | None = None
        self._note_arrival()

    # ---- the other ranks

    async def Rank(  # noqa: N802
        self, request_iterator: AsyncIterator[steps.FromRank], context: Any
    ) -> None:
        """Another rank, from its Hello until the gang falls."""
        await check_secret(context, self._secret)
        hello = (await anext(request_iterator)).hello
        if reason := self._rank_mismatch(hello):
            log.error("rank %d refused: %s", hello.rank, reason)
            await refuse(context, reason)
        queue = self._queues[hello.rank] = asyncio.Queue()
        self._take_sizes(hello)
        self._note_arrival()
        try:
            async with Pump(queue, context.write):
                async for message in request_iterator:
                    self.answer(hello.rank, message)
        finally:
            self._fall(f"rank {hello.rank} is gone")

    def _rank_mismatch(self, hello: steps.Hello) -> str | None:
        own = self._identity
        if hello.rank in self._queues or not 0 < hello.rank < own.world_size:
            return f"rank is {hello.rank}, expected one of 1 to {own.world_size - 1} that is not here yet"
        return mismatch(
            hello,
            role=steps.ROLE_RANK,
            gang_id=own.gang_id,
            world_size=own.world_size,
            fingerprint=own.fingerprint,
            block_size=own.block_size,
            num_drafts=own.num_drafts,
        )

    def _take_sizes(self, hello: steps.Hello) -> None:
        """A gang has as many blocks as the rank with the fewest."""
        self._num_full = min(self._num_full, hello.num_full_blocks)
        self._num_sliding = min(self._num_sliding, hello.num_sliding_blocks)

    def _note_arrival(self) -> None:
        if len(self._queues) == self._identity.world_size - 1:
            self._everyone_is_here.set()

    def answer(self, rank: int, message: steps.FromRank) -> None:
        """An answer of a rank, our own included."""
        kind = message.WhichOneof("message")
        complete: list[steps.FromGang] = []
        if kind == "done" and message.done.generation == self._generation:
            complete = self._answers.done(rank, message.done)
        elif kind == "fetched" and message.fetched.generation == self._generation:
            complete = self._answers.fetched(message.fetched)
        for answer in complete:
            self._outbox.put_nowait(answer)

    # ---- the scheduler

    async def lead(self, source: EndpointSource) -> None:
        """Waits for the other ranks, then serves the scheduler, whichever there is, until cancelled."""
        await self._everyone_is_here.wait()
        await redial(source, self._converse, lambda reason: log.info("no scheduler: %s", reason))

    async def _converse(self, endpoint: Endpoint, established: Callable[[], None]) -> None:
        async with conversation(endpoint, "Gang") as call:
            # What is still on its way from the ranks belongs to an older generation.
            self._outbox = asyncio.Queue()
            await call.write(steps.FromGang(hello=self._hello(endpoint)))
            async with Pump(self._outbox, call.write):
                async for order in call:
                    if order.WhichOneof("message") == "reset":
                        established()
                    self._pass_on(order)

    def _hello(self, endpoint: Endpoint) -> steps.Hello:
        hello = hello_of(self._identity, steps.ROLE_GANG)
        hello.epoch, hello.generation = endpoint.epoch, self._generation
        hello.num_full_blocks, hello.num_sliding_blocks = self._num_full, self._num_sliding
        return hello

    def _pass_on(self, order: steps.Order) -> None:
        kind = order.WhichOneof("message")
        if kind == "reset":
            self._generation = order.reset.generation
            self._answers.clear()
            log.info("generation %d of epoch %s", order.reset.generation, order.reset.epoch)
        elif kind == "step":
            self._answers.expect(order.step)
        ranks = range(self._identity.world_size)
        if kind in ("prefetch", "forget") and self._identity.num_spaces > 1:
            space = getattr(order, kind).space  # the rank that has the sequence
            ranks = range(space, space + 1)
        for rank in ranks:
            if rank > 0:
                self._queues[rank].put_nowait(order)
            else:
                assert self.handle_own is not None
                self.handle_own(order)


async def follow(
    identity: Identity,
    endpoint: Endpoint,
    answers: asyncio.Queue[steps.FromRank],
    handle: Callable[[steps.Order], None],
) -> None:
    """A rank other than 0: orders of the leader go to `handle`, until the stream ends. Never redials."""
    async with conversation(endpoint, "Rank") as call:
        await call.write(steps.FromRank(hello=hello_of(identity, steps.ROLE_RANK)))
        async with Pump(answers, call.write):
            async for order in call:
                handle(order)


def hello_of(identity: Identity, role: steps.Role) -> steps.Hello:
    """What a rank says about itself."""
    return steps.Hello(
        role=role,
        proto_version=PROTO_VERSION,
        fingerprint=identity.fingerprint,
        gang_id=identity.gang_id,
        world_size=identity.world_size,
        num_spaces=identity.num_spaces,
        block_size=identity.block_size,
        num_full_blocks=identity.num_full_blocks,
        num_sliding_blocks=identity.num_sliding_blocks,
        num_drafts=identity.num_drafts,
        rank=identity.rank,
    )
