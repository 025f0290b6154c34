"""Every error of the tree has one status, and its details say what a program needs."""

from __future__ import annotations

import grpc
import pytest
from google.rpc import error_details_pb2

from cluster.status import to_status
from model import errors


def every_error(root: type[errors.FluytError] = errors.FluytError) -> list[type[errors.FluytError]]:
    return [root, *(found for child in root.__subclasses__() for found in every_error(child))]


@pytest.mark.parametrize("kind", every_error())
def test_an_error_has_the_status_of_its_code(kind: type[errors.FluytError]) -> None:
    error = kind("field", "message") if issubclass(kind, errors.InvalidRequest) else kind("message")
    assert to_status(error).code == grpc.StatusCode[kind.code].value[0]


def test_an_invalid_field_is_named_in_the_details() -> None:
    status = to_status(errors.InvalidRequest("sampling.top_p", "0 is not in (0, 1]"))
    bad = error_details_pb2.BadRequest()
    assert status.details[0].Unpack(bad)
    assert [(item.field, item.description) for item in bad.field_violations] == [
        ("sampling.top_p", "0 is not in (0, 1]")
    ]


def test_a_full_queue_says_which_limit_and_when_to_come_back() -> None:
    status = to_status(errors.Overloaded("full", retry_after_s=2.5, subject="queue.max_requests"))
    quota, retry = error_details_pb2.QuotaFailure(), error_details_pb2.RetryInfo()
    assert status.details[0].Unpack(quota)
    assert status.details[1].Unpack(retry)
    assert quota.violations[0].subject == "queue.max_requests"
    assert retry.retry_delay.ToMilliseconds() == 2500


def test_an_unexpected_error_says_nothing_of_its_text() -> None:
    status = to_status(ValueError("the prompt was: secret"))
    assert status.code == grpc.StatusCode.INTERNAL.value[0]
    assert "secret" not in status.message


@pytest.mark.parametrize(
    "text", ["x" * 100_000, "\N{SNOWMAN}" * 100_000, "\ud800 half a pair", "two\r\nlines"]
)
def test_a_users_own_text_in_an_error_fits_into_trailers(text: str) -> None:
    status = to_status(errors.InvalidRequest("messages[0].role", f"{text!s} is unknown"))
    # percent-encoded message + base64 of everything; clients accept 8 KiB of metadata by default
    assert 3 * len(status.message.encode()) + 4 * status.ByteSize() / 3 < 6000
    assert "\n" not in status.message
