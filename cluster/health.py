"""grpc.health.v1 whose answer is computed when asked, so that it is never stale.

`grpcio-health-checking` brings the messages; its aio servicer holds a lock while it writes to a
watcher, so that one watcher that stops reading would freeze everybody's health.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

Answer = health_pb2.HealthCheckResponse

INFERENCE_SERVICE = "fluyt.v1.Inference"
# Watchers learn of a change after this time at most.
_WATCH_PERIOD_S = 0.25


class HealthServicer(health_pb2_grpc.HealthServicer):
    """Service "" says that the process lives, fluyt.v1.Inference what `is_ready()` says."""

    def __init__(self, is_ready: Callable[[], bool]) -> None:
        self._is_ready = is_ready

    def status(self, service: str) -> Any:
        """Status of `service` now, None if there is no such service."""
        if service == "":
            return Answer.SERVING
        if service == INFERENCE_SERVICE:
            return Answer.SERVING if self._is_ready() else Answer.NOT_SERVING
        return None

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Any) -> Answer:  # noqa: N802
        """The status, or NOT_FOUND for a service that is not here."""
        status = self.status(request.service)
        if status is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"unknown service {request.service!r}")
        return Answer(status=status)

    async def Watch(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: Any
    ) -> AsyncIterator[Answer]:
        """The status now and after every change, until the watcher leaves."""
        del context
        last: Any = None
        while True:
            status = self.status(request.service)
            current = Answer.SERVICE_UNKNOWN if status is None else status
            if current != last:
                yield Answer(status=current)
            last = current
            await asyncio.sleep(_WATCH_PERIOD_S)
