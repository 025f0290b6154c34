"""The scheduler's desk: requests of front doors on one side, gangs on the other.

Lives in one event loop and does no I/O: streams are queues here. Engines emit into the same loop.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from cluster.errors_convert import error_from_proto
from cluster.gang import Seat
from cluster.steps_convert import delta_to_proto, request_from_proto
from model.errors import AlreadyExists, DeadlineExceeded, FluytError, Unavailable
from model.sched.config import Placement
from model.types import Delta, Request, RequestKey
from protos.fluyt.v1 import steps_pb2 as steps

# A front door that reads nothing for so many steps is hung; its requests end.
MAX_MESSAGES_AHEAD = 4096


@dataclass(eq=False)
class Door:
    """A connected front door: what it shall be told, and its open requests by ticket."""

    instance: str
    give_up: Callable[[], object]
    replies: asyncio.Queue[steps.ToFrontDoor] = field(default_factory=asyncio.Queue)
    tickets: dict[int, RequestKey] = field(default_factory=dict)

    def tell(self, message: steps.ToFrontDoor) -> None:
        """Queue a message; a front door that does not read is given up."""
        if self.replies.qsize() >= MAX_MESSAGES_AHEAD:
            self.give_up()
        else:
            self.replies.put_nowait(message)


@dataclass(frozen=True)
class OpenRequest:
    """A request between arrival and its final delta."""

    door: Door
    ticket: int
    seat: Seat
    num_tokens: int
    deadline: asyncio.TimerHandle | None
    fetch_id: int  # of its images, 0 if there are none


class Desk:
    """Routes requests to gangs and deltas back."""

    def __init__(self, epoch: str) -> None:
        self.epoch = epoch
        self._doors: list[Door] = []
        self._seats: list[Seat] = []
        self._open: dict[RequestKey, OpenRequest] = {}
        self._fetches: dict[int, tuple[RequestKey, int]] = {}  # id -> request, space
        self._fetch_ids = itertools.count(1)
        self._last_generation = 0
        self._is_draining = False
        self._is_idle = asyncio.Event()
        self._is_idle.set()

    @property
    def num_open(self) -> int:
        """Requests between arrival and final delta."""
        return len(self._open)

    @property
    def num_gangs(self) -> int:
        """Gangs that take work."""
        return len(self._seats)

    @property
    def num_doors(self) -> int:
        """Front doors connected."""
        return len(self._doors)

    async def wait_until_idle(self) -> None:
        """Returns when no request is open."""
        await self._is_idle.wait()

    def drain(self) -> None:
        """From now on front doors are told that nothing can take work; what is open goes on."""
        self._is_draining = True
        self._announce()

    # ---- gangs

    @property
    def fingerprint(self) -> str:
        """Of the model that is served; "" before the first gang."""
        return self._seats[0].fingerprint if self._seats else ""

    def next_generation(self, last: int) -> int:
        """A number that is new to everyone, the gang that had `last` included."""
        self._last_generation = max(self._last_generation, last) + 1
        return self._last_generation

    def find_seat(self, gang_id: str) -> Seat | None:
        """The gang of that id, if it is connected."""
        return next((seat for seat in self._seats if seat.gang_id == gang_id), None)

    def seat(self, seat: Seat) -> None:
        """A gang takes work from now on."""
        self._seats.append(seat)
        self._announce()

    async def unseat(self, seat: Seat, error: FluytError) -> None:
        """A gang is gone: its requests end with `error`. Does nothing the second time."""
        if seat not in self._seats:
            return
        self._seats.remove(seat)
        self._announce()
        await seat.close(error)
        # What the engine had not even taken from its inbox ends here.
        left = [key for key, request in self._open.items() if request.seat is seat]
        self.deliver([Delta(key, 0, error=error) for key in left])

    def send_away_failed(self) -> None:
        """A gang whose engine broke must dial again, to get a new one."""
        for seat in self._seats:
            if seat.engine.failed is not None:
                seat.give_up()

    def fetched(self, seat: Seat, message: steps.Fetched) -> None:
        """A rank has the images of a request, or could not get them."""
        if message.generation != seat.generation or message.fetch_id not in self._fetches:
            return
        key, _ = self._fetches[message.fetch_id]
        if message.HasField("error"):
            seat.engine.abort(key, error_from_proto(message.error))
        else:
            seat.engine.images_ready(key)

    # ---- front doors

    def open_door(self, instance: str, give_up: Callable[[], object]) -> Door:
        """A front door has said Hello. `give_up` ends its stream."""
        door = Door(instance, give_up)
        self._doors.append(door)
        door.tell(steps.ToFrontDoor(state=self.state()))
        return door

    def close_door(self, door: Door) -> None:
        """A front door is gone: nobody waits for its requests."""
        self._doors.remove(door)
        for key in door.tickets.values():
            self._open[key].seat.engine.abort(key)

    def handle(self, door: Door, message: steps.FromFrontDoor) -> None:
        """One message of a front door after Hello."""
        kind = message.WhichOneof("message")
        if kind == "add":
            self._add(door, message.add)
        elif kind == "stop":
            self._stop(door, message.stop)
        elif kind == "abort":
            self._abort(message.abort)
        elif kind == "load_query":
            door.tell(steps.ToFrontDoor(load_reply=self._load(message.load_query.query)))

    def state(self) -> steps.SchedulerState:
        """What front doors must know about us."""
        return steps.SchedulerState(
            epoch=self.epoch,
            ready=bool(self._seats) and not self._is_draining,
            fingerprint=self.fingerprint,
            capacity_tokens=max((seat.capacity_tokens for seat in self._seats), default=0),
            num_gangs=len(self._seats),
        )

    def _announce(self) -> None:
        for door in self._doors:
            door.tell(steps.ToFrontDoor(state=self.state()))

    def _load(self, query: int) -> steps.LoadReply:
        loads = [seat.engine.load() for seat in self._seats]
        return steps.LoadReply(
            query=query,
            num_waiting=sum(load.num_waiting for load in loads),
            num_running=sum(load.num_running for load in loads),
            num_queued_tokens=sum(load.num_queued_tokens for load in loads),
            num_free_full_blocks=sum(load.num_free_full_blocks for load in loads),
        )

    # ---- requests

    def _add(self, door: Door, message: steps.AddSequence) -> None:
        request, ticket = request_from_proto(message), message.ticket
        try:
            seat = self._choose_seat(request)
        except FluytError as error:
            _tell_deltas(door, [delta_to_proto(Delta(request.key, 0, error=error), ticket)])
            return
        deadline = None
        if message.HasField("deadline_ms"):
            loop = asyncio.get_running_loop()
            deadline = loop.call_later(message.deadline_ms / 1e3, self._expire, request.key, ticket)
        num_tokens = len(request.prompt_ids) + request.sampling.num_samples * request.sampling.max_tokens
        fetch_id = next(self._fetch_ids) if request.images and request.embeddings_address else 0
        self._open[request.key] = OpenRequest(door, ticket, seat, num_tokens, deadline, fetch_id)
        door.tickets[ticket] = request.key
        self._is_idle.clear()
        self._start(seat, request, fetch_id)

    def _choose_seat(self, request: Request) -> Seat:
        """The gang with the fewest tokens to go. Raises AlreadyExists, Unavailable."""
        if request.key in self._open:
            raise AlreadyExists(f"request {request.key.request_id!r} is open")
        if not self._seats:
            raise Unavailable("no gang of shards is connected")
        tokens = {id(seat): 0 for seat in self._seats}
        for request_open in self._open.values():
            tokens[id(request_open.seat)] = tokens.get(id(request_open.seat), 0) + request_open.num_tokens
        return min(self._seats, key=lambda seat: tokens[id(seat)])

    def _start(self, seat: Seat, request: Request, fetch_id: int) -> None:
        """Give the request to the engine; its rank pulls the images before it is planned."""
        if not fetch_id:
            seat.engine.add(request)
            return
        loop = asyncio.get_running_loop()
        prefix = f"{fetch_id}/"

        def on_placed(placement: Placement) -> None:
            loop.call_soon_threadsafe(self._prefetch, seat, request, placement, fetch_id)

        images = tuple(replace(span, key=prefix + span.key) for span in request.images)
        seat.engine.add(replace(request, images=images), needs_images=True, on_placed=on_placed)

    def _prefetch(self, seat: Seat, request: Request, placement: Placement, fetch_id: int) -> None:
        assert placement.space is not None, placement
        if request.key not in self._open:
            return  # it ended meanwhile
        self._fetches[fetch_id] = (request.key, placement.space)
        order = steps.Prefetch(
            fetch_id=fetch_id,
            generation=seat.generation,
            space=placement.space,
            keys=list(dict.fromkeys(span.key for span in request.images)),
            prefix=f"{fetch_id}/",
            address=request.embeddings_address,
        )
        seat.orders.put_nowait(steps.Order(prefetch=order))

    def _stop(self, door: Door, message: steps.StopSequence) -> None:
        key = door.tickets.get(message.ticket)
        if key is not None:
            self._open[key].seat.engine.stop(key, message.num_tokens, message.sample)

    def _abort(self, message: steps.AbortSequence) -> None:
        key = RequestKey(message.tenant, message.request_id)
        if key in self._open:
            self._open[key].seat.engine.abort(key)

    def _expire(self, key: RequestKey, ticket: int) -> None:
        request = self._open.get(key)
        if request is not None and request.ticket == ticket:
            request.seat.engine.abort(key, DeadlineExceeded("the deadline passed while the request ran"))

    def deliver(self, deltas: Iterable[Delta]) -> None:
        """New deltas, grouped into one message per front door."""
        by_door: dict[Door, list[steps.SequenceDelta]] = {}
        for delta in deltas:
            request = self._open.get(delta.key)
            if request is None:
                continue
            by_door.setdefault(request.door, []).append(delta_to_proto(delta, request.ticket))
            if delta.is_final:
                self._close(delta.key, request)
        for door, messages in by_door.items():
            _tell_deltas(door, messages)

    def _close(self, key: RequestKey, request: OpenRequest) -> None:
        del self._open[key]
        del request.door.tickets[request.ticket]
        if not self._open:
            self._is_idle.set()
        if request.deadline is not None:
            request.deadline.cancel()
        if request.fetch_id in self._fetches:
            # Steps that use the images have been sent before: the rank may forget them after those.
            _, space = self._fetches.pop(request.fetch_id)
            forget = steps.Forget(fetch_id=request.fetch_id, space=space)
            request.seat.orders.put_nowait(steps.Order(forget=forget))


def _tell_deltas(door: Door, deltas: list[steps.SequenceDelta]) -> None:
    door.tell(steps.ToFrontDoor(deltas=steps.SequenceDeltas(deltas=deltas)))
