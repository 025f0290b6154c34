"""The loop: plan while fewer than two steps are in flight, then result, commit, emit.

There is one engine, in a single process and in a cluster; only the `Runner` differs.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Protocol

from model.errors import FluytError, Internal, Unavailable
from model.sched.config import Load, Placement
from model.sched.scheduler import Scheduler
from model.sched.step import Step, StepResult
from model.types import Delta, Request, RequestKey

_log = logging.getLogger(__name__)
_JOIN_S = 5.0  # how long `close` waits for the step that runs, before it closes the runner under it


class Runner(Protocol):
    """Runs steps in the order of submission: a local object, or a stream to a gang."""

    def submit(self, step: Step) -> None:
        """Take a step; never blocks."""

    def result(self) -> StepResult:
        """Wait for the oldest step submitted. Raises FluytError when the gang is gone."""

    def close(self) -> None:
        """Give everything back; a `result` that waits in another thread raises."""


class Engine:
    """Drives a scheduler and a runner, inline (`step`) or in a thread of its own (`start`).

    `emit` gets new deltas in the loop's thread and must neither block nor raise: every token passes it.
    When the runner fails, every open request ends with its error, `failed` holds it, and every later
    request is refused with it: a new gang gets a new engine.
    """

    def __init__(self, scheduler: Scheduler, runner: Runner, emit: Callable[[list[Delta]], None]) -> None:
        self.failed: FluytError | None = None
        self._scheduler = scheduler
        self._runner = runner
        self._emit = emit
        self._inbox: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._num_in_flight = 0
        self._is_closing = False
        self._thread: threading.Thread | None = None

    # ---- from any thread

    def add(
        self,
        request: Request,
        *,
        needs_images: bool = False,
        on_placed: Callable[[Placement], None] | None = None,
        on_refused: Callable[[FluytError], None] | None = None,
    ) -> None:
        """Queue a request. Both callbacks run in the loop's thread, before any delta of the request.

        `on_placed` says which space has to fetch the images. A refusal is emitted as the request's
        final delta, or goes to `on_refused`: only there can a duplicate be told from the open request.
        """
        self._inbox.put(lambda: self._add(request, needs_images, on_placed, on_refused))

    def abort(self, key: RequestKey, error: FluytError | None = None) -> None:
        """End a request as ABORTED, or with `error`; unknown keys are ignored."""
        self._inbox.put(lambda: self._emit_some(self._scheduler.abort(key, error)))

    def stop(self, key: RequestKey, num_tokens: int, sample: int = 0) -> None:
        """End a sample of a request after its first `num_tokens`: they complete a stop string."""
        self._inbox.put(lambda: self._emit_one(self._scheduler.stop(key, num_tokens, sample)))

    def images_ready(self, key: RequestKey) -> None:
        """The embeddings of a request have reached its rank."""
        self._inbox.put(lambda: self._scheduler.images_ready(key))

    def load(self) -> Load:
        """The scheduler's counts; from another thread they may be a step old."""
        return self._scheduler.load()

    def start(self) -> None:
        """Run the loop in its own thread until `close`."""
        assert self._thread is None, "started twice"
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the loop after the step that runs; open requests end with Unavailable."""
        self._is_closing = True
        self._inbox.put(_nothing)
        if self._thread is not None:
            self._thread.join(_JOIN_S)
        self._runner.close()
        if self._thread is not None:
            self._thread.join(_JOIN_S)
            if self._thread.is_alive():
                _log.warning("a step is still running; the engine's thread ends with it")
        else:
            self._fail(Unavailable("the engine is closed"))

    # ---- the loop's thread

    def step(self) -> bool:
        """One turn, inline; False if there was nothing to do."""
        assert self._thread is None, "the loop has its own thread"
        return self._turn()

    def _loop(self) -> None:
        while not self._is_closing:
            if not self._turn() and not self._is_closing:
                self._handle(self._inbox.get())  # nothing to do until somebody asks for something
        self._fail(Unavailable("the engine is closed"))

    def _turn(self) -> bool:
        num_handled = self._handle_all()
        if self.failed is not None:
            return num_handled > 0
        try:
            return self._advance() or num_handled > 0
        except FluytError as error:
            self._fail(error)
        except Exception as error:  # noqa: BLE001 - whatever it is, requests must not hang
            self._fail_unexpected(error)
        return True

    def _advance(self) -> bool:
        """Plan ahead, then take the oldest result; False if no step is in flight."""
        while (step := self._scheduler.plan()) is not None:
            self._num_in_flight += 1
            self._runner.submit(step)
        if self._num_in_flight == 0:
            self._scheduler.check_integrity()
            return False
        result = self._runner.result()
        self._num_in_flight -= 1
        self._emit_some(self._scheduler.commit(result))
        return True

    def _handle_all(self) -> int:
        num_handled = 0
        while True:
            try:
                event = self._inbox.get_nowait()
            except Empty:
                return num_handled
            self._handle(event)
            num_handled += 1

    def _handle(self, event: Callable[[], None]) -> None:
        try:
            event()
        except Exception as error:  # noqa: BLE001 - as above
            self._fail_unexpected(error)

    def _add(
        self,
        request: Request,
        needs_images: bool,
        on_placed: Callable[[Placement], None] | None,
        on_refused: Callable[[FluytError], None] | None,
    ) -> None:
        refusal = self.failed
        if refusal is None:
            try:
                placement = self._scheduler.add(request, needs_images=needs_images)
            except FluytError as error:
                refusal = error
        if refusal is None:
            if on_placed is not None:
                on_placed(placement)
        elif on_refused is not None:
            on_refused(refusal)
        else:
            self._emit_one(Delta(request.key, 0, error=refusal))

    def _emit_one(self, delta: Delta | None) -> None:
        if delta is not None:
            self._emit([delta])

    def _emit_some(self, deltas: list[Delta]) -> None:
        if deltas:
            self._emit(deltas)

    def _fail_unexpected(self, error: Exception) -> None:
        # The details go to the log: they are no tenant's business.
        _log.error("the engine failed", exc_info=error)
        self._fail(Internal(f"the engine failed: {type(error).__name__}"))

    def _fail(self, error: FluytError) -> None:
        """End everything that is open with `error`, once."""
        if self.failed is not None:
            return
        self.failed = error
        self._num_in_flight = 0
        self._emit_some(self._scheduler.fail_all(error))


def _nothing() -> None:
    """Wakes the loop."""
