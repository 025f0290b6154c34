"""One rank of a gang: orders in, answers out. Steps run in a thread of their own.

The event loop answers health checks and fetches images; it never waits for a step.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Protocol

from cluster import embeddings
from cluster.errors_convert import error_to_proto
from cluster.steps_convert import outputs_to_proto, step_from_proto
from model.ahead import StepsAhead, next_message
from model.errors import FluytError
from model.sched.step import RankResult, Step
from protos.fluyt.v1 import steps_pb2 as steps


class Worker(Protocol):
    """A rank's model. Called from one thread alone."""

    def run(self, step: Step) -> RankResult:
        """Compute this rank's share of `step`; one that `Launches` (model.ahead) begins it early."""

    def put_embedding(self, key: str, rows_RH: Any) -> None:
        """Keep an image's rows (a tensor) until the sequence that needs them is dropped."""

    def drop_embedding(self, key: str) -> None:
        """Forget an image's rows; unknown keys are ignored."""

    def reset(self) -> None:
        """Forget every sequence and embedding."""


@dataclass(frozen=True)
class Identity:
    """What a rank is: the same on every rank of the gang but for `rank`."""

    gang_id: str
    rank: int
    world_size: int
    num_spaces: int
    fingerprint: str
    block_size: int
    num_full_blocks: int
    num_sliding_blocks: int
    num_drafts: int = 0


@dataclass(frozen=True)
class _Rows:
    """Embeddings on their way into the worker."""

    rows_by_key: dict[str, Any]
    fetched: steps.Fetched


class _End:
    """No order comes any more."""


def answers_step(rank: int, step: steps.PlannedStep) -> bool:
    """Whether `rank` answers a step: with nothing in it, its answer would cost a message for nothing.

    Rank 0 always does; with one space (tensor attention) every rank computes that.
    """
    return rank == 0 or len(step.ranks) == 1 or len(step.ranks[rank].work) > 0


Answer = Callable[[steps.FromRank], None]


class RankLoop:
    """Takes orders one after another in its own thread; answers are called in the event loop."""

    def __init__(
        self, worker: Worker, identity: Identity, answer: Answer, fall: Callable[[str], None]
    ) -> None:
        """`fall(reason)` is called from the thread when a step fails; it ends the process."""
        self._worker = worker
        self._identity = identity
        self._loop = asyncio.get_running_loop()
        self._answer = answer
        self._fall = fall
        self._steps = StepsAhead(worker)
        self._orders: deque[steps.PlannedStep] = deque()  # of its pending steps
        self._inbox: SimpleQueue[steps.Order | _Rows | _End] = SimpleQueue()
        self._generation = 0
        self._next_step_id = 0
        self._secret = ""
        self._fetches: dict[int, asyncio.Task[None]] = {}
        self._kept: dict[int, list[str]] = {}  # keys in the worker, by fetch id
        self._thread = threading.Thread(target=self._run, name="steps", daemon=True)
        self._thread.start()

    # ---- the event loop

    def handle(self, order: steps.Order) -> None:
        """Take an order of the leader."""
        kind = order.WhichOneof("message")
        if kind == "prefetch":
            self._start_fetch(order.prefetch)
            return
        if kind == "reset":
            self._secret = order.reset.secret
        elif kind == "forget" and (task := self._fetches.get(order.forget.fetch_id)) is not None:
            task.cancel()
        self._inbox.put(order)

    async def close(self) -> None:
        """End the thread after what it has been given."""
        for task in self._fetches.values():
            task.cancel()
        self._inbox.put(_End())
        await asyncio.to_thread(self._thread.join)

    def _start_fetch(self, order: steps.Prefetch) -> None:
        task = asyncio.create_task(self._fetch(order))
        self._fetches[order.fetch_id] = task
        task.add_done_callback(lambda _: self._fetches.pop(order.fetch_id, None))

    async def _fetch(self, order: steps.Prefetch) -> None:
        fetched = steps.Fetched(
            fetch_id=order.fetch_id, generation=order.generation, rank=self._identity.rank
        )
        rows: dict[str, Any] = {}

        def keep(key: str, rows_RH: Any) -> None:
            rows[order.prefix + key] = rows_RH

        try:
            await embeddings.fetch(order.address, self._secret, order.keys, keep)
        except FluytError as error:
            fetched.error.CopyFrom(error_to_proto(error))
            self._answer(steps.FromRank(fetched=fetched))
        else:
            self._inbox.put(_Rows(rows, fetched))

    # ---- the thread

    def _run(self) -> None:
        try:
            while not isinstance(order := next_message(self._inbox, self._steps), _End):
                if order is None:
                    self._answer_step()
                elif isinstance(order, _Rows):
                    self._keep(order)
                elif order.WhichOneof("message") == "reset":
                    self._reset(order.reset)
                elif order.WhichOneof("message") == "forget":
                    self._forget(order.forget)
                else:
                    self._step(order.step)
            while self._orders:
                self._answer_step()
        except BaseException as error:  # noqa: BLE001 - whatever it is, the gang must fall together
            self._fall(f"{type(error).__name__}: {error}")

    def _reset(self, order: steps.Reset) -> None:
        self._worker.reset()
        self._steps.clear()
        self._orders.clear()
        self._kept.clear()
        self._generation, self._next_step_id = order.generation, 0

    def _keep(self, rows: _Rows) -> None:
        if rows.fetched.generation == self._generation:
            for key, rows_RH in rows.rows_by_key.items():
                self._worker.put_embedding(key, rows_RH)
            self._kept[rows.fetched.fetch_id] = list(rows.rows_by_key)
        self._tell(steps.FromRank(fetched=rows.fetched))

    def _forget(self, order: steps.Forget) -> None:
        for key in self._kept.pop(order.fetch_id, ()):
            self._worker.drop_embedding(key)

    def _step(self, order: steps.PlannedStep) -> None:
        step = step_from_proto(order)
        self._check(step, order.digest)
        self._next_step_id += 1
        self._orders.append(order)
        self._steps.submit(step)

    def _answer_step(self) -> None:
        order, taken = self._orders.popleft(), self._steps.take()
        if not answers_step(self._identity.rank, order):
            return
        done = steps.RankDone(
            generation=taken.step.generation,
            step_id=taken.step.step_id,
            outputs=outputs_to_proto(taken.result),
            step_us=taken.step_us,
        )
        self._tell(steps.FromRank(done=done))

    def _check(self, step: Step, digest: str) -> None:
        """A rank that computed another step than the others would poison them all."""
        expected = (self._generation, self._next_step_id, digest)
        found = (step.generation, step.step_id, step.digest())
        if found != expected:
            raise RuntimeError(f"step (generation, id, digest) is {found}, expected {expected}")

    def _tell(self, message: steps.FromRank) -> None:
        self._loop.call_soon_threadsafe(self._answer, message)
