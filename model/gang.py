"""A gang in processes of this machine: W ranks, spawned, fed by pipes; a `Runner` for the engine.

parent                              rank process
  submit(step)  -- pipe -->  reader thread -> queue -> main thread: launches and takes steps (model.ahead)
  result()     <-- pipe --   _Done | _Failed

Pipes have no time-out, so an idle gang waits as long as it likes. A rank that dies or raises ends
the gang: the parent ends the others. If the parent dies, the reader threads see the end of their
pipes and end the ranks, also in the middle of an exchange.
"""

from __future__ import annotations

import multiprocessing
import pickle
import queue
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.distributed import TCPStore

from model import parallel
from model.ahead import StepsAhead, next_message
from model.errors import FluytError, Internal, Unavailable
from model.sched.step import RankResult, Step, StepResult

# All ranks are on one machine: the address never leaves it.
HOST = "127.0.0.1"
# How long the others may take to say why, after the first sign of a fall: that is often a witness's.
CAUSE_GRACE_S = 0.2


class Worker(Protocol):
    """What a rank process runs."""

    def run(self, step: Step) -> RankResult:
        """Compute this rank's share of `step`."""

    def put_embedding(self, key: str, rows_NH: Tensor) -> None:
        """Keep an image's rows until the sequence that needs them is dropped."""


# Called in the rank's process, therefore picklable: a function of a module, or a partial of one.
MakeWorker = Callable[[int, parallel.Group | None], Worker]


@dataclass(frozen=True)
class _Start:
    """What a rank process is started with."""

    rank: int
    world_size: int
    port: int
    num_threads: int
    device_type: str
    make_worker: MakeWorker


@dataclass(frozen=True)
class _Embedding:
    key: str
    rows_NH: Tensor


@dataclass(frozen=True)
class _Done:
    """A step's result; the first one a rank sends says that its worker is made."""

    step_id: int
    result: RankResult
    step_us: int


@dataclass(frozen=True)
class _Failed:
    error: FluytError


@dataclass(frozen=True)
class _Rank:
    """The parent's side of a rank process."""

    number: int
    process: SpawnProcess
    connection: Connection
    send_lock: threading.Lock = field(default_factory=threading.Lock)

    def send(self, payload: bytes) -> None:
        """Never waits for a step: the rank's reader thread empties the pipe. A dead one shows in `result`."""
        with self.send_lock:
            try:
                self.connection.send_bytes(payload)
            except OSError:
                return

    def receive(self) -> Any:
        """The next message, or None where there is none any more."""
        try:
            return pickle.loads(self.connection.recv_bytes())  # noqa: S301 - our own process
        except (EOFError, OSError):
            return None


def spawn_gang(
    world_size: int,
    make_worker: MakeWorker,
    *,
    num_threads: int = 1,
    device_type: Literal["cpu", "cuda"] = "cpu",
) -> GangRunner:
    """Start W ranks with `num_threads` threads each and wait until every worker is made.

    A gang of one has no group. Raises what a worker raised (anything but a FluytError as Internal).
    """
    store, port = parallel.open_store(HOST) if world_size > 1 else (None, 0)
    context = multiprocessing.get_context("spawn")
    ranks: list[_Rank] = []
    try:
        for rank in range(world_size):
            start = _Start(rank, world_size, port, num_threads, device_type, make_worker)
            ranks.append(_spawn_rank(context, start))
        _gather(ranks)
    except _Fall as fall:
        _end(ranks)
        raise fall.cause from None
    except BaseException:
        _end(ranks)
        raise
    return GangRunner(ranks, store)


