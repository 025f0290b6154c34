"""What a front door takes in: the open requests, and the limits on them.

Everything here runs in the event loop and holds no lock.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from cluster.identity import Caller
from model.errors import AlreadyExists, FluytError, InvalidRequest, Overloaded, Unavailable
from model.sampling import MAX_SAMPLES
from model.types import RequestKey

_MIB = 1 << 20


@dataclass(frozen=True)
class AdmissionLimits:
    """Limits of one front door; each is named in the error of a request that meets it."""

    max_open_requests: int = 256  # several times what a gang runs at once; the rest waits in line
    max_open_bytes: int = 512 * _MIB  # request messages held at once: eight of the largest
    max_open_image_tokens: int = 1 << 19  # embeddings held: 8 GiB in float32 at hidden size 4096
    max_kept_image_bytes: int = 256 * _MIB  # images that may be named by sha256 instead of sent again
    max_deadline_s: float = 3600.0  # also what a call without a deadline gets
    max_samples: int = MAX_SAMPLES  # of one request: each takes a place among those that a gang runs
    retry_after_s: float = 1.0  # what a refused client is told to wait


@dataclass
class OpenRequest:
    """One request from arrival to its last event; `task` is the call that handles it."""

    key: RequestKey
    num_bytes: int
    task: asyncio.Task[Any]
    num_image_tokens: int = 0
    interruptible: bool = True  # until events are on their way: an event half sent cannot be taken back
    aborted: bool = False
    error: FluytError | None = None  # why `interrupt` ended it

    def interrupt(self, error: FluytError) -> None:
        """End the call with `error`, wherever it is."""
        if self.error is None:
            self.error = error
            self.task.cancel()


class Admission:
    """The open requests of a front door, by tenant and request id."""

    def __init__(self, limits: AdmissionLimits) -> None:
        self._limits = limits
        self._open: dict[RequestKey, OpenRequest] = {}
        self._num_by_tenant: Counter[str] = Counter()
        self._num_bytes = 0
        self._num_image_tokens = 0
        self._draining = False
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def num_open(self) -> int:
        """Requests between arrival and last event."""
        return len(self._open)

    @property
    def draining(self) -> bool:
        """True once `drain` was called: nothing new is taken."""
        return self._draining

    def drain(self) -> None:
        """From now on new requests are Unavailable; the open ones go on."""
        self._draining = True

    async def wait_empty(self) -> None:
        """Return when no request is open."""
        await self._empty.wait()

    def interrupt_all(self, error: FluytError) -> None:
        """End every open request with `error`."""
        for request in tuple(self._open.values()):
            request.interrupt(error)

    def find(self, key: RequestKey) -> OpenRequest | None:
        """The open request of that key."""
        return self._open.get(key)

    @contextmanager
    def admit(self, caller: Caller, request_id: str, num_bytes: int) -> Iterator[OpenRequest]:
        """Holds a place for one request. Raises Unavailable, AlreadyExists, Overloaded."""
        key = RequestKey(caller.tenant, request_id)
        self._check(caller, key, num_bytes)
        task = asyncio.current_task()
        assert task is not None, "outside of a call"
        request = OpenRequest(key, num_bytes, task)
        self._open[key] = request
        self._empty.clear()
        self._num_by_tenant[key.tenant] += 1
        self._num_bytes += num_bytes
        try:
            yield request
        except asyncio.CancelledError:
            if request.error is None:
                raise
            task.uncancel()
            raise request.error from None
        finally:
            self._close(request)

    def reserve_image_tokens(self, request: OpenRequest, num_tokens: int) -> None:
        """Counts the embeddings that `request` is about to hold. Raises Overloaded."""
        limit = self._limits.max_open_image_tokens
        if num_tokens > limit:
            raise InvalidRequest("images", f"{num_tokens} image tokens are over the limit of {limit}")
        if self._num_image_tokens + num_tokens > limit:
            raise self._overloaded("max_open_image_tokens", limit, "image tokens of open requests")
        self._num_image_tokens += num_tokens
        request.num_image_tokens += num_tokens

    def deadline_s(self, remaining_s: float | None) -> float:
        """Seconds a call may take: the caller's deadline, or the longest there is. Raises InvalidRequest."""
        longest = self._limits.max_deadline_s
        if remaining_s is None:
            return longest
        if remaining_s > longest:
            raise InvalidRequest("deadline", f"{remaining_s:.0f} s is over max_deadline_s = {longest:g}")
        return remaining_s

    def _check(self, caller: Caller, key: RequestKey, num_bytes: int) -> None:
        limits = self._limits
        if self._draining:
            raise Unavailable("this front door is shutting down")
        if key in self._open:
            raise AlreadyExists(f"request_id: {key.request_id!r} is open")
        if len(self._open) >= limits.max_open_requests:
            raise self._overloaded("max_open_requests", limits.max_open_requests, "open requests")
        if self._num_by_tenant[key.tenant] >= caller.limits.max_open_requests:
            raise self._overloaded(
                "tenant.max_open_requests", caller.limits.max_open_requests, "open requests of this tenant"
            )
        if self._num_bytes + num_bytes > limits.max_open_bytes:
            raise self._overloaded("max_open_bytes", limits.max_open_bytes, "bytes of open requests")

    def _overloaded(self, subject: str, limit: int, what: str) -> Overloaded:
        return Overloaded(
            f"the front door holds its limit of {limit} {what}", self._limits.retry_after_s, subject
        )

    def _close(self, request: OpenRequest) -> None:
        del self._open[request.key]
        if not self._open:
            self._empty.set()
        self._num_by_tenant[request.key.tenant] -= 1
        self._num_by_tenant += Counter()  # drops tenants with nothing open
        self._num_bytes -= request.num_bytes
        self._num_image_tokens -= request.num_image_tokens
