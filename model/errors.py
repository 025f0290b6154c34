"""What can go wrong for a user, as one tree.

FluytError                      code on the wire (gRPC status of the same name)
|-- InvalidRequest              INVALID_ARGUMENT     a field is wrong: names field, value, limit
|-- Unsupported                 UNIMPLEMENTED        a field that is known and not served yet
|-- NotFound                    NOT_FOUND
|-- AlreadyExists               ALREADY_EXISTS
|-- Overloaded                  RESOURCE_EXHAUSTED   the queue is full: come back later
|-- DeadlineExceeded            DEADLINE_EXCEEDED
|-- Cancelled                   CANCELLED
|-- Unavailable                 UNAVAILABLE          no gang, no scheduler, draining
|-- Internal                    INTERNAL             ours to mend
`-- CheckpointError             FAILED_PRECONDITION  a checkpoint directory that cannot be served

Programmers' mistakes are `assert`, not these.
"""

from __future__ import annotations

from typing import ClassVar


class FluytError(Exception):
    """Root of every error a user may see. Picklable: Ray and pipes carry it."""

    code: ClassVar[str] = "INTERNAL"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class InvalidRequest(FluytError):  # noqa: N818 - named for what the user did
    """One field of a request is wrong.

    `field` is the path in the request (`sampling.temperature`), `message` says value and limit.
    """

    code = "INVALID_ARGUMENT"

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.description = message

    def __reduce__(self) -> tuple[type[InvalidRequest], tuple[str, str]]:
        return type(self), (self.field, self.description)


class Unsupported(InvalidRequest):
    """A field this version knows and does not serve."""

    code = "UNIMPLEMENTED"


class NotFound(FluytError):  # noqa: N818
    """The thing named does not exist."""

    code = "NOT_FOUND"


class AlreadyExists(FluytError):  # noqa: N818
    """A request of that id is open."""

    code = "ALREADY_EXISTS"


class Overloaded(FluytError):  # noqa: N818
    """The queue is full; `retry_after_s` says when to try again, `subject` which limit."""

    code = "RESOURCE_EXHAUSTED"

    def __init__(self, message: str, retry_after_s: float = 1.0, subject: str = "queue") -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.subject = subject

    def __reduce__(self) -> tuple[type[Overloaded], tuple[str, float, str]]:
        return type(self), (self.message, self.retry_after_s, self.subject)


class DeadlineExceeded(FluytError):  # noqa: N818
    """The caller's deadline passed."""

    code = "DEADLINE_EXCEEDED"


class Cancelled(FluytError):  # noqa: N818
    """The caller went away or reads too slowly."""

    code = "CANCELLED"


class Unavailable(FluytError):  # noqa: N818
    """Nothing can take work at this moment."""

    code = "UNAVAILABLE"


class Internal(FluytError):  # noqa: N818
    """Something of ours broke."""

    code = "INTERNAL"


class CheckpointError(FluytError):
    """A checkpoint directory that cannot be served: says file, tensor, expected and found."""

    code = "FAILED_PRECONDITION"
