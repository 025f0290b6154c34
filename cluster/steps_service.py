"""The scheduler's end of `fluyt.v1.Steps`: streams in and out of the desk, and where ranks meet."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import grpc

from cluster.config import ClusterConfig
from cluster.desk import Desk
from cluster.discovery import PROTO_VERSION, broken, check_secret, mismatch, refuse
from cluster.gang import Seat, scheduler_config, take_seat
from cluster.meeting import Meetings
from cluster.pump import Pump
from model.config import ModelConfig
from protos.fluyt.v1 import steps_pb2 as steps
from protos.fluyt.v1 import steps_pb2_grpc

log = logging.getLogger("fluyt.scheduler")


class StepsService(steps_pb2_grpc.StepsServicer):
    """Submit, Gang and Join. FetchEmbeddings and Rank are served elsewhere."""

    def __init__(self, config: ClusterConfig, model: ModelConfig, desk: Desk, secret: str) -> None:
        self._config = config
        self._model = model
        self._desk = desk
        self._secret = secret
        self._meetings = Meetings(config.gang.size)

    async def Submit(  # noqa: N802
        self, request_iterator: AsyncIterator[steps.FromFrontDoor], context: Any
    ) -> None:
        """A front door, from its Hello to the end of its stream."""
        await check_secret(context, self._secret)
        hello = (await anext(request_iterator)).hello
        expected: dict[str, object] = {"role": steps.ROLE_FRONT_DOOR, "epoch": self._desk.epoch}
        if hello.fingerprint and self._desk.fingerprint:
            expected["fingerprint"] = self._desk.fingerprint
        if reason := mismatch(hello, **expected):
            await refuse(context, reason)
        task = asyncio.current_task()
        assert task is not None
        door = self._desk.open_door(hello.instance, task.cancel)
        log.info("front door %s is here", hello.instance)
        try:
            async with Pump(door.replies, context.write):
                async for message in request_iterator:
                    self._desk.handle(door, message)
        finally:
            self._desk.close_door(door)
            log.info("front door %s left", hello.instance)

    async def Gang(  # noqa: N802
        self, request_iterator: AsyncIterator[steps.FromGang], context: Any
    ) -> None:
        """A gang, from its leader's Hello to the end of its stream."""
        await check_secret(context, self._secret)
        hello = (await anext(request_iterator)).hello
        if reason := self._gang_mismatch(hello):
            log.warning("gang %s refused: %s", hello.gang_id, reason)
            await refuse(context, reason)
        seat = await self._take_seat(hello)
        log.info("gang %s is here, generation %d", seat.gang_id, seat.generation)
        reason = "its stream ended"
        try:
            async with Pump(seat.orders, context.write):
                async for message in request_iterator:
                    self._handle(seat, message)
        except grpc.RpcError as error:
            reason = str(error)
        finally:
            log.info("gang %s left: %s", seat.gang_id, reason)
            await asyncio.shield(self._desk.unseat(seat, broken("the gang of shards was lost", reason)))

    async def Join(self, request: steps.JoinRequest, context: Any) -> steps.JoinReply:  # noqa: N802
        """A rank looks for the others; answers when all have called."""
        await check_secret(context, self._secret)
        if request.proto_version != PROTO_VERSION:
            await refuse(context, f"proto_version is {request.proto_version}, expected {PROTO_VERSION}")
        if request.world_size != self._config.gang.size:
            await refuse(context, f"world_size is {request.world_size}, expected {self._config.gang.size}")
        return await self._meetings.join(request)

    def _gang_mismatch(self, hello: steps.Hello) -> str | None:
        gang = self._config.gang
        num_spaces = gang.size if self._config.model.attention == "data" else 1
        expected: dict[str, object] = {"role": steps.ROLE_GANG, "epoch": self._desk.epoch}
        expected |= {"world_size": gang.size, "num_spaces": num_spaces}
        if self._desk.fingerprint:
            expected["fingerprint"] = self._desk.fingerprint
        return mismatch(hello, **expected)

    async def _take_seat(self, hello: steps.Hello) -> Seat:
        """A seat of a new generation; an older one of the same gang is given up first."""
        if (old := self._desk.find_seat(hello.gang_id)) is not None:
            await self._desk.unseat(old, broken("the gang of shards was lost", "it dialled again"))
        generation = self._desk.next_generation(hello.generation)
        sizes = scheduler_config(self._config, self._model, hello, generation)
        task = asyncio.current_task()
        assert task is not None
        seat = take_seat(sizes, hello, self._desk.deliver, task.cancel)
        reset = steps.Reset(generation=generation, epoch=self._desk.epoch, secret=self._secret)
        seat.orders.put_nowait(steps.Order(reset=reset))
        self._desk.seat(seat)
        return seat

    def _handle(self, seat: Seat, message: steps.FromGang) -> None:
        kind = message.WhichOneof("message")
        if kind == "done":
            seat.runner.deliver(message.done)
        elif kind == "fetched":
            self._desk.fetched(seat, message.fetched)
