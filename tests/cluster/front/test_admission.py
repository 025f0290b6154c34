"""What a front door takes in, and that it forgets what has ended."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack

import pytest

from cluster.admission import Admission, AdmissionLimits
from cluster.identity import Caller, TenantLimits
from model.errors import AlreadyExists, Cancelled, InvalidRequest, Overloaded, Unavailable
from model.types import RequestKey

ANNA = Caller("anna", TenantLimits(max_open_requests=2))
BELA = Caller("bela", TenantLimits(max_open_requests=10))


async def test_a_request_id_is_open_once_per_tenant() -> None:
    admission = Admission(AdmissionLimits())
    with admission.admit(ANNA, "r", 1):
        with pytest.raises(AlreadyExists, match="'r' is open"), admission.admit(ANNA, "r", 1):
            pass
        with admission.admit(BELA, "r", 1):
            assert admission.num_open == 2
    with admission.admit(ANNA, "r", 1):
        assert admission.num_open == 1


async def test_a_full_front_door_names_the_limit() -> None:
    admission = Admission(AdmissionLimits(max_open_requests=1, retry_after_s=3.0))
    with admission.admit(BELA, "a", 1):
        with pytest.raises(Overloaded) as refused, admission.admit(BELA, "b", 1):
            pass
    assert (refused.value.subject, refused.value.retry_after_s) == ("max_open_requests", 3.0)


async def test_one_tenant_cannot_take_every_place() -> None:
    admission = Admission(AdmissionLimits(max_open_requests=8))
    with ExitStack() as stack:
        for name in ("a", "b"):
            stack.enter_context(admission.admit(ANNA, name, 1))
        with pytest.raises(Overloaded) as refused, admission.admit(ANNA, "c", 1):
            pass
        stack.enter_context(admission.admit(BELA, "c", 1))
    assert refused.value.subject == "tenant.max_open_requests"


async def test_messages_held_at_once_are_bounded_in_bytes() -> None:
    admission = Admission(AdmissionLimits(max_open_bytes=100))
    with admission.admit(BELA, "a", 60):
        with pytest.raises(Overloaded, match="100 bytes"), admission.admit(BELA, "b", 41):
            pass
        with admission.admit(BELA, "b", 40):
            pass
    with admission.admit(BELA, "b", 100):
        pass


async def test_image_tokens_held_at_once_are_bounded_and_given_back() -> None:
    admission = Admission(AdmissionLimits(max_open_image_tokens=1000))
    with admission.admit(BELA, "a", 1) as first:
        admission.reserve_image_tokens(first, 700)
        with admission.admit(BELA, "b", 1) as second, pytest.raises(Overloaded, match="image tokens"):
            admission.reserve_image_tokens(second, 301)
    with admission.admit(BELA, "c", 1) as third:
        admission.reserve_image_tokens(third, 1000)
        with pytest.raises(InvalidRequest, match="limit of 1000"):
            admission.reserve_image_tokens(third, 1001)


async def test_a_draining_front_door_takes_nothing_new() -> None:
    admission = Admission(AdmissionLimits())
    with admission.admit(BELA, "a", 1):
        admission.drain()
        with pytest.raises(Unavailable, match="shutting down"), admission.admit(BELA, "b", 1):
            pass
        assert admission.find(RequestKey("bela", "a")) is not None


async def test_an_interrupted_call_ends_with_the_reason_and_is_forgotten() -> None:
    admission = Admission(AdmissionLimits())

    async def call() -> None:
        with admission.admit(BELA, "a", 1):
            await asyncio.sleep(60)

    task = asyncio.create_task(call())
    await asyncio.sleep(0)
    admission.interrupt_all(Cancelled("enough"))
    with pytest.raises(Cancelled, match="enough"):
        await task
    assert admission.num_open == 0


async def test_a_cancelled_call_stays_cancelled() -> None:
    admission = Admission(AdmissionLimits())

    async def call() -> None:
        with admission.admit(BELA, "a", 1):
            await asyncio.sleep(60)

    task = asyncio.create_task(call())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert admission.num_open == 0


def test_a_call_without_a_deadline_gets_the_longest_and_a_longer_one_is_refused() -> None:
    admission = Admission(AdmissionLimits(max_deadline_s=600))
    assert admission.deadline_s(None) == 600
    assert admission.deadline_s(3.5) == 3.5
    with pytest.raises(InvalidRequest, match="max_deadline_s = 600"):
        admission.deadline_s(601)
