"""Steps of one rank in order: begun as they come, where the rank can do that, and taken when they are done.

    submit(step) -> [waits] -> launched -> is_done -> take() -> its result

While the device computes a step, the next one is launched behind it: nothing waits for the host.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, Protocol, TypeVar, runtime_checkable

from model.sched.step import RankResult, Step

MOST_PENDING = 2  # what the scheduler plans ahead
POLL_S = 2e-4  # how long a step that is done may wait while there might be another one to launch

Message = TypeVar("Message")


class Runs(Protocol):
    """A rank that computes one step after the other."""

    def run(self, step: Step) -> RankResult:
        """Compute this rank's share of `step`."""


@runtime_checkable
class Launches(Protocol):
    """A rank that can begin a step while the one before it is on its way."""

    @property
    def can_launch(self) -> bool:
        """Whether now."""

    def launch(self, step: Step) -> Any:
        """Begin; what is returned says `is_done`."""

    def collect(self, launched: Any) -> RankResult:
        """The result of the oldest one, once it is there."""


@dataclass(frozen=True)
class Taken:
    """A step that has been computed; its time begins where the one before it ended."""

    step: Step
    result: RankResult
    step_us: int


@dataclass
class _Pending:
    step: Step
    launched_s: float = 0.0
    launched: Any = None  # None: nothing has begun


class StepsAhead:
    """One thread submits and takes."""

    def __init__(self, rank: Runs) -> None:
        self._rank = rank
        self._pending: deque[_Pending] = deque()
        self._returned_s = 0.0  # when the last result was there

    @property
    def num_pending(self) -> int:
        """Submitted and not taken."""
        return len(self._pending)

    @property
    def is_done(self) -> bool:
        """Whether nothing is gained by waiting with `take`: the oldest is there, or has to be run."""
        if not self._pending:
            return False
        launched = self._pending[0].launched
        return launched is None or bool(launched.is_done)

    def submit(self, step: Step) -> None:
        """Queue a step."""
        self._pending.append(_Pending(step))
        self._launch()

    def take(self) -> Taken:
        """The oldest step's result; one that has not begun is run."""
        pending = self._pending.popleft()
        if pending.launched is None:
            began_s = time.perf_counter()
            result = self._rank.run(pending.step)
        else:
            assert isinstance(self._rank, Launches), self._rank
            began_s = max(pending.launched_s, self._returned_s)
            result = self._rank.collect(pending.launched)
        self._returned_s = time.perf_counter()
        self._launch()
        return Taken(pending.step, result, round((self._returned_s - began_s) * 1e6))

    def clear(self) -> None:
        """Nothing that was launched is waited for."""
        self._pending.clear()

    def _launch(self) -> None:
        """Begin what waits, as far as it can be begun."""
        if not isinstance(self._rank, Launches):
            return
        for pending in self._pending:
            if pending.launched is None:
                if not self._rank.can_launch:
                    return
                pending.launched_s = time.perf_counter()
                pending.launched = self._rank.launch(pending.step)


def next_message(inbox: SimpleQueue[Message], steps: StepsAhead) -> Message | None:
    """The next message, or None where a step should be taken first: it is done, or no other may come."""
    while not steps.is_done and steps.num_pending < MOST_PENDING:
        try:
            return inbox.get(timeout=POLL_S if steps.num_pending else None)
        except Empty:
            continue
    return None
