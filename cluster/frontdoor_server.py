"""The front door's gRPC servers: the public one, and health in plain text on a port of its own.

    server = await start_server(options, servicer)
    ...
    await server.stop(grace_s=30)

Nothing here knows Ray: the deployment, the tests and a benchmark start it the same way.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from dataclasses import dataclass, field

from grpc import aio
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from cluster.health import INFERENCE_SERVICE, HealthServicer
from cluster.identity import CallerInterceptor, IdentityConfig
from cluster.servicer import InferenceServicer
from model.errors import Unavailable
from protos.fluyt.v1 import inference_pb2_grpc

log = logging.getLogger(__name__)

_BIND_RETRY_S = 0.2
_HEALTH_SERVICE = "grpc.health.v1.Health"
# After the drain: time for last messages to leave, then connections are cut.
_CLOSE_S = 1.0


@dataclass(frozen=True)
class ServerOptions:
    """Where a front door listens. Port 0 takes a free one."""

    host: str = "0.0.0.0"  # noqa: S104 - pods and other machines must reach it
    port: int = 50051
    health_port: int = 50052
    max_message_bytes: int = 64 << 20  # 60 photographs of 1 MB
    min_ping_interval_s: float = 5.0  # clients may ping every 10 s, with or without a call, and be early
    bind_timeout_s: float = 10.0  # a predecessor that is shutting down still holds the port
    identity: IdentityConfig = field(default_factory=IdentityConfig)

    def channel_options(self) -> list[tuple[str, int]]:
        """gRPC's own settings for the public port."""
        return [
            ("grpc.so_reuseport", 0),  # two processes on one port would share calls silently
            ("grpc.max_receive_message_length", self.max_message_bytes),
            ("grpc.max_send_message_length", self.max_message_bytes),
            # Only uncompressed messages: a few KB of gzip can unpack to gigabytes.
            ("grpc.compression_enabled_algorithms_bitset", 1),
            # The constant in C is called ..._MIN_RECV_PING_..., its text is not: another name has no effect.
            ("grpc.http2.min_ping_interval_without_data_ms", round(self.min_ping_interval_s * 1000)),
            ("grpc.keepalive_permit_without_calls", 1),
            # A client whose machine vanished is noticed after 30 + 20 s.
            ("grpc.keepalive_time_ms", 30_000),
            ("grpc.keepalive_timeout_ms", 20_000),
        ]


class FrontDoorServer:
    """The running servers. Made by `start_server`."""

    def __init__(self, servicer: InferenceServicer, options: ServerOptions) -> None:
        self._servicer = servicer
        self._options = options
        self._servers: list[aio.Server] = []
        self._stopped = False
        self.port = 0
        self.health_port = 0

    @property
    def servicer(self) -> InferenceServicer:
        """What answers the calls."""
        return self._servicer

    async def start(self) -> None:
        """Bind and serve. Raises Unavailable naming the port that is taken."""
        options = self._options
        health = HealthServicer(self._servicer.is_ready)
        self.port = await self._serve(
            self._public_server(health), options.host, options.port, options.bind_timeout_s
        )
        plain = aio.server(options=[("grpc.so_reuseport", 0)])
        health_pb2_grpc.add_HealthServicer_to_server(health, plain)
        self.health_port = await self._serve(plain, options.host, options.health_port, options.bind_timeout_s)

    async def stop(self, grace_s: float) -> None:
        """Refuse new requests, let the open ones end within `grace_s`, then close.

        What is still open after that ends with UNAVAILABLE. Health says NOT_SERVING from the start.
        """
        if self._stopped:
            return
        self._stopped = True
        await self._servicer.drain(grace_s)
        await asyncio.gather(*(server.stop(_CLOSE_S) for server in self._servers))
        self._servicer.close()

    def _public_server(self, health: HealthServicer) -> aio.Server:
        limit = self._servicer.max_open_requests
        server = aio.server(
            interceptors=[CallerInterceptor(self._options.identity)],
            options=self._options.channel_options(),
            # Behind the admission limit, for calls whose message is still on its way.
            maximum_concurrent_rpcs=2 * limit + 64,
        )
        inference_pb2_grpc.add_InferenceServicer_to_server(self._servicer, server)
        health_pb2_grpc.add_HealthServicer_to_server(health, server)
        reflection.enable_server_reflection(
            (INFERENCE_SERVICE, _HEALTH_SERVICE, reflection.SERVICE_NAME), server
        )
        return server

    async def _serve(self, server: aio.Server, host: str, port: int, timeout_s: float) -> int:
        bound = await _bind(server, host, port, timeout_s)
        await server.start()
        self._servers.append(server)
        return bound

    async def abandon(self) -> None:
        """Close what was opened before starting failed."""
        for server in self._servers:
            with contextlib.suppress(Exception):
                await server.stop(None)


async def start_server(options: ServerOptions, servicer: InferenceServicer) -> FrontDoorServer:
    """Open both ports and serve. Raises Unavailable if one stays taken for `bind_timeout_s`."""
    server = FrontDoorServer(servicer, options)
    try:
        await server.start()
    except BaseException:
        await server.abandon()
        raise
    log.info("front door on port %d, health on port %d", server.port, server.health_port)
    return server


async def _bind(server: aio.Server, host: str, port: int, timeout_s: float) -> int:
    """The port bound. Tries again while somebody else holds it."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            bound = server.add_insecure_port(f"{host}:{port}")
        except RuntimeError as error:
            bound, cause = 0, str(error)
        else:
            cause = "in use"
        if bound:
            return bound
        if time.monotonic() >= deadline:
            raise Unavailable(f"port {port} on {host} cannot be bound: {cause}")
        await asyncio.sleep(_BIND_RETRY_S)