class GangRunner:
    """W rank processes that step together; see `model.engine.Runner`."""

    def __init__(self, ranks: Sequence[_Rank], store: TCPStore | None) -> None:
        self._ranks = tuple(ranks)
        self._store = store  # the ranks' meeting place lives as long as they do
        self._pending: deque[Step] = deque()
        self._failure: Unavailable | None = None
        self._receiving = threading.Lock()  # `close` may come while another thread waits in `result`

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids in rank order."""
        return tuple(rank.process.pid or 0 for rank in self._ranks)

    def submit(self, step: Step) -> None:
        """Hand `step` to every rank. Does not wait; a gang that fell says so in `result`."""
        self._pending.append(step)
        payload = pickle.dumps(step)  # once for all ranks
        for rank in self._ranks:
            rank.send(payload)

    def put_embedding(self, key: str, rows_NH: Tensor, rank: int | None = None) -> None:
        """Give an image's rows to `rank`, or to all; before the step that needs them is submitted."""
        payload = pickle.dumps(_Embedding(key, rows_NH))
        for receiver in self._ranks if rank is None else self._ranks[rank : rank + 1]:
            receiver.send(payload)

    def result(self) -> StepResult:
        """The oldest submitted step's result. Raises Unavailable, naming rank and cause, if the gang fell."""
        with self._receiving:
            if self._failure is not None:
                raise self._failure
            step = self._pending[0]
            try:
                done = _gather(self._ranks)
            except _Fall as fall:
                self._failure = self._failure or Unavailable(f"the gang fell: rank {fall.rank}: {fall.cause}")
                _end(self._ranks)
                raise self._failure from fall.cause
            self._pending.popleft()
        assert all(rank.step_id == step.step_id for rank in done), (step.step_id, done)
        # With tensor attention one space is run by every rank: rank 0 answers for all. They agree, for each
        # exchange gives the same bits to every rank (model.device.exchange), and the host's part of a step
        # (masks, sampling of whole logits) depends on those and on the plan alone.
        results = tuple(rank.result for rank in done[: len(step.ranks)])
        return StepResult(step.generation, step.step_id, results, max(rank.step_us for rank in done))

    def close(self) -> None:
        """End every rank, also in the middle of a step. May be called again.

        By a kill: a rank keeps nothing that must be saved, and leaving in order takes a second.
        """
        self._failure = self._failure or Unavailable("the gang is closed")
        for rank in self._ranks:
            rank.process.kill()  # ends also the wait of a `result` in another thread
        with self._receiving:
            _end(self._ranks)


class _Fall(Exception):  # noqa: N818 - an event inside this file, never a user's error
    """A rank is gone or raised."""

    def __init__(self, rank: int, cause: FluytError) -> None:
        super().__init__(rank, cause)
        self.rank = rank
        self.cause = cause


def _gather(ranks: Sequence[_Rank]) -> list[_Done]:
    """One `_Done` of every rank. Raises _Fall as soon as one cannot come any more."""
    done: dict[int, _Done] = {}
    while len(done) < len(ranks):
        waiting = [rank for rank in ranks if rank.number not in done]
        wait([rank.connection for rank in waiting] + [rank.process.sentinel for rank in ranks])
        for rank in waiting:
            message = rank.receive() if rank.connection.poll() else None
            if isinstance(message, _Done):
                done[rank.number] = message
            elif message is not None or not rank.process.is_alive():
                raise _find_cause(ranks, rank, message)
        for rank in ranks:
            if rank.number in done and not rank.process.is_alive() and len(done) < len(ranks):
                raise _find_cause(ranks, rank, None)
    return [done[rank.number] for rank in ranks]


def _find_cause(ranks: Sequence[_Rank], first: _Rank, message: _Failed | None) -> _Fall:
    """Of what the ranks say when one fell: an error of their own, else a death, else a lost exchange."""
    said: dict[int, _Failed | None] = {first.number: message or _last_failure(first)}
    deadline = time.monotonic() + CAUSE_GRACE_S
    for rank in ranks:
        if rank is not first and wait([rank.process.sentinel], max(0.0, deadline - time.monotonic())):
            said[rank.number] = _last_failure(rank)

    def doubt(number: int) -> int:
        failed = said[number]
        return 1 if failed is None else 2 if isinstance(failed.error, Unavailable) else 0

    culprit = min(said, key=doubt)
    return _Fall(culprit, _cause_of(ranks[culprit], said[culprit]))


