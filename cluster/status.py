"""Errors as gRPC statuses with google.rpc details. The one place where a code is chosen.

| error             | status              | details                   |
| InvalidRequest    | INVALID_ARGUMENT    | BadRequest                |
| Unsupported       | UNIMPLEMENTED       | BadRequest                |
| NotFound          | NOT_FOUND           |                           |
| AlreadyExists     | ALREADY_EXISTS      |                           |
| Overloaded        | RESOURCE_EXHAUSTED  | QuotaFailure, RetryInfo   |
| DeadlineExceeded  | DEADLINE_EXCEEDED   |                           |
| Cancelled         | CANCELLED           |                           |
| Unavailable       | UNAVAILABLE         | RetryInfo                 |
| CheckpointError   | FAILED_PRECONDITION |                           |
| Internal, others  | INTERNAL            | (text only in the log)    |
"""

from __future__ import annotations

import logging
from typing import Any, NoReturn

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc import aio
from grpc_status import rpc_status

from model.errors import FluytError, InvalidRequest, Overloaded, Unavailable

log = logging.getLogger(__name__)

# Statuses travel in HTTP/2 trailers, and clients refuse more than 8 KiB of them by default. The
# text goes out up to four times: percent-encoded (3 bytes for one), and base64 in the details.
_MAX_TEXT_BYTES = 600
# A front door looks for a scheduler every 2 s at most; sooner is no use.
_UNAVAILABLE_RETRY_S = 1.0


def to_status(error: BaseException) -> status_pb2.Status:
    """The google.rpc.Status that says `error` to a client."""
    if not isinstance(error, FluytError):
        return status_pb2.Status(code=_number("INTERNAL"), message=f"internal error ({type(error).__name__})")
    status = status_pb2.Status(code=_number(error.code), message=_shorten(error.message))
    for detail in _details(error):
        packed = AnyMessage()
        packed.Pack(detail)
        status.details.append(packed)
    return status


async def abort_with(context: aio.ServicerContext[Any, Any], error: BaseException) -> NoReturn:
    """Ends the call with the status of `error`. Anything that is not a FluytError is logged."""
    if not isinstance(error, FluytError):
        log.error("unexpected error in a call", exc_info=error)
    status: Any = rpc_status.to_status(to_status(error))
    await context.abort(status.code, status.details, status.trailing_metadata)
    raise AssertionError("abort returned")


def _details(error: FluytError) -> list[Message]:
    if isinstance(error, InvalidRequest):
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=_shorten(error.field), description=_shorten(error.description)
        )
        return [error_details_pb2.BadRequest(field_violations=[violation])]
    if isinstance(error, Overloaded):
        failure = error_details_pb2.QuotaFailure.Violation(
            subject=error.subject, description=_shorten(error.message)
        )
        return [error_details_pb2.QuotaFailure(violations=[failure]), _retry(error.retry_after_s)]
    if isinstance(error, Unavailable):
        return [_retry(_UNAVAILABLE_RETRY_S)]
    return []


def _retry(delay_s: float) -> error_details_pb2.RetryInfo:
    delay = Duration()
    delay.FromNanoseconds(int(delay_s * 1e9))
    return error_details_pb2.RetryInfo(retry_delay=delay)


def _number(code: str) -> int:
    """The wire's number of a status name."""
    number: int = grpc.StatusCode[code].value[0]
    return number


def _shorten(text: str) -> str:
    """A user's own text comes back in messages: keep it one line, short, and valid UTF-8."""
    line = " ".join(text.split()).encode(errors="replace")
    if len(line) <= _MAX_TEXT_BYTES:
        return line.decode()
    return line[: _MAX_TEXT_BYTES - 3].decode(errors="ignore") + "..."
