"""The front door's link to the scheduler: one stream, many requests.

The stream is redialled for ever. When it breaks, open requests end with Unavailable: a scheduler
that comes back is another process and knows nothing of them.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from typing import Any

from cluster.discovery import (
    PROTO_VERSION,
    Endpoint,
    EndpointSource,
    conversation,
    redial,
)
from cluster.mailbox import Mailbox
from cluster.pump import Pump
from cluster.steps_convert import delta_from_proto, request_to_proto
from model.errors import AlreadyExists, Cancelled, FluytError, Unavailable
from model.types import Delta, Request, RequestKey
from protos.fluyt.v1 import steps_pb2 as steps

log = logging.getLogger("fluyt.frontdoor")

LOAD_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class SchedulerLoad:
    """How busy the scheduler is, over all gangs."""

    num_waiting: int
    num_running: int
    num_queued_tokens: int
    num_free_full_blocks: int


@dataclass(frozen=True)
class _Open:
    key: RequestKey
    ticket: int
    mailbox: Mailbox = field(default_factory=Mailbox)


class SchedulerLink:
    """Requests out, deltas in. Everything runs in one event loop."""

    def __init__(self, source: EndpointSource, instance: str, fingerprint: str = "") -> None:
        """`source` asks where the scheduler is; `fingerprint` is compared with that of the gangs."""
        self._source = source
        self._instance = instance
        self._own_fingerprint = fingerprint
        self._state = steps.SchedulerState()
        self._secret = ""
        self._outbox: asyncio.Queue[steps.FromFrontDoor] | None = None
        self._by_ticket: dict[int, _Open] = {}
        self._by_key: dict[RequestKey, _Open] = {}
        self._tickets = itertools.count(1)
        self._queries: dict[int, asyncio.Future[steps.LoadReply]] = {}
        self._last_problem = "not connected yet"
        self._task: asyncio.Task[None] | None = None

    # ---- for the front door

    @property
    def ready(self) -> bool:
        """True while a scheduler and at least one gang can take work."""
        return self._outbox is not None and self._state.ready

    @property
    def epoch(self) -> str:
        """Of the scheduler process at the other end; "" while there is none."""
        return self._state.epoch if self._outbox is not None else ""

    @property
    def fingerprint(self) -> str:
        """Of the model that the gangs serve; our own until one has said it."""
        return self._state.fingerprint or self._own_fingerprint

    @property
    def capacity_tokens(self) -> int | None:
        """Most tokens that one sequence may hold; None while no gang is there."""
        return self._state.capacity_tokens or None

    @property
    def secret(self) -> str:
        """What ranks of this scheduler's gangs present when they fetch embeddings."""
        return self._secret

    def start(self) -> None:
        """Dial from now on, in the running event loop."""
        assert self._task is None, "started twice"
        self._task = asyncio.create_task(redial(self._source, self._converse, self._report))

    async def close(self) -> None:
        """End the stream and every open request."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def submit(self, request: Request, deadline_ms: int | None) -> AsyncGenerator[Delta, None]:
        """Deltas of a request up to the final one; closing the iterator aborts the request.

        Raises Unavailable at once while nothing can take work, AlreadyExists for an open key.
        """
        opened = self._open(request, deadline_ms)
        try:
            while True:
                delta = await opened.mailbox.get()
                if delta.is_final:
                    self._forget(opened)
                yield delta
                if delta.is_final:
                    return
        finally:
            if opened.ticket in self._by_ticket:
                self.abort(opened.key)
                self._forget(opened)

    def stop(self, key: RequestKey, num_tokens: int, sample: int = 0) -> None:
        """A stop string is complete after `num_tokens`: the sample ends there. Unknown keys are ignored."""
        if (opened := self._by_key.get(key)) is not None:
            message = steps.StopSequence(ticket=opened.ticket, num_tokens=num_tokens, sample=sample)
            self._send(steps.FromFrontDoor(stop=message))

    def abort(self, key: RequestKey) -> None:
        """The request ends as ABORTED, with usage, whichever front door has it. Unknown keys are ignored."""
        message = steps.AbortSequence(tenant=key.tenant, request_id=key.request_id)
        self._send(steps.FromFrontDoor(abort=message))

    async def load(self) -> SchedulerLoad:
        """How busy the scheduler is. Raises Unavailable."""
        query = next(self._tickets)
        self._queries[query] = asyncio.get_running_loop().create_future()
        try:
            if not self._send(steps.FromFrontDoor(load_query=steps.LoadQuery(query=query))):
                raise Unavailable(f"no scheduler: {self._last_problem}")
            async with asyncio.timeout(LOAD_TIMEOUT_S):
                reply = await self._queries[query]
        except TimeoutError:
            raise Unavailable(f"the scheduler did not answer within {LOAD_TIMEOUT_S:g} s") from None
        finally:
            self._queries.pop(query, None)
        return SchedulerLoad(
            reply.num_waiting, reply.num_running, reply.num_queued_tokens, reply.num_free_full_blocks
        )

    # ---- requests

    def _open(self, request: Request, deadline_ms: int | None) -> _Open:
        if request.key in self._by_key:
            raise AlreadyExists(f"request {request.key.request_id!r} is open")
        if not self.ready:
            raise Unavailable(f"nothing can take work now: {self._last_problem}")
        opened = _Open(request.key, next(self._tickets))
        self._by_ticket[opened.ticket] = self._by_key[opened.key] = opened
        self._send(steps.FromFrontDoor(add=request_to_proto(request, opened.ticket, deadline_ms)))
        return opened

    def _forget(self, opened: _Open) -> None:
        self._by_ticket.pop(opened.ticket, None)
        self._by_key.pop(opened.key, None)

    def _send(self, message: steps.FromFrontDoor) -> bool:
        if self._outbox is None:
            return False
        self._outbox.put_nowait(message)
        return True

    def _end(self, opened: _Open, error: FluytError) -> None:
        """A last word of our own; what was not read before it is dropped if there is no room."""
        self._forget(opened)
        final = Delta(opened.key, 0, error=error)
        if not opened.mailbox.put(final):
            opened.mailbox.clear()
            opened.mailbox.put(final)

    # ---- the stream

    async def _converse(self, endpoint: Endpoint, established: Callable[[], None]) -> None:
        hello = steps.Hello(
            role=steps.ROLE_FRONT_DOOR,
            proto_version=PROTO_VERSION,
            epoch=endpoint.epoch,
            fingerprint=self._own_fingerprint,
            instance=self._instance,
        )
        try:
            async with conversation(endpoint, "Submit") as call:
                await call.write(steps.FromFrontDoor(hello=hello))
                await self._talk(call, endpoint, established)
        finally:
            self._hang_up()

    async def _talk(self, call: Any, endpoint: Endpoint, established: Callable[[], None]) -> None:
        outbox: asyncio.Queue[steps.FromFrontDoor] = asyncio.Queue()
        async with Pump(outbox, call.write):
            async for message in call:
                if self._outbox is None:  # its first message: we are welcome
                    self._secret, self._outbox = endpoint.secret, outbox
                    established()
                self._handle(message)

    def _handle(self, message: steps.ToFrontDoor) -> None:
        kind = message.WhichOneof("message")
        if kind == "deltas":
            for delta in message.deltas.deltas:
                self._deliver(delta)
        elif kind == "state":
            self._state = message.state
            self._last_problem = "" if message.state.ready else "no gang of shards is connected"
        elif kind == "load_reply":
            waiting = self._queries.pop(message.load_reply.query, None)
            if waiting is not None and not waiting.done():
                waiting.set_result(message.load_reply)

    def _deliver(self, message: steps.SequenceDelta) -> None:
        opened = self._by_ticket.get(message.ticket)
        if opened is None:  # its reader has gone
            return
        if not opened.mailbox.put(delta_from_proto(message, opened.key)):
            self.abort(opened.key)
            self._end(opened, Cancelled("the client reads too slowly: its buffer is full"))

    def _hang_up(self) -> None:
        """The stream is gone, and so is everything that went over it."""
        self._outbox = None
        self._state = steps.SchedulerState(fingerprint=self._state.fingerprint)
        lost = Unavailable("the connection to the scheduler was lost")
        for opened in list(self._by_ticket.values()):
            self._end(opened, lost)
        for waiting in self._queries.values():
            if not waiting.done():
                waiting.set_exception(lost)

    def _report(self, problem: str) -> None:
        self._last_problem = problem
        log.info("no scheduler: %s", problem)
