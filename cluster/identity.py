"""Who calls: metadata in, `Caller` out. One interceptor does it for every method.

Without configuration everyone is the tenant `local`. Behind a gateway that has checked the caller,
`tenant_header` names the metadata entry it sets; without such a gateway leave it empty, because a
client can write what it likes there.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import grpc
from grpc import aio

from cluster.status import abort_with
from model.errors import InvalidRequest

LOCAL_TENANT = "local"
_MAX_TENANT_BYTES = 128


@dataclass(frozen=True)
class TenantLimits:
    """What one tenant may hold at one front door."""

    max_open_requests: int = 256  # as many as the front door: one tenant alone is not slowed


@dataclass(frozen=True)
class IdentityConfig:
    """Where the tenant's name stands, and what a tenant may do."""

    tenant_header: str = ""
    limits: TenantLimits = field(default_factory=TenantLimits)


@dataclass(frozen=True)
class Caller:
    """Who sent this call."""

    tenant: str
    limits: TenantLimits


_caller: ContextVar[Caller] = ContextVar("fluyt_caller")


def current_caller() -> Caller:
    """The caller of the call being handled. `CallerInterceptor` must be in the server."""
    return _caller.get()


class CallerInterceptor(aio.ServerInterceptor):  # type: ignore[misc, unused-ignore]
    """Resolves the caller once, before any handler runs."""

    def __init__(self, config: IdentityConfig) -> None:
        self._config = config

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Sets the caller, or answers with the reason why there is none."""
        handler = await continuation(handler_call_details)
        try:
            caller = self.resolve(handler_call_details.invocation_metadata or ())
        except InvalidRequest as error:
            return None if handler is None else _refusing(handler, error)
        _caller.set(caller)
        return handler

    def resolve(self, metadata: Any) -> Caller:
        """The caller that `metadata`, pairs of name and value, names. Raises InvalidRequest."""
        header = self._config.tenant_header.lower()
        values = [value for name, value in metadata if header and name == header]
        if not values:
            return Caller(LOCAL_TENANT, self._config.limits)
        tenant = values[0]
        if (
            not isinstance(tenant, str)
            or not tenant.isprintable()
            or not 0 < len(tenant) <= _MAX_TENANT_BYTES
        ):
            raise InvalidRequest(
                header,
                f"a tenant's name has 1 to {_MAX_TENANT_BYTES} printable characters, not {tenant[:200]!r}",
            )
        return Caller(tenant, self._config.limits)


def _refusing(handler: Any, error: InvalidRequest) -> Any:
    """A handler of the same shape as `handler` that answers with `error`."""

    async def refuse(_: Any, context: aio.ServicerContext[Any, Any]) -> None:
        await abort_with(context, error)

    make = (
        grpc.unary_stream_rpc_method_handler
        if handler.response_streaming
        else grpc.unary_unary_rpc_method_handler
    )
    if handler.request_streaming:
        make = (
            grpc.stream_stream_rpc_method_handler
            if handler.response_streaming
            else grpc.stream_unary_rpc_method_handler
        )
    return make(refuse, handler.request_deserializer, handler.response_serializer)
