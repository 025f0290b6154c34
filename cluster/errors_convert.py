"""Errors of model.errors <-> the message of steps.proto that carries them. Pure functions."""

from __future__ import annotations

from model.errors import (
    AlreadyExists,
    Cancelled,
    CheckpointError,
    DeadlineExceeded,
    FluytError,
    Internal,
    InvalidRequest,
    NotFound,
    Overloaded,
    Unavailable,
    Unsupported,
)
from protos.fluyt.v1 import steps_pb2 as steps

_PLAIN_ERRORS = (
    NotFound,
    AlreadyExists,
    DeadlineExceeded,
    Cancelled,
    Unavailable,
    Internal,
    CheckpointError,
)


def error_to_proto(error: BaseException) -> steps.SequenceError:
    """Any exception; what is not a `FluytError` becomes INTERNAL with its text."""
    if not isinstance(error, FluytError):
        return steps.SequenceError(code=Internal.code, message=f"{type(error).__name__}: {error}")
    message = steps.SequenceError(code=error.code, message=error.message)
    if isinstance(error, InvalidRequest):
        message.field, message.message = error.field, error.description
    if isinstance(error, Overloaded):
        message.retry_after_s, message.subject = error.retry_after_s, error.subject
    return message


def error_from_proto(message: steps.SequenceError) -> FluytError:
    """The error of the same code; an unknown code becomes `Internal`."""
    if message.code == InvalidRequest.code:
        return InvalidRequest(message.field, message.message)
    if message.code == Unsupported.code:
        return Unsupported(message.field, message.message)
    if message.code == Overloaded.code:
        return Overloaded(message.message, message.retry_after_s, message.subject)
    for kind in _PLAIN_ERRORS:
        if message.code == kind.code:
            return kind(message.message)
    return Internal(message.message)
