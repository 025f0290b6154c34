"""How the parts find each other: endpoint, secret, Hello, and redialling.

The scheduler listens and everyone dials it. An endpoint is asked for anew after every broken
stream, because a restarted scheduler has another port, epoch and secret.
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from grpc import aio

from model.errors import Unavailable
from protos.fluyt.v1 import steps_pb2 as steps
from protos.fluyt.v1 import steps_pb2_grpc

PROTO_VERSION = 1
SECRET_KEY = "fluyt-secret"  # noqa: S105 - the name of the metadata entry
FIRST_BACKOFF_S = 0.05
LAST_BACKOFF_S = 2.0
# Prompts of a 262,144-token context, with their ids as varints, stay far below.
MAX_MESSAGE_BYTES = 64 << 20
_CHANNEL_OPTIONS = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # A host that vanished sends no FIN: pings find out within ten seconds.
    ("grpc.keepalive_time_ms", 5_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # We redial ourselves, with a fresh endpoint; a proxy of the environment has no business here.
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
)
_SERVER_OPTIONS = (
    *_CHANNEL_OPTIONS,
    ("grpc.so_reuseport", 0),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 1_000),
    ("grpc.http2.max_ping_strikes", 0),
)


@dataclass(frozen=True)
class Endpoint:
    """Where a service of ours listens. `epoch` changes with every process behind it."""

    address: str  # host:port
    epoch: str
    secret: str

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What every call to it carries."""
        return ((SECRET_KEY, self.secret),)


EndpointSource = Callable[[], Awaitable[Endpoint]]


def new_epoch() -> str:
    """A name no other process has had."""
    return secrets.token_hex(8)


def new_secret() -> str:
    """256 bits."""
    return secrets.token_hex(32)


def open_channel(address: str) -> aio.Channel:
    """A channel of our own to `address`, shared with nobody."""
    return aio.insecure_channel(address, options=_CHANNEL_OPTIONS)


@asynccontextmanager
async def conversation(endpoint: Endpoint, method: str) -> AsyncIterator[Any]:
    """A stream of `fluyt.v1.Steps` on a channel of its own; both end with the block."""
    channel = open_channel(endpoint.address)
    call = getattr(steps_pb2_grpc.StepsStub(channel), method)(metadata=endpoint.metadata)
    try:
        yield call
    finally:
        # Closing a channel looks for its calls among the running tasks and misses some (grpcio 1.76).
        call.cancel()
        await channel.close()


async def start_internal_server(
    host: str, add_services: Callable[[aio.Server], None]
) -> tuple[aio.Server, str]:
    """A server on a free port of `host` -> (server, host:port)."""
    server = aio.server(options=_SERVER_OPTIONS)
    add_services(server)
    port = server.add_insecure_port(f"{host}:0")
    await server.start()
    return server, f"{host}:{port}"


async def check_secret(context: Any, secret: str) -> None:
    """Ends the call with UNAUTHENTICATED unless it carries `secret`."""
    given = dict(context.invocation_metadata() or ()).get(SECRET_KEY, "")
    if not hmac.compare_digest(str(given), secret):
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, f"wrong or missing {SECRET_KEY}")


def mismatch(hello: steps.Hello, **expected: object) -> str | None:
    """What in `hello` differs from `expected`, with both values; None if nothing does."""
    for name, wanted in {"proto_version": PROTO_VERSION, **expected}.items():
        found = getattr(hello, name)
        if found != wanted:
            return f"{name} is {found!r}, expected {wanted!r}"
    return None


async def refuse(context: Any, reason: str) -> None:
    """Ends the call with FAILED_PRECONDITION: what was said in Hello does not fit."""
    await context.abort(grpc.StatusCode.FAILED_PRECONDITION, reason)


def backoffs_s() -> Iterator[float]:
    """50 ms, doubled up to 2 s, for ever."""
    delay_s = FIRST_BACKOFF_S
    while True:
        yield delay_s
        delay_s = min(2 * delay_s, LAST_BACKOFF_S)


async def redial(
    source: EndpointSource,
    converse: Callable[[Endpoint, Callable[[], None]], Awaitable[None]],
    report: Callable[[str], None],
) -> None:
    """Asks for the endpoint and converses with it until cancelled, again and again.

    `converse(endpoint, established)` returns or raises when the stream broke; it calls
    `established()` after its Hello was answered, which makes the next wait short again. `report` gets
    the reasons.
    """
    delays_s = backoffs_s()

    def established() -> None:
        nonlocal delays_s
        delays_s = backoffs_s()

    while True:
        try:
            await converse(await source(), established)
            report("the stream ended")
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever broke, the answer is to dial again
            report(explain(error))
        await asyncio.sleep(next(delays_s))


def explain(error: BaseException) -> str:
    """One line about a broken call."""
    if isinstance(error, aio.AioRpcError):
        return f"{error.code().name}: {error.details()}"
    return f"{type(error).__name__}: {error}"


def broken(what: str, error: BaseException | str) -> Unavailable:
    """The error of requests that were open when a stream broke."""
    reason = error if isinstance(error, str) else explain(error)
    return Unavailable(f"{what} ({reason})")