def _last_failure(rank: _Rank) -> _Failed | None:
    """Read what a rank that is gone had to say."""
    while rank.connection.poll() and (message := rank.receive()) is not None:
        if isinstance(message, _Failed):
            return message
    return None


def _cause_of(rank: _Rank, message: _Failed | None) -> FluytError:
    """The rank's own words, or how its process ended."""
    if message is not None:
        return message.error
    rank.process.join(CAUSE_GRACE_S)
    code = rank.process.exitcode
    if code is not None and code < 0:
        how = f"was ended by {signal.Signals(-code).name}"
    else:
        how = f"exited with {code}"
    return Unavailable(f"process {rank.process.pid} {how}")


def _end(ranks: Sequence[_Rank]) -> None:
    """Nothing is left: no process, no zombie, no open pipe."""
    for rank in ranks:
        rank.process.kill()
    for rank in ranks:
        rank.process.join()
        rank.connection.close()


def _spawn_rank(context: SpawnContext, start: _Start) -> _Rank:
    ours, theirs = context.Pipe()
    process = context.Process(
        target=_rank_main, args=(start, theirs), name=f"fluyt-rank-{start.rank}", daemon=True
    )
    process.start()
    theirs.close()  # the rank's copy is the only one: its death ends our reading
    return _Rank(start.rank, process, ours)


def _rank_main(start: _Start, connection: Connection) -> None:
    """A rank's process: it ends when it raises, when its parent ends it, or with its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's: it closes the gang
    torch.set_num_threads(start.num_threads)
    inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(connection, inbox), daemon=True).start()
    try:
        group = _join(start)
        worker = start.make_worker(start.rank, group)
        _send(connection, _Done(-1, RankResult(), 0))
        steps = StepsAhead(worker)
        while True:
            message = next_message(inbox, steps)
            if message is None:
                taken = steps.take()
                _send(connection, _Done(taken.step.step_id, taken.result, taken.step_us))
            else:
                _handle(message, worker, steps)
    except BaseException as error:  # noqa: BLE001 - whatever it is, the parent must hear of it
        try:
            _send(connection, _Failed(_as_fluyt_error(error)))
        finally:
            parallel.end_process()


def _handle(message: Step | _Embedding | Exception, worker: Worker, steps: StepsAhead) -> None:
    """Take a step, or keep an embedding."""
    if isinstance(message, Exception):
        raise message
    if isinstance(message, _Embedding):
        worker.put_embedding(message.key, message.rows_NH)
        return
    steps.submit(message)


def _join(start: _Start) -> parallel.Group | None:
    """The gang's group; a gang of one has none."""
    if start.world_size == 1:
        return None
    device = torch.device("cuda", start.rank) if start.device_type == "cuda" else torch.device("cpu")
    return parallel.join(start.rank, start.world_size, HOST, start.port, device=device)


def _read(connection: Connection, inbox: queue.SimpleQueue[Any]) -> None:
    """Empty the pipe so that the parent never waits; end with the parent."""
    while True:
        try:
            inbox.put(pickle.loads(connection.recv_bytes()))  # noqa: S301 - our own process
        except (EOFError, OSError):
            parallel.end_process()
        except Exception as error:  # noqa: BLE001 - what cannot be read here ends the rank's main thread
            inbox.put(error)


def _send(connection: Connection, message: _Done | _Failed) -> None:
    connection.send_bytes(pickle.dumps(message))


def _as_fluyt_error(error: BaseException) -> FluytError:
    if isinstance(error, FluytError):
        return error
    traceback.print_exception(error, file=sys.stderr)
    return Internal(f"{type(error).__name__}: {error}")
